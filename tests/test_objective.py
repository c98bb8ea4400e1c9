"""What each stage rewards, and what every attempt is compared with."""

import dataclasses
import math

import numpy as np
import pytest

from score_jax import objective as objectives
from score_jax.errors import UserError

SYMBOLS = {
    'stage1': dict(beta1=0.01, beta2=0.1), 'stage2': dict(alpha=10.0, beta1=0.01),
    'multi_turn': dict(beta1=0.01), 'single_turn': dict(beta1=0.01)}


def resolve(name, **changes):
    values = dict(
        turns=2, gamma=0.0, kl_estimator='exact', baseline='in_group', adaptive_beta2=0.0, allow_gamma_hack=False)
    return objectives.resolve(name, **{**values, **SYMBOLS.get(name, {}), **changes})


OUTCOMES = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize('name, rewards', [
    ('stage1', [(0, 0), (0, 1), (0, 0), (0, 1)]),
    ('stage2', [(0, 0), (0, 11), (1, -10), (1, 1)]),
    ('multi_turn', [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ('single_turn', [(0, 0), (0, 0), (1, 0), (1, 0)])])
def test_rewards_by_turn_for_every_outcome(name, rewards):
    np.testing.assert_allclose(objectives.turn_rewards(resolve(name), np.array(OUTCOMES, np.float32)), rewards)


@pytest.mark.parametrize('name, kl', [
    ('stage1', (0.1, 0.01)), ('stage2', (0.01, 0.01)), ('multi_turn', (0.01, 0.01)), ('single_turn', (0.01, 0))])
def test_kl_weights_by_turn(name, kl):
    assert resolve(name).kl == kl


def test_the_bonus_compares_each_turn_with_the_one_before():
    three = dataclasses.replace(resolve('stage2', turns=3), bonus=(0, 2, 5))
    rewards = objectives.turn_rewards(three, np.array([(0, 1, 0), (1, 0, 1), (1, 1, 1)], np.float32))
    np.testing.assert_allclose(rewards, [(0, 3, -5), (1, -2, 6), (1, 1, 1)])


def test_returns_are_discounted_over_turns():
    rewards = np.array([(1, 2, 4), (0, -1, 0)], np.float32)
    np.testing.assert_allclose(objectives.returns(rewards, 0.0), rewards)
    np.testing.assert_allclose(objectives.returns(rewards, 0.5), [(3, 4, 4), (-0.5, -1, 0)])


def advantages(rewards, forks, **changes):
    rewards = np.asarray(rewards, np.float32)
    return np.asarray(objectives.advantages(resolve('stage2', **changes), rewards, forks)).T


# P = 2, K1 = 2, K2 = 2: rows are (problem, first attempt, second attempt).
TREE = np.array([(1, 5), (1, 2), (0, 4), (0, 4), (3, 0), (3, 1), (3, 7), (3, 3)])


def test_attempts_are_compared_with_their_siblings():
    first, second = advantages(TREE, (2, 2))
    assert first.tolist() == [1, 1, -1, -1, 0, 0, 0, 0]
    assert second.tolist() == [3, -3, 0, 0, -1, 1, 4, -4]


def test_a_turn_that_was_not_forked_is_compared_within_the_problem():
    rewards = [(1, 6), (0, 3), (0, 0), (1, 1), (1, 1), (1, 4)]
    first, second = advantages(rewards, (3, 1))
    np.testing.assert_allclose(first, [1, -0.5, -0.5, 0, 0, 0])
    np.testing.assert_allclose(second, [6 - 1.5, 3 - 3, 0 - 4.5, 1 - 2.5, 1 - 2.5, 4 - 1])


def test_without_a_baseline_advantages_are_the_returns():
    first, second = advantages(TREE, (2, 2), baseline='none')
    assert first.tolist() == TREE[:, 0].tolist() and second.tolist() == TREE[:, 1].tolist()


def test_a_forked_first_attempt_earns_the_mean_over_its_second_attempts():
    first, second = advantages(TREE, (2, 2), baseline='none', gamma=0.1)
    np.testing.assert_allclose(first, [1.35, 1.35, 0.4, 0.4, 3.05, 3.05, 3.5, 3.5], rtol=1e-6)
    np.testing.assert_allclose(advantages(TREE, (2, 2), gamma=0.1)[0][:4], [0.95, 0.95, -0.95, -0.95], rtol=1e-6)


def test_in_group_the_first_attempts_reward_cancels():
    """Whatever alpha: the bonus is then alpha times what turn 2 earns over its siblings."""
    second_right = np.array([0, 1, 1, 1, 0, 0, 1, 0], np.float32)
    for first_right in (np.zeros(8), np.repeat([0, 1, 1, 0], 2)):
        correct = np.stack([first_right, second_right], axis=1)
        for alpha in (0.0, 4.0, 10.0):
            rewards = objectives.turn_rewards(resolve('stage2', alpha=alpha), correct)
            plain = np.array([-1, 1, 0, 0, 0, 0, 1, -1])
            np.testing.assert_array_equal(advantages(rewards, (2, 2))[1], (1 + alpha) * plain)


def advantages_of_valid(rewards, forks, valid, **changes):
    rewards, valid = np.asarray(rewards, np.float32), np.asarray(valid, bool)
    return np.asarray(objectives.advantages(resolve('stage2', **changes), rewards, forks, valid=valid)).T


def test_a_row_without_a_verdict_has_no_advantage_and_is_in_no_baseline():
    rewards = [(1, 6), (0, 3), (9, 9), (1, 1), (1, 1), (1, 4)]
    first, second = advantages_of_valid(rewards, (3, 1), [1, 1, 0, 1, 1, 1])
    np.testing.assert_allclose(first, [1, -1, 0, 0, 0, 0])
    np.testing.assert_allclose(second, [3, -3, 0, 1 - 2.5, 1 - 2.5, 4 - 1])


def test_a_second_attempt_without_a_verdict_is_left_out_of_its_siblings_and_of_its_first_attempts_return():
    rewards = [(1, 5), (1, 2), (1, 9), (0, 4), (0, 4), (0, 1)]
    first, second = advantages_of_valid(rewards, (2, 3), [1, 1, 0, 1, 1, 1])
    np.testing.assert_allclose(first, [1, 1, 0, -1, -1, -1])
    np.testing.assert_allclose(second, [3, -3, 0, 1.5, 1.5, -3])
    first, _ = advantages_of_valid(rewards, (2, 3), [1, 1, 0, 1, 1, 1], gamma=0.1, baseline='none')
    np.testing.assert_allclose(first, [1.35, 1.35, 0, 0.3, 0.3, 0.3], rtol=1e-6)


def test_what_is_left_alone_has_nothing_to_be_compared_with():
    """A failed first attempt fails all that was forked from it, and leaves the other one without a sibling."""
    first, second = advantages_of_valid(TREE, (2, 2), [1, 1, 0, 0, 1, 0, 1, 1])
    assert first.tolist() == [0, 0, 0, 0, 0, 0, 0, 0]
    assert second.tolist() == [3, -3, 0, 0, 0, 0, 4, -4]


def test_nothing_is_left_where_no_row_has_a_verdict():
    assert not np.any(advantages_of_valid(TREE, (2, 2), [False] * 8))


@pytest.mark.parametrize('name, changes, message', [
    ('stage3', {}, "config.objective.name is 'stage3'; it must be one of stage1, stage2"),
    ('stage1', dict(kl_estimator='k3'), "kl_estimator is 'k3'; it must be one of exact, sampled"),
    ('stage1', dict(baseline='value'), "baseline is 'value'; it must be one of none, batch_mean"),
    ('stage1', dict(alpha=1.0), "alpha is given, but the objective 'stage1' uses beta1, beta2"),
    ('stage2', dict(alpha=math.nan), 'config.objective.alpha is nan'),
    ('stage2', dict(alpha=math.inf), 'config.objective.alpha is inf'),
    ('stage2', dict(beta1=-0.1), 'config.objective.beta1 is -0.1'),
    ('multi_turn', dict(gamma=-1.0), 'config.objective.gamma is -1.0'),
    ('stage2', dict(gamma=0.2), 'gamma = 0.2 and a bonus of 10.0.*allow_gamma_hack')])
def test_what_cannot_be_meant_is_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        resolve(name, **changes)


def test_a_missing_symbol_is_named():
    with pytest.raises(UserError, match="objective.beta2 is missing, but the objective 'stage1' uses beta1, beta2"):
        objectives.resolve(
            'stage1', turns=2, gamma=0.0, kl_estimator='exact', baseline='none', allow_gamma_hack=False, beta1=0.1,
            adaptive_beta2=0.0)


def test_failing_on_purpose_pays_only_where_it_is_allowed():
    """Under gamma * alpha > 1 the return of (0, 1) beats that of (1, 1); up to 1 it does not."""
    def first_return(objective):
        rewards = objectives.turn_rewards(objective, np.array([(0, 1), (1, 1)], np.float32))
        return np.asarray(objectives.returns(rewards, objective.gamma))[:, 0]
    failed, right = first_return(resolve('stage2', gamma=0.2, allow_gamma_hack=True))
    assert failed > right
    failed, right = first_return(resolve('stage2', gamma=0.1))
    assert failed <= right + 1e-6


def test_an_objective_is_told_in_words():
    told = objectives.describe(resolve('stage2'))
    assert 'turn 2: 1 * r2 + 10 * (r2 - r1), KL to the reference x 0.01' in told and 'gamma = 0' in told
