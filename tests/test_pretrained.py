"""From the directory of a Hugging Face model through Stage I and its evaluation, and out again as such a directory."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_tokenizers
from family_configs import varied
from helpers import mesh_of
from test_reference import random_params

from configs import evaluate, models, stage1, stage2
from score_jax import convert, converse, hf, reinforce, rollout, sharding
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.run import run
from score_jax.tokenizers import Bytes

ROOT = Path(__file__).resolve().parents[1]
SHAPE = varied('qwen2-tied', vocab_size=416, layers=2)  # the tokenizer has 403 tokens
PROBLEMS = [(f'{n} + {n}?', str(2 * n)) for n in range(4)]
SIZES = {
    'steps': 2, 'save_every': 2, 'batch': 4, 'group.first': 2, 'group.second': 1, 'objective.baseline': 'leave_one_out',
    'rollout.max_tokens': 12, 'rollout.max_length': 256, 'rollout.chunk': 128, 'chat': 'qwen',
    'task.prompt': '{problem}', 'task.instruction': 'Again.', 'reference': 'base'}
ROLLOUT = {key: value for key, value in SIZES.items() if key.split('.')[0] in ('rollout', 'chat', 'task')}


def write(directory: Path, shape=SHAPE, family: str = 'qwen2.5') -> Path:
    """A model of this shape with random weights, its tokenizer and its template."""
    hf.save(directory, shape, jax.tree.map(jnp.asarray, random_params(shape)))
    return tiny_tokenizers.write(directory, family)


def spelled(directory: Path, tokens) -> str:
    file = str(directory / 'tokenizer.json')
    tokenizer = tiny_tokenizers.tokenizers.Tokenizer.from_file(file)
    return tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('pretrained') / 'hf')


@pytest.fixture(scope='module')
def sums(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp('sums') / 'sums.jsonl'
    path.write_text(''.join(json.dumps({'problem': q, 'answer': a}) + '\n' for q, a in PROBLEMS))
    return {'task.train': str(path), 'task.test': str(path)}


@pytest.fixture(scope='module')
def stage(model, sums, tmp_path_factory) -> tuple[Path, list]:
    """The workdir of two steps of Stage I from the model, and the trajectories of them."""
    workdir, sampled, sample = tmp_path_factory.mktemp('run') / 'w', [], rollout.sample
    config = stage1.get_config('jsonl-tiny')
    config.update_from_flattened_dict(SIZES | sums | {'start_from': str(model)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
        patch.setattr(rollout, 'sample', lambda *args, **kwargs: sampled.append(sample(*args, **kwargs)) or sampled[-1])
        run(config, workdir)
    return workdir, sampled


def test_a_stage_starts_from_a_model_and_sampler_and_learner_agree(stage):
    lines = [json.loads(line) for line in (stage[0] / 'stage1/metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2]
    assert all(line['log_prob_gap'] < 1e-4 for line in lines)
    assert max(lines[0][f'kl_turn{turn}'] for turn in (1, 2)) < 0.02  # the reference is the model, in bfloat16
    assert not (stage[0] / 'base').exists()


def test_a_transcript_has_exactly_the_layout_of_the_template(stage, model):
    """What was sampled aside, every token is the template's, whether a response had its end token or was cut short."""
    asked = ('<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n'
             '<|im_start|>assistant\n')
    rows = 0
    for trajectory in stage[1]:
        for row in range(len(trajectory.tokens)):
            tokens, turn = (np.asarray(x[row, :trajectory.length[row]]) for x in (trajectory.tokens, trajectory.turn))
            first, second = (tokens[turn == t].tolist() for t in (1, 2))
            start = int((turn == 1).argmax())
            problem = spelled(model, tokens[:start])
            assert problem in [asked.format(question) for question, _ in PROBLEMS]
            between = tokens[start + len(first):len(tokens) - len(second)]
            closed = first[-1] == 402
            assert spelled(model, between) == ('' if closed else '<|im_end|>') + (
                '\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n')
            rows += 1
    assert rows == 16


def test_what_was_trained_is_exported_as_a_model_with_its_own_tokenizer(stage, model, tmp_path):
    """The stage knows where it came from; its shape has a vocabulary that is larger than the tokenizer's."""
    convert.convert(stage[0] / 'stage1', tmp_path / 'out')
    config, params = hf.load(tmp_path / 'out', mesh_of(1, 1, 1))
    assert config == SHAPE and (tmp_path / 'out/tokenizer.json').read_bytes() == (model / 'tokenizer.json').read_bytes()
    assert (tmp_path / 'out/tokenizer_config.json').exists()
    saved = Checkpoints(stage[0] / 'stage1/checkpoints').restore_params(params)
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    before = hf.load(model, mesh_of(1, 1, 1))[1]
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before)))


