"""metrics.jsonl in columns, followed as it grows, and thinned out for the screen."""

from __future__ import annotations

import array
import math
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from score_jax.jsonl import number, plain
from score_jax.watch.samples import parse
from score_jax.watch.tail import Tail

POINTS = 400  # of one line on the screen
KEYS_MAX = 100
_NOT_CURVES = ('step', 'steps')
_SUMMED_UP = ('t1', 't2', 'delta', 'changed', 'loss')


class MetricsFile:
    """One metrics.jsonl: the steps and a column for each key, NaN where a line has no number for it.

    One thread calls `advance`, any thread the other methods.
    """

    def __init__(self, path: Path):
        self.tail = Tail(path)
        self.version = 0  # grows with every change
        self._lock = threading.Lock()
        self._start_over()

    def _start_over(self) -> None:
        self._steps = array.array('d')
        self._values: dict[str, array.array] = {}
        self._total = math.nan  # steps of the stage, as the last line has it
        self.summary = {'step': None, 'steps': None}

    def advance(self, limit: int = 1 << 20) -> bool:
        """Takes in about `limit` more bytes; False if there was nothing more to take."""
        before = self.tail.end
        chunk = self.tail.read(limit)
        if not chunk.fresh and self.tail.end == before:
            return False
        rows = [row for line in chunk.lines.split(b'\n')[:-1] if (row := parse(line)) is not None]
        with self._lock:
            if chunk.fresh:
                self._start_over()
            for row in rows:
                if math.isfinite(number(row, 'step')):
                    self._add(row)
        self.summary = self._summary()
        self.version += 1
        return True

    def _add(self, row: dict) -> None:
        self._total = number(row, 'steps')
        for key in row:
            if key not in self._values and key not in _NOT_CURVES and len(self._values) < KEYS_MAX \
                    and plain(key[:80]) == key and math.isfinite(number(row, key)):
                self._values[key] = array.array('f', [math.nan]) * len(self._steps)
        self._steps.append(number(row, 'step'))
        for key, values in self._values.items():
            value = number(row, key)
            values.append(value if abs(value) < 3e38 else math.nan)

    def columns(self, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """{'step': float64 [N], key: float32 [N]} of `keys`, or of all; the later line of a step counts."""
        with self._lock:
            steps = np.array(self._steps)
            columns = {'step': steps} | {key: np.array(values) for key, values in self._values.items()
                                         if keys is None or key in keys}
        if (np.diff(steps) > 0).all():
            return columns
        order = np.argsort(steps, kind='stable')
        order = order[np.append(np.diff(steps[order]) > 0, True)]
        return {key: values[order] for key, values in columns.items()}

    def thinned(self) -> dict[str, list]:
        """At most `POINTS` values of each key (None for NaN): means of neighbours where there are more steps."""
        columns = self.columns()
        steps = columns.pop('step')
        if not len(steps):
            return {}
        edges = np.unique(np.linspace(0, len(steps), POINTS + 1).astype(int))[:-1]
        sizes = np.diff(np.append(edges, len(steps)))
        out = {'step': steps[edges + sizes - 1].tolist()}
        for key, values in columns.items():
            seen = np.isfinite(values)
            total = np.add.reduceat(np.where(seen, values, 0).astype(float), edges)
            counted = np.add.reduceat(seen.astype(int), edges)
            out[key] = [float(f'{t / n:.5g}') if n else None for t, n in zip(total.tolist(), counted.tolist())]
        return out

    def _summary(self) -> dict:
        """Where the stage stands: its last step, its steps, and means over the last tenth of what was logged."""
        columns = self.columns(_SUMMED_UP)
        steps = columns.pop('step')
        if not len(steps):
            return {'step': None, 'steps': None}
        last = max(len(steps) // 10, 1)
        out = {'step': float(steps[-1]), 'steps': self._total if math.isfinite(self._total) else None}
        for key, values in columns.items():
            values = values[-last:][np.isfinite(values[-last:])]
            if len(values):
                out[key] = round(float(values.mean()), 5)
        return out
