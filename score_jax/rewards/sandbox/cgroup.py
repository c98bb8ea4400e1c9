"""A control group for one program, where version 2 is mounted and a subtree is delegated to this user."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path('/sys/fs/cgroup')
_numbers = itertools.count()


def _parent() -> Path:
    """Beside the group of this process: a group that holds processes can have no limited groups below it."""
    line = next((line for line in Path('/proc/self/cgroup').read_text().splitlines() if line.startswith('0::')), '0::/')
    return (_MOUNT / line[3:].lstrip('/')).parent


def missing() -> str:
    """Why there can be no group; '' if there can be one."""
    try:
        parent = _parent()
        enabled = (parent / 'cgroup.subtree_control').read_text().split()
    except OSError as error:
        return f'no cgroup version 2 ({error.strerror})'
    if not {'memory', 'pids'} <= set(enabled):
        return f'memory and pids are not enabled in {parent}'
    if not os.access(parent, os.W_OK) or not os.access(parent / 'cgroup.procs', os.W_OK):
        return f'{parent} is not delegated to this user'
    return ''


@contextlib.contextmanager
def group(memory_bytes: int, processes: int) -> Iterator[str]:
    """The path of a new group with these limits; removed at the end, when its processes have ended."""
    path = _parent() / f'score_jax-{os.getpid()}-{next(_numbers)}'
    path.mkdir()
    try:
        for name, value in (('memory.max', memory_bytes), ('memory.oom.group', 1), ('pids.max', processes)):
            (path / name).write_text(str(value))
        with contextlib.suppress(OSError):  # no swap on many machines
            (path / 'memory.swap.max').write_text('0')
        yield str(path)
    finally:
        path.rmdir()
