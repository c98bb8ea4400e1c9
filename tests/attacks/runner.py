"""Grades attacks, one after the other, and looks at this machine after each: `python runner.py '{"layers": ...}'`.

Prints a line of JSON an attack. This process is what the attacks are after: it holds the secret in its environment,
listens on sockets, owns the files, and as a subreaper inherits whatever outlives its sandbox.
"""

import ctypes
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from attacks.controls import CONTROLS
from attacks.programs import ATTACKS, EXPECTED, Attack

from score_jax.rewards import code
from score_jax.rewards.pool import children

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {'wall_seconds': 1.5, 'cpu_seconds': 1, 'memory_bytes': 128 << 20, 'output_bytes': 2 << 20}
_PR_SET_CHILD_SUBREAPER = 36


class Host:
    """What an attack may not touch: a directory and sockets open to everybody, and this process."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix='victim-'))
        self.directory.chmod(0o777)
        for name, text in (('secret.txt', str(EXPECTED)), ('keep.txt', 'keep')):
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o666)
        abstract = self.directory.name
        self.sockets = [socket.socket(*kind) for kind in (
            (socket.AF_INET,), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX,), (socket.AF_UNIX,))]
        addresses = ('127.0.0.1', 0), ('127.0.0.1', 0), str(self.directory / 'socket'), '\0' + abstract
        for one, address in zip(self.sockets, addresses):
            one.bind(address)
            one.setblocking(False)
            if one.type == socket.SOCK_STREAM:
                one.listen()
        (self.directory / 'socket').chmod(0o777)
        tcp, udp = (one.getsockname()[1] for one in self.sockets[:2])
        self.constants = (f'D, TCP, UDP, ABSTRACT = {str(self.directory)!r}, {tcp}, {udp}, {abstract!r}\n'
                          f'PARENT, CHECKOUT = {os.getpid()}, {str(ROOT)!r}\n')
        self.before = self._state()

    def damage(self) -> list[str]:
        """What has happened to it, as sentences."""
        found = [f'{name} is {now[:200]!r}, it was {self.before[name][:200]!r}'
                 for name, now in self._state().items() if now != self.before[name]]
        for one in self.sockets:
            try:
                one.accept() if one.type == socket.SOCK_STREAM else one.recv(1)
                found.append(f'{one.getsockname()!r} was reached')
            except BlockingIOError:
                pass
        if left := children(os.getpid()):
            found.append(f'processes that live on: {left}')
            for pid in left:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        return found

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        shutil.rmtree(self.directory)

    def _state(self) -> dict[str, str]:
        files = sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_nlink,
                        path.read_text() if path.is_file() else '') for path in self.directory.iterdir())
        return {
            'the directory': str((self.directory.stat().st_mode, files)),
            'the run directories': str(sorted(Path(tempfile.gettempdir()).glob(f'score_jax-{os.getpid()}-*'))),
            'this process': str((os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.getcwd())),
            'the open descriptors': str(len(os.listdir('/proc/self/fd'))),
            'shared memory': str(sorted(name for name in os.listdir('/dev/shm') if name == 'message')),
        }


def grade(attack: Attack) -> dict:
    """`outcomes` and `seconds` of the runs, and the `damage` that the machine has taken."""
    host = Host()
    job = {'tests': [attack.test], 'response': f'```python\n{host.constants}{attack.program}\n```',
           'limits': LIMITS if attack in ATTACKS else {}}
    verdicts = [code.grade_job(job) for _ in range(attack.runs)]
    if 'late' in attack.program:
        time.sleep(0.3)
    damage = host.damage()
    host.close()
    return {'name': attack.name, 'outcomes': [verdict.outcome for verdict in verdicts],
            'seconds': max(verdict.seconds for verdict in verdicts), 'damage': damage}


def main(layers: list[str] | None, names: list[str]) -> None:
    """Grades the attacks and controls named, behind `layers` (default: all that there are)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    active = code.active() if layers is None else tuple(layers)
    with mock.patch.object(code, 'active', lambda: active):
        print(json.dumps({'uid': os.geteuid(), 'layers': active}), flush=True)
        for attack in ATTACKS + CONTROLS:
            if attack.name in names:
                print(json.dumps(grade(attack)), flush=True)


if __name__ == '__main__':
    main(**json.loads(sys.argv[1]))
