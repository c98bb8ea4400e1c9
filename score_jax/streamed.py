"""Arrays that are made when they are needed: of a tree that is written, one is in memory at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

_CHUNK_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """An array to come.

    Attributes:
      shape: that it will have.
      dtype: that it will have.
      load: makes it, `[*shape]`, anew at each call.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], jax.Array]

    @property
    def size(self) -> int:
        """Its entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.size * np.dtype(self.dtype).itemsize


def made(x: jax.Array | Streamed) -> jax.Array:
    """The array `[...]` itself."""
    return x.load() if isinstance(x, Streamed) else x


def save_args(tree: dict[str, jax.Array | Streamed]) -> dict[str, ocp.SaveArgs]:
    """For arrays `[...]` by name: what is to come is stored in pieces, so that writing and reading hold few of them."""
    return {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES if isinstance(x, Streamed) else None)
            for name, x in tree.items()}


class _Handler(ocp.type_handlers.ArrayHandler):
    """Writes each as the array that it is, and lets go of it before the next is made."""

    def memory_size(self, values: Sequence[Streamed]) -> Sequence[tuple[int, int]]:
        return [(value.nbytes, value.nbytes) for value in values]

    async def serialize(self, values: Sequence[Streamed], infos, args=None):
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values)):
            for written in await super().serialize([value.load()], [info], [arg]):
                written.result()
        return []


def handler() -> ocp.PyTreeCheckpointHandler:
    """What writes a tree of `Streamed`."""
    registry = ocp.type_handlers.create_type_handler_registry((Streamed, _Handler()))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
