"""Which mesh is chosen, what its layout says, and names of devices that are not here."""

import math
import sys

import jax
import pytest
from helpers import memory, mesh_of, tiny

from configs import models, stage1
from score_jax import accelerators, dry_run, meshes, plan, published
from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.meshes import Need, propose
from score_jax.reinforce import Reinforce
from score_jax.learner import Learner
from score_jax.lora import LoraConfig
from score_jax.run import run
from score_jax.sharding import MeshConfig
from test_plan import LORA, OPTIMIZER, work

GIB = 2**30


@pytest.mark.parametrize('name, chips, devices, memory', [
    ('v5p-128', 64, 64, 95), ('v5e-8', 8, 8, 16), ('v5litepod-256', 256, 256, 16), ('v6e-256', 256, 256, 32),
    ('v4-8', 4, 4, 32), ('v3-8', 4, 8, 16), ('tpu7x-8', 4, 8, 96), ('h100-8', 8, 8, 80), ('a100-80g-16', 16, 16, 80)])
def test_a_name_stands_for_devices(name, chips, devices, memory):
    found = accelerators.named(name)
    assert (found.chips, found.devices, found.memory) == (chips, devices, memory * GIB)


def test_a_device_of_two_on_a_chip_has_half_of_its_arithmetic():
    assert accelerators.named('v5p-2').flops == 459e12
    assert accelerators.named('v3-8').flops == accelerators.GENERATIONS['v3'].flops / 2


@pytest.mark.parametrize('name, message', [
    ('v9-8', 'one of v2, v3'), ('v5p', 'a kind and a count'), ('v5p-7', 'of which a chip has 2; v5p-8 would do'),
    ('h100-0', 'at least one')])
def test_a_name_that_is_none_is_refused(name, message):
    with pytest.raises(UserError, match=f'config.mesh.name is .*{message}'):
        accelerators.named(name)


OPEN = MeshConfig(data=-1, fsdp=-1, model=-1)


@pytest.mark.parametrize('config, devices, need, memory, sizes', [
    (OPEN, 8, Need(batch=64, kv_heads=4, held=1), None, (8, 1, 1)),  # who knows nothing of memory divides rows
    (OPEN, 8, Need(batch=64, kv_heads=4, held=47 * GIB), 80 * GIB, (2, 4, 1)),  # shares of 12 GiB
    (OPEN, 8, Need(batch=64, kv_heads=4, held=470 * GIB), 16 * GIB, (1, 8, 1)),  # nothing is enough: as many as can be
    (OPEN, 64, Need(batch=16, kv_heads=4, held=1), None, (16, 1, 4)),  # the batch leaves four to the axis model
    (OPEN, 8, Need(batch=12, kv_heads=2, held=1), None, (4, 1, 2)),
    (OPEN, 1, Need(batch=16, kv_heads=2, held=1), None, (1, 1, 1)),
    (MeshConfig(data=-1, fsdp=-1, model=4), 64, Need(batch=64, kv_heads=8, held=160 * GIB), 16 * GIB, (1, 16, 4)),
    (MeshConfig(data=2, fsdp=-1, model=-1), 8, Need(batch=64, kv_heads=4, held=1), None, (2, 4, 1)),
    (MeshConfig(data=-1, fsdp=2, model=1), 8, Need(batch=64, kv_heads=4, held=1), None, (-1, 2, 1)),  # no choice
    (OPEN, 8, Need(batch=7, kv_heads=1, held=1), None, (-1, 1, 1)),  # refused where the batch is divided
])
def test_a_mesh_is_chosen_by_batch_heads_and_memory(config, devices, need, memory, sizes):
    found = propose(config, need, devices, memory)
    assert (found.data, found.fsdp, found.model) == sizes


def test_a_run_on_other_devices_than_are_named_is_refused(tmp_path):
    config = stage1.get_config()
    config.mesh.name = 'v5p-128'
    with pytest.raises(UserError, match="'v5p-128', which has 64 devices, but there are 8 here; .*config.dry_run"):
        run(config, tmp_path / 'w')
    assert not (tmp_path / 'w').exists()


def test_a_dry_run_of_more_devices_than_can_be_made_is_refused(tmp_path):
    config = stage1.get_config()
    config.dry_run, config.mesh.name = True, 'v5p-17920'
    with pytest.raises(UserError, match='8960 devices, but a dry run can make 2048 .*same fsdp and model'):
        run(config, tmp_path / 'w')


