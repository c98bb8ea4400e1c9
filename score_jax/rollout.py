"""Multi-turn sampling: prefill, decode, hand over to the next turn on the same cache.

Letters: P problems, B rows (P x K1, after the fork P x K1 x K2), T columns, V vocabulary.

Turn 2 reads the exact tokens of turn 1: every sampled token is read at once, so its keys and values
are in the cache already, and only the instruction is prefilled on top:

    prefill        P P P                  the prompt; the hidden state of its last token says what comes next
    turn 1               a b E            sample, read, sample, read ..., the end token included
    prefill                    i i        the instruction alone
    turn 2                         c ...

Where a chat has a token that closes a turn, it is prefilled before the instruction in the rows whose response was cut
short or ended with another one; like the instruction it is none of the model's own.

A first attempt may be given instead: it is prefilled on top of the prompt, and only what follows is sampled.

Noise is a function of (seed, step, turn, row) alone: one uniform number for each token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from score_jax import model as lm
from score_jax.decode import KEY_AXES, VALUE_AXES, Flight, Static, decode, decode_turn, placed
from score_jax.errors import UserError
from score_jax.model.kernels import SLOTS, decodes
from score_jax.sampling import turn_noise
from score_jax.sharding import batch_shards, check_divisible, named_sharding, on_mesh, own_rows, put_batch, to_host
from score_jax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """`config.rollout` and the parts of the tokenizer that sampling needs.

    Attributes:
      turns: attempts at each problem, N.
      max_tokens: the longest response of a turn, its end token included.
      max_length: tokens of a row at most: prompt, responses and instructions together. The cache has as many
        slots, rounded up to a multiple of `chunk`.
      temperature: of the distribution that is sampled from; 0 takes the likeliest token.
      chunk: tokens decoded before the cache grows and the host looks whether all rows are done; prompts,
        cache and trajectory have widths that are multiples of it.
      end_tokens: ids that end a response.
      pad_token: what fills unused columns; it may be any id, also an end token.
      close_token: put behind a response that does not end with it, before the instruction comes; None: nothing is.
    """

    turns: int
    max_tokens: int
    max_length: int
    temperature: float
    chunk: int
    end_tokens: tuple[int, ...]
    pad_token: int
    close_token: int | None = None

    def __post_init__(self):
        if self.turns < 1 or self.max_tokens < 1 or self.chunk < 1:
            raise UserError(
                f'config.rollout has turns = {self.turns}, max_tokens = {self.max_tokens}, chunk = {self.chunk}; '
                'each must be at least 1.')
        if self.temperature < 0:
            raise UserError(f'config.temperature is {self.temperature}; it must be 0 (greedy) or positive.')

    def check_length(self, prompt: int, instruction: int) -> None:
        """Raises `UserError` for a prompt of so many tokens if its longest trajectory would not fit the cache."""
        instruction += self.close_token is not None
        longest = prompt + self.turns * self.max_tokens + (self.turns - 1) * instruction
        if longest > self.max_length:
            raise UserError(
                f'config.rollout.max_length is {self.max_length}, but a prompt of {prompt} tokens, {self.turns} '
                f'responses of up to {self.max_tokens} and instructions of {instruction} need {longest}; raise it, '
                'or lower config.rollout.max_tokens.')


@flax.struct.dataclass
class _Rows:
    """Rows between two turns: a trajectory being written, and what the next turn stands on."""

    tokens: jax.Array  # [B, T]
    turn: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, T]
    length: jax.Array  # [B] tokens so far
    truncated: jax.Array  # [B, N]
    hidden: jax.Array  # [B, D] of the last token
    cache: tuple[lm.Cache, ...]  # of each layer


@functools.partial(jax.jit, static_argnames=('static', 'rows', 'width', 'turns', 'pad_token'))
def _empty(static: Static, *, rows: int, width: int, turns: int, pad_token: int) -> _Rows:
    return placed(_Rows(
        tokens=jnp.full((rows, width), pad_token, jnp.int32),
        turn=jnp.zeros((rows, width), jnp.int32),
        log_probs=jnp.zeros((rows, width), jnp.float32),
        length=jnp.zeros((rows,), jnp.int32),
        truncated=jnp.zeros((rows, turns), bool),
        hidden=jnp.zeros((rows, static.model.width), static.model.dtype),
        cache=lm.new_caches(static.model, rows, 0)), static.mesh)


@on_mesh
def _read(
    static: Static, params, rows: _Rows, cache, block, block_length, *, room: int, forks: int, turn: int) -> _Rows:
    """`_prefill`, where `cache` is that of `rows`."""
    columns = rows.length[:, None] + jnp.arange(block.shape[1])
    valid = jnp.arange(block.shape[1]) < block_length[:, None]
    places = jnp.arange(len(block))[:, None], jnp.where(valid, columns, rows.tokens.shape[1])
    grow = functools.partial(lm.grow, config=static.model, room=room, local_slots=static.local_slots)
    if cache[0].room:
        cache = grow(cache)
    hidden, cache = lm.forward(params, static.model, block, columns, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(block_length - 1, 0)[:, None, None], axis=1)[:, 0]
    rows = rows.replace(
        tokens=rows.tokens.at[places].set(block, mode='drop'),
        turn=rows.turn.at[places].set(turn, mode='drop'),
        length=rows.length + block_length,
        hidden=jnp.where(block_length[:, None] > 0, last, rows.hidden),
        cache=grow(cache, length=block_length))  # longer ones than that were of no room before
    return placed(jax.tree.map(lambda x: jnp.repeat(x, forks, axis=0), rows), static.mesh)


_STATIC = ('static', 'room', 'forks', 'turn')
_read_apart = jax.jit(_read, static_argnames=_STATIC)
_read_in_place = jax.jit(_read, static_argnames=_STATIC, donate_argnames=('cache',))


def _prefill(
    static: Static, params, rows: _Rows, block, block_length, *, room: int, forks: int, turn: int = 0) -> _Rows:
    """Reads `block [B, I]` (`block_length [B]` of it) behind each row, marks it with `turn`, then forks each row."""
    read = _read_in_place if forks == 1 and rows.cache[0].room == room else _read_apart
    return read(
        static, params, rows.replace(cache=()), rows.cache, block, block_length, room=room, forks=forks, turn=turn)


@functools.partial(jax.jit, static_argnames=('static',))
def _take_off(static: Static, rows: _Rows, uniform, limit, done) -> Flight:
    b, parts = len(rows.length), batch_shards(static.mesh)
    return placed(Flight(
        row=jnp.arange(b) % (b // parts), start=rows.length, limit=limit, uniform=uniform,
        tokens=jnp.zeros(uniform.shape, jnp.int32), log_probs=jnp.zeros(uniform.shape, jnp.float32),
        drawn=jnp.zeros((b,), jnp.int32), done=done, hidden=rows.hidden, cache=rows.cache), static.mesh)


@functools.partial(jax.jit, static_argnames=('static',), donate_argnames=('rows',))
def _land(static: Static, rows: _Rows, flight: Flight, cut, turn) -> _Rows:
    """Writes what was drawn behind each row; `cut [B]` says which responses were given without an end."""
    place = jnp.arange(rows.tokens.shape[1]) - flight.start[:, None]
    inside = (place >= 0) & (place < flight.drawn[:, None])

    def written(there, drawn):
        return jnp.where(inside, jnp.take_along_axis(drawn, place, axis=1, mode='clip'), there)
    ended = (_last(flight.tokens, flight.drawn)[:, None] == jnp.asarray(static.end_tokens)).any(-1)
    return placed(rows.replace(
        tokens=written(rows.tokens, flight.tokens), log_probs=written(rows.log_probs, flight.log_probs),
        turn=jnp.where(inside, turn, rows.turn), length=flight.start + flight.drawn,
        truncated=rows.truncated.at[:, turn - 1].set(jnp.where(flight.drawn > 0, ~ended, cut))), static.mesh)


def _last(tokens, length):
    """`[B]` the last of the first `length [B]` of `tokens [B, T]`."""
    return jnp.take_along_axis(tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)[:, 0]


_last_tokens = jax.jit(lambda rows: _last(rows.tokens, rows.length))
_newest = jax.jit(lambda flight, last: jnp.where(flight.drawn > 0, _last(flight.tokens, flight.drawn), last))


@functools.partial(jax.jit, static_argnames=('static',))
def _for_sampling(static: Static, params):
    # On a CPU it makes no difference.
    joined = jax.default_backend() != 'cpu' and static.mesh.shape['model'] == 1
    return lm.one_by_one(params, static.model, joined)


def local_slots(model: lm.ModelConfig, chunk: int, block: int) -> int | None:
    """The most cache slots of a local layer, where `block` tokens at most are read at once behind others."""
    if not model.window:
        return None
    return _round_up(model.window + block, SLOTS if decodes(model) else chunk)


def abstract_cache(
    model: lm.ModelConfig, mesh: jax.sharding.Mesh, rows: int, room: int, slots: int | None) -> tuple[lm.Cache, ...]:
    """The caches of all layers, keys `[B, K, h, S]` and values `[B, K, S, h]`, as `jax.ShapeDtypeStruct`s with
    shardings; `room` positions fit, and a local layer has `slots` slots at most."""
    def of(cache):
        return cache.replace(
            keys=cache.keys.update(sharding=named_sharding(mesh, KEY_AXES, cache.keys.shape)),
            values=cache.values.update(sharding=named_sharding(mesh, VALUE_AXES, cache.values.shape)))
    return tuple(map(of, jax.eval_shape(lambda: lm.new_caches(model, rows, room, slots))))


def abstract_params(params, model: lm.ModelConfig):
    """What is sampled with, of parameters as `jax.ShapeDtypeStruct`s with shardings."""
    def of_layer(x):
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(x.shape[1:], model.dtype, sharding=sharding)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype, sharding=x.sharding), params)
    return cast | {'layers': (jax.tree.map(of_layer, params['layers']),) * model.layers}


def lower_decode(
    params, model: lm.ModelConfig, rollout: RolloutConfig, mesh: jax.sharding.Mesh, rows: int, room: int,
    slots: int | None):
    """The decode loop, lowered but not run, for `rows` rows with the caches of `abstract_cache`: to look at its memory.

    `params` may be `jax.ShapeDtypeStruct`s with shardings.
    """
    def of(shape, dtype):
        axes = ('batch', *[None] * (len(shape) - 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes, shape))
    row, token = of((rows,), jnp.int32), (rows, rollout.max_tokens)
    flight = Flight(
        row=row, start=row, limit=row, uniform=of(token, jnp.float32), tokens=of(token, jnp.int32),
        log_probs=of(token, jnp.float32), drawn=row, done=of((rows,), bool),
        hidden=of((rows, model.width), model.dtype), cache=abstract_cache(model, mesh, rows, room, slots))
    return decode.lower(
        _static(model, rollout, mesh, slots), abstract_params(params, model), flight, 0, rollout.max_tokens, 0)


def _static(model: lm.ModelConfig, rollout: RolloutConfig, mesh: jax.sharding.Mesh, slots: int | None) -> Static:
    return Static(model, rollout.temperature, rollout.end_tokens, mesh, slots)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def pad_rows(rows: list[list[int]], multiple: int, pad_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as one array `[B, W]`, W the next multiple of `multiple`, and their lengths `[B]`."""
    lengths = np.array([len(row) for row in rows], np.int32)
    block = np.full((len(rows), _round_up(int(lengths.max()), multiple)), pad_token, np.int32)
    for i, row in enumerate(rows):
        block[i, :len(row)] = row
    return block, lengths


