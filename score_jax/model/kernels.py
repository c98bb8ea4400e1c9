"""Attention by kernels that never write scores to memory.

Of tokens over themselves it is splash attention on TPUs and cuDNN's on NVIDIA GPUs. Of the token that a row decodes
over its cache it is, on NVIDIA GPUs, one of our own, which reads the slots that the row has filled and no others. Each
says what it takes, and the rest is left to `attention.attend`.

Letters: B rows, T tokens, S slots, H query heads, K KV heads, G query heads of a KV head, h head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.experimental.pallas.ops.tpu import splash_attention

from score_jax.model.config import ModelConfig
from score_jax.model.products import precision
from score_jax.sharding import named_sharding

SLOTS = 64  # of a cache that a program reads at a time: with as many, or a multiple, it reads fastest
_WARPS, _STAGES = 4, 2
_PROGRAMS = 512  # that keep a device busy
_LOWEST = float(jnp.finfo(jnp.float32).min)


def capped(x, cap: float):
    """`x`, bent so that it stays within `cap` on either side; as it is without one."""
    return cap * jnp.tanh(x / cap) if cap else x


def kernel(q, config: ModelConfig):
    """The kernel that the devices here have for queries `[B, T, H, h]`: a function like `splash`; None if none."""
    _, t, _, head_dim = q.shape
    if jax.default_backend() == 'tpu' and t % 128 == 0 and head_dim % 128 == 0:
        return splash
    half = q.dtype in ('bfloat16', 'float16')
    if _ampere() and half and t % 2 == 0 and head_dim % 8 == 0 and head_dim <= 128 and not config.attention_cap:
        return cudnn
    return None


@functools.cache
def compute_capability() -> tuple[int, ...]:
    """Of the first device, such as (9, 0) of an H100; (0,) of what is not by NVIDIA."""
    found = getattr(jax.local_devices()[0], 'compute_capability', '')
    return tuple(map(int, found.split('.'))) if found.replace('.', '').isdigit() else (0,)


def _ampere() -> bool:
    """Whether the devices are NVIDIA's of that generation or newer, as the kernels here need."""
    return jax.default_backend() == 'gpu' and compute_capability() >= (8, 0)


def _scale(config: ModelConfig) -> float:
    return (config.query_scalar or config.head_dim)**-0.5


def _by_layer(attention, config: ModelConfig, local):
    """`attention(window)` of a layer that may be local, where `window` is None for one that sees everything."""
    if not config.window:
        return attention(None)
    return jax.lax.cond(local, lambda: attention(config.window), lambda: attention(None))


