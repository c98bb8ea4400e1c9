"""`python -m score_jax.rewards.sandbox`: which layers are active here, and whether they hold what they should.

Ends with code 0 if every attack failed, 1 if one succeeded, 2 if no sandbox can be started.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from score_jax.rewards.outcome import Outcome
from score_jax.rewards.sandbox import LAYERS, Failure, Limits, SandboxError, Session
from score_jax.rewards.sandbox.layers import probe

_LIMITS = Limits(wall_seconds=2.0, cpu_seconds=1, memory_bytes=256 << 20)


@dataclasses.dataclass(frozen=True)
class _Attack:
    """`attack()` returns something true if it reached what it wanted; `ends` is how it must end if it cannot return."""

    name: str
    program: str
    ends: Outcome | None = None


_ATTACKS = [
    _Attack('read a file of this machine', 'def attack(): return open(FILE).read()'),
    _Attack('write a file on this machine', 'def attack(): open(FILE, "w").close(); return True'),
    _Attack('read the environment of the grader', 'def attack(): return open(f"/proc/{PARENT}/environ", "rb").read()'),
    _Attack('signal the grader', 'import os\ndef attack(): os.kill(PARENT, 0); return True'),
    _Attack('reach a service of this machine',
            'import socket\ndef attack(): socket.create_connection(("127.0.0.1", PORT), 1); return True'),
    _Attack('find the expected value in memory', '''
import gc, sys
def attack():
    frame, texts = sys._getframe(), []
    while frame:
        texts += [value for value in [*frame.f_locals.values(), *frame.f_globals.values()] if isinstance(value, str)]
        frame = frame.f_back
    texts += [thing for thing in gc.get_objects() if isinstance(thing, str)]
    return any('expected ' + 'value' in text for text in texts)'''),
    _Attack('return an object that equals everything', 'class Any:\n    def __eq__(self, other): return True\n'
            'def attack(): return Any()', Outcome.WRONG),
    _Attack('become root', 'import os\ndef attack(): os.setuid(0); return True'),
    _Attack('make a namespace of its own',
            'import ctypes\ndef attack(): return ctypes.CDLL(None).unshare(0x10000000) == 0'),
    _Attack('exit as if all was well', 'import os\ndef attack(): os._exit(0)', Outcome.RUNTIME_ERROR),
    _Attack('run forever', 'def attack():\n    while True: pass', Outcome.TIMEOUT),
    _Attack('sleep forever', 'import time\ndef attack(): time.sleep(1e9)', Outcome.TIMEOUT),
    _Attack('take all memory',
            'def attack():\n    all = []\n    while True: all.append(bytearray(1 << 20))', Outcome.MEMORY),
    _Attack('print without end', 'def attack():\n    while True: print("x" * 1000)', Outcome.OUTPUT_LIMIT),
    _Attack('fill the disk', 'def attack():\n    for n in range(10 ** 5):\n'
            '        with open(f"/tmp/{n}", "wb") as file: file.write(bytes(1 << 20))\n    return True'),
]


def _held(attack: _Attack, constants: str, layers: tuple[str, ...]) -> tuple[bool, str]:
    """Did the sandbox hold, and what came of the attack?"""
    try:
        with Session(layers, _LIMITS) as session:
            session.load(constants + attack.program)
            value = session.call('attack')
        return not value and attack.ends is None, f'returned {value!r}'
    except Failure as failure:
        return attack.ends in (None, failure.outcome), f'{failure.outcome}: {failure}'


def main() -> int:
    """The command; returns its exit status, 0 if every attack failed."""
    try:
        found = probe()
        layers = tuple(layer for layer in LAYERS if not found[layer])
        Session(layers).__exit__()
    except SandboxError as error:
        print(f'no sandbox can be started here: {error}')
        return 2
    for layer, meaning in LAYERS.items():
        print(f'{"active " if not found[layer] else "missing"}  {layer:13} {found[layer] or meaning}')
    if os.geteuid() == 0 and 'uid' not in layers:
        print('You are root and programs cannot be given a user of their own: all rests on the other layers.')
    print()
    failed = 0
    with tempfile.TemporaryDirectory() as directory, socket.create_server(('127.0.0.1', 0)) as server:
        os.chmod(directory, 0o755)
        file = Path(directory, 'file')
        file.write_text('expected value')
        file.chmod(0o666)
        constants = f'FILE, PORT, PARENT = {str(file)!r}, {server.getsockname()[1]}, {os.getpid()}\n'
        for attack in _ATTACKS:
            start = time.monotonic()
            held, what = _held(attack, constants, layers)
            failed += not held
            print(f'{"held  " if held else "BROKEN"}  {attack.name:42} {time.monotonic() - start:4.1f} s  {what[:60]}')
    print(f'\n{failed} of {len(_ATTACKS)} attacks succeeded: do not run programs here.' if failed else
          f'\nAll {len(_ATTACKS)} attacks failed.')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
