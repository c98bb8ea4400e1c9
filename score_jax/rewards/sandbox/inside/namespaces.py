"""Own process, network, mount, ipc and host name spaces: nothing of the host is there to be seen, sent to or signalled.

The file system is a small tmpfs with the interpreter's library bound into it, read-only, and /tmp, whose size and
number of files are bounded. It has no name on the host, and is gone with the last process in it: there is nothing to
remove.
"""

import os

import kernel
import paths

_ROOT = '/tmp'  # what the new root is mounted on, which only this process sees
_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV
_FILES = 4096  # in /tmp


def enter() -> None:
    """Makes the spaces. The next child is the first of the process space: what lives there dies with it."""
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if uid == 0:
        kernel.unshare(flags)
        return
    kernel.unshare(flags | kernel.CLONE_NEWUSER)
    for name, text in (('setgroups', 'deny'), ('uid_map', f'{uid} {uid} 1'), ('gid_map', f'{gid} {gid} 1')):
        with open(f'/proc/self/{name}', 'w') as file:
            file.write(text)


def build(disk_bytes: int) -> None:
    """Builds the new root, all but /proc, at `_ROOT`."""
    kernel.mount('none', '/', flags=kernel.MS_REC | kernel.MS_PRIVATE)
    # What is bound may lie below _ROOT or where only root can walk: hold it before _ROOT is covered.
    handles = [(path, os.open(path, os.O_PATH)) for path in (*paths.libraries(), *paths.devices())]
    kernel.mount('tmpfs', _ROOT, 'tmpfs', _SAFE, 'size=1m,nr_inodes=1024,mode=755')
    for path, handle in handles:
        if os.path.isdir(f'/proc/self/fd/{handle}'):
            os.makedirs(_ROOT + path, exist_ok=True)
        else:
            os.makedirs(_ROOT + os.path.dirname(path), exist_ok=True)
            os.close(os.open(_ROOT + path, os.O_CREAT))
        kernel.mount(f'/proc/self/fd/{handle}', _ROOT + path, flags=kernel.MS_BIND | kernel.MS_REC)
        os.close(handle)
        flags = kernel.MS_NOSUID if path in paths.devices() else _SAFE | kernel.MS_RDONLY
        kernel.restrict_mount(_ROOT + path, flags)
    for name in ('proc', 'tmp'):
        os.mkdir(f'{_ROOT}/{name}')
    kernel.mount('tmpfs', _ROOT + '/tmp', 'tmpfs', _SAFE, f'size={disk_bytes},nr_inodes={_FILES},mode=1777')
    os.symlink('/tmp', _ROOT + '/dev/shm')  # where semaphores of multiprocessing live


def move_in() -> None:
    """Makes `_ROOT` the root. Called by the first process of the process space, whose /proc this mounts."""
    os.chdir(_ROOT)
    try:
        kernel.mount('proc', _ROOT + '/proc', 'proc', _SAFE | kernel.MS_NOEXEC | kernel.MS_RDONLY)
    except PermissionError:  # a container that masks parts of /proc: then there is none inside
        pass
    kernel.pivot_root()
    kernel.mount('none', '/', flags=_SAFE | kernel.MS_RDONLY | kernel.MS_BIND | kernel.MS_REMOUNT)
