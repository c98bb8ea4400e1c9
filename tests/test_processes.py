"""Several processes are one run: they do what one process does, stop together, and none waits for one that is gone."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import environment, untimed

from score_jax import processes, sharding
from score_jax.errors import UserError
from score_jax.health import RESTART
from score_jax.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
BOUND = 300  # seconds: 'returns at all', on a machine that is busy
STEPS = 10
SMALL = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'task.name': 'tests/parity_task.py:Parity', 'task.numbers': 2, 'task.largest': 3, 'task.limit': 6, 'steps': STEPS,
    'batch': 4, 'group.first': 2, 'group.second': 2, 'start_from': 'random', 'reference': 'random', 'save_every': 5,
    'optimizer.warmup_steps': 2, 'rollout.max_tokens': 6, 'rollout.max_length': 48, 'rollout.chunk': 48,
    'sample_every': 1, 'samples': 4}
WORDS = [sys.executable, 'launch/main.py', '--config=configs/stage1.py',
         *(f'--config.{key}={value}' for key, value in SMALL.items())]


def start(command: list[str], count: int, cache: Path | None = None) -> list[subprocess.Popen]:
    """`count` processes of a command, with a device each."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    own = {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'} if cache else {}
    return [
        subprocess.Popen(
            [*command, f'--processes={count}', f'--process={number}', f'--coordinator=127.0.0.1:{port}'][
                :None if count > 1 else len(command)],
            cwd=ROOT, env=environment(**own), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number in range(count)]


def finish(run: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was printed."""
    outputs = [process.communicate(timeout=BOUND)[0] for process in run]
    return [process.returncode for process in run], outputs


def await_lines(run: list[subprocess.Popen], path: Path, count: int) -> None:
    end = time.monotonic() + BOUND
    while len(read_jsonl(path)) < count:
        assert all(process.poll() is None for process in run), finish(run)
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> Path:
    """The folder of a stage of one process."""
    workdir = tmp_path_factory.mktemp('alone')
    codes, outputs = finish(start([*WORDS, f'--workdir={workdir}'], 1, workdir / 'compiled'))
    assert codes == [0], outputs
    return workdir / 'stage1'


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> Path:
    """The same of two processes, the second of which is told to stop on the way."""
    workdir = tmp_path_factory.mktemp('two')
    command = [*WORDS, f'--workdir={workdir}', '--config.mesh.data=1', '--config.mesh.fsdp=2']
    run = start(command, 2, workdir / 'compiled')
    await_lines(run, workdir / 'stage1/metrics.jsonl', 2)
    run[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(run)
    assert codes == [RESTART, RESTART], outputs
    stopped = len(read_jsonl(workdir / 'stage1/metrics.jsonl'))
    assert stopped < STEPS and all(f'stopped after step {stopped} of {STEPS}, which is saved' in o for o in outputs)
    run = start(command, 2, workdir / 'compiled')
    codes, outputs = finish(run)
    assert codes == [0, 0], outputs
    assert f'goes on after step {stopped}' in outputs[0] and 'next: ' in outputs[0]
    assert [line for line in outputs[1].splitlines() if 'Gloo' not in line] == []  # the first speaks for all
    return workdir / 'stage1'


def arrays(stage: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        path = stage / f'checkpoints/{step}/state'
        tree = reader.metadata(path).item_metadata.tree
        like = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=like))


def check_close(a: Path, b: Path) -> None:
    for name, x in arrays(a).items():
        np.testing.assert_allclose(x, arrays(b)[name], atol=1e-4, err_msg=name)


def test_two_processes_do_what_one_does(alone, two):
    assert (alone / 'samples.jsonl').read_text() == (two / 'samples.jsonl').read_text()
    one, many = (list(map(untimed, read_jsonl(stage / 'metrics.jsonl'))) for stage in (alone, two))
    assert [line['step'] for line in many] == list(range(1, STEPS + 1))
    assert {line['outcomes']['turn2'].get('correct', 0) for line in many} != {0}
    for a, b in zip(one, many, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (pytest.approx(b[key], abs=1e-4) if isinstance(a[key], float) else b[key]), key
    check_close(alone, two)


def test_one_process_goes_on_where_two_were(alone, two, tmp_path):
    copy = shutil.copytree(two, tmp_path / 'stage1')
    shutil.rmtree(copy / f'checkpoints/{STEPS}')
    codes, outputs = finish(start([*WORDS, f'--workdir={tmp_path}'], 1, alone.parent / 'compiled'))
    assert codes == [0] and 'goes on after step' in outputs[0], outputs
    assert (copy / 'samples.jsonl').read_text() == (two / 'samples.jsonl').read_text()
    check_close(copy, two)


LOOP = """
import sys, time
from score_jax import processes
count, number, address = (word.partition('=')[2] for word in sys.argv[1:])
processes.start(count, int(number), address)
mine = processes.gather({'process': int(number), 'rows': 'x' * 1000 * int(number)})
assert [len(part['rows']) for part in mine] == [0, 1000] and processes.agree(int(number)) == 0
try:
    for step in range(10**9):
        assert processes.largest(step + int(number)) == step + 1
        print(step, flush=True)
except Exception as error:
    try:
        processes.check(error)
    except processes.Lost as lost:
        print(lost, flush=True)
        processes.end(75)
    raise
"""


@pytest.mark.parametrize('killed', [0, 1])
def test_one_that_is_killed_is_not_waited_for(killed):
    run = start([sys.executable, '-c', LOOP], 2)
    for process in run:
        while process.stdout.readline() != '3\n':
            assert process.poll() is None
    run[killed].kill()
    codes, outputs = finish(run)
    # Where the coordinator is gone, jax itself may be the first to notice, and aborts.
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] in (RESTART, -signal.SIGABRT), outputs


END = """
import os, sys, time
from score_jax import processes
count, number, address = (word.partition('=')[2] for word in sys.argv[1:])
processes.start(count, int(number), address)
leave = os._exit
os._exit = lambda code: (time.sleep(2 * int(number)), leave(code))
processes.end(75)
"""


def test_those_that_end_together_do_so_though_the_first_is_gone_sooner():
    codes, outputs = finish(start([sys.executable, '-c', END], 3))
    assert codes == [RESTART] * 3, outputs


@pytest.mark.parametrize('given, message', [
    (('two', None, ''), "--processes is 'two'; it must be a number"), (('0', None, ''), '--processes is'),
    (('1', 1, ''), 'give --processes too'), (('2', None, 'a:1'), '--process is None; of --processes=2 .* from 0 to 1'),
    (('2', 2, 'a:1'), '--process is 2'), (('2', 0, ''), "--coordinator is ''; it must be HOST:PORT"),
    (('2', 0, '127.0.0.1'), 'HOST:PORT'), (('auto', 0, ''), 'leave --process and --coordinator out')])
def test_what_is_missing_is_told_in_a_sentence(given, message):
    with pytest.raises(UserError, match=message) as error:
        processes.start(*given)
    assert '\n' not in str(error.value)


class Elsewhere:
    """A device of a mesh that is not here."""

    def __init__(self, process: int):
        self.process_index = process


@pytest.mark.parametrize('of, shape, own', [
    ([0, 0, 1, 1], (2, 2, 1), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ([0, 1, 0, 1], (4, 1, 1), [[0, 1, 4, 5], [2, 3, 6, 7]]),  # as a pod's topology may have it
    ([0, 1, 0, 1], (2, 1, 2), [[0, 1, 4, 5], [2, 3, 6, 7]]),  # both have all rows
    ([0, 1, 2, 3], (1, 2, 2), [[0, 1], [2, 3], [4, 5], [6, 7]])])
def test_every_problem_is_read_and_graded_by_one_process(of, shape, own, monkeypatch):
    devices = np.array([Elsewhere(process) for process in of]).reshape(shape)
    mesh = type('Mesh', (), {'devices': devices, 'shape': dict(zip(('data', 'fsdp', 'model'), shape))})()
    for process, places in enumerate(own):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        assert sharding.own_problems(mesh, 8).tolist() == places
