"""Gradients are those of the objective, counted out over every possible trajectory, and reach what they should."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import decoder_logits, log_softmax, mesh_of, random_params, tiny

from score_jax import learner, rollout
from score_jax import model as lm
from score_jax import objective as objectives
from score_jax.errors import UserError
from score_jax.learner import Learner, OptimizerConfig, TokenStatistics, policy_loss, token_statistics
from score_jax.trajectory import Trajectory

ALPHA, BETA1, BETA2 = 3.0, 0.3, 0.7
SYMBOLS = {
    'stage1': dict(beta1=BETA1, beta2=BETA2), 'stage2': dict(alpha=ALPHA, beta1=BETA1),
    'multi_turn': dict(beta1=BETA1), 'single_turn': dict(beta1=BETA1)}
KL_WEIGHTS = {
    'stage1': (BETA2, BETA1), 'stage2': (BETA1, BETA1), 'multi_turn': (BETA1, BETA1), 'single_turn': (BETA1, 0.0)}
REWARDS = {
    'stage1': lambda r1, r2: (0 * r1, r2), 'stage2': lambda r1, r2: (r1, r2 + ALPHA * (r2 - r1)),
    'multi_turn': lambda r1, r2: (r1, r2), 'single_turn': lambda r1, r2: (r1, 0 * r2)}


def resolve(name, kl_estimator='exact', baseline='none', gamma=0.0, turns=2, adaptive_beta2=0.0, **changes):
    return objectives.resolve(
        name, turns=turns, gamma=gamma, kl_estimator=kl_estimator, baseline=baseline, allow_gamma_hack=True,
        adaptive_beta2=adaptive_beta2,
        **{**SYMBOLS[name], **changes})


# Every trajectory of a policy that is a table of logits, one row for each context.


@dataclasses.dataclass(frozen=True)
class World:
    """All M two-turn trajectories over a few tokens; token 0 ends a response, else its length does.

    Attributes:
      responses: all of one turn; trajectory m is `(responses[m // R], responses[m % R])`.
      context: `[M, T]` row of the table that each token is drawn from; -1 where it is not the model's.
      correct: `[M, 2]`.
    """

    responses: list
    trajectory: Trajectory
    context: np.ndarray
    correct: np.ndarray
    contexts: int
    vocab: int


def world(vocab: int, limit: int) -> World:
    grown = [[()]]
    for _ in range(limit):
        grown.append([(*r, token) for r in grown[-1] if r[-1:] != (0,) for token in range(vocab)])
    responses = [r for n, rs in enumerate(grown) for r in rs if r and (r[-1] == 0 or n == limit)]
    table, rows = {}, []
    for y1, y2 in itertools.product(responses, repeat=2):
        contexts = [table.setdefault((1, y1[:i]), len(table)) for i in range(len(y1))]
        contexts += [-1] + [table.setdefault((2, y1, y2[:i]), len(table)) for i in range(len(y2))]
        rows.append(([1, *y1, 1, *y2], [0, *[1] * len(y1), 0, *[2] * len(y2)], [-1, *contexts]))
    width = 2 + 2 * limit
    tokens, turn, context = (
        np.array([r[i] + [fill] * (width - len(r[i])) for r in rows]) for i, fill in enumerate((0, 0, -1)))
    first = np.repeat(np.arange(len(responses)) % 2, len(responses))
    second = np.random.default_rng(4).random(len(rows)) < 0.5
    correct = np.stack([first, second], axis=1).astype(float)
    trajectory = Trajectory(
        tokens=tokens, turn=turn, log_probs=np.zeros(tokens.shape), length=np.array([len(r[0]) for r in rows]),
        truncated=np.zeros((len(rows), 2), bool))
    return World(responses, trajectory, context, correct, len(table), vocab)


def tables(w: World):
    """The policy's and the reference's logits."""
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.normal(size=(w.contexts, w.vocab))), rng.normal(size=(w.contexts, w.vocab))


def statistics(w: World, policy, reference) -> TokenStatistics:
    own, target = w.context >= 0, np.asarray(w.trajectory.tokens)
    law, other = jax.nn.log_softmax(policy), jax.nn.log_softmax(reference)
    def at(x):
        return jnp.where(own, x, 0.0)
    return TokenStatistics(
        log_probs=at(law[w.context, target]), reference_log_probs=at(other[w.context, target]), entropy=at(0.0),
        kl=at(jnp.sum(jnp.exp(law) * (law - other), axis=-1)[w.context]))


def turn_log_probs(w: World, values):
    """`[M, 2]`: of each trajectory's response to each turn."""
    return jnp.stack([jnp.sum(jnp.where(w.trajectory.turn == t, values, 0.0), axis=1) for t in (1, 2)], axis=1)


