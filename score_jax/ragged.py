"""Token lists of different lengths in a file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write(path: Path, **columns: Sequence[Sequence[int]]) -> None:
    """Columns by name, each a list for every row; the lists of a row are equally long, and there is one at least."""
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
