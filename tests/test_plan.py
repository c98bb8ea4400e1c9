"""What a dry run says of memory is what a run takes, and it leaves nothing behind."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import memory, mesh_of, random_params, tiny

from configs import stage1
from score_jax import model as lm
from score_jax import decode, objective, plan, rollout
from score_jax.errors import UserError
from score_jax.learner import Learner
from score_jax.lora import LoraConfig
from score_jax.optimizer import OptimizerConfig
from score_jax.run import run

OPTIMIZER = OptimizerConfig(
    steps=9, learning_rate=0.01, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-8,
    clip_norm=1.0)
OBJECTIVE = objective.resolve(
    'stage2', turns=2, gamma=0.0, kl_estimator='exact', baseline='in_group', adaptive_beta2=0.0, allow_gamma_hack=False,
    alpha=2.0, beta1=0.1)
LORA = LoraConfig(rank=2, alpha=4.0, targets='layers/(query|down)')


def work(shape=(2, 2, 2), lora=None, model=tiny(layers=3), forks=(2, 2), max_tokens=8, **changes) -> plan.Work:
    learner = Learner(model, OPTIMIZER, mesh_of(*shape), 4, memory(**changes), lora)
    sampler = rollout.RolloutConfig(
        turns=2, max_tokens=max_tokens, max_length=10 + 2 * max_tokens, temperature=1.0, chunk=4, end_tokens=(),
        pad_token=0)
    return plan.Work(
        learner=learner, sampler=sampler, objective=OBJECTIVE, forks=forks, batch=4, prompt=3, instruction=2,
        reference_on_host=False)


def measured(tree) -> int:
    """On the first device."""
    first = jax.devices()[0]
    return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first)


@pytest.mark.parametrize('changes', [{}, {'params': 'bfloat16', 'moments': 'bfloat16'}, {'lora': LORA}])
def test_parameters_and_optimiser_take_what_was_planned(changes):
    it = work(**changes)
    like = it.learner.abstract_params()
    state = it.learner.new_state(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), like))
    base = plan.abstract_frozen(it)[1] or plan.abstract_frozen(it)[0]
    frozen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), base)
    got = [measured(state.params), measured(state.opt_state), measured(frozen)]
    assert got == pytest.approx(list(plan.plan(it).always.values()), rel=0.05) and min(got) > 0


@pytest.mark.parametrize('model', [tiny(layers=3), tiny(layers=3, window=6, global_every=3)])
def test_the_cache_takes_what_was_planned(monkeypatch, model):
    it, sizes, of = work(model=model), [], decode.decode
    monkeypatch.setattr(decode, 'decode', lambda *args: sizes.append(measured(args[2].cache)) or of(*args))
    params = jax.device_put(random_params(it.learner.model), lm.shardings(it.learner.model, it.learner.mesh))
    rollout.sample(
        params, it.learner.model, it.sampler, it.learner.mesh, [[1, 2, 3]] * 4, [5, 6], forks=it.forks, seed=0, step=0)
    assert max(sizes) == pytest.approx(plan.plan(it).sampling['KV cache'], rel=0.05)


@pytest.mark.parametrize('changes', [{'forks': (2, 1), 'remat': 'nothing'}, {'lora': LORA}])
def test_what_the_update_takes_beside_is_within_half_of_the_plan(changes):
    """With a large vocabulary, so that a distribution for every token would be more than all of the plan."""
    it = work((1, 1, 1), model=tiny(vocab_size=5_000), max_tokens=30, **changes)
    planned = sum(plan.plan(it).update.values())
    taken = plan.lower_update(it).compile().memory_analysis().temp_size_in_bytes
    assert 0.4 * planned < taken < 1.5 * planned < 1.5 * 4 * it.rows * it.slots * 5_000


@pytest.mark.parametrize('dtype, of, precision', [('float32', 'f32', 'HIGHEST'), ('bfloat16', 'bf16', 'DEFAULT')])
def test_float32_is_float32_on_every_device(dtype, of, precision):
    """GPUs and TPUs round the factors of a product to fewer bits, unless it says that they must not."""
    it = work((1, 1, 1), model=tiny(layers=2, dtype=dtype))
    sampling = rollout.lower_decode(
        it.learner.abstract_params(), it.learner.model, it.sampler, it.learner.mesh, it.rows, it.slots, it.local_slots)
    for program in (sampling, plan.lower_update(it)):
        products = [line for line in program.as_text().splitlines() if 'dot_general' in line and f'x{of}>' in line]
        assert len(products) > 10 and all(f'precision = [{precision}, {precision}]' in line for line in products)


def test_twice_the_devices_hold_half_the_parameters():
    one, two = (plan.plan(work(shape)) for shape in ((1, 1, 1), (1, 2, 1)))
    assert sum(two.always.values()) == pytest.approx(sum(one.always.values()) / 2, rel=0.1)
    assert two.sampling['KV cache'] == one.sampling['KV cache'] / 2


def test_arithmetic_is_that_of_the_products():
    """6 operations a weight and token, and a reference's 2; adapters spare the weights' gradients."""
    it = work(model=tiny(layers=1, width=64, mlp=256), forks=(2, 1))
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(it.learner.abstract_params()))
    update = plan.flops(it)['update']
    assert update == pytest.approx(8 * weights * it.tokens(), rel=0.15)
    adapted = dataclasses.replace(it, learner=dataclasses.replace(it.learner, lora=LORA))
    assert plan.flops(adapted)['update'] < 0.85 * update


def test_a_dry_run_says_it_all_and_writes_nothing(tmp_path, capsys):
    config = stage1.get_config()
    config.update_from_flattened_dict({
        'dry_run': True, 'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.model': 2, 'model.layers': 1, 'rollout.chunk': 64})
    run(config, tmp_path / 'w')
    said = capsys.readouterr().out
    assert not (tmp_path / 'w').exists() and 'it is made first' not in said
    for name in ('parameters', 'optimiser', 'reference', 'KV cache', 'gradients', 'TFLOP', 'update: temporaries'):
        assert name in said
    assert '8 devices (data 2 x fsdp 2 x model 2)' in said


def test_a_mesh_of_more_devices_than_jax_has_made_is_refused(tmp_path):
    config = stage1.get_config()
    config.update_from_flattened_dict({'dry_run': True, 'mesh.fsdp': 64})
    with pytest.raises(UserError, match='config.mesh asks for 64 devices'):
        run(config, tmp_path / 'w')


@pytest.mark.parametrize('spare', [-1, 0])
def test_what_no_device_can_hold_is_refused(monkeypatch, spare):
    it = work()
    held = sum(plan.plan(it).always.values())
    monkeypatch.setattr(plan, '_device_memory', lambda _: held + spare)
    if spare < 0:
        with pytest.raises(UserError, match='what it holds all the time is more: parameters .* MiB.* config.mesh'):
            plan.check(it)
    else:
        plan.check(it)


def test_what_is_automatic_is_the_fastest_that_fits(monkeypatch):
    it = work((1, 1, 1), max_tokens=30)
    def needed(**changes):
        made = plan.plan(work((1, 1, 1), max_tokens=30, **changes))
        return int((sum(made.always.values()) + sum(made.update.values())) / 0.85) + 2
    sizes = [needed(), needed(accumulate=4), needed(accumulate=4, remat='nothing')]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    expected = [('products', 1), ('products', 4), ('nothing', 4), ('nothing', 4)]
    for limit, (remat, parts) in zip([*sizes, 1], expected):
        monkeypatch.setattr(plan, '_device_memory', lambda _: limit)
        found = plan.fitted(it, memory(remat='auto', accumulate=0)).memory
        assert (found.remat, found.accumulate) == (remat, parts)
        assert plan.fitted(it, memory(remat='everything', accumulate=2)).memory == memory(
            remat='everything', accumulate=2)
    monkeypatch.setattr(plan, '_device_memory', lambda _: None)
    assert plan.fitted(it, memory(remat='auto', accumulate=0)).memory == memory() == memory(
        remat='auto', accumulate=0).fastest()
