"""An index of samples.jsonl: where each line stands, and the few things it can be filtered by.

A line costs 22 bytes of memory however long it is; texts stay on disk and are read by their offset.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from score_jax import plot_style
from score_jax.jsonl import number, plain
from score_jax.report import kind_of
from score_jax.report_html import KINDS
from score_jax.rewards import Outcome
from score_jax.rewards.outcome import compared
from score_jax.watch.tail import Tail

COPIED = 'copied'  # the last answer is the first one again
OTHER = 'other'  # outcomes beyond those there are bits for
LABELS_MAX = 32
SOURCES_MAX = 1000
LONGEST_NAME = 60  # characters of an outcome's or a method's name
NO_STEP = -1
_MIB = 1 << 20


class Labels:
    """The names that a sample can be filtered by, each a bit of a uint32; outcomes get theirs when first seen."""

    def __init__(self):
        self.bits = {name: 1 << place for place, name in enumerate((*KINDS, COPIED, OTHER, *map(str, Outcome)))}

    def of(self, sample: dict) -> int:
        """Every label of a sample: how it went, whether it was copied, the outcomes of its turns."""
        turns = turns_of(sample)
        bits = 0
        for turn in turns:
            bits |= self._bit(turn.get('outcome')) if isinstance(turn.get('outcome'), str) else 0
            bits |= self.bits[Outcome.TRUNCATED] if turn.get('truncated') is True else 0
        kind = kind_of(sample)
        if kind is not None:
            bits |= self.bits[kind]
            if answer(turns[0]) == answer(turns[-1]):
                bits |= self.bits[COPIED]
        return bits

    def names(self, bits: int) -> list[str]:
        """The names of the bits that are set."""
        return [name for name, bit in self.bits.items() if bits & bit]

    def _bit(self, outcome: str) -> int:
        name = outcome[:LONGEST_NAME]
        if name not in self.bits:
            if len(self.bits) == LABELS_MAX or plain(name) != name:
                return self.bits[OTHER]
            self.bits = self.bits | {name: 1 << len(self.bits)}  # a new dict: others may be reading the old one
        return self.bits[name]


class Index(NamedTuple):
    """What is known of the first N lines of a file; arrays of length N that nobody writes to."""

    offset: np.ndarray  # int64 [N], where the line starts, bytes
    length: np.ndarray  # int32 [N], bytes
    step: np.ndarray  # int32 [N], of training; `NO_STEP` where there is none
    labels: np.ndarray  # uint32 [N], bits of `Labels`
    source: np.ndarray  # uint16 [N], place in `SampleFile.sources`

    def __len__(self) -> int:
        return len(self.offset)


_EMPTY = Index(*(np.zeros(0, kind) for kind in (np.int64, np.int32, np.int32, np.uint32, np.uint16)))


class SampleFile:
    """One samples.jsonl, followed as it grows.

    One thread calls `advance`; any thread may take `index`, which is never changed, only replaced.
    """

    def __init__(self, path: Path, stage: str, labels: Labels):
        self.tail = Tail(path)
        self.sources: list[str] = []
        self.unreadable = 0  # lines that hold no JSON object
        self._stage = stage
        self._labels = labels
        self._start_over()

    def _start_over(self) -> None:
        self._columns, self._count = _EMPTY, 0
        self._codes: dict[str, int] = {}
        self.sources, self.unreadable, self.index = [], 0, _EMPTY

    @property
    def latest_first(self) -> bool:
        """Whether the last line is what one wants to see first: in training, not in an evaluation."""
        return self._stage != 'evaluation'

    def advance(self, limit: int = _MIB) -> bool:
        """Takes in about `limit` more bytes; False if there was nothing more to take."""
        before = self.tail.end
        chunk = self.tail.read(limit)
        if chunk.fresh:
            self._start_over()
        offset = chunk.start
        for line in chunk.lines.split(b'\n')[:-1]:
            self._add(offset, line)
            offset += len(line) + 1
        self.index = Index(*(column[:self._count] for column in self._columns))
        return chunk.fresh or self.tail.end != before

    def _add(self, offset: int, line: bytes) -> None:
        sample = parse(line)
        if sample is None:
            self.unreadable += bool(line.strip())
            return
        if self._count == len(self._columns):
            room = self._count + self._count // 2 + 64
            self._columns = Index(*(np.resize(column, room) if len(column) else np.zeros(room, column.dtype)
                                    for column in self._columns))
        step = number(sample, 'step')
        values = (offset, len(line), int(min(max(step, 0), 2**31 - 1)) if math.isfinite(step) else NO_STEP,
                  self._labels.of(sample), self._source(sample))
        for column, value in zip(self._columns, values):
            column[self._count] = value
        self._count += 1

    def _source(self, sample: dict) -> int:
        name = source_of(sample, self._stage)
        if name not in self._codes:
            if len(self._codes) == SOURCES_MAX:
                return SOURCES_MAX - 1
            self._codes[name] = len(self._codes)
            self.sources = self.sources + [name]
        return self._codes[name]

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the file; fewer or none where it no longer has them."""
        try:
            with open(self.tail.path, 'rb', buffering=0) as file:
                return os.pread(file.fileno(), length, start)
        except OSError:
            return b''


def parse(line: bytes) -> dict | None:
    """The object on a line, bad bytes replaced; None where there is none."""
    try:
        value = json.loads(line.decode('utf-8', errors='replace'))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def turns_of(sample: dict) -> list[dict]:
    """The turns that are objects."""
    turns = sample.get('turns')
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def source_of(sample: dict, stage: str) -> str:
    """Where a sample is from: the stage that was trained, or the method and temperature that were evaluated."""
    if 'method' not in sample:
        return plain(stage)[:LONGEST_NAME]
    temperature = ''
    if math.isfinite(number(sample, 'temperature')):
        temperature = f' · {plot_style.temperature_label(sample)}'
    return f"evaluation · {plain(str(sample['method'])[:LONGEST_NAME])}{temperature}"


def answer(turn: dict) -> object:
    """What two attempts are compared by, of whatever type it was written."""
    return compared(turn.get('read'), turn.get('response'))