def _by_gap(instruction: list[int] | list[list[int]], turns: int) -> list[list[int]]:
    """What stands between turn 1 and 2, 2 and 3, and so on."""
    if not instruction or not isinstance(instruction[0], list):
        return [instruction] * (turns - 1)
    if len(instruction) != turns - 1:
        raise UserError(
            f'{len(instruction)} instructions are given, but config.rollout.turns is {turns}; give {turns - 1}, one '
            'for each gap between two turns.')
    return instruction


def closing(close_token: int | None, last: int) -> list[int]:
    """What is put behind a response whose last token is `last` before the instruction comes."""
    return [] if close_token in (None, last) else [close_token]


def _between(rollout: RolloutConfig, rows: _Rows, gap: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What is prefilled between two turns, `[B, W]` and its lengths; W is the same for all rows and batches."""
    last = to_host(_last_tokens(rows))
    width = len(gap) + (rollout.close_token is not None)
    return pad_rows([closing(rollout.close_token, int(token)) + gap for token in last], width, rollout.pad_token)


def sample(
    params,
    model: lm.ModelConfig,
    rollout: RolloutConfig,
    mesh: jax.sharding.Mesh,
    prompts: list[list[int]],
    instruction: list[int] | list[list[int]],
    *,
    forks: tuple[int, ...],
    seed: int,
    step: int,
    given: list[list[int]] | None = None,
    stop_at: list[int] | None = None,
    on_turn: Callable[[int, Trajectory], None] | None = None,
    on_token: Callable[[np.ndarray], None] | None = None,
) -> Trajectory:
    """Samples every turn of every row.

    Args:
      params: parameters of the policy.
      prompts: P token lists, what turn 1 is sampled from.
      instruction: tokens between a response and the next attempt, the same for every row; one list for all turns, or
        one for each gap between two.
      forks: for each turn, how many responses are sampled from each row of the turn before:
        `(K1, K2)` for K2 second attempts on each of K1 first ones.
      seed, step: what the noise is drawn from, with turn and row.
      given: P * K1 token lists, first attempts that are not sampled; an empty list is sampled like any other.
      stop_at: for each row of every turn (later turns then fork none) the tokens after which its response is cut, where
        those are fewer than `rollout.max_tokens`: what a budget of its own, or a measurement, needs.
      on_turn: called as `on_turn(turn, trajectory)` as soon as a turn is done, with copies on the host; of several
        processes each sees the rows of its `own_problems`. It should hand them to a grader and return, so that grading
        overlaps with the next turn.
      on_token: called after every token with the newest one of each row, `[B]` on the host; a row that is done repeats
        its last. For showing a few rows to a person: it looks at every token, which takes longer.

    Returns:
      The trajectory of `P * prod(forks)` rows, sharded over the mesh's data axes; its width is the longest
      row's length, rounded up to a multiple of `rollout.chunk`.

    Raises:
      UserError: P does not divide over the mesh, `forks` does not name every turn, or `instruction` not every gap.
    """
    gaps = _by_gap(instruction, rollout.turns)
    if not all(prompts) or not all(gaps):
        raise UserError('a prompt or the instruction between two turns is empty; each needs at least one token.')
    if len(forks) != rollout.turns:
        raise UserError(f'forks is {forks}, but config.rollout.turns is {rollout.turns}; give one number a turn.')
    check_divisible('the number of prompts', len(prompts), mesh)
    rollout.check_length(max(map(len, prompts)), max(map(len, gaps), default=0))
    given = given if given and any(given) else None
    _check_given(rollout, given, len(prompts) * forks[0])
    between = [len(gap) + (rollout.close_token is not None) for gap in gaps]
    slots = local_slots(model, rollout.chunk, max([rollout.max_tokens if given else 1, *between]))
    static = _static(model, rollout, mesh, slots)
    params = _for_sampling(static, params)
    block, block_length = pad_rows(prompts, rollout.chunk, rollout.pad_token)
    longest, width = 0, block.shape[1] + rollout.turns * rollout.max_tokens + sum(between)
    width = _round_up(width, rollout.chunk)
    rows = _empty(static, rows=len(prompts), width=width, turns=rollout.turns, pad_token=rollout.pad_token)
    for turn in range(1, rollout.turns + 1):
        longest += int(block_length.max())
        room = max(_round_up(longest + min(rollout.chunk, rollout.max_tokens), rollout.chunk), rows.cache[0].room)
        if decodes(model):  # a slot that is empty costs no time: one program for all lengths, and no copies
            room = _round_up(width, SLOTS)
        rows = _prefill(
            static, params, rows, *put_batch(mesh, (block, block_length)), room=room, forks=forks[turn - 1])
        count = len(rows.length)
        done = cut = np.zeros(count, bool)
        if given and turn == 1:
            block, block_length = pad_rows(given, rollout.max_tokens, rollout.pad_token)
            room = max(_round_up(longest + int(block_length.max()), rollout.chunk), room)
            rows = _prefill(
                static, params, rows, *put_batch(mesh, (block, block_length)), room=room, forks=1, turn=-1)
            done = block_length > 0
            cut = np.array([bool(r) and r[-1] not in rollout.end_tokens for r in given])
        limit = np.minimum(stop_at if stop_at is not None else rollout.max_tokens, rollout.max_tokens)
        # What only passes caches on is not compiled: it would copy them.
        flight = _take_off(
            static, rows.replace(cache=()), turn_noise(seed, step, turn, count, rollout.max_tokens),
            *put_batch(mesh, (np.broadcast_to(limit, count).astype(np.int32), done))).replace(cache=rows.cache)
        rows = rows.replace(cache=())
        last = on_token and _last_tokens(rows)
        flight = decode_turn(
            static, params, flight, longest=longest, tokens=rollout.max_tokens, chunk=rollout.chunk,
            keep_cache=turn < rollout.turns,
            on_token=on_token and (lambda flight: on_token(to_host(_newest(flight, last)))))
        rows = _land(static, rows, flight.replace(cache=()), put_batch(mesh, cut), turn).replace(cache=flight.cache)
        longest = int(rows.length.max())
        if on_turn:
            on_turn(turn, own_rows(mesh, _trajectory(rows, width=rows.tokens.shape[1]), len(prompts)))
        if turn < rollout.turns:
            block, block_length = _between(rollout, rows, gaps[turn - 1])
    return _trajectory(rows, width=_round_up(longest, rollout.chunk))


def _check_given(rollout: RolloutConfig, given: list[list[int]] | None, rows: int) -> None:
    if given and (len(given) != rows or max(map(len, given)) > rollout.max_tokens):
        raise UserError(
            f'{len(given)} first attempts of up to {max(map(len, given))} tokens are given for {rows} rows; there must '
            f'be one for each, of up to config.rollout.max_tokens = {rollout.max_tokens}.')


@functools.partial(jax.jit, static_argnames=('width',))
def _trajectory(rows: _Rows, width: int) -> Trajectory:
    return Trajectory(
        tokens=rows.tokens[:, :width], turn=rows.turn[:, :width], log_probs=rows.log_probs[:, :width],
        length=rows.length, truncated=rows.truncated)
