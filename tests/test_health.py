"""A stage that is told to stop, learns nothing, is stuck or cannot write says so, with its state saved."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from configs import base
from score_jax import health, optimizer, settings
from score_jax.baselines.supervised import SupervisedConfig
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.run import run, run_stage
from score_jax.train import Stage

ROOT = Path(__file__).resolve().parents[1]
STEPS = 9
BOUND = 60  # seconds: 'returns at all'
TINY = {
    'model.width': 4, 'model.layers': 1, 'model.heads': 1, 'model.kv_heads': 1, 'model.head_dim': 2, 'model.mlp': 4,
    'task.largest': 9, 'task.limit': 40, 'steps': STEPS, 'batch': 8, 'save_every': 4, 'practice_steps': 0,
    'optimizer.warmup_steps': 0, 'mesh.data': 8}


class Counting(Stage):
    """Every step adds 1 to all that is trained; `at` has what happens in a step, by its number (1 for the first)."""

    def __init__(self, workdir: Path, at=None, **changes):
        config = base.get_config()
        config.update_from_flattened_dict(TINY | changes)
        super().__init__(settings.read(SupervisedConfig, config), config, workdir)
        self.at = at or {}

    def start(self):
        return jax.tree.map(
            lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), self.learner.abstract_params())

    def step(self, state, step):
        changes = self.at.get(step + 1, lambda: None)() or {}
        state = state.replace(step=state.step + 1, params=jax.tree.map(lambda x: x + 1, state.params))
        return state, {'loss': 1.0, 'grad_norm': 1.0, 'skipped': 0.0} | changes, [{'problem': step}]

    @property
    def saved(self) -> list[int]:
        return Checkpoints(self.directory.checkpoints).steps()

    def lines(self, name: str = 'metrics.jsonl') -> list[dict]:
        return [json.loads(line) for line in (self.directory.path / name).read_text().splitlines()]

    def check_whole(self):
        """It is at its end, with every step once."""
        state, _ = Checkpoints(self.directory.checkpoints).restore(self.learner.abstract_state())
        assert int(state.step) == STEPS and all((x == STEPS).all() for x in jax.tree.leaves(state.params))
        for name in ('metrics.jsonl', 'samples.jsonl'):
            assert [line['step'] for line in self.lines(name)] == list(range(1, STEPS + 1))


def kill(number: signal.Signals):
    return lambda: os.kill(os.getpid(), number)


def not_finite() -> dict:
    return {'loss': math.nan, 'grad_norm': math.inf, 'skipped': 1.0}


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, health.RESTART), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_in_hand_and_the_next_run_goes_on_from_there(number, code, tmp_path, capsys):
    before = signal.getsignal(number)
    stage = Counting(tmp_path, {6: kill(number)})
    message = rf'stopped after step 6 of 9, which is saved \({number.name}\)'
    with pytest.raises(health.Interrupted, match=message) as stop:
        stage.run()
    assert stop.value.exit_code == code and stage.saved == [4, 6] and stage.lines()[-1]['step'] == 6
    assert f'{number.name}: finishes this step' in capsys.readouterr().out
    assert signal.getsignal(number) is before
    stage = Counting(tmp_path)
    stage.run()
    assert 'goes on after step 6 of 9' in capsys.readouterr().out
    stage.check_whole()


def test_a_signal_before_the_first_step_stops_there(tmp_path):
    stage = Counting(tmp_path)
    stage.start = lambda: (kill(signal.SIGTERM)(), time.sleep(0.2), Counting.start(stage))[-1]
    with pytest.raises(health.Interrupted, match='before step 1'):
        stage.run()
    assert stage.saved == []


def test_a_signal_that_comes_too_late_for_a_stage_is_not_lost():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may have it ignored
    with pytest.raises(KeyboardInterrupt), health.StopSignals('a stage') as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_the_process_at_once():
    program = """
import sys, time
from score_jax import health
assert 'jax' not in sys.modules
with health.StopSignals('a stage'):
    print('ready', flush=True)
    time.sleep(1000)
