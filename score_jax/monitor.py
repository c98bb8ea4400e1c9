"""Warns, while a stage trains, of the two ways in which a rising reward is not self-correction.

The series are those of metrics.jsonl, one value a step; every step has problems of its own, so the spread between steps
says how far a mean can be trusted, whatever the batch. A look compares the last `WINDOW` steps with the first. Looks
are `WINDOW` steps apart, and their intervals together hold with 95 %: each is taken at `1 - 0.05 / looks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from score_jax.jsonl import number
from score_jax.metrics import CONFIDENCE

WINDOW = 20  # steps
KEYS = ('t1', 'delta', 'changed')
_COPYING = 0.1  # fewer changed answers than this, with delta within _NOTHING of 0, are a collapse into copying
_NOTHING = 0.01


def change_interval(before: np.ndarray, after: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two means, of `after [N]` less of `before [M]` (Welch's)."""
    parts = [float(np.var(x, ddof=1)) / len(x) for x in (before, after)]
    middle, variance = float(np.mean(after) - np.mean(before)), sum(parts)
    if not variance:
        return middle, middle
    freedom = variance**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (before, after)))
    reach = float(special.stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
    return middle - reach, middle + reach


def failing_first(t1: np.ndarray, delta: np.ndarray, looks: int) -> bool:
    """Whether t1 `[N]` fell below its start by more than its interval while delta `[N]` grew by more than its own."""
    confidence = 1 - (1 - CONFIDENCE) / looks
    _, fell = change_interval(t1[:WINDOW], t1[-WINDOW:], confidence)
    grew, _ = change_interval(delta[:WINDOW], delta[-WINDOW:], confidence)
    return fell < 0 < grew


def copying(delta: np.ndarray, changed: np.ndarray) -> bool:
    """Whether nearly all answers stay what they were and nothing is gained; `delta`, `changed` `[N]`, by step."""
    return bool(np.mean(changed[-WINDOW:]) < _COPYING and abs(np.mean(delta[-WINDOW:])) < _NOTHING)


def look(lines: Sequence[Mapping], steps: int) -> dict[str, str]:
    """What is wrong after these lines of metrics.jsonl, by name, with a sentence to print.

    Args:
      lines: of every step so far; those without a verdict are left out.
      steps: that the stage will have.
    """
    if len(lines) % WINDOW or len(lines) < 2 * WINDOW:
        return {}
    values = np.array([[number(line, key) for key in KEYS] for line in lines])
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 2 * WINDOW:
        return {}
    t1, delta, changed = values.T
    start, end = (100 * values[part].mean(axis=0) for part in (slice(WINDOW), slice(-WINDOW, None)))
    found = {}
    if failing_first(t1, delta, looks=max(steps // WINDOW - 1, 1)):
        found['failing_first'] = (
            f't1 fell from {start[0]:.1f} to {end[0]:.1f} % while delta grew from {start[1]:+.1f} to {end[1]:+.1f} '
            'points: the gain is bought by failing first (lower gamma, or raise the KL weight of turn 1)')
    if copying(delta, changed):
        found['copying'] = (
            f'{end[2]:.1f} % of the answers change and delta is {end[1]:+.1f} points: later attempts copy the first '
            '(a longer Stage I, a larger alpha, or a smaller step)')
    return found
