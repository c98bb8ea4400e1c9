"""What is measured over the attempts in a row at each of N problems, with 95 % intervals.

Letters: B rows (problems, or several samples of each), T turns.

Every figure is a fraction of all N, so `delta = i_to_c - c_to_i` (arXiv 2409.12917, section 3): all three compare the
last attempt with the first, as `changed` does. Over more than two turns `delta_t3` and the like compare an attempt with
the one before it. Where a problem is sampled several times its mean counts, however many of its samples have a verdict,
and the intervals are over problems: samples of one problem are alike, and count for less than as many problems would.

How far the last response is from the first is told by the indel distance: how many characters are to be taken out and
put in, over the characters of both (0: the same text, 1: nothing in common).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Indel
from scipy import special

CONFIDENCE = 0.95
KINDS = ('i->c', 'c->i', 'c->c', 'i->i')  # of a row, by its first and its last attempt
BINS = 10  # of the histogram of distances, behind a place of its own for 0
_Z = float(special.ndtri((1 + CONFIDENCE) / 2))


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


def with_intervals(
    correct: np.ndarray, changed: np.ndarray, problem: np.ndarray | None = None,
    shares: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """`transitions`, NAME_low and NAME_high of each, and NAME_p of differences.

    Intervals are Wilson's for shares and paired ones for differences; NAME_p is `p_value`.

    Args:
      correct: `[B, T]`, 0 or 1.
      changed: `[B]`, 0 or 1.
      problem: `[B]`, the number of the problem that each row is at; None: one row for each.
      shares: further figures by name, `[B]` from 0 to 1.
    """
    if problem is None:
        problem = np.arange(len(correct))
    row = {}
    for name, values in (_rows(correct, changed) | dict(shares or {})).items():
        means = _by_problem(values, problem)
        mean, p = float(means.mean()), {}
        if name.startswith('delta'):
            low, high = paired_interval(float(means.sum()), float((means**2).sum()), len(means))
            p = {f'{name}_p': p_value(means)}
        else:
            low, high = share_interval(mean, effective_count(values, problem))
        row |= {name: mean, f'{name}_low': low, f'{name}_high': high} | p
    return row


def _by_problem(values: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """The mean of `values [B]` over each problem, `[N]`."""
    _, place, counts = np.unique(problem, return_inverse=True, return_counts=True)
    return np.bincount(place, values) / counts


def effective_count(values: np.ndarray, problem: np.ndarray) -> float:
    """How many independent samples would know the mean of `values [B]`, from 0 to 1, as well as these, several of each
    problem, do.

    At least one a problem. Where the values are 0 or 1, at most B: one a problem where all samples of a problem agree.
    Values in between vary less than 0 and 1 would, and may count for more.
    """
    values = np.asarray(values, float)
    means = _by_problem(values, problem)
    p, flags = float(means.mean()), bool(((values == 0) | (values == 1)).all())
    if p in (0.0, 1.0) or len(means) == 1 or (flags and len(means) == len(values)):
        return len(means)
    variance = float(np.var(means, ddof=1)) / len(means)
    if variance == 0:
        return len(values)
    return min(max(p * (1 - p) / variance, len(means)), len(values) if flags else math.inf)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of `values [N]` from 0 to 1, one a problem."""
    return share_interval(float(values.mean()), effective_count(values, np.arange(len(values))))


def share_interval(p: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of the share p of n."""
    z = _Z
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return 0.0 if p == 0 else middle - reach, 1.0 if p == 1 else middle + reach


def paired_interval(total: float, squares: float, n: int) -> tuple[float, float]:
    """Interval of the mean change over n problems, from the sums of the changes (each in [-1, 1]) and of their squares.

    With one sample a problem that is what was gained less what was lost, and what changed. Wald's paired interval with
    one problem added that gained and one that lost (Bonett and Price, 2012), which keeps its coverage, and a width
    above zero, where few change, also where all change one way.
    """
    squares, n = squares + 2, n + 2
    middle = total / n
    reach = _Z * math.sqrt(squares - total**2 / n) / n
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def p_value(changes: np.ndarray) -> float:
    """Two-sided, of the hypothesis that the mean change is 0, from the change `[N]` of each problem, -1 to 1.

    With one sample a problem that is McNemar's test in its exact form: of those that change, half would change either
    way. With several, where a problem's change is a mean, it is McNemar's test for clusters (Durkalski et al., 2003,
    Statistics in Medicine 22), `(sum d)^2 / sum d^2` against chi-squared with one degree of freedom.
    """
    changes = np.asarray(changes, float)
    gained, lost = int((changes == 1).sum()), int((changes == -1).sum())
    if gained + lost == np.count_nonzero(changes):
        return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))  # both tails are alike
    return float(special.chdtrc(1, changes.sum() ** 2 / (changes**2).sum()))


def edit_distances(before: Sequence[str], after: Sequence[str]) -> np.ndarray:
    """The indel distance between each two texts over the sum of their lengths in characters, `[B]`."""
    return np.array([Indel.normalized_distance(a, b) for a, b in zip(before, after, strict=True)])


def distance_histogram(distances: np.ndarray, correct: np.ndarray) -> dict[str, list[int]]:
    """How many of `distances [B]` lie where, for each of `KINDS`, from `correct [B, T]`.

    The first count is of those that are 0, then come `BINS` of equal width, each with its upper edge.
    """
    place = np.ceil(np.asarray(distances) * BINS - 1e-9).astype(int)
    first, last = (np.where(correct[:, turn] > 0, 'c', 'i') for turn in (0, -1))
    kinds = np.char.add(np.char.add(first, '->'), last)
    return {kind: np.bincount(place[kinds == kind], minlength=BINS + 1).tolist() for kind in KINDS}
