"""Gradients are those of the objective, counted out over every possible trajectory, and reach what they should."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    compiled, exact_objective, expected_gradient, given, gradients_by_group, group_loss, groups_of, statistics, tables,
    turn_log_probs, world)
from helpers import decoder_logits, log_softmax, memory, mesh_of, random_params, random_tree, tiny

from score_jax import layout as layouts
from score_jax import model as lm
from score_jax import objective as objectives
from score_jax import rollout
from score_jax.errors import UserError
from score_jax.learner import Learner, gradient_in_parts, policy_loss
from score_jax.optimizer import OptimizerConfig, round_at_random
from score_jax.token_statistics import TokenStatistics
from score_jax.trajectory import Trajectory

ALPHA, BETA1, BETA2 = 3.0, 0.3, 0.7
SYMBOLS = {
    'stage1': dict(beta1=BETA1, beta2=BETA2), 'stage2': dict(alpha=ALPHA, beta1=BETA1),
    'multi_turn': dict(beta1=BETA1), 'single_turn': dict(beta1=BETA1)}
KL_WEIGHTS = {
    ('stage1', 2): (BETA2, BETA1), ('stage1', 3): (BETA2, BETA2, BETA1), ('single_turn', 2): (BETA1, 0),
    ('single_turn', 3): (BETA1, 0, 0)}


def rewards_of(name, correct):
    """By hand, `[M, N]`."""
    before = np.concatenate([correct[:, :1], correct[:, :-1]], axis=1)
    last, first = np.eye(correct.shape[1])[[-1, 0]]
    return {'stage1': correct * last, 'stage2': correct + ALPHA * (correct - before), 'multi_turn': correct,
            'single_turn': correct * first}[name]


def resolve(name, kl_estimator='exact', baseline='none', gamma=0.0, turns=2, adaptive_beta2=0.0, **changes):
    return objectives.resolve(
        name, turns=turns, gamma=gamma, kl_estimator=kl_estimator, baseline=baseline, allow_gamma_hack=True,
        adaptive_beta2=adaptive_beta2, **{**SYMBOLS[name], **changes})


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def gradient_of_objective(w, policy, reference, name, *, gamma=0.0, first=None):
    kl = KL_WEIGHTS.get((name, w.turns), (BETA1,) * w.turns)
    return compiled(jax.grad(lambda policy: exact_objective(
        w, policy, reference, rewards_of(name, w.correct), kl, gamma, first)))(policy)


CASES = list(itertools.product(objectives.OBJECTIVES, objectives.KL_ESTIMATORS))
WORLDS = {2: dict(vocab=3, limit=3), 3: dict(vocab=2, limit=2)}


@pytest.mark.parametrize('turns', WORLDS)
@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_the_expected_gradient_is_that_of_the_objective(double, name, kl_estimator, turns):
    w = world(**WORLDS[turns], turns=turns)
    policy, reference = tables(w)
    expected = gradient_of_objective(w, policy, reference, name)
    got = expected_gradient(w, policy, reference, resolve(name, kl_estimator, turns=turns), (1,) * turns)
    np.testing.assert_allclose(got, expected, atol=1e-8)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize('turns', WORLDS)
@pytest.mark.parametrize('gamma, kl_estimator', [(0.5, 'exact'), (1.0, 'sampled')])
def test_with_gamma_a_turn_is_credited_for_what_follows_it(double, gamma, kl_estimator, turns):
    w = world(**WORLDS[turns], turns=turns)
    policy, reference = tables(w)
    objective = resolve('stage2', kl_estimator, gamma=gamma, turns=turns)
    got = expected_gradient(w, policy, reference, objective, (1,) * turns)
    np.testing.assert_allclose(got, gradient_of_objective(w, policy, reference, 'stage2', gamma=gamma), atol=1e-8)


@pytest.mark.parametrize('turns', WORLDS)
def test_with_gamma_1_and_no_kl_the_gradient_is_that_of_the_sum_of_all_rewards(double, turns):
    """Of every turn's probability at once: nothing is taken as given."""
    w = world(**WORLDS[turns], turns=turns)
    policy, reference = tables(w)
    rewards = rewards_of('stage2', w.correct).sum(axis=1)
    expected = compiled(jax.grad(lambda policy: jnp.sum(
        jnp.exp(turn_log_probs(w, statistics(w, policy, policy).log_probs).sum(axis=1)) * rewards)))(policy)
    objective = resolve('stage2', gamma=1.0, beta1=0.0, turns=turns)
    got = expected_gradient(w, policy, reference, objective, (1,) * turns)
    np.testing.assert_allclose(got, expected, atol=1e-8)


