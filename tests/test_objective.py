"""What each stage rewards, and what every attempt is compared with."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import objective as objectives
from score_jax.errors import UserError
from score_jax.learner import policy_loss
from score_jax.token_statistics import TokenStatistics
from score_jax.trajectory import Trajectory

SYMBOLS = {
    'stage1': dict(beta1=0.01, beta2=0.1), 'stage2': dict(alpha=10.0, beta1=0.01),
    'multi_turn': dict(beta1=0.01), 'single_turn': dict(beta1=0.01)}


def resolve(name, **changes):
    values = dict(
        turns=2, gamma=0.0, kl_estimator='exact', baseline='in_group', adaptive_beta2=0.0, allow_gamma_hack=False)
    return objectives.resolve(name, **{**values, **SYMBOLS.get(name, {}), **changes})


# By objective: values of its symbols, then what each token of each turn weighs in the gradient of log pi, by outcome
# (wrong and right, turn after turn), and what each KL weighs. By hand from Eq. 2-4 and the progress bonus.
TWO, THREE = (list(itertools.product((0, 1), repeat=turns)) for turns in (2, 3))
TABLE = {
    'stage1': (TWO, {}, [(0, 0), (0, 1), (0, 0), (0, 1)], (0.1, 0.01)),
    'stage2': (TWO, {}, [(0, 0), (0, 11), (1, -10), (1, 1)], (0.01, 0.01)),
    'stage2, without the bonus': (TWO, dict(alpha=0.0), [(0, 0), (0, 1), (1, 0), (1, 1)], (0.01, 0.01)),
    'multi_turn': (TWO, {}, [(0, 0), (0, 1), (1, 0), (1, 1)], (0.01, 0.01)),
    'single_turn': (TWO, {}, [(0, 0), (0, 0), (1, 0), (1, 0)], (0.01, 0)),
    'stage2, gamma': (TWO, dict(gamma=0.1), [(0, 0), (1.1, 11), (0, -10), (1.1, 1)], (0.01, 0.01)),
    'stage2, hack': (
        TWO, dict(gamma=1.0, allow_gamma_hack=True), [(0, 0), (11, 11), (-9, -10), (2, 1)], (0.01, 0.01)),
    'stage2, given': (TWO, {}, [(0, 0), (0, 11), (0, -10), (0, 1)], (0, 0.01)),
    'stage1, of three': (THREE, {}, [(0, 0, 0), (0, 0, 1)] * 4, (0.1, 0.1, 0.01)),
    'stage2, of three': (
        THREE, {}, [(0, 0, 0), (0, 0, 11), (0, 11, -10), (0, 11, 1), (1, -10, 0), (1, -10, 11), (1, 1, -10), (1, 1, 1)],
        (0.01, 0.01, 0.01)),
    'stage2, gamma, of three': (
        THREE, dict(alpha=2.0, gamma=0.5), [
            (0, 0, 0), (0.75, 1.5, 3), (1, 2, -2), (1.75, 3.5, 1),
            (0, -2, 0), (0.75, -0.5, 3), (1, 0, -2), (1.75, 1.5, 1)], (0.01, 0.01, 0.01)),
    'multi_turn, of three': (THREE, {}, THREE, (0.01, 0.01, 0.01)),
    'single_turn, of three': (THREE, {}, [(r1, 0, 0) for r1, _, _ in THREE], (0.01, 0, 0)),
}


@pytest.mark.parametrize('row', TABLE)
def test_weights_of_every_token_for_every_outcome(row):
    outcomes, changes, weights, kl = TABLE[row]
    turns, rows = len(outcomes[0]), len(outcomes)
    objective = resolve(row.split(',')[0], turns=turns, baseline='none', **changes)
    turn = np.array([[0, 1, 1, 0, 2, 0, 3, 3, 3, 0][:10 if turns == 3 else 6]] * rows)
    if row.endswith('given'):
        turn[turn == 1] = -1
    zeros = jnp.zeros(turn.shape)
    trajectory = Trajectory(
        tokens=turn, turn=turn, log_probs=zeros, length=jnp.full(rows, 6), truncated=jnp.zeros((rows, turns), bool))

    def loss(log_probs, divergence):
        stats = TokenStatistics(log_probs=log_probs, reference_log_probs=zeros, entropy=zeros, kl=divergence)
        forks = (rows,) + (1,) * (turns - 1)
        return rows * policy_loss(stats, trajectory, jnp.array(outcomes, jnp.float32), objective, forks)[0]

    of_log_probs, of_kl = jax.grad(loss, argnums=(0, 1))(zeros, zeros)
    by_turn = np.concatenate([np.zeros((rows, 1)), weights], axis=1)
    np.testing.assert_allclose(-of_log_probs, np.take_along_axis(by_turn, abs(turn), axis=1), atol=1e-6)
    np.testing.assert_allclose(of_kl, np.append(0, kl)[abs(turn)], atol=1e-7)


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


def test_leave_one_out_compares_all_responses_of_a_turn_to_the_same_problem():
    first, second = advantages(TREE, (2, 2), baseline='leave_one_out')
    assert first.tolist() == [1, 1, -1, -1, 0, 0, 0, 0]
    np.testing.assert_allclose(second[:4], [5 - 10 / 3, 2 - 13 / 3, 4 - 11 / 3, 4 - 11 / 3], rtol=1e-6)


def test_the_batch_mean_is_that_of_each_turn_over_all_problems():
    first, second = advantages(TREE, (2, 2), baseline='batch_mean')
    assert first.tolist() == (TREE[:, 0] - 1.75).tolist() and second.tolist() == (TREE[:, 1] - 3.25).tolist()


def test_what_was_not_forked_is_compared_with_those_that_share_most_of_its_context():
    """Three turns, the third sampled once on each second: its siblings share the first attempt."""
    rewards = [(0, 0, r) for r in (1, 3, 10, 20)]
    assert advantages(rewards, (2, 2, 1), turns=3)[2].tolist() == [-2, 2, -10, 10]
    assert advantages(rewards, (2, 1, 2), turns=3)[2].tolist() == [-2, 2, -10, 10]
    np.testing.assert_allclose(advantages(rewards, (4, 1, 1), turns=3)[2], [-10, -22 / 3, 2, 46 / 3], rtol=1e-6)


def test_given_responses_are_in_no_baseline():
    valid = np.array([[0, 1]] * 2 + [[1, 1]] * 2, bool)
    rewards = np.array([(5, 1), (5, 3), (1, 2), (3, 6)], np.float32)
    for baseline, first in (('batch_mean', [0, 0, -1, 1]), ('leave_one_out', [0, 0, -2, 2])):
        got = objectives.advantages(resolve('stage2', baseline=baseline), rewards, (2, 1), valid=valid)
        assert got[:, 0].tolist() == first


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
    ('stage2', dict(turns=1), 'config.turns is 1'),
    ('stage2', dict(adaptive_beta2=0.1), 'adaptive_beta2 is 0.1, but there is no beta2 above 0'),
    ('stage1', dict(adaptive_beta2=0.1, beta2=0.0), 'adaptive_beta2 is 0.1, but there is no beta2 above 0'),
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
    told = objectives.describe(resolve('stage1', turns=3, adaptive_beta2=0.1))
    assert 'turn 2: no reward, KL to the reference x 0.1 at the start, then adapted' in told
    assert 'turn 3: 1 * r3, KL to the reference x 0.01' in told and 'is to cost 0.1 times what the others earn' in told


@pytest.mark.parametrize('kl, factor', [(1.0, 1.02), (0.0, 1 / 1.02), (0.5, 1.0), (0.495, 0.99)])
def test_beta2_follows_what_the_held_turn_costs(kl, factor):
    """beta2 = 0.1 costs 0.05 at a KL of 0.5; the target is a tenth of 0.6 - 0.01 * 10 = 0.5 that turn 2 earns."""
    objective = resolve('stage1', adaptive_beta2=0.1)
    for scale in (1.0, 2.0):
        got = objectives.adapted_scale(objective, scale, jnp.array([0.0, 0.6]), jnp.array([kl / scale, 10.0]))
        assert got == pytest.approx(scale * factor, rel=1e-5)
    assert objectives.kl_weights(objective, 3.0).tolist() == pytest.approx([0.3, 0.01])


def test_beta2_stays_within_a_factor_of_ten_and_where_it_does_not_adapt():
    rewards, kl = jnp.array([0.0, 0.5]), jnp.array([100.0, 0.0])
    assert objectives.adapted_scale(resolve('stage1', adaptive_beta2=0.1), 10.0, rewards, kl) == 10
    assert objectives.adapted_scale(resolve('stage1', adaptive_beta2=0.1), 0.1, rewards, 0 * kl) == pytest.approx(0.1)
    assert objectives.adapted_scale(resolve('stage1'), 1.0, rewards, kl) == 1