def _by_device(run, q, k, v, *rows):
    """`run(q, k, v, *rows)` of arrays `[B, heads, ...]` and, of `rows`, `[B, ...]`: each device has rows and heads of
    its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(q, k, v, *rows)
    together = k.shape[1] % mesh.shape['model'] == 0  # query heads stay with the KV heads that they read
    heads = named_sharding(mesh, ('batch', 'kv_heads' if together else None, None, None), q.shape).spec
    batch = named_sharding(mesh, ('batch',), q.shape[:1]).spec
    return jax.shard_map(
        run, mesh=mesh, in_specs=(heads, heads, heads, *[batch] * len(rows)), out_specs=heads, check_vma=False)(
            q, k, v, *rows)


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
        return _by_device(functools.partial(of_window, window), q, k, v, segments)

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


def decodes(config: ModelConfig) -> bool:
    """Whether the devices here have a kernel for the token that a row decodes."""
    size = config.head_dim
    return _ampere() and config.dtype == 'bfloat16' and size in (16, 32, 64, 128, 256)


def decoded(q, k, v, config: ModelConfig, local, positions, wraps: bool = False, *, interpret: bool = False):
    """`attend` of one query a row over a cache, where slot s holds position s.

    Its time is that of reading keys and values: every row and KV head is a program of its own, which goes through the
    slots that the query sees, a block at a time, for all query heads at once (Dao et al. 2022, algorithm 1). Where that
    makes too few programs for the device, the slots of a row are divided among several, and what those found is summed.

    Args:
      q: `[B, 1, H, h]`.
      k, v: `[B, S, K, h]`; best as the cache has them, turned, and S a multiple of `SLOTS`.
      positions: `[B, 1]`.
      wraps: slot s holds the newest position that is s modulo S; then S is a multiple of `SLOTS`.
      interpret: run the kernel's program on any device, slowly.
    """
    (b, _, heads, head_dim), kv_heads = q.shape, k.shape[2]
    stop = positions[:, 0] + 1
    if not wraps:
        stop = jnp.minimum(stop, k.shape[1])
    start = jnp.zeros_like(stop)
    if config.window:
        start = jnp.where(local, jnp.maximum(positions[:, 0] + 1 - config.window, 0), start)
    run = functools.partial(_decoded, config=config, wraps=wraps, interpret=interpret)
    grouped = q.reshape(b, kv_heads, heads // kv_heads, head_dim)
    return _by_device(run, grouped, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), start, stop).reshape(q.shape)


def _decoded(q, k, v, start, stop, *, config: ModelConfig, wraps: bool, interpret: bool):
    """`q [B, K, G, h]` over `k [B, K, h, S]`, `v [B, K, S, h]` from position `start [B]` to before `stop [B]`."""
    (b, kv_heads, queries, head_dim), slots = q.shape, k.shape[-1]
    groups = max(16, pl.next_power_of_2(queries))  # 16: the fewest that the matrix units take
    blocks = pl.cdiv(slots, SLOTS)
    parts = min(pl.cdiv(_PROGRAMS, b * kv_heads), pl.cdiv(slots, 4 * SLOTS))
    dot = functools.partial(
        jnp.dot, precision=precision(q.dtype), preferred_element_type=jnp.float32)

    def program(q, k, v, start, stop, out, most, total):
        row, part = pl.program_id(0), pl.program_id(2)
        first, end = start[row], stop[row]
        own = pl.cdiv(pl.cdiv(end, SLOTS) - first // SLOTS, parts)  # blocks
        begin = first // SLOTS + part * own
        is_query = jnp.arange(groups) < queries
        query = triton.load(q, mask=is_query[:, None], other=0.0)

        def block(index, carry):
            mean, highest, sums = carry
            here = pl.ds((index % blocks if wraps else index) * SLOTS, SLOTS)
            place = index * SLOTS + jnp.arange(SLOTS)
            # A mask that may differ from slot to slot would have keys read two bytes at a time.
            there = {} if slots % SLOTS == 0 else {'mask': (place < slots)[None], 'other': 0.0}
            scores = capped(dot(query, triton.load(k.at[:, here], **there)) * _scale(config), config.attention_cap)
            scores = jnp.where(((place >= first) & (place < end))[None], scores, -jnp.inf)
            now = jnp.maximum(highest, jnp.max(scores, axis=1))
            weights, kept = jnp.exp(scores - now[:, None]), jnp.exp(highest - now)
            there = there and {'mask': (place < slots)[:, None], 'other': 0.0}
            values = triton.load(v.at[here, :], **there)
            mean = kept[:, None] * mean + dot(weights.astype(values.dtype), values)
            return mean, now, kept * sums + jnp.sum(weights, axis=1)

        # Not -inf, of which a part without slots would take the difference from itself.
        nothing = jnp.zeros((groups, head_dim), jnp.float32), jnp.full(groups, _LOWEST), jnp.zeros(groups, jnp.float32)
        mean, highest, sums = jax.lax.fori_loop(
            begin, jnp.minimum(begin + own, pl.cdiv(end, SLOTS)), block, nothing)
        mean = mean / sums[:, None] if parts == 1 else mean
        triton.store(out, mean.astype(out.dtype), mask=is_query[:, None])
        triton.store(most, highest, mask=is_query)
        triton.store(total, sums, mask=is_query)

    def of_part(*shape):
        return pl.BlockSpec((None, None, None, *shape), lambda i, j, n: (i, j, n, *[0] * len(shape)))

    def of_row(*shape):
        return pl.BlockSpec((None, None, *shape), lambda i, j, n: (i, j, *[0] * len(shape)))

    rows, kind = pl.BlockSpec((b,), lambda i, j, n: (0,)), q.dtype if parts == 1 else jnp.float32
    out, most, total = pl.pallas_call(
        program, grid=(b, kv_heads, parts),
        in_specs=[of_row(groups, head_dim), of_row(head_dim, slots), of_row(slots, head_dim), rows, rows],
        out_specs=[of_part(groups, head_dim), of_part(groups), of_part(groups)],
        out_shape=[jax.ShapeDtypeStruct((b, kv_heads, parts, queries, *more), dtype) for more, dtype in (
            ((head_dim,), kind), ((), jnp.float32), ((), jnp.float32))],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES), interpret=interpret,
        name='decoded')(q, k, v, start, stop)
    if parts == 1:
        return out[:, :, 0]
    share = jnp.exp(most - jnp.max(most, axis=2, keepdims=True))
    return (jnp.einsum('bkngh,bkng->bkgh', out, share) / jnp.sum(share * total, axis=2)[..., None]).astype(q.dtype)
