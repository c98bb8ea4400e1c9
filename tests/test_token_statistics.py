"""Statistics of every token are those of the full softmax, in bounded memory, also where rows share turns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import decoder_logits, log_softmax, random_params, random_tree, tiny

from score_jax import model as lm
from score_jax.token_statistics import TokenStatistics, token_statistics, tree_statistics
from score_jax.trajectory import shared_widths, turn_ends

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


LOCAL = tiny(tied=False, layers=2, window=3, global_every=2)


@pytest.mark.parametrize('forks, given, config, multiple', [
    ((3, 4), False, CONFIG, 1), ((2, 2), True, CONFIG, 3), ((2, 1, 2), False, LOCAL, 1), ((1, 3), False, LOCAL, 64)])
def test_turns_that_rows_share_are_read_once_and_say_the_same(forks, given, config, multiple):
    trajectory = random_tree(forks, given=given)
    params, reference = random_params(config, 0), random_params(config, 1)
    widths = shared_widths(trajectory, forks, multiple)
    how = dict(temperature=0.8, head_chunk=3, reference=reference)
    weights = np.random.default_rng(7).normal(size=trajectory.tokens.shape) * (trajectory.turn > 0)

    def weighed(statistics):
        def loss(params):
            stats = statistics(params)
            return jnp.sum(weights * (stats.log_probs + stats.kl)), stats
        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradient, stats = weighed(lambda p: token_statistics(p, config, trajectory.tokens, **how))
    shared_gradient, shared = weighed(lambda p: tree_statistics(p, config, trajectory, forks, widths, **how))
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(*(np.asarray(x)[trajectory.turn > 0] for x in (a, b)), atol=2e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(shared_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(a).max()))
    first = np.stack([np.asarray(end) for end in turn_ends(trajectory)[:-1]])  # of each instruction
    assert (np.asarray(shared.log_probs)[np.arange(len(weights)), first] == 0).all()


def test_widths_are_the_longest_turns_and_there_are_none_where_no_row_shares_one():
    trajectory = random_tree((2, 3))
    turns = abs(trajectory.turn)
    first = max(np.flatnonzero(row == 1)[-1] + 1 for row in turns)
    second = max(np.flatnonzero(row == 2)[-1] - np.flatnonzero(row == 1)[-1] for row in turns)
    assert shared_widths(trajectory, (2, 3), 1) == (first, second)
    assert shared_widths(trajectory, (2, 3), 4) == tuple(
        min(4 * -(-n // 4), trajectory.tokens.shape[1]) for n in (first, second))
    assert shared_widths(random_tree((4, 1)), (4, 1), 1) is None


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
