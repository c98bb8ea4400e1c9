"""The decoder computes what its formulas say, with and without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_configs import CONFIGS, varied
from helpers import decoder_logits, random_params, tiny

from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.model.transformer import _frequencies

TOKENS = np.random.default_rng(1).integers(0, 8, (3, 9))


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, tokens, positions, cache=None):
    hidden, cache = lm.forward(params, config, tokens, positions, cache)
    return lm.logits(params, config, hidden), cache


def all_logits(params, config, tokens=TOKENS):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(forward(params, config, tokens, positions)[0])


@pytest.mark.parametrize('changes', [
    dict(), dict(tied=False), dict(kv_heads=4), dict(kv_heads=1, layers=3), dict(heads=2, kv_heads=1, head_dim=6)])
def test_logits_are_those_of_the_formulas(changes):
    config = tiny(**changes)
    params = random_params(config)
    expected = np.stack([decoder_logits(params, config, row) for row in TOKENS])
    np.testing.assert_allclose(all_logits(params, config), expected, atol=1e-4)


def test_a_later_token_changes_nothing_before_it():
    params = random_params(tiny())
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 8
    before, after = all_logits(params, tiny()), all_logits(params, tiny(), changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max(-1) > 1e-3).all()


@pytest.mark.parametrize('slots, joined', [(0, True), (6, False)])
@pytest.mark.parametrize('config', [tiny(), CONFIGS['gemma2-tied'], CONFIGS['gemma3-untied']], ids=str)
def test_logits_with_a_cache_are_those_without(config, slots, joined):
    """Row b has read 2 + b tokens and one of junk behind them, then reads the rest one by one in a grown cache."""
    params, read = random_params(config), np.arange(3) + 2
    expected = all_logits(params, config)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5 * max(1, np.abs(expected).max()))
    block = np.where(np.arange(5) < read[:, None], TOKENS[:, :5], 7)
    positions = np.broadcast_to(np.arange(5), (3, 5))
    params = lm.one_by_one(params, config, joined)
    got, cache = forward(params, config, block, positions, lm.new_caches(config, 3, slots))
    assert all(c.room == (slots or 5) for c in cache)
    for row in range(3):
        close(got[row, :read[row]], expected[row, :read[row]])
    cache = lm.grow(cache, config, 8)
    assert all(c.room == c.keys.shape[-1] == 8 for c in cache)
    for step in range(4):
        at = read + step
        got, cache = forward(params, config, TOKENS[range(3), at][:, None], at[:, None], cache)
        close(got[:, 0], expected[range(3), at])


@pytest.mark.parametrize('config', [tiny(), CONFIGS['gemma2-tied'], CONFIGS['gemma3-untied']], ids=str)
def test_logits_behind_a_prefix_are_those_without(config):
    """Row b has read 2 + b tokens and junk behind them, then reads the rest."""
    params, read = random_params(config), np.arange(3) + 2
    expected = all_logits(params, config)
    block = np.where(np.arange(5) < read[:, None], TOKENS[:, :5], 7)
    positions = np.broadcast_to(np.arange(5), (3, 5))
    got, prefix = forward(params, config, block, positions, lm.no_prefix(config, 3))
    assert prefix.keys.shape == (config.layers, 3, 5, config.kv_heads, config.head_dim)
    known = np.where(positions < read[:, None], positions, lm.UNSEEN)
    rest = read[:, None] + np.arange(4)
    later, prefix = forward(
        params, config, np.take_along_axis(TOKENS, rest, 1), rest, prefix.replace(positions=known))
    np.testing.assert_array_equal(prefix.positions, np.concatenate([known, rest], axis=1))
    for row in range(3):
        for part, at in ((got[row, :read[row]], slice(read[row])), (later[row], rest[row])):
            np.testing.assert_allclose(part, expected[row, at], atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_local_layer_sees_its_window_and_no_further():
    """Two local layers with a window of 3 pass a token on to the 4 positions after it; a global one to all."""
    local = varied('gemma2-tied', window=3, global_every=9, layers=2)
    one_global = varied('gemma2-tied', window=3, global_every=2, layers=2)
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 8
    for config, last in ((local, 6), (one_global, 8)):
        params = random_params(config)
        differs = np.abs(all_logits(params, config) - all_logits(params, config, changed)).max((0, 2)) > 0
        np.testing.assert_array_equal(differs, (np.arange(9) >= 2) & (np.arange(9) <= last))


@pytest.mark.parametrize('change', [
    dict(activation='silu'), dict(scaled_embedding=False), dict(centered_norms=False), dict(query_scalar=0),
    dict(attention_cap=0.0), dict(logit_cap=0.0), dict(window=5), dict(global_every=3), dict(local_rope_base=50.0)])
def test_no_fact_of_a_family_is_without_effect(change):
    config = varied('gemma2-tied')
    params = random_params(config)
    before, after = (all_logits(params, c) for c in (config, varied('gemma2-tied', **change)))
    assert np.abs(before - after).max() > 1e-3


def test_rotary_pairs_of_llama_3_turn_slower_the_slower_they_are():
    """By the whole factor below `rope_low` turns in `rope_length` positions, not at all above `rope_high`."""
    plain, scaled = varied('llama-tied', head_dim=64), varied('llama3-tied', head_dim=64)
    was, now = (np.asarray(_frequencies(config, None)) for config in (plain, scaled))
    turns = scaled.rope_length * was / (2 * np.pi)
    ratio = was / now
    np.testing.assert_allclose(ratio[turns > scaled.rope_high], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < scaled.rope_low], scaled.rope_factor, rtol=1e-6)
    between = ratio[(turns < scaled.rope_high) & (turns > scaled.rope_low)]
    assert len(between) > 2 and (np.diff(ratio) >= -1e-6).all() and between.min() > 1


def test_what_lies_beyond_the_cache_is_dropped():
    config, params = tiny(), random_params(tiny())
    positions = np.broadcast_to(np.arange(9), TOKENS.shape)
    cache = lm.new_caches(config, 3, 4)
    got, cache = forward(lm.one_by_one(params, config, joined=True), config, TOKENS, positions, cache)
    np.testing.assert_allclose(got[:, :4], all_logits(params, config)[:, :4], atol=1e-5)
    assert all(c.room == 4 for c in cache)


def test_bfloat16_is_the_compute_type_and_logits_are_float32():
    config = tiny(dtype='bfloat16')
    params = random_params(config)
    cache, positions = lm.new_caches(config, 3, 9), np.tile(np.arange(9), (3, 1))
    logits, cache = forward(lm.one_by_one(params, config, joined=True), config, TOKENS, positions, cache)
    assert logits.dtype == jnp.float32 and all(c.keys.dtype == jnp.bfloat16 for c in cache)
    exact = all_logits(params, tiny())
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_initial_parameters_are_as_declared():
    config = tiny(width=64, mlp=128, vocab_size=300, tied=False)
    initialise = jax.jit(lm.initialise, static_argnums=0)
    params = jax.tree.map(np.asarray, initialise(config, jax.random.key(3)))
    for path, param in jax.tree.leaves_with_path(lm.declare(config), is_leaf=lambda x: hasattr(x, 'stddev')):
        value = functools.reduce(lambda tree, key: tree[key.key], path, params)
        assert value.shape == param.shape and len(param.axes) == len(param.shape)
        if param.stddev:
            assert np.std(value) == pytest.approx(param.stddev, rel=0.15) and abs(np.mean(value)) < 0.1 * param.stddev
        else:
            np.testing.assert_array_equal(value, 1)
    assert np.std(all_logits(params, config)) == pytest.approx(1, rel=0.3)
    flat = [x.ravel()[:4].tolist() for x in jax.tree.leaves(params) if x.std() > 0]
    assert len({tuple(np.round(np.divide(x, x[0]), 3)) for x in flat}) == len(flat)  # no noise is used twice
    same = initialise(config, jax.random.key(3))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))
    assert 'head' in params and 'head' not in lm.declare(tiny())


@pytest.mark.parametrize('change, message', [
    (dict(layers=0), 'config.model.layers is 0'), (dict(heads=3), 'config.model.heads is 3.*kv_heads = 2'),
    (dict(head_dim=5), 'config.model.head_dim is 5'), (dict(dtype='float16'), "config.model.dtype is 'float16'"),
    (dict(activation='relu'), "config.model.activation is 'relu'"), (dict(window=-1), 'config.model.window is -1'),
    (dict(window=4), 'window = 4, global_every = 1'), (dict(global_every=2), 'window = 0, global_every = 2'),
    (dict(local_rope_base=5.0), 'local_rope_base = 5.0'), (dict(rope_factor=0.5), 'rope_factor = 0.5'),
    (dict(rope_low=4.0), 'rope_low = 4.0, rope_high = 4.0')])
def test_a_shape_that_makes_no_decoder_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)
