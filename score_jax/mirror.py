"""A workdir at an address such as gs://BUCKET/RUN: a run works in a folder of this machine, which is copied there.

The folder is filled from the address when a run begins, and copied there whenever a checkpoint is complete. A run that
ends at any moment, also while it copies, goes on exactly from what is at the address, on any machine:

- Files are copied in this order: metrics, samples and all else; checkpoints, the older first, and `_MARKER` last of the
  files of each; only then what is gone here is removed there, markers first. So a checkpoint with a marker is whole
  there, and so are the lines of its steps. One without is not fetched. (One that is written anew under its number is a
  mixture if that is cut off: `checkpoint` sees so by the checksums, and there is one before it.)
- `_WRITER` at the address names the folder that was last copied there. If that is this one, nobody else has written
  since, and this folder has all that is there, and maybe more. If it is not, or there is a later checkpoint, as of a
  run on the mounted bucket, the folder becomes what is at the address.
- A run that finds another writer than when it began stops: another machine has gone on in its place.

Only files that differ travel. A file is the same as when it was last copied if it has its size and time here, and the
store's word for its version there; that is kept in `record.json` beside the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from score_jax import cache, progress
from score_jax.errors import UserError
from score_jax.store import Store, address, reason

_MARKER = '_CHECKPOINT_METADATA'  # Orbax puts it into every checkpoint
_WRITER = '.written_by'
_STEP = re.compile(r'((?:.*/)?checkpoints)/(\d+)/')  # of the name of a file: a stage's checkpoints, and which one
# What is not copied: half a file or checkpoint, what is no checkpoint any more, and what would lie elsewhere.
_NOT = re.compile(r'\.tmp$|orbax-checkpoint-tmp|(^|/)(checkpoints-damaged|\.written_by|\.\.)(/|$)')
_LOUD = 1 << 26  # bytes: that so many are fetched is said before

Seen = tuple[int | str, ...]  # of a file: size and time here, size and version there


def look(workdir: str, *, checkpoints: bool = True, step: int | None = None) -> Path:
    """The folder to read a workdir from: itself, or a copy of what is at the address now.

    Args:
      checkpoints: whether the newest of each stage is wanted, and that of `step`.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    there = address(workdir)
    if not there:
        return Path(workdir)
    with Mirror(there, 'looks', wait=True) as copy:
        found = copy.listed()
        if not found:
            raise UserError(f'--workdir={there} is empty or not there; name one that launch/main.py wrote.')
        newest = _newest(found)
        copy.fetch(found, lambda name: not (at := _STEP.match(name)) or checkpoints and int(at[2]) in (
            newest[at[1]], step))
    return copy.folder


