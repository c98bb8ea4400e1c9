"""The monitor warns of what looks like self-correction and is none, and of nothing else."""

import numpy as np
import pytest

from score_jax import monitor
from score_jax.monitor import WINDOW, look

STEPS = 400


def series(t1, delta, changed, noise=0.03, seed=0, steps=STEPS) -> list[dict]:
    """Lines of metrics.jsonl: each series moves evenly from its first value to its second."""
    rng = np.random.default_rng(seed)
    columns = [np.linspace(*ends, steps) + noise * rng.normal(size=steps) for ends in (t1, delta)]
    columns.append(np.linspace(*changed, steps))
    return [dict(zip(monitor.KEYS, row)) for row in zip(*columns)]


def warned(lines) -> dict[str, int]:
    """When each warning first comes, of looks after every step."""
    first: dict[str, int] = {}
    for step in range(1, len(lines) + 1):
        for name in look(lines[:step], len(lines)):
            first.setdefault(name, step)
    return first


def test_a_gain_that_is_bought_by_failing_first_is_warned_of_early():
    found = warned(series((0.3, 0.1), (0.1, 0.4), (0.5, 0.8)))
    assert found.keys() == {'failing_first'} and found['failing_first'] < STEPS / 2


@pytest.mark.parametrize('t1, delta', [
    ((0.25, 0.25), (0.0, 0.25)),  # Stage I
    ((0.25, 0.5), (0.25, 0.1)),  # Stage II
    ((0.5, 0.3), (0.1, -0.1)),  # forgetting, which is something else
    ((0.25, 0.25), (0.0, 0.0))])
@pytest.mark.parametrize('seed', range(5))
def test_other_courses_are_not(t1, delta, seed):
    assert not warned(series(t1, delta, (0.5, 0.4), seed=seed))


def test_of_a_hundred_runs_that_hold_turn_1_few_are_warned_of():
    """delta shares the noise of t1: where t1 is low by chance, delta is high."""
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(100):
        t1 = 0.25 + 0.03 * rng.normal(size=STEPS)
        delta = np.linspace(0.0, 0.2, STEPS) + 0.25 - t1
        alarms += bool(warned([dict(t1=a, delta=b, changed=0.5) for a, b in zip(t1, delta)]))
    assert alarms <= 5


def test_a_collapse_into_copying_is_warned_of_when_it_is_there():
    found = warned(series((0.3, 0.6), (-0.05, 0.0), (0.45, 0.0), noise=0.003))
    assert found.keys() == {'copying'} and found['copying'] > 0.7 * STEPS


def test_few_changes_that_gain_something_are_no_collapse():
    assert not warned(series((0.6, 0.6), (0.04, 0.04), (0.06, 0.06)))


def test_looks_are_a_window_apart_and_need_two():
    lines = series((0.5, 0.0), (0.0, 0.5), (0.0, 0.0), noise=0.0)
    assert all(not look(lines[:n], STEPS) for n in (0, 1, WINDOW, 2 * WINDOW - 1, 2 * WINDOW + 1))
    assert look(lines[:2 * WINDOW], STEPS) and look([], 1) == {}


def test_steps_without_a_verdict_are_left_out():
    lines = series((0.3, 0.1), (0.1, 0.4), (0.5, 0.8))
    holes = [{} if i % 10 == 3 else line for i, line in enumerate(lines)]
    assert warned(holes).keys() == {'failing_first'} and not look([{}] * STEPS, STEPS)


def test_a_warning_says_what_was_seen():
    lines = series((0.3, 0.1), (0.1, 0.4), (0.5, 0.8), noise=0.0001)
    told = look(lines, STEPS)['failing_first']
    assert 't1 fell from 29.5 to 10.5 % while delta grew from +10.7 to +39.3 points' in told


def test_the_interval_of_a_change_covers():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        before, after = rng.normal(0, 1, 20), rng.normal(0.5, 2, 20)
        low, high = monitor.change_interval(before, after, 0.95)
        covered.append(low < 0.5 < high)
    assert 0.93 < np.mean(covered) < 0.97
