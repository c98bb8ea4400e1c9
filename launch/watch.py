"""Shows runs in the browser while they are trained and after: `python launch/watch.py --workdir=runs`.

Serves this machine alone. From another: `ssh -L 8321:127.0.0.1:8321 MACHINE`, then open http://127.0.0.1:8321/ here.
"""

import ctypes
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

from score_jax import mirror
from score_jax.errors import UserError
from score_jax.store import address
from score_jax.watch.runs import Watcher
from score_jax.watch.server import Server

WORKDIR = flags.DEFINE_multi_string(
    'workdir', ['runs'],
    'A directory that launch/main.py writes, or a folder that holds some, or the address of one; may be given again.')
PORT = flags.DEFINE_integer('port', 8321, 'Port on 127.0.0.1; 0 takes any free one.', lower_bound=0, upper_bound=65535)
_FETCH_EVERY = 30.0  # seconds between two looks at what is at an address


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
    try:
        watcher = Watcher([mirror.look(workdir, checkpoints=False) for workdir in WORKDIR.value])
        server = Server(watcher, PORT.value)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    runs = f'{len(watcher.runs)} run' + 's' * (len(watcher.runs) != 1) if watcher.runs else 'no run yet'
    print(f'{server.url}  ({runs}; Ctrl-C ends it)', flush=True)
    sys.setswitchinterval(5e-4)  # seconds; a request waits that long for the thread that reads files, at every turn
    _return_large_blocks()
    threading.Thread(target=watcher.follow, daemon=True).start()
    if addresses := [workdir for workdir in WORKDIR.value if address(workdir)]:
        threading.Thread(target=_fetch, args=(addresses,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


def _fetch(addresses: list[str]) -> None:
    """Keeps the copies of what is at these addresses up to date."""
    while True:
        time.sleep(_FETCH_EVERY)
        for workdir in addresses:
            try:
                mirror.look(workdir, checkpoints=False)
            except UserError as error:
                print(error, file=sys.stderr, flush=True)


def _return_large_blocks() -> None:
    """Has glibc give blocks of a MiB and more back when they are freed; by itself it keeps them for each thread."""
    if hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


if __name__ == '__main__':
    app.run(main)