UNBIASED = [('leave_one_out', (2, 1)), ('leave_one_out', (2, 2)), ('in_group', (2, 2)), ('leave_one_out', (2, 1, 1)),
            ('in_group', (2, 1, 2))]


@pytest.mark.parametrize('baseline, forks', UNBIASED)
@pytest.mark.parametrize('name, kl_estimator', [('stage1', 'sampled'), ('stage2', 'sampled'), ('stage2', 'exact')])
def test_what_leaves_itself_out_leaves_the_expected_gradient(double, name, kl_estimator, baseline, forks):
    w = world(vocab=2, limit=2 if len(forks) == 2 else 1, turns=len(forks))
    policy, reference = tables(w)
    got = expected_gradient(w, policy, reference, resolve(name, kl_estimator, baseline, turns=len(forks)), forks)
    np.testing.assert_allclose(got, gradient_of_objective(w, policy, reference, name), atol=1e-8)


def contexts_of(w, turn: int) -> np.ndarray:
    return np.unique(w.context[w.trajectory.turn == turn])


@pytest.mark.parametrize('forks, factors', [
    ((2, 1), (1 / 2, 1 / 2)), ((2, 2), (1 / 2, 3 / 4)), ((3, 1), (2 / 3, 2 / 3))])
def test_the_batch_mean_shrinks_the_expected_gradient_by_its_own_share(double, forks, factors):
    """By (n - 1) / n for the n responses of a turn."""
    w = world(vocab=2, limit=2)
    policy, reference = tables(w)
    got = expected_gradient(w, policy, reference, resolve('stage2', 'sampled', 'batch_mean'), forks)
    expected = gradient_of_objective(w, policy, reference, 'stage2')
    for turn, factor in enumerate(factors, start=1):
        of_turn = contexts_of(w, turn)
        np.testing.assert_allclose(got[of_turn], factor * expected[of_turn], atol=1e-8)


@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_on_given_first_attempts_only_what_follows_is_trained(double, name, kl_estimator):
    """They are drawn from another distribution; turn 1 has no gradient at all, its KL neither."""
    w = given(world(vocab=2, limit=2))
    policy, reference = tables(w)
    first = reference[::-1]
    got = expected_gradient(
        w, policy, reference, resolve(name, kl_estimator, 'in_group'), (2, 2), first=first)
    np.testing.assert_allclose(
        got, gradient_of_objective(w, policy, reference, name, first=first), atol=1e-8)
    assert not got[contexts_of(w, -1)].any() and np.any(got) == (name != 'single_turn')


@pytest.mark.parametrize('baseline', ['none', 'leave_one_out', 'batch_mean'])
def test_a_mixture_is_the_mean_of_its_parts(double, baseline):
    """A problem with its own first attempts and one with given ones, whose rewards are in no baseline of turn 1."""
    own = world(vocab=2, limit=1)
    policy, reference = tables(own)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *(
        (w.trajectory, w.context, w.correct) for w in (own, given(own))))
    w = dataclasses.replace(own, trajectory=both[0], context=both[1], correct=both[2])
    parts = [groups_of(own, policy, (2, 1)), groups_of(own, policy, (2, 1), reference)]
    pairs = [(np.append(a, len(own.correct) + b), p * q) for a, p in zip(*parts[0]) for b, q in zip(*parts[1])]
    groups, probability = (np.array(x) for x in zip(*pairs))
    objective = resolve('stage2', 'sampled', baseline)
    got = -compiled(jax.grad(lambda policy: probability @ jax.vmap(
        lambda rows: group_loss(w, policy, reference, objective, (2, 1), rows))(groups)))(policy)
    expected = [gradient_of_objective(own, policy, reference, 'stage2', first=first) / 2 for first in (None, reference)]
    factors = (1 / 2, 3 / 4) if baseline == 'batch_mean' else (1, 1)  # of turn 1 two are its own, of turn 2 four
    for turn, factor in enumerate(factors, start=1):
        of_turn = contexts_of(own, turn)
        np.testing.assert_allclose(got[of_turn], factor * sum(expected)[of_turn], atol=1e-8)