class Mirror:
    """`folder`, on this machine, of what is at an address; one process at a time has it, as a context.

    Its methods raise `UserError` where the store fails.
    """

    def __init__(self, there: str, purpose: str = 'runs', *, wait: bool = False):
        """Touches nothing yet.

        Args:
          purpose: folders for one are not those for another.
          wait: for another process that has it; else the context is refused.

        Raises:
          UserError: as `Store`, or there is no place for the folder.
        """
        self.address, self._store, self._wait = there, Store(there), wait
        place = cache.folder()
        if place is None:
            raise UserError(f'{there} needs a folder on this machine, and you have no home; set SCORE_JAX_CACHE.')
        name = re.sub(r'\W+', '-', there)[-60:].strip('-')
        self._home = place / purpose / f'{name}-{hashlib.sha256(there.encode()).hexdigest()[:12]}'
        self.folder = self._home / (there.rpartition('/')[2].strip('.') or 'run')
        self._writer, self._files = '', {}  # this folder's name as a writer; its files when they were the same
        self._there: dict[str, Seen] = {}  # the files of the store
        self._met = ''  # the writer that the store had

    def __enter__(self) -> Mirror:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._home, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f'{self.address} needs a folder on this machine ({reason(error)}); set SCORE_JAX_CACHE to a place for '
                'it.') from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f'{self.address} is in use by another run on this machine; wait for it or stop it.') from None
        except OSError:  # a file system without locks
            pass
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            record = json.loads((self._home / 'record.json').read_text())
            self._writer, self._files = record['writer'], {name: tuple(x) for name, x in record['files'].items()}
        return self

    def __exit__(self, *_) -> None:
        os.close(self._lock)

    def pull(self) -> None:
        """Makes the folder what a run goes on from."""
        there, self._met = self.listed(), self._store.read(_WRITER)
        here = _newest(_local(self.folder))
        later = any(step > here.get(stage, -1) for stage, step in _newest(there).items())
        if self._met and self._met == self._writer and not later:
            return
        self._writer = ''  # nobody's until it is filled
        self.fetch(there)
        self._writer = f'{socket.gethostname()}-{uuid.uuid4().hex[:12]}'
        self._keep()

    def listed(self) -> dict[str, Seen]:
        """The files at the address as they are now, less those of checkpoints that are not whole."""
        self._there = {name: seen for name, seen in self._store.list().items() if name and not _NOT.search(name)}
        at = {name: found[0] for name in self._there if (found := _STEP.match(name))}
        whole = {at[name] for name in at if name == at[name] + _MARKER}
        return {name: seen for name, seen in self._there.items() if name not in at or at[name] in whole}

    def fetch(self, there: Mapping[str, Seen], wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Makes the folder what is `listed`; of that, what is not `wanted` stays as it is here."""
        _drop(self.folder, there)
        here = _local(self.folder)
        names = [name for name in there if wanted(name) and self._files.get(name) != here.get(name, ()) + there[name]]
        size = sum(there[name][0] for name in names)
        if size > _LOUD:
            progress.say(f'{self.address}: fetches {size / 2**30:.2f} GiB into {self.folder}')
        self._files = {name: seen for name, seen in self._files.items() if name in there and name not in names}
        self._keep()
        self._store.get(names, self.folder)
        self._files |= {name: _stat(self.folder / name) + there[name] for name in names}
        self._keep()
        for stage in {at[1] for name in names if (at := _STEP.match(name))}:
            _date(self.folder / stage)

    def take(self) -> None:
        """Has this folder be the one that is copied to the address.

        Raises:
          UserError: another one has become so since `pull`.
        """
        there = self._store.read(_WRITER)
        if there != self._met:
            by = f'{there} writes there now' if there else 'it was cleared'
            raise UserError(
                f'{self.address} is no longer what this run began with ({by}); it stops, and what it did since it last '
                f'copied is in {self.folder}.')
        if there != self._writer:
            self._store.write(_WRITER, self._writer)
            self._met = self._writer

    def push(self) -> None:
        """Copies to the address what differs here; no file may be written meanwhile. Errors as `take`."""
        here = _local(self.folder)
        changed = [name for name in here if self._files.get(name) != here[name] + self._there.get(name, ())]
        if not changed and self._met != self._writer:
            return  # nothing was done, so nothing is taken from whoever does
        self.take()
        for names in _in_order(changed):
            self._store.put(names, self.folder)
        self.listed()
        known = self._files
        self._files = {name: seen for name, seen in known.items() if name in self._there and name not in changed}
        self._files |= {name: here[name] + self._there[name] for name in changed if name in self._there}
        self._keep()
        gone = [name for name in self._there if name not in here and (name in known or _STEP.match(name))]
        for names in reversed(_in_order(gone)):
            self._store.remove(names)

    def _keep(self) -> None:
        record = self._home / 'record.json'
        half = record.with_suffix('.tmp')
        half.write_text(json.dumps({'writer': self._writer, 'files': self._files}))
        half.replace(record)


def _local(folder: Path) -> dict[str, Seen]:
    """The files of a folder that are copied."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob('*') if path.is_file()}
    return {name: _stat(path) for name, path in paths.items() if not _NOT.search(name)}


def _stat(path: Path) -> Seen:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _newest(names: Iterable[str]) -> dict[str, int]:
    """The newest step, by folder of checkpoints."""
    return dict(sorted({(at[1], int(at[2])) for name in names if (at := _STEP.match(name))}))


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """Groups of files, each of which is copied as a whole before the next."""
    def place(name: str) -> tuple:
        at = _STEP.match(name)
        return (1, at[1], int(at[2]), name == at[0] + _MARKER) if at else (0,)

    return [list(group) for _, group in itertools.groupby(sorted(names, key=place), key=place)]


def _drop(folder: Path, there: Iterable[str]) -> None:
    """Removes files but those of these names, and folders without any: they might look like a damaged checkpoint."""
    for path, _, files in os.walk(folder, topdown=False):
        for file in files:
            if os.path.relpath(os.path.join(path, file), folder) not in there:
                os.unlink(os.path.join(path, file))
        with contextlib.suppress(OSError):
            os.rmdir(path)
    folder.mkdir(exist_ok=True)


def _date(checkpoints: Path) -> None:
    """Gives the folder the time of its newest checkpoint, which tells the stage that was trained last."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        times = [json.loads(path.read_text())['commit_timestamp_nsecs'] for path in checkpoints.glob(f'*/{_MARKER}')]
        os.utime(checkpoints, ns=(max(times),) * 2)
