"""Multi-turn sampling: prefill, decode, hand over to the next turn on the same cache.

Letters: P problems, B rows (P x K1, after the fork P x K1 x K2), T columns, V vocabulary.

Turn 2 reads the exact tokens of turn 1: every sampled token is read at once, so its keys and values
are in the cache already, and only the instruction is prefilled on top:

    prefill        P P P                  the prompt; what comes next is carried as `next_logits`
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

from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.sharding import check_divisible, named_sharding, on_mesh, own_rows, put_batch, to_host
from score_jax.trajectory import Trajectory

CACHE_AXES = ('layers', 'batch', 'slot', 'kv_heads', 'head_dim')  # of its keys and values


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """`config.rollout` and the parts of the tokenizer that sampling needs.

    Attributes:
      turns: attempts at each problem, N.
      max_tokens: the longest response of a turn, its end token included.
      max_length: tokens of a row at most: prompt, responses and instructions together. The cache has as many
        slots, rounded up to a multiple of `chunk`.
      temperature: of the law that is sampled from; 0 takes the likeliest token.
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
class _State:
    """Rows in flight: a trajectory being written, and what the next step needs."""

    tokens: jax.Array  # [B, T]
    turn: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, T]
    length: jax.Array  # [B] tokens so far
    truncated: jax.Array  # [B, N]
    done: jax.Array  # [B] this turn's response has ended
    count: jax.Array  # [] tokens sampled in this turn
    next_logits: jax.Array  # [B, V] law of the next token
    cache: lm.Cache

    def on(self, mesh) -> _State:
        """The same state, rows over the mesh's data axes and KV heads over `model`."""
        def constrain(axes):
            return lambda x: jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes[:x.ndim], x.shape))
        rows = jax.tree.map(constrain(('batch', None)), self.replace(cache=None, count=None))
        cache = jax.tree.map(constrain(CACHE_AXES), self.cache)
        return rows.replace(cache=cache, count=self.count)


def token_law(logits, temperature: float):
    """Log-probabilities of the law that is sampled from and learned, `[..., V]` (temperature 0 means 1)."""
    return jax.nn.log_softmax(logits / (temperature or 1.0), axis=-1)


def _sample(logits, uniform, temperature: float):
    """Tokens `[B]` and their log-probabilities from `logits [B, V]` by inverse CDF at `uniform [B]`.

    One uniform number a token, not V of Gumbel noise. The threshold stays below the total; a token of
    probability zero is ruled out by name, since a sum that is taken in parallel need not be monotone.
    """
    law = token_law(logits, temperature)
    if temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        probs = jnp.exp(law)
        cumulative = jnp.cumsum(probs, axis=-1)
        threshold = jnp.minimum(uniform, 1 - 2**-20)[:, None] * cumulative[:, -1:]
        token = jnp.argmax((cumulative > threshold) & (probs > 0), axis=-1)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(law, token[:, None], axis=-1)[:, 0]


