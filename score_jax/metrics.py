"""What is measured over the attempts in a row at each of N problems, with 95 % intervals.

Letters: B rows (problems, or several samples of each), T turns.

Every figure is a fraction of all N, so `delta = i_to_c - c_to_i` (arXiv 2409.12917, section 3): all three compare the
last attempt with the first, as `changed` does. Over more than two turns `delta_t3` and the like compare an attempt with
the one before it. Where a problem is sampled several times its mean counts, however many of its samples have a verdict,
and the intervals are over problems: samples of one problem are alike, and count for less than as many problems would.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def _rows(correct: np.ndarray, changed: np.ndarray) -> dict[str, np.ndarray]:
    """What each row adds to each figure, `[B]`: 0 or 1 for shares, -1, 0 or 1 for differences between turns."""
    right = (correct > 0).astype(float)
    turns, first, last = right.shape[1], right[:, 0], right[:, -1]
    rows = {f't{t + 1}': right[:, t] for t in range(turns)}
    rows |= {
        'delta': last - first, 'i_to_c': (1 - first) * last, 'c_to_i': first * (1 - last),
        'changed': np.asarray(changed, float)}
    if turns > 2:
        rows |= {f'delta_t{t + 1}': right[:, t] - right[:, t - 1] for t in range(1, turns)}
    return rows


def transitions(correct: np.ndarray, changed: np.ndarray) -> dict[str, float]:
    """t1 to tT, delta, i_to_c, c_to_i and changed, from `correct [B, T]` (0 or 1) and `changed [B]`."""
    return {name: float(values.mean()) for name, values in _rows(correct, changed).items()}


def with_intervals(correct: np.ndarray, changed: np.ndarray, problem: np.ndarray | None = None) -> dict[str, float]:
    """`transitions`, and NAME_low and NAME_high of each: Wilson's for shares, a paired one for differences.

    `problem [B]` is the number of the problem that each row is at; None: one row for each.
    """
    if problem is None:
        problem = np.arange(len(correct))
    row = {}
    for name, values in _rows(correct, changed).items():
        means = _by_problem(values, problem)
        mean = float(means.mean())
        if name.startswith('delta'):
            low, high = paired_interval(float(means.sum()), float((means**2).sum()), len(means))
        else:
            low, high = share_interval(mean, effective_count(values, problem))
        row |= {name: mean, f'{name}_low': low, f'{name}_high': high}
    return row


def _by_problem(values: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """The mean of `values [B]` over each problem, `[N]`."""
    _, place, counts = np.unique(problem, return_inverse=True, return_counts=True)
    return np.bincount(place, values) / counts


def effective_count(flags: np.ndarray, problem: np.ndarray) -> float:
    """How many independent samples would know the share of `flags [B]` as well as these, several of each problem, do.

    At least one a problem (where all samples of a problem agree), and at most B.
    """
    means = _by_problem(flags.astype(float), problem)
    p = float(means.mean())
    if len(means) == len(flags) or p in (0.0, 1.0) or len(means) == 1:
        return len(means)
    variance = float(np.var(means, ddof=1)) / len(means)
    return len(flags) if variance == 0 else min(max(p * (1 - p) / variance, len(means)), len(flags))


def share_interval(p: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of the share p of n."""
    z = _Z
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return 0.0 if p == 0 else middle - reach, 1.0 if p == 1 else middle + reach


def paired_interval(total: float, squares: float, n: int) -> tuple[float, float]:
    """Interval of the mean change over n problems, from the sum of their changes (each from -1 to 1) and of its squares.

    With one sample a problem that is what was gained less what was lost, and what changed. Wald's paired interval with
    one problem added that gained and one that lost (Bonett and Price, 2012), which keeps its coverage, and a width
    above zero, where few change, also where all change one way.
    """
    squares, n = squares + 2, n + 2
    middle = total / n
    reach = _Z * math.sqrt(squares - total**2 / n) / n
    return max(-1.0, middle - reach), min(1.0, middle + reach)
