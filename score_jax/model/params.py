"""Every parameter of the decoder, declared once: shape, logical axes, initialiser.

Initial values, abstract shapes and shardings all follow from `declare`. Parameters are a nested
dict of arrays; those of the layers are stacked along a first axis `layers`, which `forward` scans.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_jax.model.config import ModelConfig
from score_jax.sharding import named_sharding


@dataclasses.dataclass(frozen=True)
class Param:
    """Shape, logical axis names, and the initial distribution: normal around 0, or `constant` where `stddev` is 0."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float
    constant: float

    @property
    def contracted(self) -> int:
        """Of a stacked product with activations, the dimensions after `layers` that it sums over; 0 of what is none."""
        if self.axes[0] != 'layers' or len(self.axes) < 3 or 'embed' not in self.axes:
            return 0
        return 1 if self.axes[1] == 'embed' else len(self.axes) - 2


def declare(config: ModelConfig) -> dict:
    """The pytree of `Param`s of a decoder."""
    c, layers = config, ('layers', config.layers)

    def param(*axes: tuple[str, int], fan_in: int = 0, scale: float = 1.0, constant: float = 0.0) -> Param:
        return Param(
            shape=tuple(size for _, size in axes),
            axes=tuple(name for name, _ in axes),
            stddev=scale / math.sqrt(fan_in) if fan_in else 0.0,
            constant=constant)

    def norm(*axes: tuple[str, int]) -> Param:
        return param(*axes, constant=0.0 if c.centered_norms else 1.0)

    embed = ('embed', c.width)
    heads, kv_heads, head_dim = ('heads', c.heads), ('kv_heads', c.kv_heads), ('head_dim', c.head_dim)
    mlp, vocab = ('mlp', c.mlp), ('vocab', c.vocab_size)
    residual = 1 / math.sqrt(2 * c.layers)  # keeps the residual stream's variance independent of depth
    params = {
        'embedding': param(vocab, embed, fan_in=c.width),
        'layers': {
            'attention_norm': norm(layers, embed),
            'query': param(layers, embed, heads, head_dim, fan_in=c.width),
            'key': param(layers, embed, kv_heads, head_dim, fan_in=c.width),
            'value': param(layers, embed, kv_heads, head_dim, fan_in=c.width),
            'out': param(layers, heads, head_dim, embed, fan_in=c.heads * c.head_dim, scale=residual),
            'mlp_norm': norm(layers, embed),
            'gate': param(layers, embed, mlp, fan_in=c.width),
            'up': param(layers, embed, mlp, fan_in=c.width),
            'down': param(layers, mlp, embed, fan_in=c.mlp, scale=residual),
        },
        'final_norm': norm(embed),
    }
    if c.qkv_bias:
        params['layers'] |= {
            'query_bias': param(layers, heads, head_dim),
            'key_bias': param(layers, kv_heads, head_dim),
            'value_bias': param(layers, kv_heads, head_dim),
        }
    if c.qk_norm:
        params['layers'] |= {'query_norm': norm(layers, head_dim), 'key_norm': norm(layers, head_dim)}
    if c.post_norms:
        params['layers'] |= {'attention_post_norm': norm(layers, embed), 'mlp_post_norm': norm(layers, embed)}
    if not c.tied:
        params['head'] = param(vocab, embed, fan_in=c.width)
    return params


def initialise(config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> dict:
    """Random parameters; each array draws from a key of its own."""
    return draw(declare(config), key, dtype)


def shardings(config: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """The `NamedSharding` of every parameter under the rules in `score_jax/sharding.py`."""
    return jax.tree.map(lambda x: x.sharding, abstract(config, mesh))


def abstract(config: ModelConfig, mesh: jax.sharding.Mesh, dtype=jnp.float32) -> dict:
    """`jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored onto."""
    return place(declare(config), mesh, dtype)


def draw(declared: dict, key: jax.Array, dtype=jnp.float32) -> dict:
    """Initial values of a pytree of `Param`s; each array draws from a key of its own."""
    params, treedef = jax.tree.flatten(declared, is_leaf=_is_param)
    arrays = []
    for index, param in enumerate(params):
        if param.stddev:
            noise = jax.random.normal(jax.random.fold_in(key, index), param.shape, jnp.float32)
            arrays.append((param.stddev * noise).astype(dtype))
        else:
            arrays.append(jnp.full(param.shape, param.constant, dtype))
    return jax.tree.unflatten(treedef, arrays)


def place(declared: dict, mesh: jax.sharding.Mesh, dtype=jnp.float32) -> dict:
    """The `jax.ShapeDtypeStruct`s of a pytree of `Param`s, with shardings."""
    return jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, dtype, sharding=named_sharding(mesh, p.axes, p.shape)),
        declared, is_leaf=_is_param)


def _is_param(x) -> bool:
    return isinstance(x, Param)
