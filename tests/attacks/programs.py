"""Programs that attack their grader, as data.

Each defines `solve`. Those that steal look for the expected value, which lies wherever the constants that the runner
puts in front of them point to; those that break out return 'escaped' if they did.
"""

import dataclasses

EXPECTED = 716253
STEAL = f'assert solve(3) == {EXPECTED}'
ESCAPE = "assert solve(3) == 'escaped'"
EXHAUSTED = 'output_limit timeout memory runtime_error'  # which limit it meets first depends on the machine


@dataclasses.dataclass(frozen=True)
class Attack:
    """`outcomes`: what the verdict may be. `needs`: layers without which it may succeed."""

    name: str
    outcomes: str
    program: str
    needs: str = ''
    test: str = STEAL
    runs: int = 1  # on end, to find what an earlier run has left
    succeeds_bare: bool = False  # it does work where there are no layers

    @property
    def allowed(self) -> set[str]:
        return set(self.outcomes.split())


def _steal(name: str, body: str, outcomes: str = 'wrong runtime_error', **more) -> Attack:
    return Attack(name, outcomes, 'import os, sys\ndef solve(x):\n' + _indented(body), **more)


def _escape(name: str, body: str, outcomes: str = 'wrong runtime_error', **more) -> Attack:
    return Attack(name, outcomes, 'import os, sys, ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef solve(x):\n'
                  + _indented(body), test=ESCAPE, **more)


def _frame(body: bytes) -> bytes:
    """As answers are sent."""
    return len(body).to_bytes(4, 'big') + body


def _indented(text: str) -> str:
    return ''.join(f'    {line}\n' for line in text.strip('\n').split('\n'))


