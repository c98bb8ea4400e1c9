"""What a law says of the tokens that were drawn from it: log-probabilities, entropy and KL without `[B, T, V]`.

Letters: B rows, T tokens, C chunks of t tokens, D width, V vocabulary, N turns.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from score_jax import model as lm
from score_jax.sampling import token_law
from score_jax.trajectory import Trajectory, turn_ends


@flax.struct.dataclass
class TokenStatistics:
    """For each token `[B, T]` what the law that it was drawn from says; column 0 has none and is 0."""

    log_probs: jax.Array
    reference_log_probs: jax.Array  # the policy's own without a reference
    entropy: jax.Array
    kl: jax.Array  # KL(policy || reference) over the vocabulary; 0 without a reference


def token_statistics(
    params, config: lm.ModelConfig, tokens, *, temperature: float, head_chunk: int, reference=None,
    remat: str = 'products',
) -> TokenStatistics:
    """Log-probability, entropy and KL at every token of `tokens [B, T]`.

    `temperature` is that of the sampler: learned is the law that was sampled from. `reference` are the frozen
    parameters, in any float type; no gradient flows into them.
    """
    models = _with_reference(params, reference)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = [lm.forward(p, config, tokens, positions, remat=remat)[0] for p in models]
    return _statistics(models, config, hidden, tokens, temperature, head_chunk)


def tree_statistics(
    params, config: lm.ModelConfig, trajectory: Trajectory, forks: tuple[int, ...], widths: tuple[int, ...], *,
    temperature: float, head_chunk: int, reference=None, remat: str = 'products',
) -> TokenStatistics:
    """`token_statistics` of a trajectory in which rows share turns: each turn is read once for all rows that share it.

    As in the rollout, a turn's rows are forked with their cache, and what comes next is read on top of it:

        turn 1    P P P a b E                       [P * K1] rows
        turn 2                i i c d E             [P * K1 * K2] rows

    The first token of an instruction, which nobody sampled, has no statistics: they are 0.

    Args:
      forks: `(K1, K2, ...)`, as in `rollout.sample`.
      widths: `shared_widths` of the trajectory.
    """
    models, (batch, length) = _with_reference(params, reference), trajectory.tokens.shape
    columns, ends = jnp.arange(length), jnp.stack([jnp.zeros_like(trajectory.length), *turn_ends(trajectory)])
    caches = [lm.stacked(lm.new_cache(config, batch // math.prod(forks), 0), config.layers) for _ in models]
    parts = []
    for turn, (width, fork) in enumerate(zip(widths, forks)):
        sharing = math.prod(forks[turn + 1:])  # rows of the trajectory that a row of this turn stands for
        start = ends[turn][:, None]
        positions = start[::sharing] + jnp.arange(width)
        block = jnp.take_along_axis(trajectory.tokens[::sharing], positions, axis=1, mode='clip')
        slots = min(length, caches[0].slots + width)
        caches = [_fork(lm.grow(cache, slots), fork) for cache in caches]
        hidden, caches = zip(*(
            lm.forward(p, config, block, positions, cache, remat=remat) for p, cache in zip(models, caches)))
        stats = _statistics(models, config, hidden, block, temperature, head_chunk)
        inside = (columns >= start) & (columns < ends[turn + 1][:, None])
        parts.append(_placed(stats, sharing, jnp.clip(columns - start, 0, width - 1), inside))
    return jax.tree.map(lambda *values: sum(values), *parts)


def _with_reference(params, reference) -> list:
    return [params] if reference is None else [params, jax.lax.stop_gradient(reference)]


def _fork(cache: lm.Cache, forks: int) -> lm.Cache:
    return jax.tree.map(lambda x: jnp.repeat(x, forks, axis=1), cache)


def _placed(stats: TokenStatistics, sharing: int, place, inside) -> TokenStatistics:
    """Statistics of a turn in the columns where its rows have it; `place`, `inside` `[B, T]`."""
    def of(x):
        return jnp.where(inside, jnp.take_along_axis(jnp.repeat(x, sharing, axis=0), place, axis=1), 0.0)
    return jax.tree.map(of, stats)


def _statistics(models, config: lm.ModelConfig, hidden, tokens, temperature: float, head_chunk: int) -> TokenStatistics:
    """`TokenStatistics` of `tokens [B, T]` from the hidden states `[B, T, D]` of each of `models`.

    The head is applied to `head_chunk` columns at a time and recomputed in the backward pass, so no array of
    `[B, T, V]` exists.
    """
    hidden = [h[:, :-1] for h in hidden]
    columns = tokens.shape[1] - 1
    chunk = min(head_chunk, columns)
    chunks = -(-columns // chunk)

    def split(x):  # [B, T - 1, ...] -> [C, B, t, ...]
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - columns)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def statistics(inputs):
        *hidden, targets = inputs
        laws = [token_law(lm.logits(p, config, h), temperature) for p, h in zip(models, hidden)]
        probs = jnp.exp(laws[0])
        log_probs = [jnp.take_along_axis(law, targets[..., None], axis=-1)[..., 0] for law in laws]
        return TokenStatistics(
            log_probs=log_probs[0],
            reference_log_probs=log_probs[-1],
            entropy=-jnp.sum(probs * laws[0], axis=-1),
            kl=jnp.sum(probs * (laws[0] - laws[-1]), axis=-1))

    inputs = [split(x) for x in (*hidden, tokens[:, 1:])]
    _, stats = jax.lax.scan(lambda _, x: (None, statistics(x)), None, inputs)

    def join(x):  # [C, B, t] -> [B, T]
        x = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], chunks * chunk)[:, :columns]
        return jnp.pad(x, [(0, 0), (1, 0)])

    return jax.tree.map(join, stats)
