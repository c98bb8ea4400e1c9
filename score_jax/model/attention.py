"""Attention of queries over a row's keys and values.

Letters: B rows, T queries, S slots, H query heads, K KV heads, G query heads of a KV head, h head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from score_jax.model import kernels
from score_jax.model.config import ModelConfig
from score_jax.model.kernels import capped
from score_jax.model.products import precision

BLOCK = 128  # queries whose scores are in memory at once
UNSEEN = np.iinfo(np.int32).max  # where a key stands that no query sees


def attend(q, k, v, config: ModelConfig, local, positions=None, segments=None, seen=None, wraps=False):
    """Each query's mean of the values it sees, `[B, T, H, h]`: those not after it and, in a local layer, near it.

    Without positions, and of one query a row, by a kernel where the devices have one that takes it. Otherwise a block
    of queries at a time, so that no `[B, H, T, S]` exists, neither here nor on the way back.

    Args:
      q: `[B, T, H, h]`.
      k, v: `[B, S, K, h]`.
      local: `[]`, whether the layer is local: then what is `window` or more positions before is not seen.
      positions: `[B, T]` of the queries in a cache, where slot s holds position s. None: keys and queries are of the
        same tokens in the same order, S = T.
      seen: `[B, S]`, with positions: those of the keys, where key s is not at position s.
      segments: `[B, T]`, without positions: only what is of the same segment is seen. None: all is of one.
      wraps: slot s holds the newest position that is s modulo S.
    """
    b, t, heads, head_dim = q.shape
    kv_heads, own = k.shape[2], positions is None
    if own and (run := kernels.kernel(q, config)):
        return checkpoint_name(run(q, k, v, config, local, segments), 'attended')
    if t == 1 and not own and seen is None and kernels.decodes(config):
        return kernels.decoded(q, k, v, config, local, positions, wraps)
    # Rows and KV heads first, then one product for all queries of a KV head.
    q = q.reshape(b, t, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if own:
        positions = jnp.arange(t)[None]
    if seen is None:
        seen = held(positions[:, -1:], k.shape[2]) if wraps else jnp.arange(k.shape[2])[None]
    out = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        keys = stop if own else k.shape[2]  # later ones are not seen
        of = None if segments is None else (segments[:, start:stop], segments[:, :keys])
        out.append(_block(
            q[:, :, :, start:stop], k[:, :, :keys], v[:, :, :keys], positions[:, start:stop], seen[:, :keys], of, local,
            config))
    out = jnp.concatenate(out, axis=3) if len(out) > 1 else out[0]
    return checkpoint_name(out.transpose(0, 3, 1, 2, 4).reshape(b, t, heads, head_dim), 'attended')


def held(last, slots: int):
    """`[B, slots]` the position that each slot of a cache that wraps holds, `last [B, 1]` being the newest of all."""
    position = last - (last - jnp.arange(slots)) % slots
    return jnp.where(position < 0, UNSEEN, position)


@functools.partial(jax.checkpoint, static_argnums=(7,))
def _block(q, k, v, positions, seen, segments, local, config: ModelConfig):
    """`q [B, K, G, T, h]` at `positions [B or 1, T]` over `k, v [B, K, S, h]` at `seen [B or 1, S]`.

    `segments`: of the queries and of the keys, or None.
    """
    b, kv_heads, groups, t, head_dim = q.shape
    scores = jnp.einsum(
        'bkqh,bksh->bkqs', q.reshape(b, kv_heads, groups * t, head_dim), k, precision=precision(q.dtype),
        preferred_element_type=jnp.float32)
    scores = capped(scores * (config.query_scalar or head_dim)**-0.5, config.attention_cap)
    visible = seen[:, None] <= positions[:, :, None]  # [B, T, S]
    if config.window:
        visible &= ~local | (seen[:, None] > positions[:, :, None] - config.window)
    if segments is not None:
        visible &= segments[0][:, :, None] == segments[1][:, None, :]
    # Not -inf: a query of padding beyond the cache sees no slot at all, and 0 / 0 would reach the gradient.
    scores = jnp.where(
        visible[:, None, None], scores.reshape(b, kv_heads, groups, t, -1), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, kv_heads, groups * t, -1)
    return jnp.einsum('bkqs,bksh->bkqh', weights, v, precision=precision(v.dtype)).reshape(q.shape)
