"""The decode loop: the rows of one turn, from their first token to the last of the longest.

Letters: B rows of the turn, b <= B of them in flight, M tokens of a response at most, D width, S cache slots.

A step draws one token in every row in flight and reads it. Rows that are done are of no use there, so whenever few
enough are left, those are picked and go on alone; the others are parked with what they have (B = 8, E: the end):

    rows     0 1 2 3 4 5 6 7          0 1 2 3 4 5 6 7           0 1 2 3 4 5 6 7
    drawn    a a a a a a a a          a a E a a E E a           a a E a a E E a   parked
             b b E b b E E b    ->    b b   b b     b     ->      c   d     e     in flight: rows 1 3 4 7
             c E   c c     c          c E   c c     c             d   E     E

At the end all that was drawn lands in its rows, and so does the cache where another turn is to follow. Rows stay on
their devices: each of the parts that the batch is divided into picks as many.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from score_jax import model as lm
from score_jax.sampling import draw
from score_jax.sharding import batch_shards, named_sharding, on_mesh

KEY_AXES = ('batch', 'kv_heads', 'head_dim', 'slot')  # of a layer's keys in the cache
VALUE_AXES = ('batch', 'kv_heads', 'slot', 'head_dim')
_FEWEST = 8  # rows of a part: fewer cost as much as these


@dataclasses.dataclass(frozen=True)
class Static:
    """What the compiled functions are specialised to."""

    model: lm.ModelConfig
    temperature: float
    end_tokens: tuple[int, ...]
    mesh: jax.sharding.Mesh
    local_slots: int | None  # as in `model.grow`


@flax.struct.dataclass
class Flight:
    """Rows of a turn and what is drawn in them; of those that are parked, all B.

    Attributes:
      row: `[b]` which of the rows of its part of the batch it is.
      start: `[b]` tokens of the row before this turn.
      limit: `[b]` tokens that the response may have.
      uniform: `[b, M]` what the tokens are drawn with.
      tokens, log_probs: `[b, M]`, of the response so far.
      drawn: `[b]` how many those are.
      done: `[b]` the response has ended, or is as long as it may be.
      hidden: `[b, D]` of the last token that was read.
      cache: of each layer; with slots that rows of this turn share.
    """

    row: jax.Array
    start: jax.Array
    limit: jax.Array
    uniform: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    drawn: jax.Array
    done: jax.Array
    hidden: jax.Array
    cache: tuple[lm.Cache, ...]


def placed(tree, mesh):
    """Arrays `[B, ...]` with rows over the mesh's data axes, and the KV heads of a cache over `model`."""
    def constrain(x, axes):
        return jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes, x.shape))

    def of(x):
        if isinstance(x, lm.Cache):
            return x.replace(keys=constrain(x.keys, KEY_AXES), values=constrain(x.values, VALUE_AXES))
        return constrain(x, ('batch', *[None] * (x.ndim - 1)))
    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, lm.Cache))


@functools.partial(jax.jit, static_argnames=('static',), donate_argnames=('flight',))
@on_mesh
def decode(static: Static, params, flight: Flight, count, until, fewer):
    """Draws from token number `count` of the turn on, until it is `until` or no part has more than `fewer` rows left.

    Returns:
      the rows, the tokens drawn in the turn, and how many rows are not done, `[]`: of the part with the most.
    """
    end_tokens = jnp.asarray(static.end_tokens)

    def left(done):
        return jnp.max(jnp.sum(~done.reshape(batch_shards(static.mesh), -1), axis=1))

    def step(carry):
        flight, count, _ = carry
        token, log_prob = draw(
            lm.logits(params, static.model, flight.hidden), flight.uniform[:, count], static.temperature)
        # A row that is done draws as well, and nobody looks; its cache writes where its next token will stand.
        hidden, cache = lm.forward(
            params, static.model, token[:, None], (flight.start + flight.drawn)[:, None], flight.cache)
        drawn = flight.drawn + ~flight.done
        done = flight.done | (token[:, None] == end_tokens).any(-1) | (drawn >= flight.limit)
        return flight.replace(
            tokens=flight.tokens.at[:, count].set(token), log_probs=flight.log_probs.at[:, count].set(log_prob),
            drawn=drawn, done=done, hidden=hidden[:, 0], cache=cache), count + 1, left(done)

    flight, count, live = jax.lax.while_loop(
        lambda carry: (carry[1] < until) & (carry[2] > fewer), step, (flight, count, left(flight.done)))
    return placed(flight, static.mesh), count, live


