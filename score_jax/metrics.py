"""What is measured over two attempts at each of N problems, with 95 % intervals.

Every figure is a fraction of all N, so `delta = i_to_c - c_to_i` (arXiv 2409.12917, section 3). Where each problem
is sampled S times the figures are means over the N x S pairs of attempts, and the intervals are over problems: samples
of one problem are alike, so they count for less than as many problems would.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
NAMES = ('t1', 't2', 'delta', 'i_to_c', 'c_to_i', 'changed')


def transitions(correct: np.ndarray, changed: np.ndarray) -> dict[str, float]:
    """t1, t2, delta, i_to_c, c_to_i and changed, from `correct [N, 2]` (0 or 1) and `changed [N]`."""
    first, second = correct[:, 0] > 0, correct[:, 1] > 0
    return {
        't1': float(first.mean()),
        't2': float(second.mean()),
        'delta': float(second.mean() - first.mean()),
        'i_to_c': float((~first & second).mean()),
        'c_to_i': float((first & ~second).mean()),
        'changed': float(np.mean(changed)),
    }


def with_intervals(correct: np.ndarray, changed: np.ndarray, problem: np.ndarray | None = None) -> dict[str, float]:
    """`transitions`, and NAME_low and NAME_high of each: Wilson's for shares, a paired one for delta.

    `problem [B]` is the number of the problem that each pair of attempts is at; None: one pair for each.
    """
    first, second = correct[:, 0] > 0, correct[:, 1] > 0
    flags = {
        't1': first, 't2': second, 'i_to_c': ~first & second, 'c_to_i': first & ~second, 'changed': np.asarray(changed)}
    values = transitions(correct, changed)
    if problem is None:
        problem = np.arange(len(correct))
    row = {}
    for name in NAMES:
        if name == 'delta':
            changes = _by_problem(second.astype(float) - first, problem)
            low, high = paired_interval(float(changes.sum()), float((changes**2).sum()), len(changes))
        else:
            low, high = share_interval(values[name], effective_count(flags[name], problem))
        row |= {name: values[name], f'{name}_low': low, f'{name}_high': high}
    return row


def _by_problem(values: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """The mean of `values [B]` over each problem, `[N]`."""
    _, place, counts = np.unique(problem, return_inverse=True, return_counts=True)
    return np.bincount(place, values) / counts


def effective_count(flags: np.ndarray, problem: np.ndarray) -> float:
    """How many independent samples would know the share of `flags [B]` as well as these, several of each problem, do.

    At least one a problem (where all samples of a problem agree), and at most B.
    """
    means, p = _by_problem(flags.astype(float), problem), float(np.mean(flags))
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
