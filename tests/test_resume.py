"""A run that is killed and run again ends as if nothing had happened.

`configs/stage1.py` alone runs a supervised stage and one of reinforcement learning. One run of it is left alone;
another is killed in the first stage, then in the second, and run again to the end.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import stage1
from score_jax.baselines.supervised import Supervised
from score_jax.checkpoint import Checkpoints
from score_jax.reinforce import Reinforce

ROOT = Path(__file__).resolve().parents[1]
STEPS = 60
TINY = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'task.largest': 9, 'task.limit': 40, 'rollout.max_tokens': 6, 'rollout.max_length': 48, 'rollout.chunk': 8,
    'before.practice_steps': 0, 'group.first': 2, 'group.second': 2, 'sample_every': 4, 'samples': 2, 'log_every': 20}
for where in ('', 'before.'):
    TINY |= {f'{where}steps': STEPS, f'{where}batch': 8, f'{where}save_every': 7, f'{where}optimizer.warmup_steps': 2}


class Run:
    """`configs/stage1.py` in a process of its own, on one device."""

    def __init__(self, workdir: Path):
        compiled = workdir.parent / 'compiled'  # so that the next run starts faster
        self.process = subprocess.Popen(
            [sys.executable, 'launch/main.py', '--config=configs/stage1.py', f'--workdir={workdir}',
             *(f'--config.{key}={value}' for key, value in TINY.items())],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': str(compiled),
                              'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})

    def kill_when(self, file: Path, lines: int) -> None:
        """SIGKILL as soon as `file` has so many lines; it must come while the run is at work."""
        while self.process.poll() is None and not (file.exists() and file.read_text().count('\n') >= lines):
            time.sleep(0.002)
        self.process.kill()
        _, errors = self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL, errors

    def output(self) -> str:
        output, errors = self.process.communicate()
        assert self.process.returncode == 0, errors
        return output


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """(workdir of the undisturbed run, workdir of the killed one, what each printed)."""
    folder, rng = tmp_path_factory.mktemp('runs'), random.Random(0)
    whole, killed = folder / 'whole', folder / 'killed'
    undisturbed = Run(whole)
    Run(killed).kill_when(killed / 'base' / 'metrics.jsonl', rng.randrange(10, STEPS - 20))
    assert not (killed / 'stage1').exists()
    Run(killed).kill_when(killed / 'stage1' / 'metrics.jsonl', rng.randrange(10, STEPS - 20))
    return whole, killed, undisturbed.output(), Run(killed).output()


def lines(path: Path) -> list[dict]:
    """The lines of a file less what depends on the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if 'second' not in key} for row in rows]


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
    whole, _, output, _ = runs
    assert 'no base to start from; it is made first' in output
    assert output.index('base ') < output.index('stage1: starts from base, step 60')
    assert (whole / 'stage1' / 'metrics.jsonl').exists()


def test_a_run_that_goes_on_says_after_which_step(runs):
    *_, output = runs
    assert 'base: all' not in output.split('stage1: goes on after step')[1]
    step = int(output.split('stage1: goes on after step ')[1].split()[0])
    assert step % 7 == 0 and 0 < step < STEPS


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
