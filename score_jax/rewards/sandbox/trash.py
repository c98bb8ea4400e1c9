"""Removes a directory that a program has filled, whatever it left there."""

import contextlib
import os


def remove(directory: str) -> None:
    """Removes `directory` and all below it. Follows no link, opens no file, needs no recursion, whatever the depth.

    Directories are emptied into the top one, so that paths stay short and a swapped directory leads nowhere.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        count = 0
        while names := os.listdir(top):
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                    continue
                except (IsADirectoryError, PermissionError):
                    pass
                below = _open(name, top)
                for inner in os.listdir(below):
                    count += 1
                    _make_movable(inner, below)
                    os.rename(inner, f'score_jax-{count}', src_dir_fd=below, dst_dir_fd=top)
                os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(directory)


def _open(name: str, parent: int) -> int:
    _make_movable(name, parent)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _make_movable(name: str, parent: int) -> None:
    """A directory moves, and shows what is in it, only if its mode allows that."""
    with contextlib.suppress(NotADirectoryError, OSError):
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.chmod(f'/proc/self/fd/{handle}', 0o700)
        finally:
            os.close(handle)
