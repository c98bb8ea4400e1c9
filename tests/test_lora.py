"""Adapters leave the base as it is, start as nothing, and can be merged into it."""

import functools
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, random_params, tiny
from ml_collections import ConfigDict

from score_jax import convert, converse, grading, hf, lora, sharding, sources
from score_jax import model as lm
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.lora import LoraConfig
from score_jax.reinforce import Reinforce
from score_jax.run import run

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


# Stages.

STAGE = {
    'steps': 2, 'batch': 2, 'group.first': 2, 'group.second': 2, 'optimizer.warmup_steps': 0, 'save_every': 1,
    'log_every': 1, 'rollout.max_tokens': 4, 'rollout.chunk': 64, 'lora.rank': 2, 'lora.alpha': 4.0,
    'learning_rate': 0.02, 'memory.params': 'bfloat16'}
MODEL = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16}
PRODUCTS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')


def config_of(name: str, **changes):
    config = importlib.import_module(f'configs.{name}').get_config()
    config.before = ConfigDict()
    config.update_from_flattened_dict({**MODEL, **STAGE, **changes})
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A base, and both stages as adapters on it."""
    path = tmp_path_factory.mktemp('lora')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
        of = grading.rewards  # a model that knows nothing earns nothing: every second row is right instead
        patch.setattr(grading, 'rewards', lambda attempts: np.indices(of(attempts).shape)[0] % 2.0)
        params = jax.tree.map(jnp.asarray, random_params(Reinforce(config_of('stage1'), path).model))
        base = Checkpoints(path / 'base' / 'checkpoints')
        base.save(1, {'params': params}, meta={})
        base.close()
        for name in ('stage1', 'stage2'):
            run(config_of(name), path)
        yield path


def latest(workdir, stage: str) -> Checkpoints:
    return Checkpoints(workdir / stage / 'checkpoints')


def test_a_checkpoint_holds_adapters_and_their_moments_alone_and_names_the_base(workdir):
    checkpoints = latest(workdir, 'stage2')
    saved, full = checkpoints.params(), latest(workdir, 'base').params()
    assert set(saved) == {f'layers/{name}/{x}' for name in PRODUCTS for x in 'ab'} and not saved.keys() & full.keys()
    state = Reinforce(config_of('stage2'), workdir).learner.abstract_state()
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in saved.values()])
    record = checkpoints.meta()['lora']
    assert (record['base'], record['rank']) == ('base', 2)
    assert record['identity'] == latest(workdir, 'base').checksum()
    assert checkpoints.meta()['origins'] == {name: latest(workdir, name).checksum() for name in ('base', 'stage1')}


def test_the_first_step_starts_at_the_base_and_the_second_stage_at_the_first(workdir):
    first = json.loads((workdir / 'stage1' / 'metrics.jsonl').read_text().splitlines()[0])
    assert first['kl_turn1'] == first['kl_turn2'] == 0 and first['grad_norm'] > 0
    second = json.loads((workdir / 'stage2' / 'metrics.jsonl').read_text().splitlines()[0])
    assert second['kl_turn1'] > 0


def test_a_stage_is_read_tried_and_exported_as_it_was_trained(workdir, tmp_path):
    checkpoints, config = latest(workdir, 'stage2'), convert.saved_model(workdir / 'stage2' / 'checkpoints')
    params = sources.restore(checkpoints, config, mesh_of(1, 1, 1))
    assert params['embedding'].dtype == jnp.bfloat16
    tried = converse.load(workdir, 'stage2').restore()
    convert.convert(workdir / 'stage2', tmp_path / 'hf', dtype='float32')
    _, exported = hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))
    adapted, again, merged = (logits(p, config) for p in (params, tried, exported))
    np.testing.assert_array_equal(adapted, again)
    assert np.abs(adapted - merged).max() < 1e-5 * np.abs(adapted).max()


def test_adapters_that_are_gone_on_with_end_as_those_that_were_left_alone(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / 'again')
    shutil.rmtree(tmp_path / 'again' / 'stage2' / 'checkpoints' / '2')
    run(config_of('stage2'), tmp_path / 'again')
    like = Reinforce(config_of('stage2'), workdir).learner.abstract_state()
    whole, again = (latest(path, 'stage2').restore(like, step=2)[0] for path in (workdir, tmp_path / 'again'))
    for a, b in zip(*map(jax.tree.leaves, (whole, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adapters_without_their_base_are_refused(workdir, tmp_path):
    shutil.copytree(workdir / 'stage1', tmp_path / 'stage1')
    with pytest.raises(UserError, match="stage1 holds adapters to 'base', without which they are nothing.*first run"):
        converse.load(tmp_path, 'stage1').restore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, 'checksum', lambda self: 'another')
        with pytest.raises(UserError, match='it has changed since'):
            converse.load(workdir, 'stage1').restore()


@pytest.mark.parametrize('changes, message', [
    ({'lora.rank': 3}, "'stage1' has adapters with rank = 2, not 3"),
    ({'memory.params': 'float32'}, "'stage1' has adapters with dtype = bfloat16, not float32"),
    ({'reference': 'random'}, "config.reference is 'random', which is not what the adapters"),
    ({'lora.targets': 'nothing'}, 'names no parameter'), ({'reference_on_host': True}, 'reference_on_host is True')])
def test_a_stage_on_other_adapters_is_refused(workdir, changes, message):
    with pytest.raises(UserError, match=message):
        Reinforce(config_of('stage2', stage='other', **changes), workdir).start()


def test_a_stage_of_all_parameters_may_start_from_adapters(workdir):
    made = Reinforce(config_of('stage2', stage='other', **{'lora.rank': 0, 'memory.params': 'float32'}), workdir)
    adapted = sources.restore(latest(workdir, 'stage1'), made.model, made.mesh)
    start = made.start()
    assert start.keys() == lm.declare(made.model).keys()
    np.testing.assert_allclose(logits(start, made.model), logits(adapted, made.model), rtol=1e-4, atol=1e-5)
