"""Token lists of different lengths in a file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from score_jax import processes


def write(path: Path, **columns: Sequence[Sequence[int]]) -> None:
    """Columns by name, each a list for every row; the lists of a row are equally long, and there is one at least.

    Of several processes, which all must call it, the first one writes.
    """
    if processes.first():
        _write(path, columns)
    processes.agree(None)  # so that whoever reads it next finds it


def _write(path: Path, columns: Mapping[str, Sequence[Sequence[int]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name('unfinished-' + path.name)
    lengths = [len(row) for row in next(iter(columns.values()))]
    flat = {name: np.concatenate(rows).astype(np.int32) for name, rows in columns.items()}
    np.savez(temporary, lengths=np.array(lengths), **flat)
    os.replace(temporary, path)


def read(path: Path) -> dict[str, list[list[int]]]:
    """The columns that `write` wrote."""
    with np.load(path) as file:
        ends = np.cumsum(file['lengths'])[:-1]
        return {name: [part.tolist() for part in np.split(file[name], ends)] for name in file if name != 'lengths'}
