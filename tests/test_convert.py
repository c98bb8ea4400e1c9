"""Weights come in from safetensors and go out again to the bit, and what is not the model is refused with the list."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_configs import CONFIGS, varied
from helpers import environment, mesh_of, random_params
from safetensors import safe_open
from safetensors.numpy import save_file

from score_jax import convert, hf
from score_jax import model as lm
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ['llama3-untied', 'qwen2-tied', 'qwen3-untied', 'gemma2-tied', 'gemma3-tied']
QUERY, EMBEDDING = 'model.layers.1.self_attn.q_proj.weight', 'model.embed_tokens.weight'


def write(directory: Path, name: str = 'gemma2-tied', dtype='float32', shards: int = 1, **changes) -> dict:
    """A directory as a family publishes it, random tensors and a tokenizer; `changes` are tensors by name."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    tensors = {t.name: rng.normal(0, 1, t.shape).astype(jnp.dtype(dtype))
               for group in hf.tensors(CONFIGS[name]).values() for t in group} | changes
    tensors = {key: value for key, value in tensors.items() if value is not None}
    names = [f'model-{i}.safetensors' for i in range(shards)] if shards > 1 else ['model.safetensors']
    where = {tensor: names[i % shards] for i, tensor in enumerate(sorted(tensors))}
    for file in names:
        save_file({key: value for key, value in tensors.items() if where[key] == file}, directory / file)
    if shards > 1:
        (directory / hf.INDEX).write_text(json.dumps({'weight_map': where}))
    values = hf.config_json(CONFIGS[name]) | {'torch_dtype': dtype, 'eos_token_id': [1, 107]}
    (directory / 'config.json').write_text(json.dumps(values))
    (directory / 'tokenizer.json').write_text('{"version": "1.0"}')
    return tensors


def read(directory: Path) -> dict:
    tensors = {}
    for file in directory.glob('*.safetensors'):
        with safe_open(file, framework='np') as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}
    return tensors


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and a[key].tobytes() == b[key].tobytes()


@pytest.mark.parametrize('name, dtype, shards', [
    ('llama3-untied', 'bfloat16', 1), ('gemma2-tied', 'bfloat16', 3), ('qwen2-tied', 'float16', 1),
    ('gemma3-untied', 'float32', 2)])
def test_safetensors_to_a_checkpoint_and_back_is_equal_to_the_bit(name, dtype, shards, tmp_path, monkeypatch):
    tensors = write(tmp_path / 'hf', name, dtype, shards)
    monkeypatch.setattr(hf, 'SHARD_BYTES', 20_000)
    convert.convert(tmp_path / 'hf', tmp_path / 'ours')
    convert.convert(tmp_path / 'ours', tmp_path / 'back')
    assert_same_bits(tensors, read(tmp_path / 'back'))
    index = json.loads((tmp_path / 'back' / hf.INDEX).read_text())
    assert index['weight_map'].keys() == tensors.keys()
    assert all((tmp_path / 'back' / file).exists() for file in index['weight_map'].values())
    assert json.loads((tmp_path / 'back/config.json').read_text())['torch_dtype'] == dtype
    assert (tmp_path / 'back/tokenizer.json').read_text() == '{"version": "1.0"}'
    assert json.loads((tmp_path / 'back/config.json').read_text())['eos_token_id'] == [1, 107]


@pytest.mark.parametrize('name', FAMILIES)
def test_our_parameters_to_safetensors_and_back_are_equal_to_the_bit_on_any_mesh(name, tmp_path):
    params = random_params(CONFIGS[name])
    hf.save(tmp_path / 'hf', CONFIGS[name], jax.tree.map(jnp.asarray, params))
    mesh = mesh_of(1, 4, 2)
    config, loaded = hf.load(tmp_path / 'hf', mesh)
    assert config == CONFIGS[name]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded, lm.shardings(config, mesh)))
    assert not loaded['layers']['query'].sharding.is_fully_replicated


def test_a_dtype_may_be_asked_for_in_both_directions(tmp_path):
    tensors = write(tmp_path / 'hf', dtype='float32')
    _, params = hf.load(tmp_path / 'hf', mesh_of(1, 1, 1), 'bfloat16')
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
    convert.convert(tmp_path / 'hf', tmp_path / 'ours')
    convert.convert(tmp_path / 'ours', tmp_path / 'back', dtype='bfloat16')
    assert_same_bits({key: value.astype('bfloat16') for key, value in tensors.items()}, read(tmp_path / 'back'))