@pytest.mark.parametrize('name, kl_estimator, forks, failed', [
    ('stage1', 'exact', (3, 1), [1]), ('stage2', 'exact', (3, 1), [0]), ('stage2', 'sampled', (3, 1), [2]),
    ('stage2', 'exact', (2, 3), [2])])
def test_rows_without_a_verdict_leave_the_expected_gradient(double, name, kl_estimator, forks, failed):
    w = world(vocab=2, limit=2 if forks == (3, 1) else 1)
    policy, reference = tables(w)
    got = expected_gradient(
        w, policy, reference, resolve(name, kl_estimator, 'in_group'), forks, failed=failed)
    np.testing.assert_allclose(got, gradient_of_objective(w, policy, reference, name), atol=1e-8)


def test_second_attempts_on_one_first_attempt_remove_the_noise_of_the_bonus(double):
    """In groups the gradient of turn 2 is `1 + alpha` times that without a bonus, sample for sample; the paper's
    estimator has that mean only and, where second attempts are rarely right, more variance from as many samples. So has
    leave-one-out over the very same tree."""
    w = world(vocab=2, limit=2)
    of_turn = np.arange(len(w.responses))
    correct = np.stack([np.repeat(of_turn == 0, 3), np.tile(of_turn == 2, 3)], axis=1)
    w = dataclasses.replace(w, correct=correct.astype(float))
    policy, reference = tables(w)

    def moments(alpha, forks, baseline):
        objective = resolve('stage2', baseline=baseline, alpha=alpha, beta1=0.0)
        gradients, p = gradients_by_group(w, policy, reference, objective, forks)
        gradients = gradients[:, contexts_of(w, 2)].reshape(len(gradients), -1)
        mean = p @ gradients
        return gradients, mean, p @ ((gradients - mean)**2).sum(1)

    plain, tree = moments(0.0, (2, 2), 'in_group'), moments(ALPHA, (2, 2), 'in_group')
    plain_paper, paper = moments(0.0, (4, 1), 'leave_one_out'), moments(ALPHA, (4, 1), 'leave_one_out')
    across = moments(ALPHA, (2, 2), 'leave_one_out')
    np.testing.assert_allclose(tree[0], (1 + ALPHA) * plain[0], atol=1e-12)
    for other in (paper, across):
        np.testing.assert_allclose(tree[1], other[1], atol=1e-12)
    assert np.abs(paper[0] - (1 + ALPHA) * plain_paper[0]).max() > 0.1
    assert tree[2] < 0.8 * paper[2] and tree[2] < 0.8 * across[2]


# Where gradients go, token by token.

TURN = np.array([  # truncated, then ended; ended twice; ended, then truncated
    [0, 0, 1, 1, 1, 0, 2, 2, 0, 0], [0, 1, 1, 0, 2, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 2, 2, 2, 0, 0],
    [0, 1, 1, 1, 0, 2, 2, 0, 0, 0]])


def random_statistics() -> TokenStatistics:
    rng = np.random.default_rng(3)
    log_probs, reference, entropy, kl = rng.normal(-2, 0.5, (4, *TURN.shape)).astype(np.float32)
    return TokenStatistics(log_probs=log_probs, reference_log_probs=reference, entropy=entropy, kl=kl)


def token_gradients(objective, correct, forks=(2, 2)) -> TokenStatistics:
    rows = len(TURN)
    trajectory = Trajectory(
        tokens=np.zeros_like(TURN), turn=TURN, log_probs=np.zeros(TURN.shape, np.float32),
        length=np.full(rows, 10), truncated=np.zeros((rows, 2), bool))

    def loss(stats):
        return policy_loss(stats, trajectory, jnp.asarray(correct, jnp.float32), objective, forks)[0]
    return jax.grad(loss)(random_statistics())


OUTCOMES = np.array([(0, 1), (0, 0), (1, 0), (1, 1)])


@pytest.mark.parametrize('baseline', ['none', 'in_group'])
@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_prompt_instruction_and_padding_have_no_gradient(name, kl_estimator, baseline):
    gradients = token_gradients(resolve(name, kl_estimator, baseline), OUTCOMES)
    for field in ('log_probs', 'reference_log_probs', 'entropy', 'kl'):
        assert (np.asarray(getattr(gradients, field))[TURN == 0] == 0).all(), field
    assert not np.asarray(gradients.entropy).any() and not np.asarray(gradients.reference_log_probs).any()