def exact_objective(w: World, policy, reference, name):
    """`E[sum_t R_t] - sum_t kl_t E[KL_t]` over all trajectories; turn 2 takes its start as given (gamma = 0)."""
    stats = statistics(w, policy, reference)
    own, other = turn_log_probs(w, stats.log_probs), turn_log_probs(w, stats.reference_log_probs)
    p1, p2 = jnp.exp(own).T
    reward1, reward2 = REWARDS[name](*w.correct.T)
    kl1, kl2 = KL_WEIGHTS[name]
    ratio1, ratio2 = (own - other).T
    return (
        jnp.sum(p1 * jax.lax.stop_gradient(p2) * (reward1 - kl1 * ratio1))
        + jnp.sum(jax.lax.stop_gradient(p1) * p2 * (reward2 - kl2 * ratio2)))


def expected_loss(w: World, policy, reference, objective, forks, groups, probability, failed=np.zeros(0, int)):
    """`policy_loss` of every group of trajectories (`groups [G, B]` indices), weighted by its probability.

    Of the rows `failed` of each group the grader has no verdict on turn 2.
    """
    stats = statistics(w, policy, reference)

    def loss(rows):
        stats_of, trajectory, correct = jax.tree.map(lambda x: jnp.asarray(x)[rows], (stats, w.trajectory, w.correct))
        correct = correct.at[failed, 1].set(jnp.nan)
        return policy_loss(stats_of, trajectory, correct, objective, forks)[0]

    return jnp.sum(jax.lax.stop_gradient(probability) * jax.vmap(loss)(groups))


def probabilities(w: World, policy):
    """Of each first attempt `[R]` and of each second attempt after it `[R, R]`."""
    n = len(w.responses)
    p1, p2 = np.exp(turn_log_probs(w, statistics(w, policy, policy).log_probs)).T.reshape(2, n, n)
    return p1[:, 0], p2


def groups_of(w: World, policy, forks):
    """Every group of `forks` and its probability."""
    n, (p1, p2) = len(w.responses), probabilities(w, policy)
    trees = [(y1, y2) for y1 in range(n) for y2 in itertools.product(range(n), repeat=forks[1])]
    rows = np.array([[y1 * n + y for y in y2] for y1, y2 in trees])
    p = np.array([p1[y1] * p2[y1, list(y2)].prod() for y1, y2 in trees])
    index = np.array(list(itertools.product(range(len(trees)), repeat=forks[0])))
    assert p[index].prod(1).sum() == pytest.approx(1, abs=1e-12)
    return rows[index].reshape(len(index), -1), p[index].prod(1)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


CASES = list(itertools.product(objectives.OBJECTIVES, objectives.KL_ESTIMATORS))


@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_the_expected_gradient_is_that_of_the_objective(double, name, kl_estimator):
    w = world(vocab=3, limit=3)
    policy, reference = tables(w)
    groups, p = groups_of(w, policy, (1, 1))
    expected = jax.grad(exact_objective, argnums=1)(w, policy, reference, name)
    got = jax.grad(expected_loss, argnums=1)(w, policy, reference, resolve(name, kl_estimator), (1, 1), groups, p)
    np.testing.assert_allclose(-got, expected, atol=1e-8)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize('forks', [(2, 1), (2, 2)])