@functools.partial(jax.jit, static_argnames=('rows', 'tokens'))
def turn_noise(seed: int, step, turn: int, rows: int, tokens: int):
    """Uniform numbers `[rows, tokens]`, each a function of (seed, step, turn, row, token) alone."""
    key = jax.random.key(seed)
    for value in (step, turn):
        key = jax.random.fold_in(key, value)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(row_keys)


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the compiled functions below are specialised to."""

    model: lm.ModelConfig
    rollout: RolloutConfig
    mesh: jax.sharding.Mesh


@functools.partial(jax.jit, static_argnames=('static', 'rows', 'width'))
def _empty(static: _Static, rows: int, width: int) -> _State:
    return _State(
        tokens=jnp.full((rows, width), static.rollout.pad_token, jnp.int32),
        turn=jnp.zeros((rows, width), jnp.int32),
        log_probs=jnp.zeros((rows, width), jnp.float32),
        length=jnp.zeros((rows,), jnp.int32),
        truncated=jnp.zeros((rows, static.rollout.turns), bool),
        done=jnp.zeros((rows,), bool),
        count=jnp.zeros((), jnp.int32),
        next_logits=jnp.zeros((rows, static.model.vocab_size), jnp.float32),
        cache=lm.new_cache(static.model, rows, 0)).on(static.mesh)


@functools.partial(jax.jit, static_argnames=('static', 'slots', 'forks', 'turn'))
@on_mesh
def _prefill(
    static: _Static, params, state: _State, block, block_length, *, slots: int, forks: int, turn: int = 0) -> _State:
    """Reads `block [B, I]` (`block_length [B]` of it) behind each row, then forks each row `forks` times.

    Its tokens are marked with `turn`. Under a mark below 0 they are responses: rows that have one are done with it.
    """
    columns = state.length[:, None] + jnp.arange(block.shape[1])
    valid = jnp.arange(block.shape[1]) < block_length[:, None]
    rows = jnp.arange(block.shape[0])
    hidden, cache = lm.forward(params, static.model, block, columns, lm.grow(state.cache, slots))
    places = rows[:, None], jnp.where(valid, columns, state.tokens.shape[1])
    some = block_length > 0
    state = state.replace(
        tokens=state.tokens.at[places].set(block, mode='drop'),
        turn=state.turn.at[places].set(turn, mode='drop'),
        length=state.length + block_length,
        done=some & (turn < 0),
        next_logits=jnp.where(
            some[:, None], lm.logits(params, static.model, hidden[rows, block_length - 1]), state.next_logits))

    def fork(tree, axis):
        return jax.tree.map(lambda x: jnp.repeat(x, forks, axis), tree)
    state = fork(state.replace(cache=None, count=None), axis=0)
    return state.replace(cache=fork(cache, axis=1), count=jnp.zeros((), jnp.int32)).on(static.mesh)


@functools.partial(jax.jit, static_argnames=('static', 'slots'))
def _grow(static: _Static, state: _State, *, slots: int) -> _State:
    return state.replace(cache=lm.grow(state.cache, slots)).on(static.mesh)


@functools.partial(jax.jit, static_argnames=('static',), donate_argnames=('state',))
@on_mesh
def _decode(static: _Static, params, state: _State, uniform, turn, until) -> _State:
    """Samples until `until` tokens of this turn are drawn or every row is done."""
    rows = jnp.arange(state.length.shape[0])
    end_tokens = jnp.asarray(static.rollout.end_tokens)

    def step(state: _State) -> _State:
        token, log_prob = _sample(state.next_logits, uniform[:, state.count], static.rollout.temperature)
        # Finished rows write nothing; the slot that their cache writes is their next, still unread one.
        column = jnp.where(state.done, state.tokens.shape[1], state.length)
        hidden, cache = lm.forward(params, static.model, token[:, None], state.length[:, None], state.cache)
        return state.replace(
            tokens=state.tokens.at[rows, column].set(token, mode='drop'),
            turn=state.turn.at[rows, column].set(turn, mode='drop'),
            log_probs=state.log_probs.at[rows, column].set(log_prob, mode='drop'),
            length=state.length + ~state.done,
            done=state.done | (token[:, None] == end_tokens).any(-1),
            count=state.count + 1,
            next_logits=lm.logits(params, static.model, hidden[:, 0]),
            cache=cache)

    state = jax.lax.while_loop(lambda s: (s.count < until) & ~s.done.all(), step, state)
    return state.replace(truncated=state.truncated.at[:, turn - 1].set(~state.done)).on(static.mesh)


def abstract_cache(model: lm.ModelConfig, mesh: jax.sharding.Mesh, rows: int, slots: int) -> lm.Cache:
    """A cache `[L, B, S, K, h]` as `jax.ShapeDtypeStruct`s with shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named_sharding(mesh, CACHE_AXES, x.shape)),
        jax.eval_shape(lambda: lm.new_cache(model, rows, slots)))


