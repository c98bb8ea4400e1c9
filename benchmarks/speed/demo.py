"""The demo's own step, inside its own loop: that of the tree in which the process was started, of whatever revision."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.speed import worker
from score_jax import run
from score_jax.reinforce import Reinforce

STEPS = 20  # of a repetition: those that compile are in the first, which is not counted


def config_of(name: str, preset: str = ''):
    """A config of that tree."""
    return importlib.import_module(f'configs.{name}').get_config(preset)


def prepare() -> None:
    """What launch/main.py of that tree does first."""
    if importlib.util.find_spec('score_jax.allocation'):
        importlib.import_module('score_jax.allocation').keep()


class Measured(Reinforce):
    """Stage I, whose steps wait at the start of every repetition until it is asked for."""

    line: worker.Line
    each: int

    def step(self, state, step: int):
        if step % self.each == 0:
            if step:
                self.line.answer(self._figures(step))
                if not self.line.wait():
                    sys.exit()
            self.line.begin()
        return super().step(state, step)

    def _figures(self, step: int) -> dict:
        rows = [json.loads(line) for line in (self.directory.path / 'metrics.jsonl').read_text().splitlines()]
        first, last = rows[0], rows[step - self.each:]
        spent = {key: sum(row[key] for row in last) / self.each
                 for key in ('seconds_sample', 'seconds_grade', 'seconds_update')}
        return spent | {
            'rows': self.config.batch * self.config.group.first * self.config.group.second, 'steps': self.each,
            'first': {key: first[key] for key in ('loss', 'grad_norm', 't1', 't2', 'kl_turn1', 'kl_turn2')}}


def steps(found, workdir: Path) -> None:
    """Makes a base in a minute, then serves repetitions of Stage I's steps from it."""
    line, base, stage1 = worker.Line(found), config_of('base', 'smoke'), config_of('stage1')
    stage1.before = type(base)()
    if found.quick:
        base.steps, base.practice_steps, base.batch, base.optimizer.warmup_steps, stage1.batch = 2, 0, 8, 0, 2
    stage1.save_every = stage1.steps
    run.run(base, workdir)
    stage = Measured(stage1, workdir)
    stage.line, stage.each = line, 2 if found.quick else STEPS
    stage.run()


def whole(workdir: Path) -> dict:
    """The demo from end to end."""
    run.run(config_of('score'), workdir)
    return {'results': json.loads((workdir / 'results.json').read_text())}


if __name__ == '__main__':
    FOUND = worker.job()
    prepare()
    with tempfile.TemporaryDirectory() as FOLDER:
        if FOUND.variant == 'whole':
            worker.serve(FOUND, lambda: whole(Path(FOLDER) / 'demo'), dict)
        else:
            steps(FOUND, Path(FOLDER))
