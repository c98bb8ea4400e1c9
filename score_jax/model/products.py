"""Products of activations with weights, in the order of dimensions that the device multiplies fastest.

XLA's CPU backend packs the left side of a product well and the right side badly, and folds a transpose into a product
whatever that does to its speed. So on a CPU the weights that decode are kept transposed, on the left, and activations
are transposed where the gradient of weights sums over tokens: 1.5 to 2 times as fast, for copies of the small side.
Elsewhere the order makes no difference, and all is left to the compiler.

Letters: N tokens, D and M what a weight takes and gives, r the rank of adapters.
"""

from __future__ import annotations

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@flax.struct.dataclass
class Adapted:
    """A weight `W [..., in, out]` that stands for `W + scale * A B`, which is never formed; `A [..., in, r]`,
    `B [..., r, out]` (LoRA, Hu et al. 2021, section 4.1). `in` and `out` may be several dimensions."""

    weight: jax.Array | Turned
    a: jax.Array
    b: jax.Array
    scale: float = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Turned:
    """A weight `W [in, out]` to decode with, as `[M, D]`; `out` may be several dimensions."""

    weight: jax.Array
    out: tuple[int, ...] = flax.struct.field(pytree_node=False)


def turned(w: jax.Array | Adapted, contracted: int) -> jax.Array | Adapted | Turned:
    """What a weight `w [..., M]` is decoded with that sums over its first `contracted` dimensions, which make D (0: it
    is no product's, and stays as it is)."""
    if jax.default_backend() != 'cpu' or not contracted:
        return w
    if isinstance(w, Adapted):
        return w.replace(weight=turned(w.weight, contracted))
    return Turned(w.reshape(math.prod(w.shape[:contracted]), -1).T, w.shape[contracted:])


def linear(x, w, contracted: int = 1):
    """`x [..., D]` times `w [D, ...]`, over the last `contracted` dimensions of x and the first of w.

    As one matrix product over all tokens: XLA's CPU backend runs the gradient of the product that keeps
    `[B, T]` apart five times slower. An `Adapted` weight costs two thin products more.
    """
    if isinstance(w, Adapted):
        low = _product(x, w.a, contracted)
        return checkpoint_name(_product(x, w.weight, contracted) + w.scale * _product(low, w.b, 1), 'product')
    return checkpoint_name(_product(x, w, contracted), 'product')


def _product(x, w, contracted: int):
    leading = x.shape[:x.ndim - contracted]
    flat = x.reshape(math.prod(leading), -1)
    if isinstance(w, Turned):
        return by_rows(flat, w.weight).reshape(*leading, *w.out)
    return times(flat, w.reshape(flat.shape[1], -1)).reshape(*leading, *w.shape[contracted:])


def by_rows(x, w, **kwargs):
    """`x [N, D]` times the transpose of `w [M, D]`, without a gradient: for few tokens."""
    multiply = functools.partial(jnp.matmul, precision=precision(x.dtype), **kwargs)
    if jax.default_backend() != 'cpu':
        return multiply(x, w.T)
    return jax.lax.optimization_barrier(multiply(w, x.T)).T


def precision(dtype) -> str | None:
    """That of products: float32 is float32 on every device; GPUs and TPUs would round its factors to fewer bits."""
    return 'highest' if dtype == jnp.float32 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def times(x, w, dtype=None):
    """`x [N, D]` times `w [D, M]`, summed and given in `dtype`; None: in theirs."""
    return jnp.matmul(x, w, precision=precision(x.dtype), preferred_element_type=dtype)


def _times(x, w, dtype):
    return times(x, w, dtype), (x, w)


def _times_back(dtype, kept, by):
    x, w = kept
    by = by.astype(x.dtype)
    turned = x.T if jax.default_backend() != 'cpu' else jax.lax.optimization_barrier(x.T)
    multiply = functools.partial(jnp.matmul, precision=precision(x.dtype))
    return multiply(by, w.T), multiply(turned, by)


times.defvjp(_times, _times_back)
