"""How the rows of a trajectory are read: each by itself, several behind each other, or shared turns once for all.

A layout says where the hidden state at each token is found, and gives every row the statistics of what it shares.

Letters: B rows, T columns, G shards of the batch, N hidden states of a shard, D width.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from score_jax import model as lm
from score_jax.sharding import batch_shards, put_batch, spread, to_host
from score_jax.trajectory import Trajectory, turn_ends


@flax.struct.dataclass
class Rows:
    """Each row by itself."""

    def size(self, trajectory: Trajectory, shards: int) -> int:
        """G * N, tokens that are read, padding included."""
        return trajectory.tokens.size

    def hidden(self, params, config: lm.ModelConfig, trajectory: Trajectory, shards: int, remat: str):
        """Hidden states `[G, N, D]` of every token that is read."""
        tokens = trajectory.tokens
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return _by_shard(lm.forward(params, config, tokens, positions, remat=remat)[0], shards)

    def number(self, trajectory: Trajectory, shards: int):
        """For each token `[B, T]` which of its shard's hidden states is the one at it."""
        rows, columns = trajectory.tokens.shape
        return _local(rows, shards) * columns + jnp.arange(columns)

    def read_once(self, trajectory: Trajectory):
        """`[B, T]`, False where another row has the same token and is read in its place."""
        return jnp.ones(trajectory.tokens.shape, bool)

    def spread(self, trajectory: Trajectory, stats):
        """Statistics `[B, T]` of all rows from those of what is read once."""
        return stats


@flax.struct.dataclass
class Packed(Rows):
    """Each row by itself, but several behind each other where they fit into the width of the longest:

        0 0 0 0 0 0 0 0 0 0
        1 1 1 1 1 1 2 2 2 .       no token sees another row's
        3 3 3 3 4 4 4 5 5 5

    Attributes:
      starts: `[B]`, where each row begins among its shard's tokens.
      rows: that the rows of a shard are packed into.
    """

    starts: jax.Array
    rows: int = flax.struct.field(pytree_node=False)

    def size(self, trajectory: Trajectory, shards: int) -> int:
        """As `Rows.size`."""
        return shards * self.rows * trajectory.tokens.shape[1]

    def hidden(self, params, config: lm.ModelConfig, trajectory: Trajectory, shards: int, remat: str):
        """As `Rows.hidden`."""
        rows, width = trajectory.tokens.shape
        columns = jnp.broadcast_to(jnp.arange(width), (rows, width))
        place = jnp.where(columns < trajectory.length[:, None], self.number(trajectory, shards), self.rows * width)

        @jax.vmap
        def pack(place, x):
            return jnp.zeros(self.rows * width, x.dtype).at[place].set(x, mode='drop')

        def packed(x):
            x = pack(place.reshape(shards, -1), x.reshape(shards, -1))
            return spread(x.reshape(shards * self.rows, width), ('batch', None))
        row = jnp.broadcast_to(1 + _local(rows, shards), columns.shape)  # padding is of row 0
        hidden, _ = lm.forward(
            params, config, packed(trajectory.tokens), packed(columns), segments=packed(row), remat=remat)
        return _by_shard(hidden, shards)

    def number(self, trajectory: Trajectory, shards: int):
        """As `Rows.number`."""
        return self.starts[:, None] + jnp.arange(trajectory.tokens.shape[1])


