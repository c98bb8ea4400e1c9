"""The process behind `score_jax.rewards.pool`: applies one function to jobs, under limits, until its socket closes.

What it is given may be hostile, the function is not: limits hold what an honest function does with a dishonest answer.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from score_jax.errors import UserError
from score_jax.rewards.outcome import Outcome, Verdict
from score_jax.rewards.pool import LARGEST_JOB, children

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LONGEST_READ = 1000  # characters of `Verdict.read` that go back


def _belong_to(parent: int) -> None:
    """Dies with the parent's thread that started this process, and adopts every orphan among its own descendants."""
    if sys.platform == 'linux':
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:  # it had died before prctl
        sys.exit()


def _end_children() -> None:
    """Kills and reaps what a job has left behind."""
    while left := children(os.getpid()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except OSError:
                pass


def _address_space() -> int:
    """Bytes mapped now, what RLIMIT_AS counts; 0 where there is no /proc."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _line(outcome: Outcome, read: str | None = None, last: bool = False) -> bytes:
    read = None if read is None else read[:_LONGEST_READ]
    return json.dumps({'outcome': outcome, 'read': read, 'last': last}).encode() + b'\n'


def _apply(function, job: dict, cpu_seconds: float) -> Verdict:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF is left to its default: it ends the process
    try:
        return function(job)
    except MemoryError:
        return Verdict(Outcome.MEMORY)
    except UserError as error:  # the job is none: another worker could not do it either
        print(error, file=sys.stderr, flush=True)
        return Verdict(Outcome.SANDBOX_ERROR)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(function: str, descriptor: str, parent: str, cpu_seconds: str, memory_bytes: str) -> None:
    """Serves until the socket closes; a job that leaves half of the memory in use is the last one."""
    connection = socket.socket(fileno=int(descriptor))
    os.set_inheritable(connection.fileno(), False)
    _belong_to(int(parent))
    module, name = function.split(':')
    module = importlib.import_module(module)
    function = getattr(module, name)
    getattr(module, 'prepare', lambda: None)()  # what takes long to load is not a job's time
    # The soft limit alone: a sandbox below sets its own, within the hard one.
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.sendall(_line(Outcome.CORRECT))  # ready
    jobs = connection.makefile('rb')
    while line := jobs.readline(LARGEST_JOB):
        verdict = _apply(function, json.loads(line), float(cpu_seconds))
        _end_children()
        last = verdict.outcome is Outcome.MEMORY or _address_space() > int(memory_bytes) // 2
        connection.sendall(_line(verdict.outcome, verdict.read, last))


if __name__ == '__main__':
    main(*sys.argv[1:])
