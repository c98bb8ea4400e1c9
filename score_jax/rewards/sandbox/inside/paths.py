"""What of the file system a program may see: the interpreter's library and what that links to."""

import os
import sys

DEVICES = ('/dev/null', '/dev/zero', '/dev/random', '/dev/urandom')


def libraries() -> list[str]:
    """Existing directories and files to read and execute, none below another."""
    prefix = sys.base_prefix
    prefix = [f'{prefix}/lib', f'{prefix}/lib64', f'{prefix}/Frameworks'] if prefix in ('/', '/usr', '/usr/local') else [prefix]
    wanted = ['/usr/lib', '/usr/lib64', '/usr/local/lib', '/usr/local/lib64', '/lib', '/lib64', '/etc/ld.so.cache', *prefix]
    found: list[str] = []
    for path in sorted({os.path.normpath(path) for path in wanted}):
        if os.path.exists(path) and not any(path.startswith(above + '/') for above in found):
            found.append(path)
    return found
