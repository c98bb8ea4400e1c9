"""What is measured over two attempts at each of N problems, with 95 % intervals.

Every figure is a fraction of all N, so `delta = i_to_c - c_to_i` (arXiv 2409.12917, section 3).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
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


def with_intervals(correct: np.ndarray, changed: np.ndarray) -> dict[str, float]:
    """`transitions`, and NAME_low and NAME_high of each: Wilson's for shares, a paired one for delta."""
    values, n = transitions(correct, changed), len(correct)
    row = {}
    for name in NAMES:
        if name == 'delta':
            low, high = paired_interval(round(values['i_to_c'] * n), round(values['c_to_i'] * n), n)
        else:
            low, high = share_interval(round(values[name] * n), n)
        row |= {name: values[name], f'{name}_low': low, f'{name}_high': high}
    return row


def share_interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method='wilson')
    return float(interval.low), float(interval.high)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Interval of `(gained - lost) / n` over n pairs.

    Wald's paired interval with one count added to the pairs that gained and to those that lost (Bonett and Price,
    2012), which keeps its coverage, and a width above zero, where few pairs change, also where all change one way.
    """
    gained, lost, n = gained + 1, lost + 1, n + 2
    middle = (gained - lost) / n
    spread = math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * spread
    return max(-1.0, middle - reach), min(1.0, middle + reach)
