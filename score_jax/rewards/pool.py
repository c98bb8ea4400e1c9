"""Killable worker processes that apply one function to jobs: what hangs or swells in a verifier dies here, alone.

    caller ── submit(job) ──▶ thread k ── JSON over a private socket ──▶ worker k: function(job) -> Verdict
                                 └─ no answer in time: kill worker k and its descendants, start another

A worker is a fresh interpreter (`python -m score_jax.rewards.worker`), never a fork of the caller; it serves many jobs.
Every thread owns one worker, from its start to its end: the kernel ends a worker together with the thread that started
it (PR_SET_PDEATHSIG), and so with the caller, whatever ends that.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from score_jax.errors import UserError
from score_jax.rewards.outcome import Outcome, Verdict

LARGEST_JOB = 8 << 20  # bytes of JSON; a response of a language model has some kilobytes
LARGEST_ANSWER = 1 << 20
_START_SECONDS = 120
_TRIES = 2  # a worker that dies without a cause is the grader's failure, so the job gets a second one
_SPENT = (signal.SIGPROF, signal.SIGXCPU)  # how a worker dies that is out of CPU time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job may use: wall-clock time, CPU time of the worker, and its address space."""

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int


class Pool:
    """`workers` processes that apply `function`, named as 'module:function', to jobs.

    `function` takes a job (a dict of JSON values) and returns a `Verdict`. What a job leaves running is killed when it
    ends. Any thread may call, several at the same time; a slow job holds up no other while a worker is free.

    A job that runs out of time is `TIMEOUT`, one out of memory `MEMORY`, one too large to send `OUTPUT_LIMIT`. A worker
    that dies without such a cause gives its job a second try in another, and then `SANDBOX_ERROR`; a `UserError` of
    `function` is printed and is a `SANDBOX_ERROR` at once.
    """

    def __init__(self, function: str, *, workers: int, limits: Limits):
        if workers < 1:
            raise UserError(f'workers must be 1 or more, not {workers}')
        self._function, self._limits = function, limits
        self._mine = threading.local()
        self._all: list[_Worker] = []
        self._executor = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix='verifier')

    def submit(self, job: dict) -> concurrent.futures.Future[Verdict]:
        """A future for the verdict on `job`; it raises `UserError` if `function` cannot be started at all."""
        return self._executor.submit(self._verdict, job)

    def map(self, jobs: Sequence[dict]) -> list[Verdict]:
        """The verdicts on `jobs`, in their order; raises like `submit`."""
        return list(self._executor.map(self._verdict, jobs))

    def close(self) -> None:
        """Ends the workers, once the jobs in hand are done (their limits bound that); drops the jobs that wait."""
        self._executor.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _verdict(self, job: dict) -> Verdict:
        message = json.dumps(job).encode() + b'\n'
        if len(message) > LARGEST_JOB:
            return Verdict(Outcome.OUTPUT_LIMIT, seconds=0.0)
        worker = getattr(self._mine, 'worker', None)
        if worker is None:
            worker = self._mine.worker = _Worker(self._function, self._limits)
            self._all.append(worker)
        start = time.monotonic()
        for _ in range(_TRIES):
            start = time.monotonic()
            verdict = worker.apply(message)
            if verdict is not None:
                return verdict
        return Verdict(Outcome.SANDBOX_ERROR, seconds=time.monotonic() - start)


class _Worker:
    """One process at a time, started when a job needs it. Used by the thread that made it."""

    def __init__(self, function: str, limits: Limits):
        self._function, self._limits = function, limits
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._has_started = False
        self._failed_starts = 0

    def apply(self, message: bytes) -> Verdict | None:
        """The verdict on one job; None if the worker died and nothing says that the job is to blame."""
        if self._process is None and not self._start():
            self._failed_starts += 1
            if self._has_started or self._failed_starts < _TRIES:  # it may have been killed
                return None
            raise UserError(f'the worker for {self._function} does not start; its own message stands above')
        start = time.monotonic()
        try:
            answer = self._exchange(message, start + self._limits.wall_seconds)
        except TimeoutError:
            self.end()
            return Verdict(Outcome.TIMEOUT, seconds=time.monotonic() - start)
        seconds = time.monotonic() - start
        if answer is None:
            status = self.end()
            return Verdict(Outcome.TIMEOUT, seconds=seconds) if -status in _SPENT else None
        if answer['last']:
            self.end()
        return Verdict(Outcome(answer['outcome']), answer['read'], seconds)

    def end(self) -> int:
        """Kills the process and all that came of it; returns how it ended, as `Popen.returncode`."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        self._socket.close()
        kill_tree(process)
        return process.wait()

    def _start(self) -> bool:
        ours, theirs = socket.socketpair()
        self._socket = ours
        package_root = str(Path(__file__).resolve().parents[2])
        # What the caller can import, the worker can too; the fixed hash seed makes gradings repeatable.
        path = os.pathsep.join([package_root, *filter(None, sys.path)])
        limits = self._limits
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-m', 'score_jax.rewards.worker', self._function, str(theirs.fileno()),
                 str(os.getpid()), str(limits.cpu_seconds), str(limits.memory_bytes)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2,
                start_new_session=True, env={**os.environ, 'PYTHONPATH': path, 'PYTHONHASHSEED': '0'})
        try:
            ready = self._exchange(b'', time.monotonic() + _START_SECONDS) is not None
        except TimeoutError:
            ready = False
        if ready:
            self._has_started = True
        else:
            self.end()
        return ready

    def _exchange(self, message: bytes, deadline: float) -> dict | None:
        """Sends `message` and returns the answer; None if the worker is gone or answers no small line of JSON."""
        try:
            self._wait_until(deadline)
            self._socket.sendall(message)
            answer = bytearray()
            while not answer.endswith(b'\n') and len(answer) <= LARGEST_ANSWER:
                self._wait_until(deadline)
                part = self._socket.recv(1 << 16)
                if not part:
                    return None
                answer += part
            return json.loads(answer)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None

    def _wait_until(self, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills `process`, which nobody has waited for yet, and its descendants, also those in sessions of their own.

    All are stopped before any is killed, so that none can fork meanwhile. The root must be a subreaper (workers are):
    then descendants whose own parent has ended are still found below it.
    """
    stopped: set[int] = set()
    found = {process.pid}
    while found - stopped:
        for pid in found - stopped:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
        found = {child for pid in stopped for child in children(pid)}
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    _signal(-process.pid, signal.SIGKILL)  # a root that has died by itself: its session is what can still be found


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`; none where there is no such process, or no /proc."""
    found = []
    for path in Path(f'/proc/{pid}/task').glob('*/children'):
        try:
            found += [int(word) for word in path.read_text().split()]
        except OSError:  # the thread has ended
            pass
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