@functools.partial(jax.jit, static_argnames=('static', 'rows'))
def _pick(static: Static, flight: Flight, *, rows: int) -> Flight:
    """Of each part `rows` rows, those that are not done first."""
    def of_part(part):
        chosen = jnp.argsort(part.done, stable=True)[:rows]
        return jax.tree.map(lambda x: x[chosen], part)
    return placed(_joined(jax.vmap(of_part)(_parts(static, flight))), static.mesh)


@functools.partial(jax.jit, static_argnames=('static',), donate_argnames=('parked',))
def _settle(static: Static, parked: Flight, flight: Flight) -> Flight:
    """What is parked, with the rows in flight as they are now."""
    def of_part(parked, flight):
        return jax.tree.map(lambda there, here: there.at[flight.row].set(here), parked, flight)
    settled = jax.vmap(of_part)(_parts(static, parked), _parts(static, flight))
    return placed(_joined(settled), static.mesh)


def _parts(static: Static, tree):
    shards = batch_shards(static.mesh)
    return jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), tree)


def _joined(tree):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


@functools.partial(jax.jit, static_argnames=('static', 'room'))
def _grow(static: Static, flight: Flight, *, room: int) -> Flight:
    return placed(flight.replace(cache=lm.grow(flight.cache, static.model, room, static.local_slots)), static.mesh)


def _fewer(rows: int) -> int:
    """The next number of rows below: of 2, 1.5, 1 and so on; 0 below `_FEWEST`."""
    below = [n for k in range(rows.bit_length()) for n in (2**k, 3 * 2**k // 2) if _FEWEST <= n < rows]
    return max(below, default=0)


def decode_turn(
    static: Static, params, flight: Flight, *, longest: int, tokens: int, chunk: int, keep_cache: bool,
    on_token: Callable[[Flight], None] | None = None) -> Flight:
    """Draws up to `tokens` tokens in each row that is not done.

    Args:
      longest: the most tokens that a row had before this turn.
      chunk: tokens that the cache grows by; rows are left behind only where as many tokens may still follow.
      keep_cache: the caches of all rows are wanted afterwards. Otherwise that of none is there.
      on_token: called after every token with the rows, all of which then stay in flight.
    """
    parked, count, live = None, 0, len(flight.row)

    def settled():
        if parked is None:
            return flight
        if not keep_cache:
            return _settle(static, parked, flight.replace(cache=()))
        return _settle(static, _grow(static, parked, room=flight.cache[0].room), flight)

    while count < tokens and live:
        if count + longest == flight.cache[0].room:
            flight = _grow(static, flight, room=flight.cache[0].room + chunk)
        parts = batch_shards(static.mesh)
        fewer = 0 if on_token or tokens - count <= chunk else _fewer(len(flight.row) // parts)
        until = min(flight.cache[0].room - longest, tokens, count + 1 if on_token else tokens)
        flight, count, live = decode(static, params, flight, count, until, fewer)
        count, live = int(count), int(live)
        if on_token:
            on_token(flight)
        elif 0 < live <= fewer:
            parked = settled()
            while _fewer(fewer) >= live:  # as several may end with one token
                fewer = _fewer(fewer)
            flight = _pick(static, flight, rows=fewer)
            if not keep_cache:
                parked = parked.replace(cache=())
    flight = settled()
    return flight if keep_cache else flight.replace(cache=())
