"""Safetensors written tensor by tensor: each file has a header that says what comes, so none need be held to the end.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {'F32': np.dtype('float32'), 'F16': np.dtype('float16'), 'BF16': np.dtype(ml_dtypes.bfloat16)}
INDEX = 'model.safetensors.index.json'
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE_BYTES = 1 << 26  # that are made contiguous at a time


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor to come."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(directory: Path, entries: list[Entry], arrays: Iterable[np.ndarray], most: int) -> None:
    """Writes model.safetensors, or several files and their index.

    Args:
      entries: what the files hold, in this order.
      arrays: the values of `entries`, each `[*shape]` of any type that its own can be cast from; taken one at a time.
      most: bytes of a file, but for a single tensor that has more.
    """
    files, arrays = _files(entries, most), iter(arrays)
    names = [f'model-{n + 1:05}-of-{len(files):05}.safetensors' for n in range(len(files))]
    if len(files) == 1:
        names = ['model.safetensors']
    for name, part in zip(names, files):
        with (directory / name).open('wb') as file:
            file.write(_header(part))
            for entry in part:
                _write_array(file, entry, next(arrays))
    if len(files) > 1:
        index = {
            'metadata': {'total_size': sum(entry.nbytes for entry in entries)},
            'weight_map': {entry.name: name for name, part in zip(names, files) for entry in part}}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def _files(entries: list[Entry], most: int) -> list[list[Entry]]:
    files, size = [[]], 0
    for entry in entries:
        if files[-1] and size + entry.nbytes > most:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.nbytes
    return files


def _header(entries: list[Entry]) -> bytes:
    values, start = {'__metadata__': {'format': 'pt'}}, 0
    for entry in entries:
        values[entry.name] = {
            'dtype': _NAMES[entry.dtype], 'shape': entry.shape, 'data_offsets': [start, start + entry.nbytes]}
        start += entry.nbytes
    text = json.dumps(values).encode()
    text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, 'little') + text


def _write_array(file, entry: Entry, array: np.ndarray) -> None:
    if array.shape != entry.shape:
        raise ValueError(f'{entry.name} has shape {array.shape}, not {entry.shape}')
    rows = max(len(array) * _PIECE_BYTES // max(entry.nbytes, 1), 1)
    for start in range(0, len(array), rows):
        piece = np.ascontiguousarray(array[start:start + rows].astype(entry.dtype, copy=False))
        file.write(piece.view(np.uint8).data)