def test_the_model_itself_is_measured_as_the_base(stage, model, sums, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
    config = evaluate.get_config('jsonl-tiny')
    config.update_from_flattened_dict(ROLLOUT | sums | {
        'pretrained': str(model), 'methods': ('base', 'stage1', 'stage2'), 'temperatures': (0.0,), 'problems': 4,
        'batch': 4})
    run(config, stage[0])
    rows = json.loads((stage[0] / 'results.json').read_text())
    assert [row['method'] for row in rows] == ['base', 'stage1']
    sources = [json.loads(path.read_text())['source'] for path in (stage[0] / 'evaluation').glob('base-*.json')]
    assert all(source['files'] == hf.identity(model) for source in sources) and sources


def test_stage_2_is_held_to_the_model_that_stage_1_started_from(stage, model, sums, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
    config = stage2.get_config('jsonl-tiny')
    config.update_from_flattened_dict(SIZES | sums | {'reference': str(model)})
    built = reinforce.Reinforce(config, stage[0])
    assert built.model == SHAPE and built.task.tokenizer.close_token == 402
    assert built.directory._config['pretrained'] == str(model)


def test_the_base_is_the_pretrained_model_also_where_a_stage_starts_from_another(tmp_path):
    config = stage1.get_config()
    config.update_from_flattened_dict({'pretrained': '/models/base', 'start_from': str(tmp_path), 'reference': 'base'})
    assert reinforce.pretrained(config) == '/models/base'
    config.pretrained = ''
    assert reinforce.pretrained(config) == str(tmp_path)


@pytest.mark.parametrize('place', ['stage', 'model', 'converted'])
def test_any_of_them_may_be_tried(place, stage, model, tmp_path):
    where = {'stage': stage[0], 'model': model, 'converted': tmp_path / 'ours'}[place]
    if place == 'converted':
        convert.convert(model, where)
    policy = converse.load(where, temperature=0.0, max_tokens=3)
    problem, graded = converse.problem_from(policy, '2 + 2?')
    conversation, shown = converse.Conversation(policy, problem, graded=graded, seed=0), []
    for _ in range(2):
        conversation.attempt(shown.append)
    text = spelled(model, conversation._tokens)
    assert text.startswith(
        '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n')
    assert text.count('<|im_end|>\n<|im_start|>assistant\n') == 2 and text.count('<|im_start|>user') == 2
    if place != 'stage':
        with pytest.raises(UserError, match='a model without a task'):
            policy.task.problems('test', 1, seed=0, step=0)


@pytest.mark.parametrize('family', ['qwen2.5', 'llama3', 'gemma'])
def test_a_stream_gives_whole_characters_of_any_tokenizer(family, tmp_path):
    tokenizer = converse.tokenizers.load(str(tiny_tokenizers.write(tmp_path, family)))
    for text in ('año – 中文 🙂 e\u0301', '🙂' * 5, '\U0001f468\u200d\U0001f469\u200d\U0001f467', 'a\r\nb'):
        stream, tokens = converse.TextStream(tokenizer.decode), tokenizer.encode(text)
        pieces = [stream.add(token) for token in tokens]
        assert not any('\ufffd' in piece for piece in pieces) and len(tokens) > 1
        assert ''.join(pieces) + stream.rest() == tokenizer.decode(tokens)
    assert Bytes().decode(tokenizer.decode(tokenizer.encode('🙂')).encode()) == '🙂'


@pytest.mark.parametrize('changes, named', [
    ({'start_from': '/no/such/model'}, "config.start_from is '/no/such/model', which is no directory"),
    ({'pretrained': '/no/such/model', 'start_from': 'base'},
     "config.pretrained is '/no/such/model', which is no directory"),
    ({'chat': 'gemma'}, "config.chat is 'gemma', but the tokenizer has no <start_of_turn>"),
    ({'chat': 'chatml'}, "config.chat is 'chatml'; it must be one of gemma, qwen, llama3"),
    ({'tokenizer': '/no/such/tokenizer.json'}, "config.tokenizer is '/no/such/tokenizer.json', which cannot be read"),
    ({'reference': 'OTHER'}, 'another shape'), ({'tokenizer': 'LARGE'}, 'has 420 tokens, but the model')])
def test_what_is_wrong_is_named_before_anything_runs(changes, named, model, sums, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
    config = stage1.get_config('jsonl-tiny')
    config.update_from_flattened_dict(SIZES | sums | {'start_from': str(model)} | changes)
    if changes.get('reference') == 'OTHER':
        config.reference = str(write(tmp_path / 'other', varied('qwen2-tied', vocab_size=416)))
    if changes.get('tokenizer') == 'LARGE':
        config.tokenizer = str(tiny_tokenizers.write(tmp_path / 'gemma', 'gemma'))
        config.chat = ''
        config.start_from = str(write(tmp_path / 'small', varied('qwen2-tied', vocab_size=410, layers=1)))
    with pytest.raises(UserError) as error:
        run(config, tmp_path / 'w')
    assert named in str(error.value) and '\n' not in str(error.value)
    assert not list(tmp_path.glob('w/*'))


@pytest.mark.parametrize('preset', models.SHARED_PRESETS)
def test_a_preset_says_in_one_sentence_that_it_needs_a_model(preset, tmp_path):
    for name in ('stage1', 'stage2', 'evaluate', 'score'):
        config = importlib.import_module(f'configs.{name}').get_config(preset)
        with pytest.raises(UserError) as error:
            run(config, tmp_path / 'w')
        assert "config.pretrained is '/path/to/" in str(error.value) and '\n' not in str(error.value)


def test_presets_have_the_values_of_the_paper():
    maths, code = (stage1.get_config(name) for name in ('math-gemma2-2b', 'mbpp-qwen2.5-coder-1.5b'))
    second = [stage2.get_config(name) for name in ('math-gemma2-2b', 'mbpp-qwen2.5-coder-1.5b')]
    assert [(c.learning_rate, c.objective.beta1, c.objective.beta2, c.temperature) for c in (maths, code)] == [
        (5e-6, 0.01, 0.1, 1.0), (1e-5, 0.01, 0.25, 1.0)]
    assert [(c.learning_rate, c.objective.alpha, c.objective.beta1) for c in second] == [
        (5e-6, 10, 0.01), (1e-5, 10, 0.01)]
    assert [one.steps + two.steps for one, two in zip((maths, code), second)] == [3000, 1500]
    assert [c.batch * c.group.first * c.group.second for c in (maths, code)] == [512, 128]


def test_the_command_takes_a_preset_and_a_directory(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'launch/main.py', '--config=configs/stage1.py:math-gemma2-2b',
         f'--workdir={tmp_path}/w'], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and '/path/to/gemma-2-2b-it' in done.stderr
