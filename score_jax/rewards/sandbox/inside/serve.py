"""Runs the program and answers calls: frames of a length (4 bytes, big-endian) and a body, on pipes of their own.

Requests come from the trusted side, as `marshal`; answers go back as JSON, because that side trusts nothing from here.
"""

import marshal
import os
import sys

import values

_LONGEST_MESSAGE = 300  # characters of an exception's text


def read(descriptor: int):
    """The next request; None once the other side has closed."""
    length = _read(descriptor, 4)
    return marshal.loads(_read(descriptor, int.from_bytes(length, 'big'))) if length else None


def write(descriptor: int, text: str) -> None:
    """Sends one ASCII text, its length first."""
    data = text.encode('ascii')
    data = memoryview(len(data).to_bytes(4, 'big') + data)
    while data:
        data = data[os.write(descriptor, data):]


def line(*words: str) -> str:
    """A JSON array of strings."""
    return values.encode(list(words), 1 << 20).replace('["l",', '[', 1)


def _read(descriptor: int, count: int) -> bytes:
    parts = []
    while count > 0:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            return b''
        parts.append(part)
        count -= len(part)
    return b''.join(parts)


def serve(requests: int, answers: int, largest: int) -> None:
    """Answers requests until there are no more.

    ('load', source, setup)         -> ["value", null]: runs the program, then `setup` behind it
    ('call', name, args, kwargs)    -> ["value", JSON]
    Either may be answered by ["error", type, message] or ["not data", why]. An argument is ('value', plain value) or
    ('source', Python), evaluated here because it uses what the program defines.
    """
    # The program is a module of its own, so that what it defines can be pickled by its own processes.
    module = sys.modules['program'] = type(sys)('program')
    names = module.__dict__
    for name in ('serve', 'values', 'kernel', 'paths', 'namespaces', 'landlock', 'seccomp'):
        sys.modules.pop(name, None)  # a program means its own, if any
    while (request := read(requests)) is not None:
        write(answers, _answer(names, request, largest))


def _answer(names: dict, request: tuple, largest: int) -> str:
    try:
        if request[0] == 'load':
            for source in request[1:]:
                exec(compile(source, 'program', 'exec'), names)
            return '["value",null]'
        _, name, args, kwargs = request
        args = [_argument(names, argument) for argument in args]
        kwargs = {key: _argument(names, argument) for key, argument in kwargs.items()}
        function = names.get(name)
        if function is None:
            return line('error', 'NameError', f'the program defines no {name}')
        return f'["value",{values.encode(function(*args, **kwargs), largest)}]'
    except values.NotData as error:
        return line('not data', str(error))
    except BaseException as error:  # the program's, SystemExit among them
        return _error(error)


def _argument(names: dict, argument: tuple):
    kind, content = argument
    return content if kind == 'value' else eval(content, names)


def _error(error: BaseException) -> str:
    name = 'MemoryError' if isinstance(error, MemoryError) else type(error).__name__
    try:
        message = str.__str__(str(error))[:_LONGEST_MESSAGE]
    except BaseException:  # an exception may have a __str__ of the program's
        message = ''
    return line('error', name, message)
