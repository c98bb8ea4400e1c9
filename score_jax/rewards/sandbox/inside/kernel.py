"""The few system calls that Python does not offer. Failures are `OSError`, with the name of what failed."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 0x20
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {'x86_64': 155, 'aarch64': 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f'{what}: {os.strerror(number)}')
    return result


def syscall(number: int, *arguments, what: str) -> int:
    """A raw system call; integers are passed as 64-bit words, bytes and ctypes objects by address."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), what)


def prctl(option: int, argument, *more) -> None:
    """`prctl(2)`; OSError if the kernel refuses."""
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in (argument, *more)]
    _checked(_libc.prctl(option, *words, *[ctypes.c_ulong(0)] * (3 - len(more))), f'prctl {option}')


def unshare(flags: int) -> None:
    """`unshare(2)`; OSError if the kernel refuses."""
    _checked(_libc.unshare(flags), 'unshare')


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str = '') -> None:
    """`mount(2)`; OSError if the kernel refuses."""
    fstype = kind.encode() if kind else None
    result = _libc.mount(source.encode(), target.encode(), fstype, ctypes.c_ulong(flags), options.encode())
    _checked(result, f'mount {target}')


def restrict_mount(target: str, flags: int) -> None:
    """Adds `flags` (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC) to the mount at `target` and to all below it."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)  # struct mount_attr; MOUNT_ATTR_* equal MS_* in these four
    syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, 32, what=f'mount_setattr {target}')


def pivot_root() -> None:
    """Makes the working directory, a mount, the root; nothing of the old root remains."""
    syscall(_PIVOT_ROOT[os.uname().machine], b'.', b'.', what='pivot_root')
    _checked(_libc.umount2(b'.', MNT_DETACH), 'umount2')
    os.chdir('/')


def drop_capabilities() -> None:
    """Empties every set of the calling process."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, data), 'capset')
