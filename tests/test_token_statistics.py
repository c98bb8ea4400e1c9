"""Statistics and gradients are those of the full softmax, in bounded memory, however the rows are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import decoder_logits, log_softmax, mesh_of, random_params, random_tree, tiny

from score_jax import layout as layouts
from score_jax import model as lm
from score_jax import objective as objectives
from score_jax.learner import Scorer, policy_loss
from score_jax.token_statistics import Head, TokenStatistics, of_logits
from score_jax.trajectory import Trajectory

CONFIG = tiny(tied=False)
TOKENS = np.random.default_rng(5).integers(0, 8, (3, 10)).astype(np.int32)
ALL = Trajectory(
    tokens=TOKENS, turn=np.ones_like(TOKENS), log_probs=None, length=np.full(3, 10), truncated=None)


def scorer(config=CONFIG, chunk=4, temperature=1.0, reference=None, shards=1) -> Scorer:
    reference = jax.tree.map(jnp.asarray, reference)
    return Scorer(Head(config, shards, temperature, chunk), 'products', lambda params: params, reference)


def plain(params, reference, trajectory, config, temperature):
    """Straight from all logits at once, every row by itself, with whatever JAX makes of their derivatives."""
    tokens = trajectory.tokens
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    laws = [jax.nn.log_softmax(
        lm.logits(p, config, lm.forward(p, config, tokens, positions)[0])[:, :-1] / temperature)
        for p in (params, jax.lax.stop_gradient(reference))]
    probs = jnp.exp(laws[0])
    values = TokenStatistics(
        *(jnp.take_along_axis(law, tokens[:, 1:, None], axis=-1)[..., 0] for law in laws),
        entropy=-jnp.sum(probs * laws[0], axis=-1), kl=jnp.sum(probs * (laws[0] - laws[1]), axis=-1))
    mask = trajectory.turn[:, 1:] > 0
    return jax.tree.map(lambda x: jnp.pad(jnp.where(mask, x, 0), [(0, 0), (1, 0)]), values)


@pytest.mark.parametrize('chunk, temperature', [(1, 1.0), (4, 0.7), (27, 1.0), (50, 1.6)])
def test_statistics_are_those_of_the_full_softmax(chunk, temperature):
    params, reference = random_params(CONFIG, 0), random_params(CONFIG, 1)
    it = scorer(chunk=chunk, temperature=temperature, reference=reference)
    stats = jax.jit(it.statistics)(params, (ALL, layouts.Rows()))
    for row, tokens in enumerate(TOKENS):
        law, other = (log_softmax(decoder_logits(p, CONFIG, tokens)[:-1] / temperature) for p in (params, reference))
        expected = TokenStatistics(
            log_probs=law[range(9), tokens[1:]], reference_log_probs=other[range(9), tokens[1:]],
            entropy=-np.sum(np.exp(law) * law, axis=1), kl=np.sum(np.exp(law) * (law - other), axis=1))
        for got, value in zip(jax.tree.leaves(stats), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got[row, 1:], value, atol=1e-4)
            assert got[row, 0] == 0


@pytest.mark.parametrize('with_reference', [True, False])
def test_derivatives_by_logits_are_those_of_the_formulas(with_reference):
    rng = np.random.default_rng(3)
    logits, reference, weights = rng.normal(0, 2, (6, 9)), rng.normal(0, 2, (6, 9)), rng.normal(size=(4, 6))
    tokens = rng.integers(0, 9, 6)

    def formulas(logits):
        law = jax.nn.log_softmax(logits)
        other = jax.nn.log_softmax(reference) if with_reference else law
        probs = jnp.exp(law)
        return TokenStatistics(
            law[np.arange(6), tokens], other[np.arange(6), tokens], -(probs * law).sum(1),
            (probs * (law - other)).sum(1))

    def weighed(statistics):
        return lambda logits: sum(w @ x for w, x in zip(weights, jax.tree.leaves(statistics(logits))))
    with jax.enable_x64(True):
        expected = jax.value_and_grad(weighed(formulas))(logits)
        got = jax.value_and_grad(weighed(
            lambda logits: of_logits(logits, jnp.asarray(reference) if with_reference else None, tokens)))(logits)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-12)
        np.testing.assert_allclose(got[1], expected[1], atol=1e-12)


LOCAL = tiny(tied=False, layers=2, window=3, global_every=2)
CAPPED = tiny(attention_cap=2.0, logit_cap=4.0)
BOTH = tiny(attention_cap=2.0, logit_cap=4.0, layers=2, window=3, global_every=2)


@pytest.mark.parametrize('forks, given, config, multiple, kl_estimator', [
    ((3, 4), False, CONFIG, 1, 'exact'), ((2, 2), True, CAPPED, 3, 'sampled'), ((2, 1, 2), False, LOCAL, 64, 'exact'),
    ((6, 1), True, BOTH, 1, 'exact')])
def test_however_rows_are_read_gradient_and_statistics_are_the_plain_ones(forks, given, config, multiple, kl_estimator):
    """Shared turns once, or rows behind each other, in two shards; a chunk at a time, from the last to the first."""
    trajectory = random_tree(forks, given=given, longest=9)
    params, reference = (jax.tree.map(jnp.asarray, random_params(config, seed)) for seed in (0, 1))
    turns = len(forks)
    objective = objectives.resolve(
        'stage2', turns=turns, gamma=0.5, kl_estimator=kl_estimator, baseline='batch_mean', adaptive_beta2=0.0,
        allow_gamma_hack=True, alpha=2.0, beta1=0.3)
    correct = jnp.asarray(np.random.default_rng(7).integers(0, 2, (len(trajectory.tokens), turns)), jnp.float32)

    def loss(stats):
        return policy_loss(stats, trajectory, correct, objective, forks)
    layout = jax.tree.map(np.asarray, layouts.choose(trajectory, forks, multiple, mesh=mesh_of(2, 1, 1)))
    assert isinstance(layout, layouts.Tree if max(forks[1:]) > 1 else layouts.Packed)
    it = scorer(config, 3, 0.8, reference, shards=2)
    stats, gradient = jax.jit(lambda params, layout: it.gradient(
        params, (trajectory, layout), jax.grad(lambda stats: loss(stats)[0]),
        first_pass=kl_estimator == 'sampled'))(params, layout)

    def of_plain(params):
        stats = plain(params, reference, trajectory, config, 0.8)
        return loss(stats)[0], stats
    expected_gradient, expected = jax.jit(jax.grad(of_plain, has_aux=True))(params)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) and np.linalg.norm(b) > 0


def test_memory_of_the_update_does_not_grow_with_tokens_times_vocabulary():
    rows, vocab = 2, 20_000
    config = tiny(width=8, heads=1, kv_heads=1, mlp=8, layers=1, vocab_size=vocab)
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), lm.declare(config),
        is_leaf=lambda p: hasattr(p, 'stddev'))

    def temporary(columns):
        def gradient(params, reference, tokens):
            trajectory = ALL.replace(tokens=tokens, turn=jnp.ones_like(tokens))
            return scorer(config, 16, reference=reference).gradient(
                params, (trajectory, layouts.Rows()), lambda stats: jax.tree.map(jnp.ones_like, stats),
                first_pass=False)
        tokens = jax.ShapeDtypeStruct((rows, columns), jnp.int32)
        return jax.jit(gradient).lower(params, params, tokens).compile().memory_analysis().temp_size_in_bytes

    short, long = 33, 97
    logits = 4 * rows * vocab * (long - short)
    assert temporary(long) - temporary(short) < 0.05 * logits