"""
    run = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == 'ready\n'
    run.send_signal(signal.SIGTERM)
    assert 'SIGTERM' in run.stdout.readline() and run.poll() is None
    run.send_signal(signal.SIGTERM)
    assert run.wait(BOUND) == 128 + signal.SIGTERM


def test_a_stage_that_learns_nothing_any_more_stops_with_its_state_saved(tmp_path):
    few = {'health.skipped': 3}
    stage = Counting(tmp_path, {2: not_finite, 3: not_finite, 5: not_finite, 6: not_finite, 7: not_finite}, **few)
    with pytest.raises(UserError, match='after step 7 of 9, which is saved: 3 updates in a row.*no finite number'):
        stage.run()
    assert stage.saved == [4, 7]
    stage = Counting(tmp_path, {8: not_finite}, **few)  # those before count on
    with pytest.raises(UserError, match='after step 8 of 9, which is saved: 4 updates in a row'):
        stage.run()
    stage = Counting(tmp_path, **few)
    stage.run()
    stage.check_whole()


@pytest.mark.parametrize('loss, norm', [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_an_update_whose_loss_or_gradient_is_not_finite_is_skipped(loss, norm):
    config = optimizer.OptimizerConfig(
        steps=2, learning_rate=0.1, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-8,
        clip_norm=1.0)
    params = {'w': jnp.ones(3)}
    state = optimizer.TrainState(jnp.int32(0), params, config.build().init(params), jnp.float32(1))
    for value, size, skipped in ((loss, norm, True), (1.0, 1.0, False)):
        after, metrics = optimizer.apply(state, config, {'w': jnp.full(3, size)}, {'loss': jnp.float32(value)})
        assert metrics['skipped'] == skipped and int(after.step) == 1 - skipped
        assert bool((after.params['w'] == params['w']).all()) == skipped


def test_steps_without_a_verdict_are_told_from_those_that_are_not_finite():
    skipped = health.SkippedUpdates(2)
    assert not skipped.add({'loss': 0.0, 'grad_norm': 0.0, 'skipped': 1.0})
    assert 'no rollout had a verdict' in skipped.add({'loss': 0.0, 'grad_norm': 0.0, 'skipped': 1.0})
    assert not skipped.add({'loss': 0.0, 'grad_norm': 0.0, 'skipped': 0.0})


def test_a_part_that_is_stuck_is_named_while_it_is_and_in_the_metrics(tmp_path, capsys):
    seen = []

    def be_stuck():
        stage.watch.enter('grading')
        end = time.monotonic() + BOUND
        while not seen and time.monotonic() < end:
            time.sleep(0.05)
            seen.extend(line for line in capsys.readouterr().out.splitlines() if 'grading has taken' in line)

    stage = Counting(tmp_path, {3: be_stuck}, **{'health.stuck_seconds': 0.4})
    stage.run()
    assert seen[0].startswith('base: grading has taken') and 'config.health.stuck_seconds = 0.4' in seen[0]
    assert stage.lines()[2]['slow']['grading'] > 0.4
    stage.check_whole()


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/run/file')


@pytest.mark.parametrize('what', ['a line', 'a checkpoint'])
def test_a_full_disk_ends_in_one_sentence_and_the_next_run_goes_on(what, tmp_path, monkeypatch):
    stage = Counting(tmp_path)
    whole = type(stage.directory).append if what == 'a line' else None

    def half_a_line(directory, name, lines):
        if name == 'metrics.jsonl' and lines[0]['step'] == 6:
            (directory.path / name).open('a').write('{"stage": "base", "st')
            no_space()
        whole(directory, name, lines)

    with monkeypatch.context() as patch:
        if what == 'a line':
            patch.setattr(type(stage.directory), 'append', half_a_line)
        else:
            patch.setattr(ocp.CheckpointManager, 'save', no_space)
        with pytest.raises(UserError) as error:
            run_stage(stage)
    assert 'No space left on device' in str(error.value) and '\n' not in str(error.value)
    stage = Counting(tmp_path)
    stage.run()
    stage.check_whole()


def test_a_workdir_that_is_gone_ends_in_one_sentence(tmp_path):
    stage = Counting(tmp_path, {6: lambda: (tmp_path / 'base').rename(tmp_path / 'elsewhere') and None})
    with pytest.raises(UserError) as error:
        run_stage(stage)
    assert str(tmp_path / 'base') in str(error.value) and '\n' not in str(error.value)


def test_two_runs_do_not_train_one_stage_at_once(tmp_path):
    said = []

    def another():
        with pytest.raises(UserError) as error:
            run_stage(Counting(tmp_path))
        said.append(str(error.value))

    stage = Counting(tmp_path, {3: another})
    run_stage(stage)
    assert said == [f'{tmp_path / "base"} is being trained by another run; wait for it, stop it, or use another '
                    '--workdir.']
    stage.check_whole()
    run_stage(Counting(tmp_path))  # which finds that all is done


def test_a_workdir_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f'{tmp_path / "w"} cannot be written: {tmp_path} is not yours'):
        run(base.get_config(), tmp_path / 'w')


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs /proc, where nobody can make a folder')
def test_a_folder_that_cannot_be_made_ends_in_one_sentence():
    with pytest.raises(UserError, match='base: .*/proc/nowhere.*; once that is mended, the same command goes on'):
        run_stage(Counting(Path('/proc/nowhere')))


def test_a_change_of_config_is_refused_with_the_difference_unless_it_is_allowed_by_name(tmp_path, capsys):
    with pytest.raises(health.Interrupted):
        Counting(tmp_path, {5: kill(signal.SIGTERM)}).run()
    changes = {'learning_rate': 0.5, 'optimizer.clip_norm': 2.0}
    with pytest.raises(UserError, match=r'config.learning_rate: 0.006 -> 0.5; config.optimizer.clip_norm: 1.0 -> 2.0'):
        Counting(tmp_path, **changes)
    with pytest.raises(UserError, match=r'config \(config.optimizer.clip_norm: 1.0 -> 2.0\)'):
        Counting(tmp_path, **changes, allow_changes=('learning_rate',))
    stage = Counting(tmp_path, **changes, allow_changes=('learning_rate', 'optimizer.clip_norm'))
    stage.run()
    stage.check_whole()
    assert stage.lines('changes.jsonl') == [
        {'step': 5, 'changes': ['config.learning_rate: 0.006 -> 0.5', 'config.optimizer.clip_norm: 1.0 -> 2.0']}]
    Counting(tmp_path, **changes)  # is what it was made with now


@pytest.mark.parametrize('key, value', [('skipped', 0), ('stuck_seconds', 0.0)])
def test_values_that_cannot_be_are_refused(key, value, tmp_path):
    with pytest.raises(UserError, match=f'config.health.{key} is {value}'):
        Counting(tmp_path, **{f'health.{key}': value})