def lower_decode(params, model: lm.ModelConfig, rollout: RolloutConfig, mesh: jax.sharding.Mesh, rows: int, slots: int):
    """The decode loop, lowered but not run, for `rows` rows with a cache of `slots` slots: to look at its memory.

    `params` may be `jax.ShapeDtypeStruct`s with shardings.
    """
    static = _Static(model, rollout, mesh)

    def place(x):
        axes = ('batch', None)[:x.ndim]
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named_sharding(mesh, axes, x.shape))
    state = jax.eval_shape(lambda: _empty.__wrapped__(static, rows, slots))
    uniform = jax.ShapeDtypeStruct((rows, rollout.max_tokens), jnp.float32)
    state, uniform = jax.tree.map(place, (state.replace(cache=None), uniform))
    state = state.replace(cache=abstract_cache(model, mesh, rows, slots))
    return _decode.lower(static, params, state, uniform, 1, rollout.chunk)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _give(static: _Static, params, state: _State, given: list[list[int]], longest: int) -> _State:
    """Reads a response of turn 1 behind each row that has one in `given`; they are not forked."""
    rollout, width = static.rollout, _round_up(static.rollout.max_tokens, static.rollout.chunk)
    if len(given) != len(state.length) or max(map(len, given)) > rollout.max_tokens:
        raise UserError(
            f'{len(given)} first attempts of up to {max(map(len, given))} tokens are given for {len(state.length)} '
            f'rows; there must be one for each, of up to config.rollout.max_tokens = {rollout.max_tokens}.')
    slots = _round_up(longest + width, rollout.chunk)
    block, length = put_batch(static.mesh, pad_rows(given, width, rollout.pad_token))
    return _prefill(static, params, state, block, length, slots=slots, forks=1, turn=-1)


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


@jax.jit
def _last_tokens(state: _State) -> jax.Array:
    return jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)[:, 0]


def _between(rollout: RolloutConfig, state: _State, gap: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What is prefilled between two turns, `[B, W]` and its lengths; W is the same for all rows and batches."""
    last = to_host(_last_tokens(state))
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
    static = _Static(model, rollout, mesh)
    block, block_length = pad_rows(prompts, rollout.chunk, rollout.pad_token)
    longest, closes = 0, rollout.close_token is not None
    width = block.shape[1] + rollout.turns * rollout.max_tokens + sum(len(gap) + closes for gap in gaps)
    state = _empty(static, len(prompts), _round_up(width, rollout.chunk))
    for turn in range(1, rollout.turns + 1):
        slots = max(_round_up(longest + block.shape[1], rollout.chunk), state.cache.slots)
        state = _prefill(
            static, params, state, *put_batch(mesh, (block, block_length)), slots=slots, forks=forks[turn - 1])
        rows = state.length.shape[0]
        uniform = turn_noise(seed, step, turn, rows, rollout.max_tokens)
        longest += int(block_length.max())
        responses = given if given and turn == 1 else []
        if any(responses):
            state = _give(static, params, state, responses, longest)
        pace = 1 if on_token else rollout.chunk
        for start in range(0, 0 if responses and all(responses) else rollout.max_tokens, pace):
            until = min(start + pace, rollout.max_tokens)
            needed = _round_up(longest + until, rollout.chunk)
            if needed > state.cache.slots:
                state = _grow(static, state, slots=needed)
            state = _decode(static, params, state, uniform, turn, until)
            if on_token:
                on_token(to_host(_last_tokens(state)))
            if bool(state.done.all()):
                break
        if any(responses):
            cut = np.array([bool(r) and r[-1] not in rollout.end_tokens for r in responses])
            state = state.replace(truncated=state.truncated.at[:, 0].set(put_batch(mesh, cut) | state.truncated[:, 0]))
        longest = int(state.length.max())
        if on_turn:
            on_turn(turn, own_rows(mesh, _trajectory(state, width=state.tokens.shape[1]), len(prompts)))
        if turn < rollout.turns:
            block, block_length = _between(rollout, state, gaps[turn - 1])
    return _trajectory(state, width=_round_up(longest, rollout.chunk))


@functools.partial(jax.jit, static_argnames=('width',))
def _trajectory(state: _State, width: int) -> Trajectory:
    return Trajectory(
        tokens=state.tokens[:, :width], turn=state.turn[:, :width], log_probs=state.log_probs[:, :width],
        length=state.length, truncated=state.truncated)
