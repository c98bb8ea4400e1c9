"""Shares of all problems, with intervals that cover."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from score_jax import metrics

NAMES = ('t1', 't2', 'delta', 'i_to_c', 'c_to_i', 'changed')
Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def outcomes(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.random((n, 2)) < 0.4).astype(np.float32), rng.random(n) < 0.3


@pytest.mark.parametrize('count, n', [(0, 1), (1, 1), (0, 30), (7, 30), (15, 30), (30, 30), (123, 2000)])
def test_the_interval_of_a_share_is_wilsons(count, n):
    p = count / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert metrics.share_interval(p, n) == pytest.approx((middle - reach, middle + reach), abs=1e-12)


@pytest.mark.parametrize('n', [15, 25, 50, 100])
def test_the_paired_interval_covers_the_difference(n):
    counts = np.array([(gained, lost) for gained in range(n + 1) for lost in range(n + 1 - gained)])
    low, high = np.array([metrics.paired_interval(a - b, a + b, n) for a, b in counts.tolist()]).T
    cells = np.c_[counts, n - counts.sum(axis=1)]
    for gain, loss in itertools.product((0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45), repeat=2):
        covered = (low <= gain - loss + 1e-12) & (gain - loss <= high + 1e-12)
        coverage = stats.multinomial.pmf(cells, n, [gain, loss, 1 - gain - loss])[covered].sum()
        assert coverage > 0.93, (gain, loss)


def test_the_paired_interval_holds_its_estimate_and_has_a_width():
    for n in range(1, 13):
        for gained in range(n + 1):
            for lost in range(n + 1 - gained):
                low, high = metrics.paired_interval(gained - lost, gained + lost, n)
                assert -1 <= low <= (gained - lost) / n <= high <= 1 and high > low


def test_the_paired_interval_is_the_mirror_image_when_gains_and_losses_change_places():
    low, high = metrics.paired_interval(7 - 2, 7 + 2, 30)
    assert metrics.paired_interval(2 - 7, 2 + 7, 30) == pytest.approx((-high, -low))


def test_transitions_of_the_four_outcomes():
    correct = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, 1]], np.float32)
    changed = np.array([False, True, True, True, False])
    assert metrics.transitions(correct, changed) == pytest.approx(
        dict(t1=2 / 5, t2=3 / 5, delta=1 / 5, i_to_c=2 / 5, c_to_i=1 / 5, changed=3 / 5))


def test_over_three_turns_delta_is_from_the_first_to_the_last():
    correct = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0]], np.float32)
    row = metrics.transitions(correct, np.ones(5, bool))
    assert row == pytest.approx({
        't1': 2 / 5, 't2': 3 / 5, 't3': 3 / 5, 'delta': 1 / 5, 'i_to_c': 2 / 5, 'c_to_i': 1 / 5, 'changed': 1,
        'delta_t2': 1 / 5, 'delta_t3': 0})
    interval = metrics.with_intervals(correct, np.ones(5, bool))
    assert (interval['delta_t3_low'], interval['delta_t3_high']) == metrics.paired_interval(0, 2, 5)


@pytest.mark.parametrize('seed', range(5))
def test_delta_is_what_was_gained_less_what_was_lost(seed):
    row = metrics.transitions(*outcomes(seed=seed))
    assert row['delta'] == pytest.approx(row['i_to_c'] - row['c_to_i'])
    assert row['delta'] == pytest.approx(row['t2'] - row['t1'])


def test_samples_of_one_problem_that_agree_count_as_one():
    """Four copies of each pair of attempts say no more than one, and independent ones as much as four problems."""
    correct, changed = outcomes(60)
    problem = np.repeat(np.arange(60), 4)
    once = metrics.with_intervals(correct, changed)
    copied = metrics.with_intervals(correct.repeat(4, 0), changed.repeat(4), problem)
    assert copied == pytest.approx(once, abs=2e-3)
    correct, changed = outcomes(240, seed=1)
    independent, apart = metrics.with_intervals(correct, changed, problem), metrics.with_intervals(correct, changed)
    assert all(independent[name] == apart[name] for name in NAMES)
    for name in NAMES:
        widths = [row[f'{name}_high'] - row[f'{name}_low'] for row in (independent, apart, once)]
        assert widths[1] == pytest.approx(widths[0], rel=0.25) and widths[0] < 0.75 * widths[2], name


@pytest.mark.parametrize('spread', [0.0, 0.25, 0.5])
def test_intervals_over_problems_cover(spread):
    """Problems of unlike difficulty, several samples each."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        p = 0.5 + spread * rng.choice([-1, 1], 50)
        correct = (rng.random((50, 6, 2)) < p[:, None, None]).reshape(-1, 2).astype(np.float32)
        row = metrics.with_intervals(correct, correct[:, 0] != correct[:, 1], np.repeat(np.arange(50), 6))
        covered.append((row['t1_low'] <= 0.5 <= row['t1_high'], row['delta_low'] <= 0 <= row['delta_high']))
    assert (np.mean(covered, axis=0) > 0.92).all()


def test_figures_may_be_none_or_all():
    problem = np.repeat(np.arange(5), 3)
    for value in (0, 1):
        row = metrics.with_intervals(np.full((15, 2), value, np.float32), np.zeros(15, bool), problem)
        assert row['t1'] == value and 0 < row['t1_high'] - row['t1_low'] < 0.6


