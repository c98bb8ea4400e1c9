"""What can go wrong while a stage runs, and is not its config's fault: it is stopped, learns nothing, is stuck.

It knows no JAX, and nothing here touches a number that is trained on.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping

from score_jax import progress
from score_jax.errors import UserError
from score_jax.jsonl import number

RESTART = 75  # exit code (EX_TEMPFAIL of sysexits.h) of a run that was told to stop: the same command goes on
_STOP = (signal.SIGTERM, signal.SIGINT)
_LOOK = 1.0  # seconds between two looks of the watchdog, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """`config.health`; `configs/common.py` has the comments."""

    skipped: int
    stuck_seconds: float

    def __post_init__(self):
        if self.skipped < 1:
            raise UserError(f'config.health.skipped is {self.skipped}; it must be at least 1.')
        if not self.stuck_seconds > 0:
            raise UserError(f'config.health.stuck_seconds is {self.stuck_seconds}; it must be positive.')


class Interrupted(Exception):
    """A stage was told to stop and did so after a step, with its state saved: the same command goes on from there."""

    def __init__(self, text: str, number: signal.Signals):
        super().__init__(text)
        # Whoever presses Ctrl-C wants no supervisor to start the run again.
        self.exit_code = RESTART if number == signal.SIGTERM else 128 + number


class StopSignals:
    """Where it is entered, a first SIGTERM or SIGINT is noted in `received`, and a second ends the process at once.

    A thread hears them too, through a pipe that the interpreter's own handler writes to: the main thread may be inside
    a compilation for minutes, and until it comes back Python calls no handler. Off the main thread, where no handler
    can be set, signals do what they did before; so does, in the end, one that came too late to be acted on.
    """

    def __init__(self, stage: str):
        self.received: signal.Signals | None = None
        self._stage = stage
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._before_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._note) for number in _STOP}
            threading.Thread(target=self._hear, args=(reader,), name='signals', daemon=True).start()
        return self

    def __exit__(self, kind, *exc) -> None:
        if not self._before:
            return
        for which, handler in self._before.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(self._before_wakeup)
        os.close(self._writer)
        if self.received and kind is None:
            signal.raise_signal(self.received)

    def _note(self, number: int, _=None) -> None:
        self.received = self.received or signal.Signals(number)

    def _hear(self, reader: int) -> None:
        second = False
        while heard := os.read(reader, 1):
            if heard[0] not in _STOP:
                continue
            if second:
                os._exit(128 + heard[0])
            second = True
            self._note(heard[0])
            progress.say_here(
                f'{self._stage}: {self.received.name}: finishes this step and saves; another ends at once')
        os.close(reader)


class SkippedUpdates:
    """Counts the updates in a row that were skipped, over restarts too.

    Args:
      limit: `config.health.skipped`.
      history: lines of metrics.jsonl of the steps before, oldest first.
    """

    def __init__(self, limit: int, history: Iterable[Mapping] = ()):
        self._limit, self._row = limit, 0
        for line in history:
            self._count(line)

    def add(self, metrics: Mapping) -> str:
        """Takes the metrics of a step; says why there is no use in going on, '' where there is."""
        self._count(metrics)
        if self._row < self._limit:
            return ''
        if math.isfinite(number(metrics, 'loss')) and math.isfinite(number(metrics, 'grad_norm')):
            return f'{self._row} updates in a row were skipped, the last as no rollout had a verdict (docs/grading.md)'
        return (
            f'{self._row} updates in a row were skipped, the last as the loss or its gradient was no finite number; a '
            "smaller rate may help: --config.allow_changes=\"('learning_rate',)\" lets a stage go on with another")

    def _count(self, metrics: Mapping) -> None:
        self._row = self._row + 1 if number(metrics, 'skipped') == 1 else 0


class Watchdog:
    """Says which part of a stage takes longer than `seconds`, while it does, and again after each as long.

    It is a thread that reads one attribute, which the main thread replaces as a whole.
    """

    def __init__(self, stage: str, seconds: float):
        self._stage, self._seconds = stage, seconds
        self._current: tuple[str, float] | None = None  # part, and when it began
        self._slow: dict[str, float] = {}
        self._done = threading.Event()

    def __enter__(self) -> Watchdog:
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._current = None
        self._done.set()
        self._thread.join()

    def enter(self, part: str) -> None:
        """`part` of the work begins, and the one before it has ended."""
        now = time.monotonic()
        if self._current and now - self._current[1] > self._seconds:
            part_before, began = self._current
            self._slow[part_before] = self._slow.get(part_before, 0.0) + now - began
        self._current = part, now

    def slow(self) -> dict[str, dict[str, float]]:
        """For metrics.jsonl: `slow`, seconds by part, of those that took too long since the last call, if any."""
        found, self._slow = self._slow, {}
        return {'slow': found} if found else {}

    def _watch(self) -> None:
        said, times = None, 0
        while not self._done.wait(min(self._seconds / 4, _LOOK)):
            current = self._current
            if current is not said:
                said, times = current, 0
            if current and time.monotonic() - current[1] > self._seconds * (times + 1):
                times += 1
                progress.say_here(
                    f'{self._stage}: {current[0]} has taken {time.monotonic() - current[1]:.0f} s so far '
                    f'(config.health.stuck_seconds = {self._seconds:g})')