@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_a_leave_one_out_baseline_leaves_the_expected_gradient(double, name, kl_estimator, forks):
    w = world(vocab=2, limit=2)
    policy, reference = tables(w)
    groups, p = groups_of(w, policy, forks)
    expected = jax.grad(exact_objective, argnums=1)(w, policy, reference, name)
    objective = resolve(name, kl_estimator, 'leave_one_out')
    got = jax.grad(expected_loss, argnums=1)(w, policy, reference, objective, forks, groups, p)
    np.testing.assert_allclose(-got, expected, atol=1e-8)


@pytest.mark.parametrize('name, kl_estimator, forks, failed', [
    ('stage1', 'exact', (3, 1), [1]), ('stage2', 'exact', (3, 1), [0]), ('stage2', 'sampled', (3, 1), [2]),
    ('stage2', 'exact', (2, 3), [2])])
def test_rows_without_a_verdict_leave_the_expected_gradient(double, name, kl_estimator, forks, failed):
    w = world(vocab=2, limit=2)
    policy, reference = tables(w)
    groups, p = groups_of(w, policy, forks)
    expected = jax.grad(exact_objective, argnums=1)(w, policy, reference, name)
    objective = resolve(name, kl_estimator, 'leave_one_out')
    got = jax.grad(expected_loss, argnums=1)(
        w, policy, reference, objective, forks, groups, p, failed=np.array(failed))
    np.testing.assert_allclose(-got, expected, atol=1e-8)


def turn2_gradients(w, policy, reference, objective, forks):
    """The gradient of every group with respect to turn 2's logits `[G, C * V]`, and the group's probability."""
    groups, p = groups_of(w, policy, forks)

    def gradient(rows):
        return jax.grad(expected_loss, argnums=1)(w, policy, reference, objective, forks, rows[None], jnp.ones(1))
    of_turn2 = np.setdiff1d(np.arange(w.contexts), w.context[w.trajectory.turn == 1])
    gradients = jax.jit(jax.vmap(gradient))(groups)[:, of_turn2]
    return np.asarray(gradients).reshape(len(groups), -1), p


def test_second_attempts_on_one_first_attempt_remove_the_noise_of_the_bonus(double):
    """In groups the gradient of turn 2 is `1 + alpha` times that without a bonus, sample for sample; the paper's
    estimator has that mean only and, where second attempts are rarely right, more variance from as many samples."""
    w = world(vocab=2, limit=2)
    of_turn = np.arange(len(w.responses))
    correct = np.stack([np.repeat(of_turn == 0, 3), np.tile(of_turn == 2, 3)], axis=1)
    w = dataclasses.replace(w, correct=correct.astype(float))
    policy, reference = tables(w)

    def moments(alpha, forks):
        objective = resolve('stage2', baseline='in_group', alpha=alpha, beta1=0.0)
        gradients, p = turn2_gradients(w, policy, reference, objective, forks)
        mean = p @ gradients
        return gradients, mean, p @ ((gradients - mean)**2).sum(1)

    plain, tree = moments(0.0, (2, 2)), moments(ALPHA, (2, 2))
    plain_paper, paper = moments(0.0, (4, 1)), moments(ALPHA, (4, 1))
    np.testing.assert_allclose(tree[0], (1 + ALPHA) * plain[0], atol=1e-12)
    np.testing.assert_allclose(tree[1], paper[1], atol=1e-12)
    assert np.abs(paper[0] - (1 + ALPHA) * plain_paper[0]).max() > 0.1
    assert tree[2] < 0.8 * paper[2]


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


@pytest.mark.parametrize('baseline', objectives.BASELINES)
@pytest.mark.parametrize('name, kl_estimator', CASES)
def test_prompt_instruction_and_padding_have_no_gradient(name, kl_estimator, baseline):
    gradients = token_gradients(resolve(name, kl_estimator, baseline), OUTCOMES)
    for field in ('log_probs', 'reference_log_probs', 'entropy', 'kl'):
        assert (np.asarray(getattr(gradients, field))[TURN == 0] == 0).all(), field
    assert not np.asarray(gradients.entropy).any() and not np.asarray(gradients.reference_log_probs).any()


