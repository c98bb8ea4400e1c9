"""One forward pass for policy, reference and decoding.

Letters: B rows, T tokens of this call, S cache slots, L layers, D width, H query heads, K KV heads,
h head size, V vocabulary.

Rows are stored without gaps: the token at position p of a row stands in column p, and its key and
value in cache slot p. So one mask serves every use: a query at position p sees the slots 0..p. What
a slot beyond p holds (padding, another turn's left-overs) is never read before it is overwritten.
A local layer, which sees no more than a window, may have fewer slots: then p goes to slot p modulo S.

    row 0   P P P 1 1 1 1 i i 2 2 2 . .      P prompt, 1 first attempt, i instruction,
    row 1   P P P P 1 1 i i 2 2 2 2 2 .      2 second attempt, . not yet written
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.model.attention import attend, capped, held
from score_jax.model.config import ModelConfig
from score_jax.model.params import declare
from score_jax.model.products import by_rows, linear, turned
from score_jax.sharding import spread

# What the backward pass finds kept of a layer; the rest it computes again.
REMAT = {
    'everything': jax.checkpoint_policies.everything_saveable,
    'products': jax.checkpoint_policies.save_only_these_names('product', 'attended'),  # those with weights, attention
    'nothing': jax.checkpoint_policies.nothing_saveable,  # but what goes into the layer
}
# Logical axes of hidden states. A device has rows, and these whole; so weights travel. Of a single token of each row it
# has its share of the width, as of the weights, for more rows; so hidden states travel, which are smaller then.
_ROWS = ('batch', None, None)
_WIDTH = ('row', None, 'embed')
_FEW_LAYERS = 4  # are not scanned: what the way back needs of each stays where it is, and there is more to compile
_JOINED = {'queries_keys_values': ('query', 'key', 'value'), 'gate_up': ('gate', 'up')}
_ACTIVATIONS = {'silu': jax.nn.silu, 'gelu': functools.partial(jax.nn.gelu, approximate=True)}


@flax.struct.dataclass
class Cache:
    """What decoding goes on from: keys `[B, K, h, S]` and values `[B, K, S, h]` of a layer, and for how many positions.

    Slot s holds position s; of a cache that wraps, the newest that is s modulo S. The slots of the keys lie side by
    side, as the scores of a query do.
    """

    keys: jax.Array
    values: jax.Array
    room: int = flax.struct.field(pytree_node=False)

    @property
    def wraps(self) -> bool:
        """Whether there are fewer slots than positions."""
        return self.keys.shape[-1] < self.room


def new_caches(config: ModelConfig, rows: int, room: int, local_slots: int | None = None) -> tuple[Cache, ...]:
    """Empty caches of all layers, in the compute type, as `grow` makes them."""
    def of_layer(slots):
        shape = (rows, config.kv_heads)
        return Cache(keys=jnp.zeros((*shape, config.head_dim, slots), config.dtype),
                     values=jnp.zeros((*shape, slots, config.head_dim), config.dtype), room=room)
    return tuple(map(of_layer, _slots(config, room, local_slots)))


def grow(
    caches: tuple[Cache, ...], config: ModelConfig, room: int, local_slots: int | None = None, length=None,
) -> tuple[Cache, ...]:
    """The caches of all layers with room for `room` positions (not fewer than they have).

    Args:
      local_slots: the most that a local layer gets; `window` and as many tokens as are read at once will do. None: no
        cache wraps.
      length: `[B]` tokens of each row, where a local layer may have more slots already: the newest positions stay.
    """
    def of_layer(cache, slots):
        keys, values, more = cache.keys, cache.values, slots - cache.keys.shape[-1]
        if more > 0:
            keys, values = (jnp.pad(x, [(0, more if i == axis else 0) for i in range(4)])
                            for x, axis in ((keys, 3), (values, 2)))
        elif more < 0:  # row by row, as in `_written`
            kept = jnp.minimum(held(length[:, None] - 1, slots), length[:, None] - 1)
            keys, values = jax.vmap(lambda k, v, kept: (k[:, :, kept], v[:, kept]))(keys, values, kept)
        return Cache(keys=keys, values=values, room=room)
    return tuple(map(of_layer, caches, _slots(config, room, local_slots)))


def _slots(config: ModelConfig, room: int, local_slots: int | None) -> list[int]:
    """Of each layer's cache."""
    most = room if local_slots is None else min(room, local_slots)
    return [most if local else room for local in config.local or (False,) * config.layers]


