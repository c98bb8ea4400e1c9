"""Attention of queries over a row's keys and values.

Letters: B rows, T queries, S slots, H query heads, K KV heads, h head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from score_jax.model.config import ModelConfig


def capped(x, cap: float):
    """`x`, bent so that it stays within `cap` on either side; as it is without one."""
    return cap * jnp.tanh(x / cap) if cap else x


def attend(q, k, v, positions, config: ModelConfig, local):
    """`q [B, T, H, h]` over the slots of `k, v [B, S, K, h]` that are not after each query's position.

    In a local layer (`local []`) also not `window` or more positions before it.
    """
    b, t, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # Rows and KV heads first, then one product for all queries of a KV head.
    q = q.reshape(b, t, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, h]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum(
        'bkqh,bksh->bkqs', q.reshape(b, kv_heads, -1, head_dim), k, preferred_element_type=jnp.float32)
    scores = capped(scores * (config.query_scalar or head_dim)**-0.5, config.attention_cap)
    slots = jnp.arange(k.shape[2])
    visible = slots <= positions[:, :, None]  # [B, T, S]
    if config.window:
        visible &= ~local | (slots > positions[:, :, None] - config.window)
    # Not -inf: a query of padding beyond the cache sees no slot at all, and 0 / 0 would reach the gradient.
    scores = jnp.where(visible[:, None, None], scores.reshape(*q.shape[:4], -1), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, kv_heads, -1, k.shape[2])
    out = jnp.einsum('bkqs,bksh->bkqh', weights, v).reshape(q.shape)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, heads, head_dim)