def test_every_figure_comes_with_its_interval_around_it():
    row = metrics.with_intervals(*outcomes())
    assert row.keys() == {f'{name}{end}' for name in NAMES for end in ('', '_low', '_high')} | {'delta_p'}
    assert all(row[f'{name}_low'] < row[name] < row[f'{name}_high'] for name in NAMES)
    assert all(isinstance(value, float) for value in row.values())


def test_a_problem_counts_once_however_many_of_its_samples_have_a_verdict():
    problem = np.repeat(np.arange(20), [40] * 10 + [1] * 10)  # 39 samples of each of the last ten were dropped
    correct = np.zeros((len(problem), 2), np.float32)
    correct[400:, 1] = 1
    row = metrics.with_intervals(correct, correct[:, 0] != correct[:, 1], problem)
    for name, value in (('t1', 0), ('t2', 0.5), ('delta', 0.5), ('i_to_c', 0.5), ('c_to_i', 0), ('changed', 0.5)):
        assert row[name] == pytest.approx(value) and row[f'{name}_low'] <= row[name] <= row[f'{name}_high']


# --- is there a change at all


@pytest.mark.parametrize('gained, lost', [(0, 0), (1, 0), (5, 5), (7, 2), (2, 7), (40, 12), (0, 30)])
def test_with_one_sample_a_problem_the_test_is_mcnemars_exact_one(gained, lost):
    """Two-sided: every split of those that changed that is no likelier than the one seen."""
    n = gained + lost
    law = [Fraction(math.comb(n, i), 2**n) for i in range(n + 1)]
    exact = sum(p for p in law if p <= law[gained])
    changes = np.array([1] * gained + [-1] * lost + [0] * 20)
    assert metrics.p_value(changes) == pytest.approx(float(exact), abs=1e-12)


def test_with_several_samples_a_problem_the_test_is_the_one_for_clusters():
    """As often below a level as the level says, where the samples of a problem are alike and nothing changes."""
    rng, below = np.random.default_rng(0), []
    for _ in range(2000):
        p = rng.beta(0.5, 0.5, 80)
        change = (rng.random((80, 4)) < p[:, None]).mean(1) - (rng.random((80, 4)) < p[:, None]).mean(1)
        below.append(metrics.p_value(change))
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(below) < level) == pytest.approx(level, abs=4 * math.sqrt(level / 2000))
    change = np.array([0.5, -0.25, 0.75, 0, 0.5])
    z = 1.5 / math.sqrt(0.25 + 0.0625 + 0.5625 + 0.25)
    assert metrics.p_value(change) == pytest.approx(2 * stats.norm.sf(z))


def test_the_test_and_the_interval_agree_on_what_is_clear():
    for gained, lost in itertools.product(range(0, 60, 6), repeat=2):
        low, high = metrics.paired_interval(gained - lost, gained + lost, 200)
        p = metrics.p_value(np.array([1] * gained + [-1] * lost))
        if not 0.01 < p < 0.1:
            assert (p < 0.05) == (low > 0 or high < 0), (gained, lost)


# --- how far a response is from the one before


def indel(a: str, b: str) -> int:
    """Characters out and in, by the textbook's table."""
    table = [[i + j if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        same = a[i - 1] == b[j - 1]
        table[i][j] = table[i - 1][j - 1] if same else 1 + min(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def test_the_distance_is_that_of_the_table_over_both_lengths():
    rng = np.random.default_rng(0)
    texts = [''.join(rng.choice(list('ab 7é'), rng.integers(0, 12))) for _ in range(60)]
    before, after = texts[:30] + ['', 'x'], texts[30:] + ['', '']
    expected = [indel(a, b) / (len(a) + len(b)) if a or b else 0 for a, b in zip(before, after)]
    np.testing.assert_allclose(metrics.edit_distances(before, after), expected)


def test_the_histogram_has_a_place_for_copies_and_counts_by_outcome():
    correct = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0]])
    histogram = metrics.distance_histogram(np.array([0.35, 1.0, 0.0, 0.0, 0.1, 0.1001, 0.3]), correct)
    assert list(histogram) == list(metrics.KINDS)
    assert histogram['i->c'] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert histogram['c->i'] == [0] * 10 + [1] and histogram['c->c'] == [1] + [0] * 10
    assert histogram['i->i'] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert metrics.distance_histogram(np.zeros(0), np.zeros((0, 3)))['c->c'] == [0] * 11


def test_a_mean_of_values_between_0_and_1_has_the_width_of_its_own_spread():
    rng, covered = np.random.default_rng(0), []
    for _ in range(500):
        values = rng.beta(0.4, 2.0, 100) * (rng.random(100) < 0.6)
        low, high = metrics.mean_interval(values)
        covered.append(low <= 0.6 * 0.4 / 2.4 <= high)
        assert high - low < 1.3 * 2 * Z * values.std(ddof=1) / 10
    assert np.mean(covered) > 0.92
    assert metrics.mean_interval(np.zeros(50))[1] > 0 and metrics.mean_interval(np.full(50, 0.5))[1] < 0.7


def test_further_figures_come_with_intervals_of_their_own():
    correct, changed = outcomes(60)
    shares = {'edit_distance': np.linspace(0, 1, 60), 'truncated_turn1': changed}
    row = metrics.with_intervals(correct, changed, np.repeat(np.arange(20), 3), shares)
    assert row['edit_distance'] == pytest.approx(0.5)
    assert [row[f'truncated_turn1{end}'] for end in ('', '_low')] == [row[f'changed{end}'] for end in ('', '_low')]
