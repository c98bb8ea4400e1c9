"""Drawing a token from the distribution of a model: inverse CDF at one uniform number a token.

Letters: B rows, V vocabulary, C blocks of v tokens.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

_BLOCK = 256  # v: tokens whose probabilities are summed before any of them is looked at


def draw(logits, uniform, temperature: float):
    """Tokens `[B]` and their log-probabilities from `logits [B, V]` by inverse CDF at `uniform [B]`.

    One uniform number a token, not V of Gumbel noise, and no running sum over the vocabulary: the number first falls
    into a block of it, by the sums of the blocks, and then, where it lies within the block, onto a token.

        probabilities   . : . | : . . | . . :         C blocks
        sums              3       4       5           u = 0.5 of 12: 3 of 4 in the second block
        within              : . .                     3 of 4: its third token
    """
    scaled = logits / (temperature or 1.0)
    most = jnp.max(scaled, axis=-1, keepdims=True)
    blocks = _blocks(scaled - most)  # [B, C, v]
    sums = jnp.sum(jnp.exp(blocks), axis=-1)
    if temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        block, within = _crossing(sums, uniform)
        weights = jnp.exp(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0])
        token = block * blocks.shape[-1] + _crossing(weights, within)[0]
    log_prob = jnp.take_along_axis(scaled - most, token[:, None], axis=-1)[:, 0] - jnp.log(jnp.sum(sums, axis=-1))
    return token.astype(jnp.int32), log_prob


def _blocks(x):
    """`x [B, V]` as `[B, C, v]`; what is left of the last block is impossible.

    Blocks of the next size that leaves nothing, where that is large enough: no copy is made then.
    """
    vocab = x.shape[-1]
    size = math.gcd(vocab, _BLOCK)
    if size < _BLOCK // 4:
        size = min(_BLOCK, vocab)
    x = jnp.pad(x, [(0, 0), (0, -vocab % size)], constant_values=-jnp.inf)
    return x.reshape(len(x), -1, size)


def _crossing(weights, uniform):
    """Where in `weights [B, n]` the running sum passes the share `uniform [B]` of its end, and how far into that one.

    The threshold stays below the end; a weight of zero is ruled out by name, since a sum that is taken in parallel need
    not be monotone.
    """
    running = jnp.cumsum(weights, axis=-1)
    threshold = jnp.minimum(uniform, 1 - 2**-20)[:, None] * running[:, -1:]
    place = jnp.argmax((running > threshold) & (weights > 0), axis=-1)

    def at(x):
        return jnp.take_along_axis(x, place[:, None], axis=-1)
    within = jnp.clip((threshold - (at(running) - at(weights))) / at(weights), 0, 1)
    return place, within[:, 0]


@functools.partial(jax.jit, static_argnames=('rows', 'tokens'))
def turn_noise(seed: int, step, turn: int, rows: int, tokens: int):
    """Uniform numbers `[rows, tokens]`, each a function of (seed, step, turn, row, token) alone."""
    key = jax.random.key(seed)
    for value in (step, turn):
        key = jax.random.fold_in(key, value)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(row_keys)