@pytest.mark.parametrize('turn', [0, 1])
@pytest.mark.parametrize('baseline', ['none', 'in_group'])
@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_a_row_without_a_verdict_on_one_turn_has_no_gradient_in_any(name, kl_estimator, baseline, turn):
    correct = OUTCOMES.astype(float)
    correct[1, turn] = np.nan
    leaves = jax.tree.leaves(token_gradients(resolve(name, kl_estimator, baseline), correct, forks=(4, 1)))
    gradients = [np.asarray(leaf) for leaf in leaves]
    assert all(np.isfinite(gradient).all() and not gradient[1].any() for gradient in gradients)
    assert any(gradient[[0, 2, 3]].any() for gradient in gradients)


def test_the_rows_that_are_left_weigh_as_if_the_others_had_not_been_sampled():
    kept, correct = [0, 2, 3], OUTCOMES.astype(float)
    correct[1, 0] = np.nan
    trajectory = Trajectory(
        tokens=np.zeros_like(TURN), turn=TURN, log_probs=np.zeros(TURN.shape, np.float32), length=np.full(4, 10),
        truncated=np.zeros((4, 2), bool))
    objective = resolve('stage2', baseline='leave_one_out')
    loss, metrics = policy_loss(random_statistics(), trajectory, jnp.asarray(correct), objective, (4, 1))
    part = jax.tree.map(lambda x: x[np.array(kept)], (random_statistics(), trajectory))
    alone, of_part = policy_loss(*part, jnp.asarray(correct[kept]), objective, (3, 1))
    assert loss == pytest.approx(float(alone)) and metrics['dropped'] == 1 and of_part['dropped'] == 0
    assert metrics['reward'] == pytest.approx(float(of_part['reward']))
    assert metrics['kl_turn1'] == pytest.approx(float(of_part['kl_turn1']))


@pytest.mark.parametrize('kl_estimator', objectives.KL_ESTIMATORS)
@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_every_token_of_a_rewarded_turn_has_a_gradient_its_last_one_too(name, kl_estimator):
    """The last token is the end token unless the response was truncated."""
    gradient = np.asarray(token_gradients(resolve(name, kl_estimator), np.ones((4, 2))).log_probs)
    for turn, reward in enumerate(rewards_of(name, np.ones((1, 2)))[0], start=1):
        if reward:
            assert (gradient[turn == TURN] != 0).all()


@pytest.mark.parametrize('kl_estimator', objectives.KL_ESTIMATORS)
@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_the_reward_of_turn_2_reaches_turn_1_only_with_gamma(name, kl_estimator):
    def of_turn1(gamma, second):
        correct = np.stack([OUTCOMES[:, 0], second], axis=1)
        gradients = token_gradients(resolve(name, kl_estimator, 'leave_one_out', gamma), correct)
        return np.where(TURN == 1, gradients.log_probs, 0)
    one, other = np.array([1, 1, 0, 1]), np.array([0, 0, 1, 0])
    np.testing.assert_array_equal(of_turn1(0.0, one), of_turn1(0.0, other))
    differs = np.abs(of_turn1(0.5, one) - of_turn1(0.5, other)).max() > 1e-3
    assert differs == (name != 'single_turn')  # which pays nothing for turn 2


def test_without_kl_or_reward_turn_1_has_exactly_no_gradient():
    for kl_estimator in objectives.KL_ESTIMATORS:
        gradients = token_gradients(resolve('stage1', kl_estimator, beta2=0.0), OUTCOMES)
        assert (np.asarray(gradients.log_probs)[TURN == 1] == 0).all()
        assert (np.asarray(gradients.kl)[TURN == 1] == 0).all()


def test_the_kl_of_turn_1_holds_turn_1():
    """A descent step moves turn-1 log-probabilities towards the reference: against the sign of the log-ratio."""
    stats = random_statistics()
    ratio = np.sum(np.where(TURN == 1, stats.log_probs - stats.reference_log_probs, 0), axis=1, keepdims=True)
    gradient = np.asarray(token_gradients(resolve('stage1', 'sampled'), OUTCOMES, (4, 1)).log_probs)
    np.testing.assert_allclose(gradient[TURN == 1], (BETA2 * ratio / len(TURN) * (TURN == 1))[TURN == 1], rtol=1e-5)
    kl = np.asarray(token_gradients(resolve('stage1', 'exact'), OUTCOMES).kl)
    np.testing.assert_allclose(kl, np.select([TURN == 1, TURN == 2], [BETA2, BETA1]) / len(TURN), rtol=1e-6)


