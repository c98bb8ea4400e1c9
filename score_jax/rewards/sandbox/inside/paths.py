"""What of the file system a program may see: the interpreter's library and what that links to."""

import os
import sys

_SYSTEM = ('/usr/lib', '/usr/lib64', '/usr/local/lib', '/usr/local/lib64', '/lib', '/lib64', '/etc/ld.so.cache')
_DEVICES = ('/dev/null', '/dev/zero', '/dev/random', '/dev/urandom')


def devices() -> list[str]:
    """Existing devices to read and write."""
    return [path for path in _DEVICES if os.path.exists(path)]


def libraries() -> list[str]:
    """Existing directories and files to read and execute, none below another."""
    own = [] if sys.base_prefix in ('/', '/usr', '/usr/local') else [os.path.normpath(sys.base_prefix)]
    found: list[str] = []
    for path in sorted({*_SYSTEM, *own}):
        if os.path.exists(path) and not any(path.startswith(above + '/') for above in found):
            found.append(path)
    return found
