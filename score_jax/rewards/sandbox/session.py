"""The trusted side: starts the sandbox's processes, sends requests, reads answers as data, and ends it all in time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from score_jax.rewards.outcome import Outcome
from score_jax.rewards.sandbox import cgroup, trash
from score_jax.rewards.sandbox.inside import values

_INSIDE = Path(__file__).with_name('inside')
_START_SECONDS = 30
_END_SECONDS = 10  # for the warden to end its family; far above what it needs
_OUT_OF_MEMORY, _OUT_OF_TIME = 64, 65  # exit codes, see inside/__main__.py
_READ = 1 << 16
# One arena: the address space that threads reserve counts as memory. The seed makes the order of sets repeatable.
_ENVIRONMENT = {'PYTHONHASHSEED': '0', 'MALLOC_ARENA_MAX': '1', 'LC_ALL': 'C.UTF-8'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use, from its first line to its last answer.

    `wall_seconds` holds for all of it; `cpu_seconds`, `memory_bytes` (address space) for each process, the resident
    memory for all its processes together; `disk_bytes` for what it writes in its own /tmp; `output_bytes` for stdout
    and stderr together; `answer_bytes` for one answer as JSON.
    """

    wall_seconds: float = 20.0
    cpu_seconds: int = 6
    memory_bytes: int = 512 << 20
    processes: int = 64  # threads count
    disk_bytes: int = 32 << 20
    output_bytes: int = 4 << 20
    answer_bytes: int = 4 << 20


class SandboxError(Exception):
    """The sandbox failed, not the program: there is no verdict."""


class LayerError(SandboxError):
    """A layer could not be made."""

    def __init__(self, layer: str, why: str):
        super().__init__(f'{layer}: {why}')
        self.layer, self.why = layer, why


