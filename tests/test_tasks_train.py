"""Stage I on every task in words, end to end; the tiny model knows nothing, so rewards are 0 and the path is shown."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import mesh_of

from configs import evaluate, stage1
from score_jax import checkpoint, reinforce, sharding
from score_jax.errors import UserError
from score_jax.rewards import Outcome, Verdict, sandbox
from score_jax.run import run
from score_jax.tasks.text import TextTask
from score_jax.tokenizers import Bytes

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'the public data sets are not in {DATA}')
# One shape of batch for all tasks, so that the update is compiled once.
SMALL = {
    'batch': 8, 'model.width': 8, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.mlp': 8,
    'rollout.max_tokens': 24, 'rollout.max_length': 512, 'rollout.chunk': 256, 'task.max_prompt': 256}


@pytest.fixture(scope='session', autouse=True)
def prepared(tmp_path_factory):
    """What TFDS prepares goes to a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        yield


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Which is fastest for a model of this size."""
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))


def config_of(name: str, **changes):
    config = stage1.get_config(f'{name}-tiny')
    config.update_from_flattened_dict(SMALL | changes)
    return config


@pytest.fixture
def sums(tmp_path) -> dict:
    """Config values of a task of one's own."""
    path = tmp_path / 'sums.jsonl'
    path.write_text(''.join(json.dumps({'problem': f'{n} + {n}?', 'answer': str(2 * n)}) + '\n' for n in range(20)))
    return {'task.train': str(path), 'task.test': str(path)}


def rows(workdir: Path, name: str = 'metrics.jsonl') -> list[dict]:
    return [json.loads(line) for line in (workdir / 'stage1' / name).read_text().splitlines()]


@needs_data
@pytest.mark.parametrize('name', ['gsm8k', 'math', 'mbpp'])
def test_three_steps_of_stage_1(name, tmp_path, capsys):
    if name == 'mbpp':
        try:
            sandbox.require(config_of(name).task.layers)
        except UserError as error:
            pytest.skip(str(error))
    run(config_of(name, **{'task.data_dir': str(DATA)}), tmp_path / 'w')
    metrics = rows(tmp_path / 'w')
    assert [line['step'] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert sum(line['outcomes']['turn1'].values()) == 16 and sum(line['outcomes']['turn2'].values()) == 32
        assert line['reward'] == 0 and line['skipped'] == 0 and line['dropped'] == 0
        assert np.isfinite(line['loss']) and line['grad_norm'] > 0
    assert any(line['outcomes']['turn2'].get('no_answer') for line in metrics)  # the grader has seen some
    assert sum(sum(line['grading_seconds']['turn2'].values()) for line in metrics if 'grading_seconds' in line) > 0
    assert 'starts from random parameters' in capsys.readouterr().out
    assert len(rows(tmp_path / 'w', 'samples.jsonl')) == 6


def test_a_run_that_is_cut_short_goes_on_with_the_same_problems(sums, tmp_path, monkeypatch):
    config = config_of('jsonl', save_every=2, **sums)
    run(config, tmp_path / 'whole')
    step = reinforce.Reinforce.step

    def cut(self, state, number):
        if number == 2:
            while not checkpoint.exists(tmp_path / 'cut/stage1/checkpoints'):  # written in the background
                time.sleep(0.01)
            raise KeyboardInterrupt
        return step(self, state, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reinforce.Reinforce, 'step', cut)
        run(config, tmp_path / 'cut')
    run(config, tmp_path / 'cut')
    assert rows(tmp_path / 'cut', 'samples.jsonl') == rows(tmp_path / 'whole', 'samples.jsonl')
    assert [line['loss'] for line in rows(tmp_path / 'cut')] == [line['loss'] for line in rows(tmp_path / 'whole')]


def test_gradings_that_fail_are_dropped_and_counted_and_a_step_without_any_is_skipped(sums, tmp_path, monkeypatch):
    graded = []

    def verify(self, problems, responses):
        graded.append(len(problems))
        return [Verdict(Outcome.SANDBOX_ERROR if i or len(graded) > 2 else Outcome.WRONG, seconds=0.5)
                for i in range(len(problems))]

    monkeypatch.setattr(TextTask, 'verify', verify)
    monkeypatch.setattr(Bytes, 'end_tokens', tuple(range(0, 256, 2)))  # every response ends in time
    run(config_of('jsonl', **sums), tmp_path / 'w')
    first, second, third = rows(tmp_path / 'w')
    assert graded == [16, 32] * 3
    assert (first['dropped'], first['skipped']) == (31, 0) and first['t1'] == 0
    assert [(line['dropped'], line['skipped']) for line in (second, third)] == [(32, 1), (32, 1)]
    assert 'reward' not in third and 't1' not in third
    assert third['outcomes'] == {'turn1': {'sandbox_error': 16}, 'turn2': {'sandbox_error': 32}}
    assert third['grading_seconds']['turn1']['1'] == 16 and len(third['slowest']) == 10
    assert 'NaN' not in (tmp_path / 'w/stage1/metrics.jsonl').read_text()


def test_a_stage_on_words_is_evaluated_by_the_same_path(sums, tmp_path):
    run(config_of('jsonl', **sums), tmp_path / 'w')
    config = evaluate.get_config('jsonl-tiny')
    config.update_from_flattened_dict(SMALL | sums | {'problems': 8, 'samples_per_problem': 2, 'samples': 3})
    run(config, tmp_path / 'w')
    results = json.loads((tmp_path / 'w/results.json').read_text())
    assert [(row['temperature'], row['n'], row.get('samples_per_problem')) for row in results] == [
        (1.0, 8, 2), (0.0, 8, None)]
    assert '<html' in (tmp_path / 'w/report.html').read_text()
