"""Hashes of bits that are the same on any mesh: for checksums, and for noise that fuses with what stands around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mix(h: jax.Array) -> jax.Array:
    """uint32 `h [...]` through the finaliser of MurmurHash3, a bijection."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def places(shape: tuple[int, ...]) -> jax.Array:
    """The number of each entry of an array of this shape, row by row, uint32 `[*shape]`."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place