def test_a_stage_is_exported_with_the_tokenizer_of_the_model_that_it_came_from(tmp_path):
    """Its checkpoint holds an optimiser's state too; what the model is stands in the stage's config.json."""
    name = 'qwen2-tied'
    write(tmp_path / 'hf', name)
    config, params = hf.load(tmp_path / 'hf', mesh_of(1, 1, 1), 'float32')
    expected = jax.tree.map(lambda x: np.asarray(x + 1), params)
    stage = tmp_path / 'run/stage1'
    checkpoints = Checkpoints(stage / 'checkpoints')
    state = {'params': jax.tree.map(jnp.asarray, expected), 'step': jnp.asarray(7)}
    checkpoints.save(7, state, meta={'stage': 'stage1'})
    checkpoints.close()
    values = {key: value for key, value in vars(config).items() if key != 'vocab_size'}
    (stage / 'config.json').write_text(json.dumps({'model': values}))
    convert.convert(stage, tmp_path / 'out', like=tmp_path / 'hf')
    again, loaded = hf.load(tmp_path / 'out', mesh_of(1, 1, 1))
    assert again == config and (tmp_path / 'out/tokenizer.json').exists()
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_loaded_parameters_may_be_donated(tmp_path):
    write(tmp_path / 'hf', 'llama-untied')
    _, params = hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))
    before = jax.tree.map(np.array, params)
    doubled = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p), donate_argnums=0)(params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, before)


def test_a_tied_head_that_is_the_embedding_is_left_out_and_another_is_refused(tmp_path):
    tensors = write(tmp_path / 'same', 'qwen2-tied')
    write(tmp_path / 'same', 'qwen2-tied', **{'lm_head.weight': tensors[EMBEDDING]})
    _, params = hf.load(tmp_path / 'same', mesh_of(1, 1, 1))
    assert 'head' not in params
    write(tmp_path / 'other', 'qwen2-tied', **{'lm_head.weight': tensors[EMBEDDING] + 1})
    with pytest.raises(UserError, match='tie_word_embeddings = true, but lm_head.weight is not'):
        hf.load(tmp_path / 'other', mesh_of(1, 1, 1))


def test_tensors_of_no_use_that_old_models_carry_are_passed_over(tmp_path):
    write(tmp_path / 'hf', **{'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)})
    hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))


@pytest.mark.parametrize('changes, messages', [
    ({QUERY: None}, [f'{QUERY} is missing']),
    ({'model.layers.0.mlp.gate_proj.bias': np.ones(3, np.float32)}, ['model.layers.0.mlp.gate_proj.bias is not known']),
    ({'model.layers.4.mlp.up_proj.weight': np.ones(3, np.float32)}, ['model.layers.4.mlp.up_proj.weight is not known']),
    ({QUERY: np.ones((32, 31), np.float32)}, [rf'{QUERY} has shape \[32, 31\], not \[32, 32\]']),
    ({QUERY: np.ones((32, 32), np.int8)}, [f'{QUERY} is of type I8, not one of F32, F16, BF16']),
    ({QUERY: None, EMBEDDING: np.ones((39, 32), np.float32)}, [f'{QUERY} is missing', r'has shape \[39, 32\]']),
    ({f'x{i:02}': np.ones(1, np.float32) for i in range(30)}, ['x09 is not known; and 20 more'])])
def test_what_is_not_the_model_is_refused_with_the_list(changes, messages, tmp_path):
    write(tmp_path / 'hf', **changes)
    with pytest.raises(UserError) as error:
        hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))
    for message in messages:
        error.match(message)


def test_a_shard_that_is_missing_or_cut_short_is_named(tmp_path):
    write(tmp_path / 'hf', shards=3)
    shard = tmp_path / 'hf/model-1.safetensors'
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match='model-1.safetensors cannot be read'):
        hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))
    shard.unlink()
    with pytest.raises(UserError, match='model-1.safetensors cannot be read'):
        hf.load(tmp_path / 'hf', mesh_of(1, 1, 1))