# Updates.

CONFIG = tiny(tied=False)
TOKENS = np.random.default_rng(5).integers(0, 8, (3, 10)).astype(np.int32)


def optimizer(**changes) -> OptimizerConfig:
    values = dict(
        steps=100, learning_rate=0.01, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-8,
        clip_norm=1.0)
    return OptimizerConfig(**{**values, **changes})


@pytest.mark.parametrize('schedule, rates', [
    ('constant', {4: 0.8, 9: 0.8, 13: 0.8}), ('linear', {4: 0.8, 9: 0.4, 14: 0.0}),
    ('cosine', {4: 0.8, 9: 0.4, 14: 0.0, 6.5: 0.8 * (1 + np.sqrt(0.5)) / 2})])
def test_the_rate_rises_in_equal_steps_then_follows_its_schedule(schedule, rates):
    at = optimizer(steps=14, warmup_steps=4, learning_rate=0.8, schedule=schedule).learning_rate_at
    np.testing.assert_allclose([at(step) for step in range(4)], [0.16, 0.32, 0.48, 0.64], rtol=1e-5)
    for step, rate in rates.items():
        assert at(step) == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize('changes, message', [
    (dict(schedule='step'), "schedule is 'step'; it must be one of constant"),
    (dict(warmup_steps=100), 'warmup_steps is 100.*config.steps = 100'), (dict(clip_norm=0.0), 'clip_norm is 0.0'),
    (dict(learning_rate=-1.0), 'config.learning_rate is -1.0')])
def test_an_optimizer_that_cannot_learn_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        optimizer(**changes)


def test_gradients_are_clipped_by_their_global_norm():
    """Adam with a large eps moves in proportion to what is left of the gradient."""
    transform = optimizer(clip_norm=1.0, adam_eps=1e6, learning_rate=1e6).build()
    params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    for gradient, left in (([3.0, 0.0, 4.0], 0.2), ([0.3, 0.0, 0.4], 1.0)):
        gradient = np.array(gradient, np.float32)
        updates, _ = transform.update({'a': gradient[:2], 'b': gradient[2:]}, transform.init(params), params)
        np.testing.assert_allclose(np.append(updates['a'], updates['b']), -left * gradient, rtol=1e-4)


def new_learner(kept=memory(), **changes):
    mesh = mesh_of(1, 1, 1)
    update = Learner(CONFIG, optimizer(**changes), mesh, 4, kept)
    params = jax.tree.map(jnp.asarray, random_params(CONFIG))
    return update, update.new_state(params)


def test_imitation_raises_the_likelihood_of_the_own_tokens_alone():
    update, state = new_learner(learning_rate=0.03)
    turn = (np.arange(10) > 5).astype(np.int32)[None].repeat(3, 0)
    before = decoder_logits(state.params, CONFIG, TOKENS[0])
    nll = -log_softmax(before)[5:-1][range(4), TOKENS[0, 6:]].mean()
    state, first = update.imitate(state, TOKENS[:1], turn[:1])
    assert first['loss'] == pytest.approx(nll, abs=1e-4) and first['learning_rate'] == pytest.approx(0.03)
    for _ in range(15):
        state, last = update.imitate(state, TOKENS[:1], turn[:1])
    assert last['loss'] < 0.3 * first['loss'] and state.step == 16


