"""LoRA: thin products beside frozen ones; the base serves policy and reference from the same arrays.

A product with activations `x W` becomes `x W + scale * (x A) B`, with `W [in, out]` frozen, `A [in, r]`, `B [r, out]`
trained and `scale = alpha / r` (Hu et al. 2021, arXiv 2106.09685, section 4.1). B starts at 0, so that the policy is
the base at first. No merged weight is ever formed in training: `A` and `B` have products of their own.

Adapters are a pytree like the parameters that they belong to, `{'layers': {'query': {'a': [L, D, r], ...}}}`; the empty
one, `{}`, is the base itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp

from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.model.products import precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """`config.lora`; `configs/common.py` says what each value means."""

    rank: int
    alpha: float
    targets: str

    def __post_init__(self):
        if self.rank < 0:
            raise UserError(f'config.lora.rank is {self.rank}; it must be positive, or 0 to train all parameters.')
        if not self.alpha > 0:
            raise UserError(f'config.lora.alpha is {self.alpha}; it must be positive.')
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(f'config.lora.targets is {self.targets!r}, which is no pattern: {error}.') from None

    @property
    def scale(self) -> float:
        """The factor on the product of the adapters."""
        return self.alpha / self.rank


def declare(config: lm.ModelConfig, lora: LoraConfig) -> dict:
    """The adapters of every product that `lora.targets` names, as `Param`s.

    Raises:
      UserError: the pattern names none, or something that is no product within a layer.
    """
    layers = lm.declare(config)['layers']
    products = {name: param for name, param in layers.items() if param.contracted}
    others = {'embedding', 'final_norm', 'head', *(f'layers/{name}' for name in layers.keys() - products.keys())}
    named = [name for name in products if re.fullmatch(lora.targets, f'layers/{name}')]
    wrong = sorted(path for path in others if re.fullmatch(lora.targets, path))
    if wrong or not named:
        found = f'names {", ".join(wrong)}, no product within a layer' if wrong else 'names no parameter'
        raise UserError(
            f'config.lora.targets is {lora.targets!r}, which {found}; it is matched against whole paths, of which '
            f'{", ".join(f"layers/{name}" for name in products)} can be adapted.')
    return {'layers': {name: _pair(products[name], lora.rank) for name in named}}


def _pair(param: lm.Param, rank: int) -> dict:
    cut = 1 + param.contracted
    (layers, *inner), outer = param.shape[:cut], param.shape[cut:]
    stddev = math.prod(inner)**-0.5
    return {
        'a': lm.Param((layers, *inner, rank), (*param.axes[:cut], 'rank'), stddev=stddev, constant=0.0),
        'b': lm.Param((layers, rank, *outer), ('layers', 'rank', *param.axes[cut:]), stddev=0.0, constant=0.0)}


def adapt(base: dict, adapters: dict, lora: LoraConfig) -> dict:
    """Parameters for `forward`, with the arrays of `base` themselves where nothing is adapted and inside `Adapted`."""
    layers = dict(base['layers'])
    for name, pair in adapters.get('layers', {}).items():
        layers[name] = lm.Adapted(weight=layers[name], a=pair['a'], b=pair['b'], scale=lora.scale)
    return base | {'layers': layers}


@functools.partial(jax.jit, static_argnames=('dtype',))
def _merged(w: lm.Adapted, dtype) -> jax.Array:
    rank = w.a.shape[-1]
    product = jnp.matmul(
        w.a.reshape(len(w.a), -1, rank), w.b.reshape(len(w.b), rank, -1), precision=precision(w.a.dtype),
        preferred_element_type=jnp.float32)
    return (w.weight.astype(jnp.float32) + w.scale * product.reshape(w.weight.shape)).astype(dtype)


def merge(params: dict, dtype=None) -> dict:
    """Plain parameters that give what adapted ones give, in `dtype`; None: each in the base's."""
    def plain(w):
        if isinstance(w, lm.Adapted):
            return _merged(w, jnp.dtype(dtype or w.weight.dtype))
        return w.astype(dtype or w.dtype)
    return jax.tree.map(plain, params, is_leaf=lambda w: isinstance(w, lm.Adapted))
