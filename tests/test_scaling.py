"""What more samples buy, against counting by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from score_jax import metrics, scaling
from score_jax.errors import UserError
from score_jax.grading import Attempt
from score_jax.rewards import Outcome, Verdict


def attempt(read: str | None, right: bool = False) -> Attempt:
    outcome = Outcome.CORRECT if right else Outcome.NO_ANSWER if read is None else Outcome.WRONG
    return Attempt(str(read), 1, Verdict(outcome, read))


@pytest.mark.parametrize('samples', [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples):
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        correct = np.arange(samples) < right
        share = np.mean([correct[list(one)].any() for one in itertools.combinations(range(samples), k)])
        assert scaling.pass_at_k(correct[None], k) == pytest.approx([share], abs=1e-12)


def test_pass_at_k_is_the_estimator_of_the_paper_at_any_size():
    rng = np.random.default_rng(0)
    correct = rng.random((6, 200)) < np.array([0, 0.005, 0.1, 0.5, 0.99, 1])[:, None]
    for k in (1, 10, 100, 200):
        exact = [1 - Fraction(math.comb(200 - int(c), k), math.comb(200, k)) for c in correct.sum(1)]
        np.testing.assert_allclose(scaling.pass_at_k(correct, k), [float(x) for x in exact], atol=1e-12)


def by_hand(read, worth, size: int) -> float:
    """The mean over every subset, ties shared."""
    total = []
    for one in itertools.combinations(range(len(read)), size):
        ballots = [read[i] for i in one if read[i] is not None]
        most = max(map(ballots.count, ballots), default=0)
        leading = {answer for answer in ballots if ballots.count(answer) == most}
        total.append(np.mean([worth[read.index(answer)] for answer in leading]) if leading else 0.0)
    return float(np.mean(total))


@pytest.mark.parametrize('seed', range(20))
def test_a_vote_over_all_subsets_is_that_by_hand(seed):
    rng = np.random.default_rng(seed)
    read = rng.choice(['a', 'b', 'c', 'd', None], 7, p=[0.3, 0.2, 0.2, 0.1, 0.2]).tolist()
    worth = np.isin(read, ['a', 'd']).astype(float)  # two ways to write what is right
    for size in range(1, 8):
        value = scaling.vote(read, worth, scaling.subsets(7, size))
        assert value == pytest.approx(by_hand(read, worth, size), abs=1e-12)


def test_a_tie_is_worth_the_mean_of_what_is_tied_and_nothing_read_is_no_vote():
    every = np.array([[0, 1, 2, 3]])
    assert scaling.vote(['a', 'a', 'b', 'b'], np.array([1, 1, 0, 0.0]), every) == 0.5
    assert scaling.vote(['a', None, None, None], np.array([1, 0, 0, 0.0]), every) == 1.0
    assert scaling.vote([None] * 4, np.zeros(4), every) == 0.0


@pytest.mark.parametrize('size', [1, 2, 4, 8, 16, 32, 64])
def test_subsets_take_every_rollout_as_often_as_another(size):
    chosen = scaling.subsets(64, size)
    assert all(len(set(one)) == size for one in chosen.tolist())
    assert len(set(np.bincount(chosen.ravel(), minlength=64).tolist())) == 1
    np.testing.assert_array_equal(chosen, scaling.subsets(64, size))
    assert len(chosen) >= 256 or len(chosen) == math.comb(64, size)


def test_a_vote_over_random_subsets_is_near_that_over_all(monkeypatch):
    rng = np.random.default_rng(0)
    read = rng.choice(list('abcdef'), 16).tolist()
    worth = np.isin(read, ['a', 'b']).astype(float)
    drawn = scaling.vote(read, worth, scaling.subsets(16, 4))  # some of 1820
    monkeypatch.setattr(scaling, '_SUBSETS', 2000)
    assert drawn == pytest.approx(scaling.vote(read, worth, scaling.subsets(16, 4)), abs=0.06)


def rollouts(problems: int, each: int, turns: int, seed: int = 0) -> list[list[Attempt]]:
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.random(problems), each)
    return [
        [attempt('right' if rng.random() < level + 0.15 * turn else str(rng.choice(['x', 'y', 'z'])), False)
         for level in levels] for turn in range(turns)]


def graded(turns: list[list[Attempt]]) -> list[list[Attempt]]:
    return [[attempt(a.verdict.read, a.verdict.read == 'right') for a in turn] for turn in turns]


@pytest.mark.parametrize('turns, budgets', [(2, [2, 4, 8]), (3, [3, 6])])
def test_figures_of_a_row(turns, budgets):
    attempts = graded(rollouts(30, 8, turns))
    row = scaling.figures(attempts, 8)
    assert (row['n'], row['samples'], row['turns']) == (30, 8, turns) and 'dropped' not in row
    correct = np.array([[a.verdict.reward for a in turn] for turn in attempts]).reshape(turns, 30, 8)
    assert [line['k'] for line in row['pass_at_k']] == [1, 2, 4, 8]
    assert row['pass_at_k'][0]['accuracy'] == pytest.approx(correct[0].mean())
    assert row['pass_at_k'][-1]['accuracy'] == pytest.approx(correct[0].any(1).mean())
    assert [line['budget'] for line in row['vote']] == budgets
    for line in row['vote']:
        k, reads = line['rollouts'], [[a.verdict.read for a in turn] for turn in attempts]
        for name, turn, size in (('parallel', 0, turns * k), ('sequential', -1, k)):
            values = [by_hand(reads[turn][8 * i:8 * i + 8], correct[turn][i], size) for i in range(30)]
            assert line[name] == pytest.approx(np.mean(values), abs=1e-12)
            assert line[f'{name}_low'] < line[name] < line[f'{name}_high']
        assert line['delta'] == pytest.approx(line['sequential'] - line['parallel'])
        assert line['delta_low'] < line['delta'] < line['delta_high'] and 0 <= line['delta_p'] <= 1


def test_the_interval_of_the_difference_is_paired():
    """Problems that differ in how hard they are do not blur a gain that all of them have."""
    attempts = graded(rollouts(200, 4, 2))
    line = scaling.figures(attempts, 4)['vote'][0]
    apart = sum((line[f'{name}_high'] - line[f'{name}_low']) ** 2 for name in ('parallel', 'sequential')) ** 0.5
    assert line['delta_high'] - line['delta_low'] < 0.85 * apart


def test_problems_at_which_the_grader_failed_are_left_out_and_counted():
    failed = Attempt('?', 1, Verdict(Outcome.SANDBOX_ERROR))
    first, second = graded(rollouts(3, 4, 2))
    row = scaling.figures([first, [*second[:5], failed, *second[6:]]], 4)
    kept = scaling.figures([first[:4] + first[8:], second[:4] + second[8:]], 4)
    assert row == kept | {'dropped': 1}
    with pytest.raises(UserError, match='at every problem'):
        scaling.figures([[failed] * 4] * 2, 2)


def test_intervals_of_votes_cover():
    covered = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        values = rng.choice([0.0, 0.25, 0.5, 1.0], 60, p=[0.5, 0.1, 0.1, 0.3])
        low, high = metrics.mean_interval(values)
        covered.append(low <= 0.375 <= high)
    assert np.mean(covered) > 0.9
