"""Three processes, each started by the one above; only the last sees the program.

    session (the trusted side) ── stdin, request and answer pipes
      └─ outer: makes the namespaces, waits
           └─ warden: first of the process space; watches, reaps; everything ends with it
                └─ program: gives up its rights, says which layers it has, then serves

Stdin is a lifeline: the warden ends, and with it all below, as soon as the other end is closed, by whom or what ever.
Exit codes: 0 the program's process has ended, 64 out of memory, 65 out of CPU time, all else is the sandbox's fault.
"""

import _signal
import os
import resource
import select
import sys

import kernel
import landlock
import namespaces
import seccomp
import serve

OUT_OF_MEMORY, OUT_OF_TIME = 64, 65
_POLL_SECONDS = 0.05
_OWN_USERS = 2_000_000  # the user of a program is this plus a process id: nobody else's, and no two alive share it
_NOBODY = 65534  # where the range of users is small
_STACK_BYTES = 64 << 20
_DESCRIPTORS = 128


def main() -> None:
    """Puts the layers between itself and the machine, then serves the requests of the session outside."""
    requests, answers = map(int, sys.argv[1:])
    sys.path.pop(0)  # this directory
    config = serve.read(requests)
    sys.dont_write_bytecode = True
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != config['parent']:
        return
    _outer(config, requests, answers)


class _Layer:
    """Says which layer could not be made: `with _Layer('landlock', answers): ...`"""

    def __init__(self, name: str, answers: int):
        self._name, self._answers = name, answers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception):
            serve.write(self._answers, serve.line('failed', self._name, str(error)))
            os._exit(1)


def _outer(config: dict, requests: int, answers: int) -> None:
    spaces = 'namespaces' in config['layers']
    uid = _OWN_USERS + os.getpid()
    if 'cgroup' in config['layers']:
        with _Layer('cgroup', answers), open(f'{config["cgroup"]}/cgroup.procs', 'w') as file:
            file.write('0')
    try:
        with open('/proc/self/oom_score_adj', 'w') as file:
            file.write('1000')  # where memory is short, this goes first
    except OSError:
        pass
    if spaces:
        with _Layer('namespaces', answers):
            namespaces.enter()
            namespaces.build(config['disk_bytes'])
    warden = os.fork()
    if warden == 0:
        with _Layer('namespaces' if spaces else 'rlimits', answers):
            kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGKILL)
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            if spaces:
                namespaces.move_in()
        _warden(config, uid, requests, answers)
    for descriptor in (0, 1, 2, requests, answers):
        os.close(descriptor)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(warden, 0)[1]) & 255)


def _warden(config: dict, uid: int, requests: int, answers: int) -> None:
    program = os.fork()
    if program == 0:
        _program(config, uid, requests, answers)
        os._exit(0)
    for descriptor in (1, 2, requests, answers):
        os.close(descriptor)
    code = _watch(program, config)
    if 'namespaces' not in config['layers']:
        _end_family(uid if 'uid' in config['layers'] else None)
    os._exit(code)


def _watch(program: int, config: dict) -> int:
    """Waits for the program's end, or for the lifeline's; keeps the memory of the family within bounds."""
    poll = select.poll()
    poll.register(0, 0)  # hang-up alone
    poll.register(os.pidfd_open(program), select.POLLIN)
    while True:
        ready = poll.poll(_POLL_SECONDS * 1000)
        if any(descriptor == 0 for descriptor, _ in ready):
            return 0
        while True:  # orphans of the family are reaped here as well
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == program:
                # The limit counts ticks and `used` does not, so they agree only roughly.
                spent = used.ru_utime + used.ru_stime > config['cpu_seconds'] / 2
                signal = os.WIFSIGNALED(status) and os.WTERMSIG(status)
                return OUT_OF_TIME if signal == _signal.SIGXCPU or (signal == _signal.SIGKILL and spent) else 0
            if pid == 0:
                break
        if _resident_bytes() > config['memory_bytes']:
            return OUT_OF_MEMORY


def _family() -> list[int]:
    """Every process below the warden."""
    if os.getpid() == 1:
        return [int(name) for name in _names('/proc') if name.isdigit() and name != '1']
    found, new = [], [os.getpid()]
    while new:
        tasks = [f'/proc/{pid}/task' for pid in new]
        files = [f'{task}/{name}/children' for task in tasks for name in _names(task)]
        new = [int(word) for file in files for word in _text(file).split()]
        found += new
    return found


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ''


def _resident_bytes() -> int:
    """What the family holds, pages shared with a file not counted."""
    pages = 0
    for pid in _family():
        words = _text(f'/proc/{pid}/statm').split()
        pages += int(words[1]) - int(words[2]) if words else 0
    return pages * resource.getpagesize()


def _end_family(uid: int | None) -> None:
    """Without a process space: kills what has left the session too, at one stroke where the user is its own."""
    while True:
        if uid is None:
            for pid in _family():
                try:
                    os.kill(pid, _signal.SIGKILL)
                except ProcessLookupError:
                    pass
        elif (killer := os.fork()) == 0:
            os.setresuid(uid, uid, uid)
            os.kill(-1, _signal.SIGKILL)  # does not reach the caller
            os._exit(0)
        else:
            os.waitpid(killer, 0)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # no child, so nobody below either: orphans come to the warden
            return


def _program(config: dict, uid: int, requests: int, answers: int) -> None:
    """Gives up every right that can be given up, then serves."""
    layers = config['layers']
    work = '/tmp' if 'namespaces' in layers else config['directory']
    os.setsid()
    os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
    os.umask(0o077)
    if 'rlimits' in layers:
        with _Layer('rlimits', answers):
            _limit(config)
    if 'uid' in layers:
        with _Layer('uid', answers):
            _become(uid, work)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _signal.SIGKILL)  # a change of user clears it
    os.chdir(work)
    if 'no_new_privs' in layers:
        with _Layer('no_new_privs', answers):
            kernel.drop_capabilities()
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if 'landlock' in layers:
        with _Layer('landlock', answers):
            landlock.restrict(work, '/' if 'namespaces' in layers else None)
    if 'seccomp' in layers:
        with _Layer('seccomp', answers):
            seccomp.install()
    serve.write(answers, serve.line('ready', *layers))
    serve.serve(requests, answers, config['answer_bytes'])


def _limit(config: dict) -> None:
    seconds = config['cpu_seconds']
    for name, soft, hard in (
            ('CPU', seconds, seconds + 1), ('AS', config['memory_bytes'], None), ('FSIZE', config['disk_bytes'], None),
            ('NPROC', config['processes'], None), ('NOFILE', _DESCRIPTORS, None), ('STACK', _STACK_BYTES, None),
            ('CORE', 0, None), ('MEMLOCK', 0, None), ('MSGQUEUE', 0, None)):
        kind = getattr(resource, f'RLIMIT_{name}', None)
        if kind is None:
            continue
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:  # a limit that is already there may be the lower one
            soft, hard = min(soft, most), min(soft if hard is None else hard, most)
        resource.setrlimit(kind, (soft, soft if hard is None else hard))


def _become(uid: int, work: str) -> None:
    """Another user, with no groups, who owns the working directory."""
    os.setgroups([])
    for candidate in (uid, _NOBODY):
        try:
            os.chown(work, candidate, candidate)
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
            break
        except OSError:
            if candidate == _NOBODY:
                raise
    if not os.access(os.__file__, os.R_OK):
        raise OSError(f'another user cannot read the library of Python, {os.path.dirname(os.__file__)}')


main()
