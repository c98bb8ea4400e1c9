"""A run that is killed and run again ends as if nothing had happened.

`configs/stage1.py` alone runs a supervised stage and one of reinforcement learning. One run of it is left alone;
another is killed in the first stage, then in the second, told to stop there, finds its newest checkpoint damaged, and
runs to the end.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import environment, untimed

from configs import stage1
from score_jax.baselines.supervised import Supervised
from score_jax.checkpoint import Checkpoints
from score_jax.health import RESTART
from score_jax.reinforce import Reinforce

ROOT = Path(__file__).resolve().parents[1]
STEPS = 60
TINY = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'task.largest': 9, 'task.limit': 40, 'rollout.max_tokens': 6, 'rollout.max_length': 48, 'rollout.chunk': 48,
    'before.practice_steps': 0, 'group.first': 2, 'group.second': 2, 'sample_every': 4, 'samples': 2, 'log_every': 20}
for where in ('', 'before.'):
    TINY |= {f'{where}steps': STEPS, f'{where}batch': 8, f'{where}save_every': 7, f'{where}optimizer.warmup_steps': 2}


class Run:
    """`configs/stage1.py` in a process of its own, on one device."""

    def __init__(self, workdir: Path):
        self.process = subprocess.Popen(
            [sys.executable, 'launch/main.py', '--config=configs/stage1.py', f'--workdir={workdir}',
             *(f'--config.{key}={value}' for key, value in TINY.items())],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment())

    def signal_when(self, number: signal.Signals, file: Path, lines: int) -> tuple[int, str]:
        """Sends a signal as soon as `file` has so many lines: how the run ended, and what it said of that."""
        while self.process.poll() is None and not (file.exists() and file.read_text().count('\n') >= lines):
            time.sleep(0.002)
        self.process.send_signal(number)
        _, errors = self.process.communicate()
        return self.process.returncode, errors

    def output(self) -> str:
        output, errors = self.process.communicate()
        assert self.process.returncode == 0, errors
        return output


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """(workdir of the undisturbed run, workdir of the disturbed one, what each printed, how the latter was stopped)."""
    folder, rng = tmp_path_factory.mktemp('runs'), random.Random(0)
    whole, killed = folder / 'whole', folder / 'killed'
    undisturbed = Run(whole)
    for stage, number, first in (
            ('base', signal.SIGKILL, 10), ('stage1', signal.SIGKILL, 10), ('stage1', signal.SIGTERM, 36)):
        stopped = Run(killed).signal_when(number, killed / stage / 'metrics.jsonl', rng.randrange(first, first + 20))
        assert number == signal.SIGTERM or stopped[0] == -signal.SIGKILL, stopped[1]
        assert stage == 'stage1' or not (killed / 'stage1').exists()
    newest = max((killed / 'stage1' / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    largest = max(newest.rglob('d/*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(255 - byte for byte in largest.read_bytes()))
    return whole, killed, undisturbed.output(), Run(killed).output(), stopped


def lines(path: Path) -> list[dict]:
    """The lines of a file less what depends on the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [untimed(row) for row in rows]


def files(workdir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def final_state(workdir: Path, stage: str) -> list[np.ndarray]:
    config = stage1.get_config()
    config.update_from_flattened_dict(TINY)
    made = Supervised(config.before, workdir) if stage == 'base' else Reinforce(config, workdir)
    like = made.learner.abstract_state()
    state, meta = Checkpoints(workdir / stage / 'checkpoints').restore(like)
    assert int(state.step) == STEPS and meta['stage'] == stage
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def test_stage1_alone_makes_its_base_first_and_says_so(runs):
    whole, _, output, *_ = runs
    assert 'no base to start from; it is made first' in output
    assert output.index('base ') < output.index('stage1: starts from base, step 60')
    assert (whole / 'stage1' / 'metrics.jsonl').exists()


def test_a_run_that_is_told_to_stop_exits_with_the_code_that_asks_for_another_start(runs):
    *_, (code, errors) = runs
    assert code == RESTART and len(errors.splitlines()) == 1
    assert 'stage1: stopped after step' in errors and 'which is saved (SIGTERM)' in errors


def test_a_run_that_goes_on_does_so_from_the_last_intact_checkpoint_and_says_so(runs):
    _, killed, _, output, (_, errors) = runs
    assert 'base: all' not in output.split('stage1: goes on after step')[1]
    step, told = int(output.split('stage1: goes on after step ')[1].split()[0]), int(errors.split()[4])
    assert step % 7 == 0 and 0 < step < told < STEPS
    moved = killed / 'stage1' / 'checkpoints-damaged' / str(told)
    assert f'checkpoints/{told} is damaged' in output and str(moved) in output and moved.is_dir()


@pytest.mark.parametrize('stage', ['base', 'stage1'])
def test_the_parameters_are_the_same_to_the_bit(runs, stage):
    whole, killed, *_ = runs
    for a, b in zip(final_state(whole, stage), final_state(killed, stage), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize('stage', ['base', 'stage1'])
def test_the_metrics_are_the_same_and_have_each_step_once(runs, stage):
    whole, killed, *_ = runs
    metrics = lines(killed / stage / 'metrics.jsonl')
    assert [line['step'] for line in metrics] == list(range(1, STEPS + 1))
    assert metrics == lines(whole / stage / 'metrics.jsonl')


def test_the_samples_are_the_same_and_have_each_step_once(runs):
    whole, killed, *_ = runs
    samples = lines(killed / 'stage1' / 'samples.jsonl')
    assert [line['step'] for line in samples] == [step for step in range(1, STEPS + 1, 4) for _ in range(2)]
    assert samples == lines(whole / 'stage1' / 'samples.jsonl')


def test_running_again_after_the_end_changes_nothing_and_says_so(runs):
    _, killed, *_ = runs
    before = files(killed)
    assert f'stage1: all {STEPS} steps are done already' in Run(killed).output()
    assert files(killed) == before
