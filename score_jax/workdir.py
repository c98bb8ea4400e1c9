"""Where files land, and the record of a stage: its config, metrics and samples.

    WORKDIR/STAGE/config.json       what the stage was run with
    WORKDIR/STAGE/checkpoints/      Orbax
    WORKDIR/STAGE/changes.jsonl     what of its config was changed on the way, and after which step
    WORKDIR/STAGE/metrics.jsonl     a line a step
    WORKDIR/STAGE/samples.jsonl     two-turn transcripts
    WORKDIR/STAGE/profile/          with config.profile: a trace, and split.json
    WORKDIR/results.json            the final table
    WORKDIR/report.html

Of several processes the first one writes, and the others look on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from score_jax import processes, settings
from score_jax.errors import UserError
from score_jax.jsonl import number, read_jsonl
from score_jax.mirror import Mirror

# Keys that may differ when a stage goes on: how often it speaks and saves, where it runs, and what is measured of
# what can be measured. On another mesh sums are taken in another order, so numbers agree, but not to the bit.
FREE_KEYS = (
    'log_every', 'save_every', 'keep', 'mesh', 'before', 'methods', 'temperatures', 'self_refine', 'attempts',
    'scaling', 'dry_run', 'health', 'profile', 'allow_changes')
# So may, of its task, where the data lies and how many processes grade.
FREE_TASK_KEYS = ('data_dir', 'workers')


class StageDirectory:
    """One stage's folder; refuses to mix two configs in it. `mirror` is set where the workdir is that of an address."""

    mirror: Mirror | None = None

    def __init__(self, workdir: Path, name: str, config: Mapping):
        self.path = workdir / name
        self._allowed = tuple(f'config.{key}' for key in config.get('allow_changes', ()))
        self._config = {key: value for key, value in settings.plain(config).items() if key not in FREE_KEYS}
        if 'task' in self._config:
            task = self._config['task']
            self._config['task'] = {key: value for key, value in task.items() if key not in FREE_TASK_KEYS}
        self._held, self._locked = None, False  # what gives the lock back, where it is asked for

    @property
    def checkpoints(self) -> Path:
        """Where Orbax keeps those of the stage."""
        return self.path / 'checkpoints'

    def check(self) -> None:
        """Raises `UserError` if the folder holds a stage of another config."""
        changes = [change for change in self._changes() if change.partition(':')[0] not in self._allowed]
        if changes:
            raise UserError(
                f'{self.path} was made with another config ({"; ".join(changes)}); use another --workdir, go back to '
                'the old values, or name the keys in config.allow_changes.')

    def _changes(self) -> list[str]:
        old = self.saved_config()
        return settings.differences(old, self._config) if old else []

    def saved_config(self) -> dict:
        """What config.json says; empty where there is none.

        Raises:
          UserError: it is there and not readable.
        """
        saved = self.path / 'config.json'
        if not saved.exists():
            return {}
        try:
            return json.loads(saved.read_text())
        except ValueError:
            raise UserError(
                f'{saved} is not readable as JSON; move {self.path} away to start this stage anew.') from None

    def open(self, done: int = 0) -> None:
        """Makes the folder and writes its config, whole or not at all; notes changes as made after step `done`."""
        if self.mirror:
            self.mirror.take()
        self.path.mkdir(parents=True, exist_ok=True)
        if self._held:
            self._lock()
        if changes := self._changes():
            self.append('changes.jsonl', [{'step': done, 'changes': changes}])
        write_json(self.path / 'config.json', self._config)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs from training the same stage meanwhile, where the file system has locks.

        Raises:
          UserError: another run does; `open` raises it where that one has made the folder since.
        """
        with contextlib.ExitStack() as self._held:
            self._lock()
            yield

    def _lock(self) -> None:
        if processes.agree(processes.first() and self._busy()):
            raise UserError(
                f'{self.path} is being trained by another run; wait for it, stop it, or use another --workdir.')

    def _busy(self) -> bool:
        """Whether another run has the folder, if there is one; else this run has it until `_held` is closed.

        The lock of a process that is killed goes with it.
        """
        if self._locked or not self.path.is_dir():
            return False
        folder = os.open(self.path, os.O_RDONLY)
        self._held.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
        self._locked = True
        self._held.callback(setattr, self, '_locked', False)
        return False

    def push(self, complete: Callable[[], None] = lambda: None) -> None:
        """Copies the workdir to its address, if it has one, once `complete` has returned."""
        if self.mirror:
            complete()
            self.mirror.push()

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`: they are made again."""
        for name in ('metrics.jsonl', 'samples.jsonl'):
            path = self.path / name
            if path.exists():
                kept = [line for line in read_jsonl(path) if number(line, 'step') <= step]
                self.replace(name, kept)

    def read(self, name: str) -> list[dict]:
        """The lines of a file as the first process sees them, the same in all of them, which all must call it."""
        return processes.agree(read_jsonl(self.path / name) if processes.first() else None)

    def replace(self, name: str, lines: list[dict]) -> None:
        """Writes a whole file of lines."""
        _replace(self.path / name, ''.join(json.dumps(line) + '\n' for line in lines))

    def append(self, name: str, lines: list[dict]) -> None:
        """Adds lines to a file of the stage."""
        if not processes.first():
            return
        with (self.path / name).open('a') as file:
            file.write(''.join(json.dumps(line) + '\n' for line in lines))


def write_json(path: Path, value) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    _replace(path, json.dumps(value, indent=1) + '\n')


def _replace(path: Path, text: str) -> None:
    if not processes.first():
        return
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')  # another process may write the same file
    temporary.write_text(text)
    os.replace(temporary, path)