@pytest.mark.parametrize('turn', [0, 1])
@pytest.mark.parametrize('baseline', objectives.BASELINES)
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
    for turn, reward in enumerate(REWARDS[name](np.ones(1), np.ones(1)), start=1):
        if reward[0]:
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


# Statistics of every token.

CONFIG = tiny(tied=False)
TOKENS = np.random.default_rng(5).integers(0, 8, (3, 10)).astype(np.int32)


@pytest.mark.parametrize('head_chunk, temperature', [(1, 1.0), (4, 0.7), (9, 1.0), (50, 1.6)])
def test_statistics_are_those_of_the_full_softmax(head_chunk, temperature):
    params, reference = random_params(CONFIG, 0), random_params(CONFIG, 1)
    stats = jax.jit(functools.partial(
        token_statistics, config=CONFIG, temperature=temperature, head_chunk=head_chunk))(
            params, tokens=TOKENS, reference=reference)
    for row, tokens in enumerate(TOKENS):
        law, other = (log_softmax(decoder_logits(p, CONFIG, tokens)[:-1] / temperature) for p in (params, reference))
        expected = TokenStatistics(
            log_probs=law[range(9), tokens[1:]], reference_log_probs=other[range(9), tokens[1:]],
            entropy=-np.sum(np.exp(law) * law, axis=1), kl=np.sum(np.exp(law) * (law - other), axis=1))
        for got, value in zip(jax.tree.leaves(stats), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got[row, 1:], value, atol=1e-4)
            assert got[row, 0] == 0


def test_the_reference_gets_no_gradient_and_the_policy_does():
    def loss(params, reference):
        stats = token_statistics(params, CONFIG, TOKENS, temperature=1.0, head_chunk=4, reference=reference)
        return sum(jnp.sum(x) for x in jax.tree.leaves(stats))
    policy, reference = jax.jit(jax.grad(loss, argnums=(0, 1)))(random_params(CONFIG, 0), random_params(CONFIG, 1))
    assert all((x == 0).all() for x in jax.tree.leaves(reference))
    assert all((x != 0).any() for x in jax.tree.leaves(policy))


def test_memory_of_the_update_does_not_grow_with_tokens_times_vocabulary():
    rows, vocab = 2, 20_000
    config = tiny(width=8, heads=1, kv_heads=1, mlp=8, layers=1, vocab_size=vocab)
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), lm.declare(config),
        is_leaf=lambda p: hasattr(p, 'stddev'))

    def temporary(columns):
        def loss(params, reference, tokens):
            stats = token_statistics(params, config, tokens, temperature=1.0, head_chunk=8, reference=reference)
            return jnp.sum(stats.log_probs + stats.kl)
        tokens = jax.ShapeDtypeStruct((rows, columns), jnp.int32)
        return jax.jit(jax.grad(loss)).lower(params, params, tokens).compile().memory_analysis().temp_size_in_bytes

    short, long = 33, 97
    logits = 4 * rows * vocab * (long - short)
    assert temporary(long) - temporary(short) < 0.05 * logits


# Updates.


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


def new_learner(**changes):
    mesh = mesh_of(1, 1, 1)
    update = Learner(CONFIG, optimizer(**changes), mesh, head_chunk=4)
    params = jax.tree.map(jnp.asarray, random_params(CONFIG))
    return update, learner.new_state(CONFIG, update.optimizer, mesh, params)


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
        state, reference, trajectory, OUTCOMES.astype(np.float32), objective=resolve('stage2', baseline='leave_one_out'),
        forks=(4, 1), temperature=1.0)
    assert metrics['skipped'] == 1 and np.isnan(metrics['loss'])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True))


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
