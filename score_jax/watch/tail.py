"""Following a file of lines that another process appends to, truncates or replaces."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

# Bytes; a longer line is passed over and counted. In memory its text may take four times as many, and as many again
# when parsed.
LONGEST_LINE = 12 << 20
_PROOF = 64  # bytes before the end of what was read, by which a file is known again


class Chunk(NamedTuple):
    """Whole lines, as bytes, that start at the byte `start`; `fresh` if all that was read before no longer holds."""

    fresh: bool
    start: int
    lines: bytes


class Tail:
    """The whole lines of `path`, each given out once.

    A last line without its end waits until it has one. A file that became shorter, was replaced by another (a new
    inode), or no longer holds what was last read is read from its start again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.end = 0  # bytes given out or passed over
        self.too_long = 0  # lines passed over
        self.changed = 0.0  # time of the last write, seconds since the epoch
        self._proof = b''
        self._inode = None
        self._passing_over = False  # inside a line that is too long
        self._seen = None  # the file's inode, size and time when there was nothing more to read

    def read(self, limit: int) -> Chunk:
        """The next whole lines, about `limit` bytes of them; no lines where nothing was added."""
        try:
            status = os.stat(self.path)
            if not stat.S_ISREG(status.st_mode):
                return self._gone()
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if signature == self._seen:
                return Chunk(False, self.end, b'')
            with open(self.path, 'rb', buffering=0) as file:
                return self._read(file.fileno(), signature, limit)
        except OSError:
            return self._gone()

    def _gone(self) -> Chunk:
        fresh = self._inode is not None
        self.__init__(self.path)
        return Chunk(fresh, 0, b'')

    def _read(self, file: int, signature: tuple, limit: int) -> Chunk:
        inode, size, changed = signature
        fresh = self._inode is not None and (
            inode != self._inode or size < self.end
            or os.pread(file, len(self._proof), self.end - len(self._proof)) != self._proof)
        if fresh:
            self.__init__(self.path)
        self._inode, self.changed = inode, changed / 1e9
        start, data = self.end, os.pread(file, limit, self.end)
        if b'\n' not in data and len(data) == limit:
            data = os.pread(file, LONGEST_LINE, self.end)
        cut = data.rfind(b'\n') + 1
        if self._passing_over or (not cut and len(data) == LONGEST_LINE):
            return self._pass_over(fresh, data)
        self._advance(data[:cut])
        if start + len(data) >= size:
            self._seen = signature
        return Chunk(fresh, start, data[:cut])

    def _pass_over(self, fresh: bool, data: bytes) -> Chunk:
        """Moves to the end of a line that is too long to hold, as far as it is there."""
        self.too_long += not self._passing_over
        cut = data.find(b'\n') + 1
        self._passing_over = not cut
        self._advance(data[:cut] if cut else data)
        return Chunk(fresh, self.end, b'')

    def _advance(self, data: bytes) -> None:
        self.end += len(data)
        self._proof = (self._proof + data)[-_PROOF:] if len(data) < _PROOF else data[-_PROOF:]