def test_nothing_is_written_over_and_a_source_must_be_one(tmp_path):
    write(tmp_path / 'hf')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').write_text('mine')
    (tmp_path / 'empty').mkdir()
    for source, target, options, message in [
            ('hf', 'full', {}, 'full exists already'), ('empty', 'new', {}, 'neither safetensors nor a checkpoint'),
            ('nowhere', 'new', {}, 'is not a directory'), ('hf', 'new', dict(dtype='int8'), '--dtype=int8'),
            ('hf', 'new', dict(like=tmp_path / 'hf'), 'is for the way back')]:
        with pytest.raises(UserError, match=message):
            convert.convert(tmp_path / source, tmp_path / target, **options)
        assert not (tmp_path / 'new').exists()
    convert.convert(tmp_path / 'hf', tmp_path / 'ours')
    write(tmp_path / 'qwen', 'qwen3-tied')
    with pytest.raises(UserError, match='of a qwen3, but the parameters are those of a gemma2'):
        convert.convert(tmp_path / 'ours', tmp_path / 'new', like=tmp_path / 'qwen')
    assert not (tmp_path / 'new').exists()


def test_the_command_says_what_it_did_and_answers_mistakes_in_one_sentence(tmp_path):
    write(tmp_path / 'hf')

    def command(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / 'launch/convert.py', *arguments], capture_output=True, text=True, cwd=tmp_path)

    done = command('--from=hf', '--to=ours')
    assert done.returncode == 0 and 'million parameters of hf are a checkpoint in ours now' in done.stdout
    refused = command('--from=hf', '--to=ours')
    assert refused.returncode == 2 and refused.stderr.count('\n') == 1 and 'ours exists already' in refused.stderr


def test_one_parameter_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """In both directions; so is what is exported in another type."""
    made, alive = [], []

    def noted(make):
        def wrapped(*args, **kwargs):
            alive.append(sum(one() is not None for one in made))
            array = make(*args, **kwargs)
            made.append(weakref.ref(array))
            return array
        return wrapped
    monkeypatch.setattr(hf, '_load', noted(hf._load))
    monkeypatch.setattr(Checkpoints, 'restore_param', noted(Checkpoints.restore_param))
    write(tmp_path / 'hf', 'qwen2-tied')
    convert.convert(tmp_path / 'hf', tmp_path / 'ours')
    convert.convert(tmp_path / 'ours', tmp_path / 'back', dtype='bfloat16')
    assert len(alive) > 2 * len(hf.tensors(CONFIGS['qwen2-tied'])) and max(alive) == 0


MEASURE = '''
import sys
from pathlib import Path
import jax
from score_jax import hf, sharding

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(key))

mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, model=1))
hf.load(Path(sys.argv[1]), mesh)  # compiles, and is let go of
before = status('VmRSS')
Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
_, params = hf.load(Path(sys.argv[1]), mesh)
print((status('VmHWM') - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
'''


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='peaks of memory are read from Linux')
def test_loading_needs_little_more_memory_than_the_parameters(tmp_path, monkeypatch):
    """Parameters on CPU are in host memory, so 1 is the least; the largest tensor is a fifth of this model."""
    monkeypatch.setitem(CONFIGS, 'large', varied('gemma2-tied', vocab_size=20_000, width=512, layers=8, mlp=2048))
    write(tmp_path / 'hf', 'large', 'bfloat16')
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, tmp_path / 'hf'], capture_output=True, text=True, cwd=ROOT,
        env=environment(), check=True)
    assert float(done.stdout) < 1.3


def test_an_export_leaves_alone_what_is_not_its_own_and_nothing_else_behind(tmp_path, monkeypatch):
    (tmp_path / 'hf.partial').mkdir()
    (tmp_path / 'here').mkdir()
    params = random_params(CONFIGS['llama-tied'])
    hf.save(tmp_path / 'hf', CONFIGS['llama-tied'], params)
    monkeypatch.chdir(tmp_path / 'here')
    hf.save(Path('.'), CONFIGS['llama-tied'], params)
    monkeypatch.setattr(hf, '_write_tensors', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.save(tmp_path / 'broken', CONFIGS['llama-tied'], params)
    assert {path.name for path in tmp_path.iterdir()} == {'hf', 'hf.partial', 'here'}
    assert {path.name for path in (tmp_path / 'here').iterdir()} == {path.name for path in (tmp_path / 'hf').iterdir()}