@flax.struct.dataclass
class Tree:
    """Each turn once for all rows that share it.

    As in the rollout, a turn's rows are forked, and what comes next is read behind their keys and values:

        turn 1    P P P a b E                       [P * K1] rows
        turn 2                i i c d E             [P * K1 * K2] rows

    Attributes:
      forks: `(K1, K2, ...)`, as in `rollout.sample`.
      widths: by turn, columns of its block: at least what any row adds.
    """

    forks: tuple[int, ...] = flax.struct.field(pytree_node=False)
    widths: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def _sharing(self, turn: int) -> int:
        """Rows of the trajectory that a row of turn `turn` (0 for the first) stands for."""
        return math.prod(self.forks[turn + 1:])

    def size(self, trajectory: Trajectory, shards: int) -> int:
        """As `Rows.size`."""
        return sum(len(trajectory.tokens) // self._sharing(turn) * width for turn, width in enumerate(self.widths))

    def hidden(self, params, config: lm.ModelConfig, trajectory: Trajectory, shards: int, remat: str):
        """As `Rows.hidden`, turn behind turn."""
        starts, blocks, prefix = _turn_starts(trajectory), [], None
        for turn, width in enumerate(self.widths):
            sharing = self._sharing(turn)
            start = starts[turn][::sharing]
            positions = start + jnp.arange(width)
            block = jnp.take_along_axis(trajectory.tokens[::sharing], positions, axis=1, mode='clip')
            if turn == 0:
                prefix = lm.no_prefix(config, len(block))
            else:
                prefix = _forked(prefix, self.forks[turn], start)
            hidden, prefix = lm.forward(params, config, block, positions, prefix, remat=remat)
            blocks.append(_by_shard(hidden, shards))
        return jnp.concatenate(blocks, axis=1)

    def number(self, trajectory: Trajectory, shards: int):
        """As `Rows.number`."""
        rows, columns = trajectory.tokens.shape
        starts, local, before, number = _turn_starts(trajectory), _local(rows, shards), 0, 0
        for turn, width in enumerate(self.widths):
            sharing = self._sharing(turn)
            own = before + local // sharing * width + jnp.arange(columns) - starts[turn]
            number = jnp.where(jnp.arange(columns) >= starts[turn], own, number)
            before += rows // shards // sharing * width
        return number

    def read_once(self, trajectory: Trajectory):
        """As `Rows.read_once`."""
        rows = jnp.arange(len(trajectory.tokens))[:, None]
        return sum(
            inside & (rows % self._sharing(turn) == 0) for turn, inside in enumerate(_turns(trajectory))).astype(bool)

    def spread(self, trajectory: Trajectory, stats):
        """As `Rows.spread`."""
        def of(x):
            total = 0.0
            for turn, inside in enumerate(_turns(trajectory)):
                first = x.reshape(-1, self._sharing(turn), x.shape[1])[:, :1]
                shared = jnp.broadcast_to(first, (len(first), self._sharing(turn), x.shape[1])).reshape(x.shape)
                total += jnp.where(inside, shared, 0.0)
            return total
        return jax.tree.map(of, stats)


def _forked(prefix: lm.Prefix, fork: int, start) -> lm.Prefix:
    """What each row's `fork` next ones are read behind: it ends at their `start [B * fork, 1]`."""
    keys, values = (jnp.repeat(x, fork, axis=1) for x in (prefix.keys, prefix.values))
    positions = jnp.repeat(prefix.positions, fork, axis=0)
    return lm.Prefix(keys, values, jnp.where(positions < start, positions, lm.UNSEEN))


def _by_shard(hidden, shards: int):
    return hidden.reshape(shards, -1, hidden.shape[-1])


def _local(rows: int, shards: int):
    """The number `[B, 1]` of each row in its shard."""
    return (jnp.arange(rows) % (rows // shards))[:, None]


def _turn_starts(trajectory: Trajectory) -> list:
    """By turn, the column `[B, 1]` where what is read for it begins: the prompt or the instruction."""
    return [jnp.zeros_like(trajectory.length)[:, None], *(end[:, None] for end in turn_ends(trajectory)[:-1])]


def _turns(trajectory: Trajectory) -> list:
    """By turn, `[B, T]`: whether the token is of its prompt, instruction or response."""
    columns, ends = jnp.arange(trajectory.tokens.shape[1]), [end[:, None] for end in turn_ends(trajectory)]
    return [(columns >= start) & (columns < end) for start, end in zip(_turn_starts(trajectory), ends)]


def padding(layout: Rows | Tree, trajectory: Trajectory, shards: int):
    """The share of what is read that is no token of any row."""
    inside = jnp.arange(trajectory.tokens.shape[1]) < trajectory.length[:, None]
    return 1 - jnp.sum(inside & layout.read_once(trajectory)) / layout.size(trajectory, shards)


def split(x, problems: int, parts: int):
    """`[B, ...]`, B / problems rows of each problem side by side, as `[A, B / A, ...]`: A parts of the problems.

    Problem p goes to part p % A, so no row leaves its device.
    """
    x = x.reshape(problems // parts, parts, -1, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])


def choose(
    trajectory: Trajectory, forks: tuple[int, ...], multiple: int, *, mesh: jax.sharding.Mesh, parts: int = 1,
) -> Rows | Tree:
    """The layout for a trajectory, from its lengths, which are read on the host.

    Args:
      multiple: widths of shared turns are rounded up to one, so that few programs are compiled.
      parts: of the batch, which are read one after another.
    """
    rows, width = trajectory.tokens.shape
    if any(fork > 1 for fork in forks[1:]):
        ends = np.stack([np.zeros(rows, np.int32), *to_host(turn_ends(trajectory))])
        longest = np.diff(ends, axis=0).max(axis=1)
        return Tree(forks, tuple(int(min(-(-n // multiple) * multiple, width)) for n in longest))
    problems, shards = rows // math.prod(forks), batch_shards(mesh)
    groups = split(np.arange(rows), problems, parts).reshape(parts * shards, -1)  # rows that are packed together
    lengths, starts, needed = to_host(trajectory.length), np.zeros(rows, np.int32), 0
    for group in groups:
        starts[group], used = pack(lengths[group], width)
        needed = max(needed, used)
    step = max(groups.shape[1] // 16, 1)  # few sizes, so that few programs are compiled
    packed = -(-needed // step) * step
    return Packed(put_batch(mesh, starts), packed) if packed < groups.shape[1] else Rows()


def pack(lengths, width: int) -> tuple[np.ndarray, int]:
    """Where each row begins, `[B]`, when rows of `lengths [B]` lie behind each other in rows of `width`, and how many
    those are.

    The longest first, each into the first row that has room: at most 11/9 of the fewest that would do, and one.
    """
    starts, used = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int64)
    for row in np.argsort(-lengths, kind='stable'):
        into = int(np.argmax(used + lengths[row] <= width))
        starts[row] = into * width + used[into]
        used[into] += lengths[row]
    return starts, int(np.sum(used > 0))