def test_stage_1_learns_what_pays_in_turn_2_and_holds_turn_1():
    """Right is a response that begins with token 3."""
    update, state = new_learner(learning_rate=0.02)
    reference = jax.tree.map(jnp.copy, state.params)
    config = rollout.RolloutConfig(
        turns=2, max_tokens=2, max_length=16, temperature=1.0, chunk=8, end_tokens=(0,), pad_token=0)
    objective = resolve('stage1', baseline='leave_one_out', beta1=0.0, beta2=3.0)
    shares = []
    for step in range(12):
        trajectory = rollout.sample(
            state.params, CONFIG, config, update.mesh, [[1], [2]] * 4, [5], forks=(4, 2), seed=0, step=step)
        tokens, turn = np.asarray(trajectory.tokens), np.asarray(trajectory.turn)
        firsts = np.stack([tokens[range(len(tokens)), (turn == t).argmax(1)] for t in (1, 2)], axis=1)
        correct = (firsts == 3).astype(np.float32)
        state, metrics = update.reinforce(
            state, reference, trajectory, correct, objective=objective, forks=(4, 2), temperature=1.0)
        shares.append(correct.mean(0))
        assert metrics['log_prob_gap'] < 1e-4 and metrics['reward'] == pytest.approx(correct[:, 1].mean(), abs=1e-6)
    start, end = np.mean(shares[:2], axis=0), np.mean(shares[-2:], axis=0)
    assert end[1] > start[1] + 0.4 and abs(end[0] - start[0]) < 0.2
    assert metrics['kl_turn1'] < 0.3 * metrics['kl_turn2']


def test_a_batch_without_a_verdict_changes_nothing_and_is_counted():
    """Adam would move on by its moments; the second of two steps is skipped, the third is as if it had not been."""
    trajectory = Trajectory(
        tokens=TOKENS[:1].repeat(4, 0), turn=TURN, log_probs=np.zeros(TURN.shape, np.float32), length=np.full(4, 10),
        truncated=np.zeros((4, 2), bool))

    def run(*batches):
        update, state = new_learner()
        reference = jax.tree.map(jnp.copy, state.params)
        for correct in batches:
            state, metrics = update.reinforce(
                state, reference, trajectory, correct, objective=resolve('stage2', baseline='leave_one_out'),
                forks=(4, 1), temperature=1.0)
        return state, metrics

    right, none = OUTCOMES.astype(np.float32), np.full((4, 2), np.nan, np.float32)
    (state, metrics), (alone, before) = run(right, none), run(right)
    assert (metrics['skipped'], metrics['dropped']) == (1, 4) and (before['skipped'], before['dropped']) == (0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(run(*batches)[0]) for batches in (
        (right, none, right), (right, right))), strict=True))


def test_a_gradient_that_is_not_finite_never_reaches_the_parameters():
    update, state = new_learner()
    before = jax.tree.map(np.asarray, jax.tree.map(jnp.copy, state))
    reference = jax.tree.map(lambda x: x * jnp.nan, state.params)
    trajectory = Trajectory(
        tokens=TOKENS[:1].repeat(4, 0), turn=TURN, log_probs=np.zeros(TURN.shape, np.float32), length=np.full(4, 10),
        truncated=np.zeros((4, 2), bool))
    state, metrics = update.reinforce(
        state, reference, trajectory, OUTCOMES.astype(np.float32), forks=(4, 1), temperature=1.0,
        objective=resolve('stage2', baseline='leave_one_out'))
    assert metrics['skipped'] == 1 and np.isnan(metrics['loss'])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True))


@pytest.mark.parametrize('kl_estimator, baseline', [('exact', 'in_group'), ('sampled', 'batch_mean')])
def test_a_gradient_in_parts_is_the_undivided_one(double, kl_estimator, baseline):
    """Its baselines, rows without a verdict and given responses included."""
    trajectory = random_tree((2, 2), given=True, prompts=(3, 5, 2, 4))
    correct = np.random.default_rng(8).integers(0, 2, (16, 2)).astype(float)
    correct[5, 1] = np.nan
    params = jnp.asarray(np.random.default_rng(9).normal(size=8))

    class Any:  # whatever they may be: of a token, and of those before it
        @staticmethod
        def statistics(params, part):
            x = jnp.tanh(jnp.cumsum(params[part.tokens], axis=1))
            return TokenStatistics(log_probs=-x**2, reference_log_probs=-jnp.abs(x), entropy=x, kl=(x - 0.3)**2)

        @staticmethod
        def gradient(params, part, derivatives, first_pass, reference):
            stats, back = jax.vjp(lambda params: Any.statistics(params, part), params)
            by = derivatives(stats if reference else stats.replace(reference_log_probs=np.nan, kl=np.nan))
            return stats, back(by)[0]

    def loss(stats):
        return policy_loss(stats, trajectory, jnp.asarray(correct), resolve('stage2', kl_estimator, baseline), (2, 2))

    expected, metrics = jax.grad(lambda p: loss(Any.statistics(p, trajectory)), has_aux=True)(params)
    got, of_parts = gradient_in_parts(
        Any, loss, params, trajectory, problems=4, parts=2, first_pass=kl_estimator == 'sampled')
    assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max() and np.abs(expected).max() > 0.1
    assert jax.tree.map(float, of_parts) == pytest.approx(jax.tree.map(float, metrics), rel=1e-9)