@flax.struct.dataclass
class Prefix:
    """What a block of tokens is read behind: keys and values `[L, B, S, K, h]` of all layers, at `positions [B, S]`.

    Nothing is written into it, so its gradient is a slice. What is not to be seen stands at `UNSEEN`.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array


def no_prefix(config: ModelConfig, rows: int) -> Prefix:
    """That of the first block."""
    empty = jnp.zeros((config.layers, rows, 0, config.kv_heads, config.head_dim), config.dtype)
    return Prefix(empty, empty, jnp.zeros((rows, 0), jnp.int32))


def one_by_one(params, config: ModelConfig, joined: bool) -> dict:
    """The parameters in the compute type, those of the layers in a tuple: what `forward` decodes with.

    A loop over tokens around one over layers would take each layer out of the stack again at every token, weights and
    cache, which where they are copied costs as much as to compute with them.

    Args:
      joined: weights that meet the same activations become one. No dimension of theirs may be divided over devices.
    """
    params, declared = jax.tree.map(lambda w: w.astype(config.dtype), params), declare(config)['layers']

    def of_layer(i):
        weights = {name: jax.tree.map(lambda w: w[i], stack) for name, stack in params['layers'].items()}
        kinds = dict(declared)
        for name, parts in _JOINED.items() if joined else ():
            if all(isinstance(weights[part], jax.Array) for part in parts):  # no adapters
                weights[name] = jnp.concatenate([weights.pop(part) for part in parts], axis=1)
                kinds[name] = declared[parts[0]]
        return {name: turned(w, kinds[name].contracted) for name, w in weights.items()}
    return params | {'layers': tuple(map(of_layer, range(config.layers)))}


def _rms_norm(x, scale, config: ModelConfig):
    x32, scale = x.astype(jnp.float32), scale.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_eps)
    return (x32 * (1 + scale if config.centered_norms else scale)).astype(x.dtype)


def _frequencies(config: ModelConfig, local):
    """Radians a position turns each of the h / 2 pairs by; `local []` says which of the two bases is the layer's."""
    half = config.head_dim // 2
    exponents = -jnp.arange(half, dtype=jnp.float32) / half
    frequencies = config.rope_base ** exponents
    if config.rope_factor != 1:
        # Llama 3.1: a pair that turns less than `rope_low` times in `rope_length` positions turns slower by the factor,
        # one that turns more than `rope_high` times stays as it is, and those between go from one to the other.
        turns = config.rope_length * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / config.rope_factor)
    if config.local_rope_base:
        frequencies = jnp.where(local, config.local_rope_base ** exponents, frequencies)
    return frequencies


def _turns(config: ModelConfig, positions) -> Callable:
    """For a layer that may be `local []` the sines and cosines `[B, T, 1, h / 2]` of the angles at `positions [B, T]`.

    Behind a barrier, without which each layer may compute its own.
    """
    def of(local):
        angles = positions[:, :, None, None].astype(jnp.float32) * _frequencies(config, local)
        return jax.lax.optimization_barrier((jnp.sin(angles), jnp.cos(angles)))
    everywhere = of(False)
    if not config.local_rope_base:
        return lambda local: everywhere
    nearby = of(True)
    return lambda local: jax.tree.map(functools.partial(jnp.where, local), nearby, everywhere)


def _rotate(x, turns):
    """Rotary embedding of `x [B, T, N, h]` by what `_turns` gives (halves rotated against each other)."""
    sin, cos = turns
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _written(cache: Cache, positions, k, v) -> Cache:
    """The cache of a layer with keys and values `[B, T, K, h]` at `positions [B, T]`; what has no room is dropped.

    Row by row, so that the compiler knows that no device needs the rows of another.
    """
    if cache.wraps:
        slots = cache.keys.shape[-1]
        positions = jnp.where(positions < cache.room, positions % slots, slots + positions)

    @jax.vmap
    def write(keys, values, positions, k, v):
        return (keys.at[:, :, positions].set(jnp.moveaxis(k, 0, -1), mode='drop', unique_indices=True),
                values.at[:, positions].set(jnp.moveaxis(v, 0, 1), mode='drop', unique_indices=True))
    keys, values = write(cache.keys, cache.values, positions, k, v)
    return cache.replace(keys=keys, values=values)


def _fetch(tree):
    """Arrays that lie in the host's memory, on the device; the others as they are."""
    def of(x):
        on_host = jax.typeof(x).memory_space == jax.memory.Space.Host
        return jax.device_put(x, jax.memory.Space.Device) if on_host else x
    return jax.tree.map(of, tree)


def fetch_all_but_layers(params) -> dict:
    """Parameters in the host's memory, put on the device but for the layers, which `forward` fetches one by one."""
    return {name: value if name == 'layers' else _fetch(value) for name, value in params.items()}


