"""The sides, and a repetition of one after another of each: A B C A B C, one at work at a time."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed import environments, workloads

ROOT = environments.ROOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One thing that is measured on a workload.

    Attributes:
      name: what the table calls it.
      workload: a key of `workloads.WORKLOADS`, or 'W4', 'demo': the demo's step, the demo from end to end.
      part: of the step: 'rollout', 'update', 'step'.
      environment: '' is this interpreter's own.
      tree: folder whose score_jax is measured; None: this one.
      most: repetitions of it at most, where one takes long.
    """

    name: str
    workload: str
    part: str
    module: str
    variant: str
    environment: str = ''
    devices: int = 1
    tree: Path | None = None
    most: int = 99


OURS = 'score_jax'


def _ours(workload: str, part: str, variant: str, module: str = 'ours', name: str = OURS, **more) -> Side:
    return Side(
        name=name, workload=workload, part=part, module=f'benchmarks.speed.{module}', variant=variant, **more)


def _peer(
    workload: str, part: str, name: str, module: str, variant: str, environment: str = 'transformers', **more) -> Side:
    return Side(
        name=name, workload=workload, part=part, module=f'benchmarks.speed.peers.{module}', variant=variant,
        environment=environment, **more)


SIDES = [
    _ours('W1', 'rollout', 'sample'),
    _peer('W1', 'rollout', 'transformers, cache carried over', 'transformers_generate', 'carried-static'),
    _peer('W1', 'rollout', 'transformers, turn 2 reads all again', 'transformers_generate', 'again-static'),
    _peer('W1', 'rollout', 'Tunix', 'tunix_step', 'sample', 'tunix'),
    _ours('W2', 'update', 'update'),
    _peer('W2', 'update', 'PyTorch', 'pytorch_update', 'plain'),
    _peer('W2', 'update', 'PyTorch, torch.compile', 'pytorch_update', 'compiled'),
    _peer('W2', 'update', 'Tunix', 'tunix_step', 'update', 'tunix', most=1),
    _ours('step', 'step', 'step', most=2),
    _peer('step', 'step', 'TRL', 'trl_step', '', 'trl', most=2),
    _ours('W3', 'rollout', 'sample'),
    _peer('W3', 'rollout', 'transformers', 'transformers_generate', 'carried-static', most=2),
    _peer('W3', 'rollout', 'Tunix', 'tunix_step', 'sample', 'tunix', most=1),
    _ours('W4', 'demo', 'steps', 'demo'),
    _ours('memory', 'update', 'update-once', most=1),
    _ours('devices', 'step', 'step', most=2),
    _ours('devices', 'step', 'step', name='8 virtual devices', devices=8, most=2),
    _ours('devices', 'step', 'collectives', name='8 virtual devices, collectives alone', devices=8),
    _ours('G1', 'rollout', 'sample'),
    _peer('G1', 'rollout', 'transformers, cache carried over', 'transformers_generate', 'carried-static'),
    _ours('G1-update', 'update', 'update'),
    _peer('G1-update', 'update', 'PyTorch', 'pytorch_update', 'plain'),
    _peer('G1-update', 'update', 'PyTorch, layers computed again', 'pytorch_update', 'again'),
    _ours('G1-step', 'step', 'step'),
    _ours('demo', 'demo', 'whole', 'demo', most=1),
]
PEERS = tuple(sorted({side.environment for side in SIDES} - {''}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How everything is measured: threads, clock, whether in tiny shapes, where weights are kept, whether peers run
    with what is installed here."""

    threads: int
    clock: str
    quick: bool
    weights: Path
    here: bool


class Failed(Exception):
    """A side that ended without an answer; with the last line of what it said."""


class Process:
    """A side, ready to be asked for a repetition; `first` has the figures of what it did to get warm."""

    def __init__(self, side: Side, settings: Settings):
        command = [
            environments.python(side.environment, settings.here), '-m', side.module, f'--workload={side.workload}',
            f'--variant={side.variant}', f'--folder={weights_of(side.workload, settings)}',
            f'--threads={settings.threads}', f'--clock={settings.clock}', f'--device={device(side.workload)}',
            f'--devices={side.devices}', *['--quick'] * settings.quick]
        self._errors = tempfile.TemporaryFile('w+')
        tree = side.tree or ROOT  # where python -m looks first; what that tree lacks of benchmarks/ is found here
        self._process = subprocess.Popen(
            command, cwd=tree, env=environment(side.workload), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True)
        self.side, self.first = side, self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self.close()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or [f'status {self._process.returncode}']
        raise Failed(said[-1].replace('|', '/'))

    def repeat(self) -> dict:
        """Figures of one repetition."""
        try:
            self._process.stdin.write('go\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def device(workload: str) -> str:
    """Where a workload runs."""
    return 'gpu' if workload in workloads.GPU else 'cpu'


def environment(workload: str) -> dict[str, str]:
    """Environment variables of every side."""
    return os.environ | {
        'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1',
        'TRANSFORMERS_VERBOSITY': 'error', 'JAX_PLATFORMS': 'cuda' if device(workload) == 'gpu' else 'cpu'}


def weights_of(workload: str, settings: Settings) -> Path:
    """The folder of a workload's weights."""
    shape = 'G1' if device(workload) == 'gpu' else 'memory' if workload == 'memory' else 'W1'
    return settings.weights / (f'quick-{shape}' if settings.quick else shape)


def write_weights(workload: str, settings: Settings) -> None:
    """Random weights that all sides load, where they are not there yet."""
    folder = weights_of(workload, settings)
    if not folder.exists():
        subprocess.run([
            sys.executable, '-m', 'benchmarks.speed.ours', f'--workload={workload}', '--variant=weights',
            f'--folder={folder}', f'--threads={settings.threads}', f'--clock={settings.clock}',
            *['--quick'] * settings.quick], cwd=ROOT, env=environment('W1'), check=True,
            stdout=subprocess.DEVNULL)


def in_turn(sides: list[Side], repeats: int, settings: Settings, say) -> dict[str, list[dict]]:
    """By name, the figures of the warm-up and of each repetition; `{'failed': ...}` ends those of one that fails.

    Repetitions alternate. On a GPU, whose memory does not hold all of them, one side ends before the next begins.
    """
    if device(sides[0].workload) == 'cpu':
        return _alternate(sides, repeats, settings, say)
    return {name: each for side in sides for name, each in _alternate([side], repeats, settings, say).items()}


def _alternate(sides: list[Side], repeats: int, settings: Settings, say) -> dict[str, list[dict]]:
    found, ready = collections.defaultdict(list), []
    for side in sides:
        try:
            say(f'{side.workload}: {side.name} gets warm')
            ready.append(Process(side, settings))
            found[side.name].append(ready[-1].first)
        except Failed as error:
            found[side.name].append({'failed': str(error)})
    try:
        for number in range(repeats):
            for process in [process for process in ready if number < process.side.most]:
                say(f'{process.side.workload}: {process.side.name}, {number + 1} of {repeats}')
                try:
                    found[process.side.name].append(process.repeat())
                except Failed as error:
                    found[process.side.name].append({'failed': str(error)})
                    ready.remove(process)
    finally:
        for process in ready:
            process.close()
    return dict(found)
