"""What a stage starts from is what it takes it for: the same model, asked in the same words, and the same as before."""

import dataclasses
import json
import types
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers import mesh_of, tiny

from configs import evaluate
from score_jax import sources
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.evaluate import Evaluation

PARAMS = {'x': jnp.ones(3)}
TASK = {'name': 'jsonl', 'prompt': '{problem}\n', 'instruction': 'Again.', 'train': 'a'}
CONFIG = {'chat': 'qwen', 'tokenizer': '', 'pretrained': '', 'task': TASK}


def save(workdir: Path, stage: str, step: int = 1, **meta) -> None:
    checkpoints = Checkpoints(workdir / stage / 'checkpoints')
    checkpoints.save(step, {'params': PARAMS}, meta=meta)
    checkpoints.close()


def refusal(made, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        made(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_stage_of_another_forward_pass_is_refused_though_its_shapes_fit(tmp_path):
    saved = dataclasses.asdict(tiny(dtype='bfloat16'))
    save(tmp_path, 'stage1', model=saved)
    mesh = mesh_of(1, 1, 1)
    sources.find('stage1', tmp_path, tiny(), mesh)  # another dtype is no other model
    told = refusal(sources.find, 'stage1', tmp_path, tiny(rope_base=5e5), mesh)
    assert 'does not fit this run: its model has rope_base = 100.0, not 500000.0;' in told
    checkpoints = Checkpoints(tmp_path / 'stage1' / 'checkpoints')
    assert 'rope_base = 100.0' in refusal(sources.restore, checkpoints, tiny(rope_base=5e5), mesh)
    save(tmp_path, 'older')  # does not say its model
    sources.find('older', tmp_path, tiny(rope_base=5e5), mesh)


@pytest.mark.parametrize('here, named', [
    ({'chat': ''}, ["config.chat = 'qwen', not ''"]),
    ({'chat': 'gemma', 'tokenizer': 't'}, ["config.chat = 'qwen', not 'gemma'", "config.tokenizer = '', not 't'"]),
    ({'task': TASK | {'instruction': 'Check.\n'}}, [r"config.task.instruction = 'Again.', not 'Check.\n'"]),
    ({'task': TASK | {'prompt': 'Q'}}, [r"config.task.prompt = '{problem}\n', not 'Q'"])])
def test_a_stage_that_was_asked_otherwise_is_refused(here, named, tmp_path):
    (tmp_path / 'stage1').mkdir()
    (tmp_path / 'stage1' / 'config.json').write_text(json.dumps(CONFIG))
    told = refusal(sources.check_prompts, types.SimpleNamespace(**CONFIG | here), tmp_path, 'random', 'stage1')
    assert 'stage1 was trained with ' in told and all(part in told for part in named)


@pytest.mark.parametrize('here', [
    {}, {'task': TASK | {'train': 'b', 'split': 'other'}}, {'task': TASK | {'name': 'math', 'prompt': 'Q'}},
    {'chat': '', 'allow_changes': ('chat',)}])
def test_other_problems_and_what_is_allowed_to_change_are_not(here, tmp_path):
    (tmp_path / 'stage1').mkdir()
    (tmp_path / 'stage1' / 'config.json').write_text(json.dumps(CONFIG))
    sources.check_prompts(types.SimpleNamespace(**CONFIG | here), tmp_path, 'stage1', 'random', '/a/model', 'absent')


def test_an_evaluation_asks_as_the_stages_were_asked(tmp_path):
    save(tmp_path, 'base')
    (tmp_path / 'base' / 'config.json').write_text(json.dumps({'task': {'name': 'countdown', 'instruction': 'Again.'}}))
    config = evaluate.get_config()
    config.batch = 400  # which any mesh of the tests divides
    told = refusal(Evaluation(config, tmp_path).run)
    assert "base was trained with config.task.instruction = 'Again.', not 'check :'" in told
    assert not (tmp_path / 'evaluation').exists()


def test_a_stage_goes_on_from_what_it_was_begun_with_alone(tmp_path):
    names = ('base', 'random', 'sft')
    save(tmp_path, 'base')
    save(tmp_path, 'sft')
    begun = sources.origins(names, tmp_path / 'stage2')
    assert set(begun) == {'base', 'sft'}
    save(tmp_path, 'stage2', origins=begun)
    (tmp_path / 'sft').rename(tmp_path / 'away')  # what is gone may be
    assert sources.origins(names, tmp_path / 'stage2') == begun
    save(tmp_path, 'base', step=2)
    told = refusal(sources.origins, names, tmp_path / 'stage2')
    assert "stage2 was begun with 'base' as it was then, which has changed since" in told


def test_a_directory_is_another_where_bytes_differ_and_the_same_where_it_moves(tmp_path):
    def model(name: str, data: bytes) -> dict:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.safetensors').write_bytes((2).to_bytes(8, 'little') + b'{}' + data)
        return sources._identity(str(tmp_path / name), tmp_path)

    data = bytes(5 << 20)
    first = model('a', data)
    assert model('b', data) == first == json.loads(json.dumps(first))
    assert model('start', b'1' + data[1:]) != first and model('end', data[1:] + b'1') != first
    older = {'model.safetensors': first['model.safetensors'][0]}  # sizes alone
    assert sources._same(older, first) and not sources._same(older, model('long', data + b'1'))