class Failure(Exception):
    """The program gave no answer that is data."""

    def __init__(self, outcome: Outcome, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class Source:
    """An argument of a call that only the program can build: Python, evaluated there."""

    text: str


class Session:
    """One program in its own processes. A context manager: at its end nothing of the program is left.

    `layers` are what it runs behind, all of which this machine has (`layers.active`): one that cannot be made is a
    `SandboxError`, and the program is never sent.
    """

    def __init__(self, layers: Sequence[str], limits: Limits = Limits()):
        self._limits, self._layers = limits, tuple(layers)
        self._end = contextlib.ExitStack()
        self._printed = bytearray()
        self._printed_bytes = 0
        self.failure: Failure | SandboxError | None = None  # the first; every later call raises it again
        self._deadline = time.monotonic() + _START_SECONDS
        try:
            self._start()
        except BaseException:
            self._end.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc) -> None:
        self._end.close()

    @property
    def printed(self) -> str:
        """The first kilobytes of stdout and stderr, as one printable line."""
        return _harmless(self._printed.decode(errors='replace'))

    def load(self, program: str, setup: str = '') -> None:
        """Runs `program`, and `setup` behind it; raises `Failure`, `SandboxError`. The clock starts here."""
        self._deadline = time.monotonic() + self._limits.wall_seconds
        self._ask(('load', program, setup))

    def call(self, name: str, args: Sequence = (), kwargs: Mapping | None = None):
        """The value of `name(*args, **kwargs)`, as exact built-in types; raises `Failure`, `SandboxError`.

        Arguments are plain values (what `marshal` takes), or `Source`.
        """
        kwargs = kwargs or {}
        try:
            request = 'call', name, [*map(_argument, args)], {key: _argument(value) for key, value in kwargs.items()}
        except SandboxError as error:
            self.failure = error
            raise
        return self._ask(request)

    def _start(self) -> None:
        limits, layers = self._limits, self._layers
        config = {'parent': os.getpid(), 'layers': layers, **dataclasses.asdict(limits)}
        try:
            if 'namespaces' not in layers:
                config['directory'] = tempfile.mkdtemp(prefix='score_jax-')
                self._end.callback(trash.remove, config['directory'])
            if 'cgroup' in layers:
                config['cgroup'] = self._end.enter_context(cgroup.group(limits.memory_bytes, limits.processes))
            theirs = contextlib.ExitStack()
            with theirs:
                requests, self._requests = self._pipe(theirs, ours='write')
                self._answers, answers = self._pipe(theirs, ours='read')
                self._output, output = self._pipe(theirs, ours='read')
                lifeline, ours = os.pipe()
                theirs.callback(os.close, lifeline)
                self._lifeline = os.fdopen(ours, 'wb', buffering=0)
                self._end.callback(self._lifeline.close)
                self._process = subprocess.Popen(
                    [sys.executable, '-s', '-P', '-S', str(_INSIDE), str(requests), str(answers)],
                    stdin=lifeline, stdout=output, stderr=output, pass_fds=(requests, answers), cwd='/',
                    env=_ENVIRONMENT, start_new_session=True)
        except OSError as error:
            raise SandboxError(f'no process: {error}') from error
        self._end.callback(self._kill)
        self._send_and_receive(marshal.dumps(config), starting=True)

    def _pipe(self, theirs: contextlib.ExitStack, ours: str) -> tuple[int, int]:
        read, write = os.pipe()
        own, other = (read, write) if ours == 'read' else (write, read)
        os.set_blocking(own, False)
        self._end.callback(os.close, own)
        theirs.callback(os.close, other)
        return read, write

    def _kill(self) -> None:
        """Lets go of the lifeline; when the outer process has ended, so has everything below it."""
        self._lifeline.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: tuple):
        if self.failure is None:
            try:
                return self._value(self._send_and_receive(marshal.dumps(request)))
            except (Failure, SandboxError) as failure:
                self.failure = failure
        raise self.failure

    def _value(self, answer: bytes):
        try:
            match json.loads(answer, parse_constant=_refuse, object_pairs_hook=_refuse):
                case ['value', value]:
                    return values.decode(value)
                case ['error', str(name), str(message)]:
                    outcome = Outcome.MEMORY if name == 'MemoryError' else Outcome.RUNTIME_ERROR
                    raise Failure(outcome, _harmless(f'{name}: {message}'))
                case ['not data', 'too large']:
                    raise Failure(Outcome.OUTPUT_LIMIT, 'the answer is too large')
                case ['not data', str(why)]:
                    raise Failure(Outcome.WRONG, _harmless(why))
        except (ValueError, RecursionError):
            pass
        raise Failure(Outcome.RUNTIME_ERROR, 'an answer that the sandbox never writes')

    def _send_and_receive(self, body: bytes, starting: bool = False) -> bytes:
        """Sends a frame and returns the next one; reads what is printed meanwhile."""
        sending = memoryview(len(body).to_bytes(4, 'big') + body)
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_WRITE)
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                seconds = self._deadline - time.monotonic()
                events = selector.select(max(seconds, 0))
                if seconds <= 0:
                    raise SandboxError('no start in time') if starting else Failure(Outcome.TIMEOUT, 'out of time')
                for key, _ in events:
                    if key.fd == self._requests:
                        try:
                            sending = sending[os.write(key.fd, sending[:_READ]):]
                        except BrokenPipeError:
                            sending = sending[:0]
                        if not sending:
                            selector.unregister(key.fd)
                    elif key.fd == self._output:
                        if not self._read_output():
                            selector.unregister(key.fd)
                    else:
                        part = os.read(key.fd, _READ)
                        if not part:
                            raise self._ended(starting)
                        answer += part
                        if self._is_complete(answer):
                            return self._checked(bytes(answer[4:]), starting)

    def _read_output(self) -> bool:
        part = os.read(self._output, _READ)
        self._printed += part[:max(4096 - len(self._printed), 0)]
        self._printed_bytes += len(part)
        if self._printed_bytes > self._limits.output_bytes:
            raise Failure(Outcome.OUTPUT_LIMIT, 'printed too much')
        return bool(part)

    def _is_complete(self, frame: bytearray) -> bool:
        """Is this one frame? Raises `Failure` if it is too long, or more than one."""
        if len(frame) < 4:
            return False
        length = int.from_bytes(frame[:4], 'big')
        if length > 2 * self._limits.answer_bytes:
            raise Failure(Outcome.OUTPUT_LIMIT, 'the answer is too large')
        if len(frame) > 4 + length:
            raise Failure(Outcome.RUNTIME_ERROR, 'more than one answer')
        return len(frame) == 4 + length

    def _checked(self, answer: bytes, starting: bool) -> bytes:
        """Before the program is sent, the answer says that every layer stands."""
        if starting:
            match json.loads(answer):
                case ['ready', *layers] if tuple(layers) == self._layers:
                    pass
                case ['failed', layer, why]:
                    raise LayerError(layer, why)
                case other:
                    raise SandboxError(f'no start: {other}')
        return answer

    def _ended(self, starting: bool) -> BaseException:
        """Why there is no answer: the program's process has ended."""
        while self._has_more_output():
            pass
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = None  # it has closed the pipe, and lives
        if starting:
            return SandboxError(f'no start (exit code {code}): {self.printed}')
        if code == _OUT_OF_MEMORY:
            return Failure(Outcome.MEMORY, 'out of memory')
        if code == _OUT_OF_TIME:
            return Failure(Outcome.TIMEOUT, 'out of CPU time')
        if code in (0, None):
            return Failure(Outcome.RUNTIME_ERROR, 'the process ended')
        return SandboxError(f'the sandbox ended by itself (exit code {code})')

    def _has_more_output(self) -> bool:
        try:
            return self._read_output()
        except (BlockingIOError, Failure):
            return False


def _harmless(text: str) -> str:
    """Without what a terminal or a page would act on: control and direction characters."""
    return ''.join(c if c.isprintable() else ' ' for c in text)


def _argument(value) -> tuple:
    if isinstance(value, type) and value.__module__ == 'builtins':
        value = Source(value.__name__)
    if isinstance(value, Source):
        return 'source', value.text
    try:
        marshal.dumps(value)
    except ValueError as error:
        raise SandboxError(f'a test passes a {type(value).__name__}, which cannot be sent') from error
    return 'value', value


def _refuse(constant):
    raise ValueError(f'{constant} in an answer')