def test_an_update_in_parts_is_the_undivided_one():
    """Whatever the backward pass keeps; parts of a tree are trees."""
    trajectory = random_tree((2, 2), prompts=(3, 5))
    correct = np.random.default_rng(8).integers(0, 2, (8, 2)).astype(np.float32)
    reference = random_params(CONFIG, 1)
    states = []
    for kept in (memory(), memory(accumulate=2, remat='nothing')):
        update, state = new_learner(kept, clip_norm=1e3, adam_eps=1.0)
        states.append(update.reinforce(
            state, reference, trajectory, correct, objective=resolve('stage2'), forks=(2, 2), temperature=1.0,
            layout=layouts.choose(trajectory, (2, 2), 1, mesh=update.mesh))[0])
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):  # the first moments in them are the gradient's tenth
        assert np.linalg.norm(a - b) <= 3e-6 * np.linalg.norm(a)


def test_imitation_in_parts_weighs_every_token_alike():
    turn = (np.arange(10) > np.array([[2], [8], [5], [7]])).astype(np.int32)
    tokens = np.concatenate([TOKENS, TOKENS[:1]])
    states = []
    for parts in (1, 4):
        update, state = new_learner(memory(accumulate=parts), clip_norm=1e3, adam_eps=1.0)
        states.append(update.imitate(state, tokens, turn)[0])
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.linalg.norm(a - b) <= 3e-6 * np.linalg.norm(a)


def test_rounding_at_random_gives_a_neighbour_and_keeps_the_mean():
    x = jnp.full(20_000, 1 + 2**-7 * 0.3, jnp.float32)  # neighbours in bfloat16 are 1 and 1 + 2**-7
    rounded = np.asarray(round_at_random(x, jax.random.key(0)).astype(jnp.float32))
    assert set(rounded) == {1, 1 + 2**-7} and (rounded > 1).mean() == pytest.approx(0.3, abs=0.02)
    exact = jnp.asarray([0.0, -1.5, 2.0**-20, jnp.inf], jnp.bfloat16)
    assert (round_at_random(exact.astype(jnp.float32), jax.random.key(1)) == exact).all()


def test_steps_far_below_the_precision_of_bfloat16_add_up():
    """And what is kept in it is: parameters and both moments, of a state whose next is a function of it alone."""
    update, state = new_learner(memory(params='bfloat16', moments='bfloat16'), learning_rate=1e-4)
    kept = [x.dtype for x in jax.tree.leaves(state) if x.ndim]
    assert set(kept) == {jnp.dtype(jnp.bfloat16)} and len(kept) == 3 * len(jax.tree.leaves(state.params))
    copy, before = (jax.tree.map(jnp.copy, state) for _ in range(2))
    turn = np.ones_like(TOKENS)
    for _ in range(20):
        state, _ = update.imitate(state, TOKENS, turn)
        copy, _ = update.imitate(copy, TOKENS, turn)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(copy), strict=True))
    exact, other = new_learner(learning_rate=1e-4)
    for _ in range(20):
        other, _ = exact.imitate(other, TOKENS, turn)
    moved, expected = (
        np.concatenate([np.ravel(b.astype(jnp.float32) - a) for a, b in zip(
            jax.tree.leaves(before.params), jax.tree.leaves(after.params))]) for after in (state, other))
    slope = moved @ expected / (expected @ expected)
    assert slope == pytest.approx(1, abs=0.25)


def test_a_reference_in_the_hosts_memory_says_the_same():
    trajectory = random_tree((2, 2))
    correct = np.random.default_rng(8).integers(0, 2, (8, 2)).astype(np.float32)
    update, _ = new_learner()
    shardings = lm.shardings(CONFIG, update.mesh)
    on_host = jax.tree.map(lambda s: s.with_memory_kind('pinned_host'), shardings)
    losses = []
    for place in (shardings, on_host):
        _, metrics = update.reinforce(
            new_learner()[1], jax.device_put(random_params(CONFIG, 1), place), trajectory, correct,
            objective=resolve('stage2'), forks=(2, 2), temperature=1.0)
        losses.append((float(metrics['loss']), float(metrics['grad_norm'])))
    assert losses[0] == losses[1]


