"""A measured side: a process that gets ready, then runs one repetition for each line that it is sent.

It answers every line with one of JSON on what was its standard output; all else that is printed goes to standard
error. The threads that it may use are set before a library is imported that would count the cores.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed import workloads

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def job() -> argparse.Namespace:
    """What the side was started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--workload', required=True)
    parser.add_argument('--variant', default='')
    parser.add_argument('--folder', type=Path, required=True, help='of the weights')
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--clock', choices=CLOCKS, required=True)
    parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
    parser.add_argument('--devices', type=int, default=1, help='virtual ones')
    parser.add_argument('--quick', action='store_true')
    found = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-found.threads:])
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ[name] = str(found.threads)
    return found


def workload(found: argparse.Namespace) -> workloads.Workload:
    """That of a job."""
    work = workloads.WORKLOADS[found.workload]
    return workloads.quick(work) if found.quick else work


class Line:
    """The line to who asks: `wait` for a repetition to be asked for, `begin` it, `answer` with its figures."""

    def __init__(self, found: argparse.Namespace):
        self._answers = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)
        self._clock = CLOCKS[found.clock]
        self._began, self._rest = 0.0, 0

    def wait(self) -> bool:
        """False where no more is asked for."""
        return bool(sys.stdin.readline())

    def begin(self) -> None:
        """Starts the clock, and the peak of memory anew."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _forget_peak()
        self._rest, self._began = memory('VmRSS'), self._clock()

    def answer(self, figures: dict) -> None:
        """Adds `seconds`, `peak` (the most bytes of memory that the process had) and `rest` (those at the start)."""
        measured = {'seconds': self._clock() - self._began, 'rest': self._rest, 'peak': memory('VmHWM')}
        self._answers.write(json.dumps(measured | figures) + '\n')
        self._answers.flush()


def serve(found: argparse.Namespace, once: Callable[[], dict], warm: Callable[[], dict] | None = None) -> None:
    """Runs `warm` (`once` where there is none), then `once` as often as is asked; both return figures by name."""
    line = Line(found)
    line.begin()
    line.answer((warm or once)())
    while line.wait():
        line.begin()
        line.answer(once())


def _forget_peak() -> None:
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pass  # the peak is then that of all time


def memory(name: str) -> int:
    """Bytes, by the name that they have in /proc/self/status; the peak of all time where there is no such file."""
    try:
        status = Path('/proc/self/status').read_text()
        return int(status.split(name + ':')[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