def test_a_mesh_may_be_given_by_its_name_alone(monkeypatch):
    argv = ['main.py', '--config.mesh=v5p-128', '--config.stage1.mesh=v5e-8', '--config.mesh.fsdp=4']
    monkeypatch.setattr(sys, 'argv', argv)
    from launch import main
    monkeypatch.setattr(main.app, 'parse_flags_with_usage', lambda words: words)
    monkeypatch.setattr(main, '_CONFIG', type('Flag', (), {'value': {}}))
    assert main.parse(argv) == [
        'main.py', '--config.mesh.name=v5p-128', '--config.stage1.mesh.name=v5e-8', '--config.mesh.fsdp=4']


@pytest.mark.parametrize('lora', [None, LORA])
def test_the_table_has_every_array_and_its_share(lora):
    learner = Learner(tiny(), OPTIMIZER, mesh_of(2, 2, 2), 4, memory(), lora)
    lines = meshes.table(learner, [('KV cache', '8 rows', 3 * GIB)]).splitlines()
    assert '8 devices (data 2 x fsdp 2 x model 2)' in lines[0] and '3.00 GiB' in lines[-1]
    query = next(line for line in lines if line.split()[0] == ('base/' if lora else '') + 'layers/query')
    assert 'layers 2, embed 16 / 2 fsdp, heads 4 / 2 model, head_dim 4' in query
    arrays = jax.tree.leaves(lm.abstract(tiny(), learner.mesh))
    assert sum(' MiB' in line for line in lines) == len(arrays) + (4 if lora else 0) + 2


def test_a_run_starts_with_its_layout(tmp_path, capsys, monkeypatch):
    def start(self):
        raise UserError('no further')
    monkeypatch.setattr(Reinforce, 'start', start)
    config = stage1.get_config('smoke')
    config.update_from_flattened_dict({
        'start_from': 'random', 'reference': 'random', 'mesh.fsdp': 2, 'mesh.model': 2})
    with pytest.raises(UserError, match='no further'):
        run(config, tmp_path / 'w')
    said = capsys.readouterr().out
    assert 'layout on 8 devices (data 2 x fsdp 2 x model 2)' in said
    for name in ('layers/query', 'optimiser', 'reference', 'KV cache'):
        assert name in said


# Parameters in billions, as their authors count them.
SIZES = {
    'gemma-2-2b-it': 2.61, 'gemma-2-9b-it': 9.24, 'gemma-2-27b': 27.2, 'gemma-3-270m': 0.268, 'Qwen2.5-0.5B': 0.494,
    'Qwen2.5-1.5B-Instruct': 1.54, 'Qwen2.5-Coder-1.5B': 1.54, 'Qwen2.5-7B-Instruct': 7.62, 'Llama-3.1-8B': 8.03}


@pytest.mark.parametrize('name', SIZES)
def test_published_shapes_have_the_parameters_of_their_models(name):
    shape = published.model(f'/no/such/{name}', 'bfloat16')
    declared = jax.tree.leaves(lm.declare(shape), is_leaf=lambda x: hasattr(x, 'axes'))
    assert sum(math.prod(param.shape) for param in declared) / 1e9 == pytest.approx(SIZES[name], rel=0.005)


def test_every_preset_of_an_open_model_has_a_published_shape():
    for name, preset in models.SHARED_PRESETS.items():
        assert published.model(preset['pretrained'], 'bfloat16'), name
    assert published.model('', 'bfloat16') is published.model('/no/such/model', 'bfloat16') is None


def test_a_directory_that_is_there_is_read(tmp_path):
    (tmp_path / 'gemma-2-2b').mkdir()
    assert published.model(str(tmp_path / 'gemma-2-2b'), 'bfloat16') is None


def test_a_preset_fits_rows_as_long_as_it_allows():
    section = stage1.get_config('gsm8k-qwen2.5-0.5b')
    found = published.work(section)
    assert sum(found.widths) == section.rollout.max_length and found.prompt == section.task.max_prompt
    assert found.learner.memory.accumulate == 1  # nobody says how much memory there is
    assert dict(found.learner.mesh.shape) == {'data': 8, 'fsdp': 1, 'model': 1}


def test_a_dry_run_says_whether_it_fits():
    it = work(lora=LoraConfig(rank=2, alpha=4.0, targets='layers/query'))
    devices = accelerators.named('v5e-8')
    assert dry_run._verdict(15 * GIB, devices).startswith('  fits') and not dry_run._verdict(1, None)
    assert dry_run._verdict(16 * GIB, devices).startswith('  does not fit')
    made = plan.plan(it)
    always, moments = sum(made.always.values()), made.always["optimiser (Adam's two moments)"]
    update, decode = dry_run.Compiled(always, 100, []), dry_run.Compiled(always - moments, 50, [])
    planned, measured = dry_run.most(it, {'update': update, 'decode loop': decode})
    assert planned > always and measured == always + 100
    decode = dry_run.Compiled(always - moments, 700, [])  # what it does not take is there all the same
    assert dry_run.most(it, {'update': update, 'decode loop': decode})[1] == always + 700
