"""What survives: a run that is killed, told to stop and robbed of its graders at random, beside one that is left alone.

    python benchmarks/faults.py --folder=/tmp/faults               # 100 faults, some minutes on two cores
    python benchmarks/faults.py --folder=/tmp/faults --processes=2

The run is `configs/stage1.py`, a supervised base and Stage I, with a tiny model and Countdown graded in worker
processes. A fault is a SIGKILL or a SIGTERM of one of its processes, after which all end and are started again, or a
SIGKILL of a worker; it comes at any moment, or as soon as a checkpoint is being written, some while the run is still
starting. At the end the last state of both stages must be that of the undisturbed run to the bit, and so must every
line of metrics and samples, each there once. Ends with status 1 where anything differs.
"""

import collections
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from score_jax.health import RESTART
from score_jax.jsonl import read_jsonl
from score_jax.rewards.pool import children

FOLDER = flags.DEFINE_string('folder', None, 'Where both runs are made; emptied first.', required=True)
FAULTS = flags.DEFINE_integer('faults', 100, 'Faults after which the run is left alone to its end.')
PROCESSES = flags.DEFINE_integer('processes', 1, 'Of the run, on one device each.')
STEPS = flags.DEFINE_integer('steps', 400, 'Steps of each of the two stages.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the faults.')
KINDS = {'SIGKILL': 3, 'SIGTERM': 2, 'worker': 5}  # how often each comes
STAGES = ('base', 'stage1')
_OF_THE_CLOCK = ('slow', 'slowest', 'compiled', 'utilisation')
_STUCK = 300  # seconds without a new line: the run hangs
_GRACE = 120  # seconds in which all processes must have ended once one has
_ENDS = (0, RESTART, -signal.SIGKILL, -signal.SIGTERM)  # exit codes of a fault
_ABANDONED = -signal.SIGABRT  # and of a process whose coordinator is gone


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def command(workdir: Path) -> list[str]:
    """The run, of one process."""
    both = {'steps': STEPS.value, 'batch': 8, 'save_every': 3, 'optimizer.warmup_steps': 2}
    values = {
        'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8,
        'model.mlp': 16, 'task.name': 'benchmarks/faults_task.py:PooledCountdown', 'task.largest': 9, 'task.limit': 40,
        'rollout.max_tokens': 6, 'rollout.max_length': 48, 'rollout.chunk': 48, 'group.first': 2, 'group.second': 2,
        'sample_every': 1, 'samples': 2, 'before.practice_steps': 0, **both,
        **{f'before.{key}': value for key, value in both.items()}}
    return [sys.executable, 'launch/main.py', '--config=configs/stage1.py', f'--workdir={workdir}',
            *(f'--config.{key}={value}' for key, value in values.items())]