def forward(
    params, config: ModelConfig, tokens, positions, cache: tuple[Cache, ...] | Prefix | None = None, *, segments=None,
    remat: str = 'products'):
    """Final hidden states of `tokens`, on top of what was read before.

    Args:
      params: the pytree declared in `score_jax/model/params.py`, in any float type, or what `one_by_one` makes of it.
      tokens: `[B, T]` token ids.
      positions: `[B, T]` position of each token in its row, increasing along T. Without a cache and segments, and
        behind an empty prefix or cache, `arange(T)` in every row.
      cache: keys and values of earlier positions. With layers that are scanned a `Prefix`, to learn; with layers one by
        one those of each, to decode: those of `tokens` are written into it, and positions at or beyond its room are
        dropped. An empty one, without room, gets that for T.
      segments: `[B, T]`, without a cache: where several rows stand behind each other, which of them a token is of. It
        sees none of the others, and positions begin at 0 in each.
      remat: row of `REMAT`. The products are less memory than everything, and on most devices faster too.

    Returns:
      hidden `[B, T, D]` after the final norm, and the cache with the new keys and values (None without one).
    """
    dtype = jnp.dtype(config.dtype)
    seen = None  # positions of the keys, where they are not their slots
    if isinstance(cache, Prefix) and cache.positions.shape[1]:
        seen = jnp.concatenate([cache.positions, positions], axis=1)
    axes = _WIDTH if tokens.shape[1] == 1 else _ROWS
    x = spread(spread(params['embedding'][tokens], _WIDTH), axes).astype(dtype)  # looked up in each share of the width
    if config.scaled_embedding:
        x = x * jnp.asarray(math.sqrt(config.width), dtype)
    norm, turns = functools.partial(_rms_norm, config=config), _turns(config, positions)

    def products(p, y, name, *ends):
        if name in p:
            return jnp.split(linear(y, p[name]), ends, axis=2)
        return [linear(y, p[part]) for part in _JOINED[name]]

    def projections(p, y, local):
        q, k, v = products(p, y, 'queries_keys_values', config.heads, config.heads + config.kv_heads)
        if config.qkv_bias:
            q, k, v = q + p['query_bias'], k + p['key_bias'], v + p['value_bias']
        if config.qk_norm:
            q, k = norm(q, p['query_norm']), norm(k, p['key_norm'])
        return _rotate(q, turns(local)), _rotate(k, turns(local)), v

    @functools.partial(jax.checkpoint, policy=REMAT[remat])
    def layer(x, inputs):
        p, kv, local = inputs
        x, p = spread(x, axes), jax.tree.map(lambda w: w.astype(dtype), _fetch(p))
        q, k, v = projections(p, norm(x, p['attention_norm']), local)
        q, k, v = (spread(y, ('batch', None, of, None)) for y, of in ((q, 'heads'), (k, 'kv_heads'), (v, 'kv_heads')))
        after = seen is not None
        if isinstance(kv, Cache) and not kv.room:
            kv = Cache(keys=jnp.moveaxis(k, 1, -1), values=jnp.moveaxis(v, 1, -2), room=k.shape[1])
        elif isinstance(kv, Cache):
            kv, after = _written(kv, positions, k, v), True
            k, v = jnp.moveaxis(kv.keys, -1, 1), jnp.moveaxis(kv.values, -2, 1)
        elif kv is not None:
            k, v = kv = jax.tree.map(lambda before, now: jnp.concatenate([before, now], axis=1), kv, (k, v))
        wraps = isinstance(kv, Cache) and kv.wraps
        y = attend(q, k, v, config, local, positions if after else None, segments, seen, wraps)
        y = linear(y, p['out'], contracted=2)
        x = spread(x + (norm(y, p['attention_post_norm']) if config.post_norms else y), axes)
        y = norm(x, p['mlp_norm'])
        gate, up = products(p, y, 'gate_up', config.mlp)
        y = linear(_ACTIVATIONS[config.activation](gate) * up, p['down'])
        return x + (norm(y, p['mlp_post_norm']) if config.post_norms else y), kv

    local = np.asarray(config.local) if config.window else None
    if isinstance(params['layers'], dict):
        before = cache and (cache.keys, cache.values)
        few = config.layers if config.layers <= _FEW_LAYERS else 1
        x, kv = jax.lax.scan(layer, x, (params['layers'], before, local), unroll=few)
        cache = cache and Prefix(*kv, positions if seen is None else seen)
    else:
        caches = []
        for i, p in enumerate(params['layers']):
            x, kv = layer(x, (p, cache and cache[i], None if local is None else local[i]))
            caches.append(kv)
        cache = cache and tuple(caches)
    return norm(x, params['final_norm']), cache


def head_weights(params) -> jax.Array:
    """The output head `[V, D]`: the embedding where the head is tied."""
    return params.get('head', params['embedding'])


def logits(params, config: ModelConfig, hidden) -> jax.Array:
    """Logits `[..., V]` in float32 of hidden states `[..., D]`."""
    if hidden.ndim == 2:  # of a token of each row, as `_WIDTH`
        hidden = spread(hidden, ('row', 'embed'))
    head = head_weights(params).astype(config.dtype)
    flat = by_rows(hidden.reshape(-1, config.width), head, preferred_element_type=jnp.float32)
    found = capped(flat.reshape(*hidden.shape[:-1], -1), config.logit_cap)
    return spread(found, ('batch', *[None] * (hidden.ndim - 2), 'vocab'))