def test_metrics_count_the_tokens_of_each_turn():
    stats = random_statistics()
    trajectory = Trajectory(
        tokens=np.zeros_like(TURN), turn=TURN, length=np.full(4, 10),
        log_probs=stats.log_probs + np.float32(0.25) * (TURN == 0),
        truncated=np.array([(True, False), (False, False), (False, True), (False, False)]))
    _, metrics = policy_loss(stats, trajectory, jnp.asarray(OUTCOMES, jnp.float32), resolve('stage2'), (2, 2))
    expected = {
        'length_turn1': 9 / 4, 'length_turn2': 8 / 4, 'truncated_turn1': 0.25, 'truncated_turn2': 0.25,
        'kl_turn1': stats.kl[TURN == 1].sum() / 4, 'entropy_turn2': stats.entropy[TURN == 2].mean(),
        'log_prob_gap': 0.0}
    assert {k: float(metrics[k]) for k in expected} == pytest.approx(expected, abs=1e-6)
    given = trajectory.replace(turn=np.where((TURN == 1) & (np.arange(4) < 2)[:, None], -1, TURN))
    _, metrics = policy_loss(stats, given, jnp.asarray(OUTCOMES, jnp.float32), resolve('stage2'), (4, 1))
    expected = {
        'length_turn1': 4 / 2, 'truncated_turn1': 0.0, 'kl_turn1': stats.kl[2:][TURN[2:] == 1].sum() / 2,
        'reward_turn1': 1.0, 'length_turn2': 8 / 4, 'reward_turn2': (1 + ALPHA - ALPHA + 1) / 4}
    assert {k: float(metrics[k]) for k in expected} == pytest.approx(expected, abs=1e-6)


def test_an_adaptive_beta2_is_part_of_the_state_and_weighs_the_held_turn():
    trajectory = Trajectory(
        tokens=TOKENS[:1].repeat(4, 0), turn=TURN, log_probs=np.zeros(TURN.shape, np.float32), length=np.full(4, 10),
        truncated=np.zeros((4, 2), bool))
    update, state = new_learner()
    objective = resolve('stage1', baseline='leave_one_out', adaptive_beta2=0.01)
    reference = jax.tree.map(lambda x: 1.5 * x, state.params)
    scales = []
    for _ in range(3):
        state, metrics = update.reinforce(
            state, reference, trajectory, OUTCOMES.astype(np.float32), objective=objective, forks=(4, 1),
            temperature=1.0)
        scales.append(float(metrics['beta2_scale']))
    assert scales == pytest.approx([1, 1.02, 1.02**2]) and state.beta2_scale == pytest.approx(1.02**3)
    weighed = [
        float(policy_loss(random_statistics(), trajectory, jnp.zeros((4, 2)), objective, (4, 1), scale)[0])
        for scale in (0.0, 1.0, 3.0)]
    assert abs(weighed[1] - weighed[0]) > 0.1
    assert weighed[2] - weighed[0] == pytest.approx(3 * (weighed[1] - weighed[0]), rel=1e-4)


def test_an_adaptive_beta2_sees_the_cost_that_is_in_the_loss_where_first_attempts_are_given():
    stats, objective = random_statistics(), resolve('stage1', baseline='leave_one_out', adaptive_beta2=0.5)
    trajectory = Trajectory(
        tokens=np.zeros_like(TURN), turn=np.where((TURN == 1) & (np.arange(4) < 2)[:, None], -1, TURN),
        length=np.full(4, 10), log_probs=np.zeros(TURN.shape, np.float32), truncated=np.zeros((4, 2), bool))
    _, metrics = policy_loss(stats, trajectory, jnp.asarray(OUTCOMES, jnp.float32), objective, (4, 1), 2.0)
    kl = jnp.array([(stats.kl * (trajectory.turn == t)).sum() / 4 for t in (1, 2)])
    rewards = jnp.array([0.0, OUTCOMES[:, 1].mean()])
    assert metrics['next_beta2_scale'] == pytest.approx(objectives.adapted_scale(objective, 2.0, rewards, kl))
    assert metrics['next_beta2_scale'] != 2.0