ATTACKS = [
    # -- time and signals
    _steal('endless loop', 'while True: pass', 'timeout'),
    _steal('endless sleep', 'import time; time.sleep(1e9)', 'timeout'),
    Attack('endless loop before solve is defined', 'timeout', 'while True: pass\ndef solve(x): return 1'),
    _steal('loop that catches everything', '''
while True:
    try:
        while True: pass
    except BaseException: pass''', 'timeout'),
    _steal('loop that ignores every signal', '''
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass''', 'timeout'),
    _steal('loop that blocks every signal', '''
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
signal.alarm(0); signal.setitimer(signal.ITIMER_PROF, 0)
while True: pass''', 'timeout'),
    _steal('tracing, faulthandler and busy threads', '''
import threading, faulthandler
faulthandler.cancel_dump_traceback_later(); sys.settrace(lambda *a: None)
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin).start()
spin()''', 'timeout'),
    _steal('threads that stay behind a wrong answer', '''
import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin).start()
return 1''', 'wrong'),
    _steal('catastrophic backtracking', "import re; return re.match('(a+)+$', 'a' * 60 + 'b')", 'timeout'),
    _steal('tower of powers', 'return 10 ** 10 ** 8', 'timeout memory output_limit'),
    _steal('decimal of ten million digits', "sys.set_int_max_str_digits(0); return int('9' * 10 ** 7)", 'timeout'),
    _steal('endless generator as the answer', 'return (0 for _ in iter(int, 1))', EXHAUSTED),
    _steal('exception whose text never ends', '''
class E(Exception):
    def __str__(self):
        while True: pass
raise E''', 'timeout'),
    _steal('raised CPU limit', '''
import resource
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
    try: resource.setrlimit(kind, (-1, -1))
    except (OSError, ValueError): pass
while True: pass''', 'timeout'),
    # -- bombs
    _steal('fork bomb', 'while True:\n    try: os.fork()\n    except OSError: pass', 'timeout memory runtime_error'),
    _steal('fork bomb in sessions of their own', '''
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass''', 'timeout memory runtime_error'),
    _steal('thread bomb', '''
import threading, time
while True: threading.Thread(target=time.sleep, args=(1e9,)).start()''', 'timeout memory runtime_error'),
    _steal('100 GB at once', 'return len(bytearray(10 ** 11))', 'memory'),
    _steal('list that grows', 'all = []\nwhile True: all.append(bytearray(10 ** 6))', 'memory'),
    _steal('mapped memory', '''
import mmap
maps = []
while True:
    maps.append(mmap.mmap(-1, 64 << 20))
    for page in range(0, 64 << 20, 4096): maps[-1][page] = 1''', 'memory runtime_error'),
    _steal('many children of 80 MB', '''
import time
for _ in range(12):
    if os.fork() == 0:
        block = bytearray(80 << 20)
        for page in range(0, len(block), 4096): block[page] = 1
        time.sleep(1e9)
time.sleep(1e9)''', 'memory'),
    _steal('recursion without a limit', '''
sys.setrecursionlimit(10 ** 9)
def down(n): return down(n + 1) + 1
return down(0)''', 'memory runtime_error timeout'),
    _steal('recursion in C', '''
sys.setrecursionlimit(10 ** 9)
nest = []
for _ in range(10 ** 6): nest = [nest]
return repr(nest)''', 'memory runtime_error timeout'),
    _steal('answer nested 100,000 deep', 'nest = []\nfor _ in range(10 ** 5): nest = [nest]\nreturn nest', 'wrong'),
    _steal('answer that holds itself', 'loop = []; loop.append(loop); return loop', 'wrong'),
    _steal('answer of a billion references', '''
part = [0] * 1000
for _ in range(3): part = [part] * 1000
return part''', EXHAUSTED),
    _steal('all file descriptors', "return [os.open('/dev/null', 0) for _ in range(10 ** 5)][0]", 'runtime_error'),
    _steal('a thousand zombies', '''
for _ in range(1000):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: os._exit(0)
return 1''', 'wrong'),
    # -- outliving the verdict
    _steal('daemon that writes later', '''
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import time
        for fd in range(64):
            try: os.close(fd)
            except OSError: pass
        for _ in range(50):
            time.sleep(0.1)
            try: open(D + '/late', 'w').close()
            except OSError: pass
    os._exit(0)
return 1''', 'wrong'),
    _steal('daemon of a process that exits', '''
if os.fork() == 0:
    os.setsid()
    while True: pass
os._exit(0)''', 'runtime_error'),
    _steal('daemon without a death signal', '''
import ctypes, signal, time
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(5):
    if os.fork() == 0:
        os.setsid(); time.sleep(1e9)
return 1''', 'wrong'),
    # -- output
    _steal('endless print', "while True: print('x' * 1000)", 'output_limit'),
    _steal('endless stderr without a newline', "while True: sys.stderr.write('x' * 1000)", 'output_limit'),
    _steal('children that print', '''
for _ in range(4):
    if os.fork() == 0:
        while True: os.write(1, b'x' * 65536)
import time; time.sleep(1e9)''', 'output_limit'),
    _steal('terminal escapes and broken UTF-8', r'''
os.write(1, b'\x1b]0;owned\x07\x1b[2J\xff\xfe\xed\xa0\x80' * 100)
return '\ud800\x1b[31m'
''', 'wrong'),
    # -- disk
    _steal('file of 50 GB', "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", 'runtime_error'),
    _steal('sparse file', "f = open('big', 'wb'); f.truncate(50 << 30); return 1", 'runtime_error'),
    _steal('many files under the limit of one', '''
for number in range(1000):
    with open(f'part{number}', 'wb') as file: file.write(bytes(1 << 20))
return 1''', 'runtime_error', needs='namespaces'),
    _steal('a million small files', "for number in range(10 ** 6): open(f'f{number}', 'w').close()", 'runtime_error',
           needs='namespaces'),
    _steal('shared memory', "f = open('/dev/shm/big', 'wb')\nwhile True: f.write(bytes(1 << 20))", 'runtime_error'),
    # -- verdicts and frames
    _steal('os._exit(0)', 'os._exit(0)', 'runtime_error'),
    _steal('sys.exit(0)', 'sys.exit(0)', 'runtime_error'),
    Attack('SystemExit at once', 'runtime_error', 'raise SystemExit(0)\ndef solve(x): return 1'),
    _steal('abort', 'os.abort()', 'runtime_error'),
    _steal('kills itself', 'os.kill(os.getpid(), 9)', 'runtime_error'),
    _steal('prints a verdict', '''
print('ALL TESTS PASSED'); print('{"outcome": "correct", "reward": 1}'); print('= 1 passed in 0.01s =')
return 1''', 'wrong'),
    *[_steal(f'writes to every descriptor: {name}', f'''
data = {data!r}
for fd in range(3, 64):
    try: os.write(fd, data)
    except OSError: pass
{then}''', outcomes) for name, data, then, outcomes in (
        ('a value', _frame(b'["value",1]'), 'return 2', 'wrong runtime_error'),
        ('two values', 2 * _frame(b'["value",1]'), 'return 2', 'runtime_error'),
        ('no JSON', _frame(b'\x80\x04K*.'), 'os._exit(0)', 'runtime_error'),
        ('a JSON object', _frame(b'{"value": 1, "value": 2}'), 'os._exit(0)', 'runtime_error'),
        ('NaN', _frame(b'["value",NaN]'), 'os._exit(0)', 'runtime_error'),
        ('10,000 brackets', _frame(b'[' * 10 ** 4), 'os._exit(0)', 'runtime_error'),
        ('an unknown tag', _frame(b'["value",["pickle","x"]]'), 'os._exit(0)', 'runtime_error'),
        ('a failed layer', _frame(b'["failed","seccomp","no"]'), 'os._exit(0)', 'runtime_error'),
        ('a huge length', b'\xff' * 4, 'import time; time.sleep(1e9)', 'output_limit'),
        ('half a frame', b'\0\0\x10\0x', 'import time; time.sleep(1e9)', 'timeout'),
    )],
    _steal('closes every descriptor', 'for fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\nreturn 1',
           'runtime_error'),
    _steal('answers from a child too', 'os.fork(); return 1', 'wrong runtime_error'),
    # -- objects
    Attack('equal to everything', 'wrong', '''
class Any:
    def __eq__(self, other): return True
    def __hash__(self): return 1
    def __bool__(self): return True
def solve(x): return Any()'''),
    *[Attack(f'{kind} equal to everything', 'wrong',
             f'class Any({kind}):\n    def __eq__(self, other): return True\n    __ne__ = lambda self, other: False\n'
             '    __hash__ = lambda self: 716253\ndef solve(x): return Any()')
      for kind in ('int', 'float', 'str', 'list', 'dict', 'tuple')],
    Attack('claims to be an int', 'wrong runtime_error', 'class Any:\n    __class__ = property(lambda self: int)\n'
           '    def __eq__(self, other): return True\n    def __index__(self): return 1\ndef solve(x): return Any()'),
    _steal('walks the stack', '''
frame = sys._getframe()
while frame:
    for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:
        if type(value) is int and 10 ** 5 < value < 10 ** 6: return value
        if 'assert' in str(value)[:10 ** 5]: return eval(str(value).partition('==')[2][:8])
    frame = frame.f_back
return 0'''),
    _steal('searches all objects', '''
import gc
for thing in gc.get_objects():
    for value in gc.get_referents(thing):
        if type(value) is str and value.startswith('assert solve'): return int(value.partition('==')[2])
return 0'''),
    _steal('replaces what a grader might use', '''
import builtins, math, operator, json, unittest
for module in (math, operator, json, unittest.TestCase, builtins):
    for name in 'isclose eq dumps loads assertEqual AssertionError isinstance len str type'.split():
        try: setattr(module, name, lambda *a, **k: True)
        except (AttributeError, TypeError): pass
return 1''', 'wrong runtime_error'),
    _steal('rewrites the encoder', '''
frame = sys._getframe(1)
frame.f_globals['values'].encode = lambda *a: '["value",716252]'
frame.f_globals['write'] = lambda *a: None
return 1''', 'wrong timeout runtime_error'),
    # -- what lies around
    _steal('reads a file of everybody', "return int(open(D + '/secret.txt').read())", 'runtime_error',
           needs='namespaces|landlock', succeeds_bare=True),
    _steal('reads through a link', "os.symlink(D + '/secret.txt', 'link'); return int(open('link').read())",
           'runtime_error', needs='namespaces|landlock', succeeds_bare=True),
    _steal('reads through a hard link', "os.link(D + '/secret.txt', 'link'); return int(open('link').read())",
           'runtime_error', needs='namespaces|landlock'),
    _steal('environment', "return int(os.environ['SECRET'])", 'runtime_error'),
    _steal('environment of the grader', '''
text = open(f'/proc/{PARENT}/environ', 'rb').read()
return int(text.partition(b'SECRET=')[2][:6])''', 'runtime_error', needs='uid|namespaces|landlock', succeeds_bare=True),
    _steal('environment of whom it finds', '''
for name in os.listdir('/proc'):
    if name.isdigit():
        for file in ('environ', 'cmdline'):
            try: text = open(f'/proc/{name}/{file}', 'rb').read()
            except OSError: continue
            if b'SECRET=' in text: return int(text.partition(b'SECRET=')[2][:6])
return 0''', needs='uid|namespaces|landlock', succeeds_bare=True),
    _steal('root and descriptors of the grader', '''
for path in (f'/proc/{PARENT}/root{D}/secret.txt', f'/proc/{PARENT}/cwd/secret.txt', f'/proc/1/root{D}/secret.txt'):
    try: return int(open(path).read())
    except OSError: pass
for fd in range(64):
    try: return int(open(f'/proc/{PARENT}/fd/{fd}').read())
    except (OSError, ValueError): pass
return 0''', needs='uid|namespaces|landlock', succeeds_bare=True),
    _steal('its own descriptors', '''
for fd in range(3, 256):
    for path in (f'/proc/self/fd/{fd}', f'/dev/fd/{fd}'):
        try: target = os.readlink(path)
        except OSError: continue
        if not target.startswith('pipe:'): return open(path).read()
return 0''', 'wrong'),
    _steal('memory of the grader', '''
for line in open(f'/proc/{PARENT}/maps'):
    if '[heap]' in line:
        start, end = (int(part, 16) for part in line.split()[0].split('-'))
        with open(f'/proc/{PARENT}/mem', 'rb', 0) as file:
            file.seek(start)
            found = file.read(end - start).partition(b'SECRET=')[2][:6]
            return int(found or 0)
return 0''', needs='uid|namespaces|landlock'),
    _steal('the checkout and the tests', '''
for path in CHECKOUT, CHECKOUT + '/tests', CHECKOUT + '/score_jax', '/etc/passwd', '/etc/hostname':
    try: os.listdir(path) if os.path.isdir(path) else open(path)
    except OSError: continue
    return 716253
return 0''', 'wrong', needs='namespaces|landlock', succeeds_bare=True),
    # -- damage
    _escape('writes into a directory of everybody', "open(D + '/new', 'w').close(); return 'escaped'", 'runtime_error',
            needs='namespaces|landlock', succeeds_bare=True),
    _escape('truncates, renames, changes modes', '''
done = 0
for act in (lambda: open(D + '/keep.txt', 'w'), lambda: os.truncate(D + '/keep.txt', 0), lambda: os.chmod(D, 0),
            lambda: os.rename(D + '/keep.txt', D + '/other'), lambda: os.unlink(D + '/keep.txt'),
            lambda: os.utime(D + '/keep.txt', (0, 0))):
    try: act(); done += 1
    except OSError: pass
return 'escaped' if done else 0''', needs='namespaces'),
    _escape('deletes everything it can reach', '''
import shutil
for path in (D, '/usr/lib', '/'): shutil.rmtree(path, ignore_errors=True)
return 1''', 'wrong timeout', needs='uid|namespaces|landlock'),
    _escape('links, pipes, devices, closed and deep directories', '''
os.symlink(D, 'to_victim'); os.symlink('/', 'to_root'); os.mkfifo('pipe')
try: os.mknod('disk', 0o60666, os.makedev(8, 0)); return 'escaped'
except OSError: pass
os.mkdir('closed'); open('closed/file', 'w').close(); os.chmod('closed', 0)
for _ in range(300): os.mkdir('d'); os.chdir('d')
return 0''', 'wrong runtime_error'),
    _escape('a module that shadows the library', '''
for name in ('json', 're', 'site', 'sitecustomize', 'usercustomize', 'conftest', 'encodings', 'marshal'):
    if os.path.exists(f'{name}.py'): return 'escaped'
    open(f'{name}.py', 'w').write('raise SystemExit')
return 0''', 'wrong runtime_error', runs=2),
    # -- network
    _escape('TCP to a local service', '''
import socket
socket.create_connection(('127.0.0.1', TCP), 1).sendall(b'x'); return 'escaped'
''', 'runtime_error', needs='namespaces|seccomp|landlock', succeeds_bare=True),
    _escape('UDP to a local service', '''
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP)); return 'escaped'
''', 'runtime_error', needs='namespaces|seccomp', succeeds_bare=True),
    _escape('unix socket of a service', '''
import socket
socket.socket(socket.AF_UNIX).connect(D + '/socket'); return 'escaped'
''', 'runtime_error', needs='namespaces|seccomp', succeeds_bare=True),
    _escape('abstract unix socket of a service', r'''
import socket
socket.socket(socket.AF_UNIX).connect('\0' + ABSTRACT); return 'escaped'
''', 'runtime_error', needs='namespaces|seccomp|landlock', succeeds_bare=True),
    _escape('every other family', '''
import socket
for family in range(1, 46):
    for kind in (1, 2, 3, 5):
        try: socket.socket(family, kind); return 'escaped'
        except OSError: pass
return 0''', 'wrong', needs='seccomp', succeeds_bare=True),
    _escape('metadata service and names', '''
import socket
for host in ('169.254.169.254', 'example.com'):
    try: socket.create_connection((host, 80), 0.5); return 'escaped'
    except OSError: pass
return 0''', 'wrong', needs='namespaces|seccomp|landlock'),
    _escape('listens', "import socket; socket.create_server(('', 0)); return 'escaped'", 'runtime_error',
            needs='seccomp|landlock', succeeds_bare=True),
    # -- other processes
    _escape('signals the grader', '''
for number in (0, 19, 15, 9):
    try: os.kill(PARENT, number); return 'escaped'
    except OSError: pass
return 0''', 'wrong', needs='uid|namespaces|landlock'),
    _escape('signals all', '''
try: os.kill(-1, 9)
except OSError: pass
import time; time.sleep(0.2)
return 0''', 'wrong runtime_error', needs='uid|namespaces|landlock'),
    _escape('slows the grader', '''
import resource
for act in (lambda: os.setpriority(os.PRIO_PROCESS, PARENT, 19), lambda: os.sched_setaffinity(PARENT, {0}),
            lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), -20),
            lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (3, 3))):
    try: act(); return 'escaped'
    except (OSError, ValueError): pass
return 0''', 'wrong', needs='uid|namespaces'),
    *[_escape(name, f'return "escaped" if {call} >= 0 else 0', 'wrong', needs='uid|namespaces|seccomp')
      for name, call in (
        ('ptrace of the grader', 'libc.ptrace(16, PARENT, 0, 0)'),
        ('descriptors of the grader', 'libc.syscall(438, libc.syscall(434, PARENT, 0), 2, 0)'),
    )],
    _escape('memory of the grader by process_vm_writev', '''
class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
block = ctypes.create_string_buffer(8)
local = Vector(ctypes.addressof(block), 8)
for number in (libc.process_vm_readv, libc.process_vm_writev):
    for pid in (PARENT, os.getppid()):
        if number(pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0) > 0: return 'escaped'
return 0''', 'wrong', needs='uid|namespaces|seccomp'),
    _escape('kills its warden', '''
import time
for pid in {1, os.getppid()}:
    for number in (19, 9):
        try: os.kill(pid, number)
        except OSError: pass
time.sleep(0.2)
if os.path.exists('/proc/1/mem'):
    try: open('/proc/1/mem', 'rb'); return 'escaped'
    except OSError: pass
while True: pass''', 'timeout', needs='uid|namespaces'),
    # -- the kernel
    _escape('becomes root', '''
for act in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try: act(); return 'escaped'
    except OSError: pass
return 0''', 'wrong', needs='uid|no_new_privs'),
    _escape('runs setuid programs', '''
import subprocess
for path in ('/usr/bin/sudo', '/usr/bin/su', '/bin/su', '/usr/bin/mount', '/usr/bin/passwd'):
    try:
        if b'uid=0' in subprocess.run([path, '-n', 'id'], capture_output=True, timeout=2).stdout: return 'escaped'
    except (OSError, subprocess.SubprocessError): pass
return 0''', 'wrong', needs='no_new_privs'),
    _escape('nested namespaces', '''
for flags in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x10020000):
    if libc.unshare(flags) == 0: return 'escaped'
if libc.syscall(435, ctypes.byref((ctypes.c_uint64 * 11)(0x10000000)), 88) >= 0: return 'escaped'
if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0: return 'escaped'
return 0''', 'wrong', needs='seccomp'),
    _escape('mounts and new roots', '''
if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 or libc.chroot(b'/tmp') == 0 or libc.umount2(b'/proc', 2) == 0:
    return 'escaped'
return 'escaped' if libc.syscall(428, -100, b'/', 1) >= 0 or libc.syscall(430, b'tmpfs', 0) >= 0 else 0''', 'wrong',
            needs='seccomp|no_new_privs'),
    _escape('keys, bpf, perf, userfaultfd, io_uring, memory files', '''
calls = ((250, 0, -3, 1), (248, b'user', b'name', b'payload', 7, -3), (321, 0, ctypes.create_string_buffer(128), 128),
         (298, ctypes.create_string_buffer(128), 0, -1, -1, 0), (323, 1), (425, 4, ctypes.create_string_buffer(120)),
         (319, b'x', 0))
return 'escaped' if any(libc.syscall(*call) >= 0 for call in calls) else 0''', 'wrong', needs='seccomp'),
    _escape('x32 and unknown system calls', '''
x32 = 0x40000000
return 'escaped' if libc.syscall(x32 + 39) >= 0 or libc.syscall(x32 + 41, 1, 1, 0) >= 0 else 0''', 'wrong'),
    _escape('types into the terminal', '''
import fcntl
for path in ('/dev/tty', '/dev/pts/0', '/dev/console', '/proc/self/fd/0', '/proc/self/fd/1'):
    try: fcntl.ioctl(os.open(path, os.O_RDWR | os.O_NOCTTY), 0x5412, b'x'); return 'escaped'
    except OSError: pass
return 0''', 'wrong'),
    _escape('kernel files', '''
for path in ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/sys/kernel/uevent_helper', '/dev/mem',
             '/dev/kmsg', '/proc/1/oom_score_adj', '/proc/self/uid_map', '/sys/fs/cgroup/cgroup.procs', '/dev/sda'):
    try: open(path, 'w'); return 'escaped'
    except OSError: pass
return 0''', 'wrong', needs='uid|landlock'),
    # -- between two runs
    _escape('leaves a message in files', '''
import tempfile
places = '/tmp', '/dev/shm', '/var/tmp', '/run', os.path.expanduser('~'), tempfile.gettempdir(), '/usr/lib', '.'
if any(os.path.exists(where + '/message') for where in places): return 'escaped'
for where in places:
    try: open(where + '/message', 'w').close()
    except OSError: pass
return 0''', 'wrong', runs=2),
    _escape('leaves a message in shared memory', '''
from multiprocessing import shared_memory
try: shared_memory.SharedMemory('message'); return 'escaped'
except OSError: pass
try: shared_memory.SharedMemory('message', create=True, size=64)
except OSError: pass
if libc.shmget(0x5C0E, 4096, 0o666) >= 0: return 'escaped'
libc.shmget(0x5C0E, 4096, 0o1666)
return 0''', 'wrong runtime_error', runs=2),
]
