"""Landlock: files only where they are named here, no TCP, and no signal or abstract socket to a process outside.

The kernel's documentation: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os

import kernel
import paths

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_EVERY_FILE_RIGHT = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 4: 1 << 15, 5: 1 << 16}  # one past the last, by ABI version
_TCP = 1 | 2  # bind, connect; from version 4
_SCOPES = 1 | 2  # abstract unix sockets, signals; from version 6


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [('allowed', ctypes.c_uint64), ('parent', ctypes.c_int32)]


def restrict(work: str, root: str | None) -> None:
    """Allows all in `work`; reading below `root`, or if None the interpreter's libraries; using a few devices."""
    version = kernel.syscall(_CREATE, 0, 0, 1, what='landlock')
    every = _EVERY_FILE_RIGHT[min(version, 5)] - 1
    attributes = (ctypes.c_uint64 * 3)(every, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = kernel.syscall(_CREATE, attributes, size, 0, what='landlock_create_ruleset')
    _allow(ruleset, work, every)
    for path in [root] if root else paths.libraries():
        _allow(ruleset, path, _EXECUTE | _READ | _READ_DIR)
    for path in paths.devices():
        _allow(ruleset, path, _READ | _WRITE)
    kernel.syscall(_RESTRICT, ruleset, 0, what='landlock_restrict_self')
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH)
    if not os.path.isdir(path):
        rights &= _EXECUTE | _READ | _WRITE
    rule = _PathBeneath(rights, handle)
    kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0, what=f'landlock_add_rule {path}')
    os.close(handle)
