"""Attention by kernels that never write scores to memory: splash attention on TPUs, cuDNN's on NVIDIA GPUs.

Both are of tokens over themselves; each says what it takes, and the rest is left to `attention.attend`.

Letters: B rows, T tokens, H query heads, K KV heads, h head size.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu import splash_attention

from score_jax.model.config import ModelConfig
from score_jax.sharding import named_sharding


def kernel(q, config: ModelConfig):
    """The kernel that the devices here have for queries `[B, T, H, h]`: a function like `splash`; None if none."""
    backend, (_, t, _, head_dim) = jax.default_backend(), q.shape
    if backend == 'tpu' and t % 128 == 0 and head_dim % 128 == 0:
        return splash
    half = q.dtype in ('bfloat16', 'float16')
    if backend == 'gpu' and half and t % 64 == 0 and head_dim % 8 == 0 and head_dim <= 128 and not config.attention_cap:
        return cudnn
    return None


def _scale(config: ModelConfig) -> float:
    return (config.query_scalar or config.head_dim)**-0.5


def _by_layer(attention, config: ModelConfig, local):
    """`attention(window)` of a layer that may be local, where `window` is None for one that sees everything."""
    if not config.window:
        return attention(None)
    return jax.lax.cond(local, lambda: attention(config.window), lambda: attention(None))


def splash(q, k, v, config: ModelConfig, local, segments, *, interpret: bool = False):
    """`attend` without positions, by splash attention: blocks that are masked as a whole are left out.

    Each device has rows and heads of its own.

    Args:
      interpret: run the kernel's program on any device, slowly.
    """
    t = q.shape[1]
    size = next(n for n in (512, 256, 128) if t % n == 0)
    blocks = splash_attention.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size)

    def of_window(window, q, k, v, segments):
        mask = splash_attention.LocalMask((t, t), (window - 1, 0), 0) if window else splash_attention.CausalMask((t, t))
        run = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * q.shape[1]), block_sizes=blocks, head_shards=1, q_seq_shards=1,
            attn_logits_soft_cap=config.attention_cap or None, interpret=interpret)
        if segments is None:
            return jax.vmap(run)(q, k, v)
        return jax.vmap(run)(q, k, v, splash_attention.SegmentIds(segments, segments))

    def attention(window):
        def of_device(*arrays):
            return of_window(window, *arrays)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return of_device(q, k, v, segments)
        together = k.shape[1] % mesh.shape['model'] == 0  # query heads stay with the KV heads that they read
        heads = named_sharding(mesh, ('batch', 'kv_heads' if together else None, None, None), q.shape).spec
        rows = named_sharding(mesh, ('batch',), q.shape[:1]).spec
        return jax.shard_map(
            of_device, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)(
                q, k, v, segments)

    q = (q * _scale(config)).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return _by_layer(attention, config, local).swapaxes(1, 2)


def cudnn(q, k, v, config: ModelConfig, local, segments):
    """`attend` without positions, by cuDNN's flash attention."""
    mask = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]

    def attention(window):
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=_scale(config), is_causal=True, implementation='cudnn',
            local_window_size=(window - 1, 0) if window else None)
    return _by_layer(attention, config, local)