class Run:
    """All its processes, on one device each."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        compiled = workdir.parent / 'compiled'  # so that the next start is faster
        environment = os.environ | {
            'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': str(compiled),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
        count, port = PROCESSES.value, free_port()
        self._output = [workdir.parent / f'output-{number}.txt' for number in range(count)]
        self.processes = [
            subprocess.Popen(
                command(workdir) + ([f'--processes={count}', f'--process={number}', f'--coordinator=127.0.0.1:{port}']
                                    if count > 1 else []),
                cwd=ROOT, stdout=output.open('w'), stderr=subprocess.STDOUT, env=environment)
            for number, output in enumerate(self._output)]

    def ended(self) -> bool:
        """Whether one of its processes has, with which all do."""
        return any(process.poll() is not None for process in self.processes)

    def lines(self) -> tuple[int, ...]:
        """Of metrics.jsonl of each stage so far."""
        files = [self.workdir / stage / 'metrics.jsonl' for stage in STAGES]
        return tuple(file.read_bytes().count(b'\n') if file.exists() else 0 for file in files)

    def await_step(self) -> None:
        """Until one more step is done, or the run has ended; a hang is an error."""
        before, end = self.lines(), time.monotonic() + _STUCK
        while not self.ended() and self.lines() <= before:
            if time.monotonic() > end:
                raise TimeoutError(f'no step in {_STUCK} s')
            time.sleep(0.01)

    def await_save(self) -> None:
        """Until a checkpoint is being written, or the run has ended."""
        while not self.ended() and not any(self.workdir.glob('*/checkpoints/*.orbax-checkpoint-tmp')):
            time.sleep(0.001)

    def finish(self) -> list[int]:
        """Exit codes, each once; what was said before an unexpected one is printed.

        Those that wait for one that ended before all had found each other are ended, as a supervisor would.
        """
        while not self.ended():
            self.await_step()
        met = len(self.processes) == 1 or ' processes with ' in self._output[0].read_text()
        codes = []
        for process, output in zip(self.processes, self._output):
            try:
                codes.append(process.wait(_GRACE if met else 2))
            except subprocess.TimeoutExpired:
                if met:
                    raise
                process.kill()
                codes.append(process.wait())
            if codes[-1] not in (*_ENDS, _ABANDONED):
                print(output.read_text()[-2000:])
        return sorted({*codes})


def disturb(run: Run, rng: random.Random, counts: collections.Counter) -> None:
    """One fault; returns when the run has ended, or has done a step since."""
    kind, = rng.choices(list(KINDS), KINDS.values())
    moment = rng.choice(('anywhere', 'anywhere', 'saving'))
    if moment == 'saving':
        run.await_save()
    time.sleep(rng.uniform(0, 0.8 if moment == 'anywhere' else 0.02))
    process = rng.choice(run.processes)
    workers = children(process.pid)
    if run.ended() or (kind == 'worker' and not workers):
        return
    try:
        os.kill(rng.choice(workers) if kind == 'worker' else process.pid,
                signal.SIGTERM if kind == 'SIGTERM' else signal.SIGKILL)
    except ProcessLookupError:
        return
    counts[f'{kind}, {moment}'] += 1
    print(f'{kind} of process {run.processes.index(process)}, {moment}, after steps {run.lines()}', flush=True)
    if kind == 'worker':
        run.await_step()
    else:
        counts[f'exit {run.finish()}'] += 1


def faulty(workdir: Path) -> collections.Counter:
    """Runs to the end through the faults; how many there were of each kind."""
    rng, counts = random.Random(SEED.value), collections.Counter()

    def faults() -> int:
        return sum(count for name, count in counts.items() if name.startswith(tuple(KINDS)))

    while True:
        run = Run(workdir)
        counts['starts'] += 1
        if faults() < FAULTS.value and rng.random() < 0.15:
            time.sleep(rng.uniform(0, 6))  # still starting, or not
        else:
            run.await_step()
        while not run.ended() and faults() < FAULTS.value:
            disturb(run, rng, counts)
        codes = run.finish()
        if codes == [0]:
            return counts
        if not {*codes} <= {*_ENDS, _ABANDONED}:
            raise RuntimeError(f'a run ended with {codes} after {dict(counts)}')


def rows(path: Path) -> list[dict]:
    """Lines less what depends on the clock, and on when the process was started."""
    return [{key: value for key, value in row.items() if 'second' not in key and key not in _OF_THE_CLOCK}
            for row in read_jsonl(path)]


def state(folder: Path) -> dict[str, bytes]:
    """The arrays of the last checkpoint, on whichever devices they were."""
    path = folder / 'checkpoints' / str(STEPS.value) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(path).item_metadata.tree
        arrays = reader.restore(path, args=ocp.args.PyTreeRestore(
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}))
    return {name: np.asarray(x).tobytes() for name, x in arrays.items()}


def compare(whole: Path, disturbed: Path) -> list[str]:
    """What differs."""
    found = []
    for stage in STAGES:
        if state(whole / stage) != state(disturbed / stage):
            found.append(f'the state of {stage}')
        for name in ('metrics.jsonl', 'samples.jsonl'):
            if rows(whole / stage / name) != rows(disturbed / stage / name):
                found.append(f'{stage}/{name}')
        if [row['step'] for row in rows(disturbed / stage / 'metrics.jsonl')] != list(range(1, STEPS.value + 1)):
            found.append(f'the steps of {stage}')
    return found


def main(_):
    logging.set_verbosity(logging.WARNING)
    folder = Path(FOLDER.value).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    undisturbed = Run(folder / 'whole').finish()
    if undisturbed != [0]:
        sys.exit(f'the undisturbed run ended with {undisturbed}')
    print(f'undisturbed: {time.monotonic() - began:.0f} s', flush=True)
    began, counts = time.monotonic(), faulty(folder / 'disturbed')
    for name, count in sorted(counts.items()):
        print(f'{count:5}  {name}')
    print(f'disturbed: {time.monotonic() - began:.0f} s')
    differ = compare(folder / 'whole', folder / 'disturbed')
    print(f'differs: {", ".join(differ)}' if differ else 'state, metrics and samples of both stages are the same')
    sys.exit(bool(differ))


if __name__ == '__main__':
    app.run(main)
