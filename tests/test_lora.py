"""Adapters leave the base as it is, start as nothing, and can be merged into it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, random_params, tiny

from score_jax import lora
from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.lora import LoraConfig

CONFIG = tiny(qkv_bias=True, post_norms=True, tied=False)
ALL = 'layers/(query|key|value|out|gate|up|down)'
TOKENS = np.random.default_rng(2).integers(0, 8, (3, 10))


def lora_config(**changes) -> LoraConfig:
    return LoraConfig(**{**dict(rank=3, alpha=6.0, targets=ALL), **changes})


def random_adapters(config=CONFIG, which=None, seed=5) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), lora.declare(config, which or lora_config()),
        is_leaf=lambda x: isinstance(x, lm.Param))


@functools.partial(jax.jit, static_argnames=('config',))
def logits(params, config):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return lm.logits(params, config, lm.forward(params, config, TOKENS, positions)[0])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_at_first_the_policy_is_the_base_to_the_bit(dtype):
    config = tiny(qkv_bias=True, dtype=dtype)
    base = jax.tree.map(lambda x: jnp.asarray(x, dtype), random_params(config))
    adapters = lm.draw(lora.declare(config, lora_config()), jax.random.key(0))
    assert all((pair['a'] != 0).all() for pair in adapters['layers'].values())
    policy = lora.adapt(base, adapters, lora_config())
    np.testing.assert_array_equal(logits(policy, config), logits(base, config))


@pytest.mark.parametrize('targets', [ALL, 'layers/(query|out)'])
def test_merged_parameters_give_what_adapted_ones_give(targets):
    which, base = lora_config(targets=targets), random_params(CONFIG)
    policy = lora.adapt(base, random_adapters(which=which), which)
    adapted, merged = logits(policy, CONFIG), logits(lora.merge(policy), CONFIG)
    assert np.abs(adapted - merged).max() < 1e-5 * np.abs(adapted).max()
    assert np.abs(adapted - logits(base, CONFIG)).max() > 0.1 * np.abs(adapted).max()


def test_policy_and_base_are_the_same_arrays():
    base = jax.tree.map(jnp.asarray, random_params(CONFIG))
    policy = lora.adapt(base, random_adapters(), lora_config())
    adapters = {id(x) for x in jax.tree.leaves(random_adapters())}
    of_base = {id(x) for x in jax.tree.leaves(base)}
    assert {id(x) for x in jax.tree.leaves(policy)} >= of_base and not adapters & of_base
    assert len(jax.tree.leaves(policy)) == len(of_base) + 2 * 7
    assert lora.adapt(base, {}, lora_config()) == base


def test_adapters_are_sharded_like_the_sides_of_their_product():
    placed = lm.place(lora.declare(CONFIG, lora_config()), mesh_of(2, 2, 2))['layers']
    specs = {name: tuple(tuple(placed[name][x].sharding.spec) for x in 'ab') for name in ('query', 'out', 'down')}
    assert specs == {
        'query': ((None, 'fsdp'), (None, None, 'model')), 'out': ((None, 'model'), (None, None, 'fsdp')),
        'down': ((None, 'model'), (None, None, 'fsdp'))}


@pytest.mark.parametrize('changes, message', [
    (dict(rank=-1), 'config.lora.rank is -1'), (dict(alpha=0.0), 'config.lora.alpha is 0.0'),
    (dict(targets='layers/('), 'targets is .* no pattern')])
def test_a_config_that_is_none_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        lora_config(**changes)


@pytest.mark.parametrize('targets, message', [
    ('query', 'names no parameter'), ('.*', 'names embedding, final_norm, head, layers/attention_norm'),
    ('layers/(query|query_bias)', 'names layers/query_bias, no product')])
def test_targets_that_are_no_products_are_refused(targets, message):
    with pytest.raises(UserError, match=message):
        lora.declare(CONFIG, lora_config(targets=targets))
