"""Finds the program in a response. Nothing of the response is run here."""

from __future__ import annotations

import ast
import re
import warnings

_LONGEST = 1 << 18  # characters of a response
_MOST_REMARKS = 20
_FENCE = re.compile(r'^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)', re.MULTILINE | re.DOTALL)
_FIRST_LINE = re.compile(r'^(?:(?:async def|def|class|import|from)\b|@)', re.MULTILINE)


def extract(response: str, entry_point: str, prompt: str = '') -> str | None:
    """The program in `response`, behind `prompt`; None if there is none.

    Looked for, in this order: the last fenced block, closed or not, that defines `entry_point`; the same in the text
    before any fence, or between [BEGIN] and [DONE], without the prose around it; a text which goes on where `prompt`
    ends, with an indented line; any last fenced block.
    """
    text = response.removeprefix('\ufeff').replace('\r\n', '\n').replace('\r', '\n')
    if len(text) > _LONGEST:
        return None
    given = prompt.rstrip('\n') + '\n' if prompt else ''
    name = re.escape(entry_point)
    defines = re.compile(rf'^[ \t]*(?:async +def|def|class) +{name}\b|^{name} *[:=]', re.MULTILINE)
    blocks = _FENCE.findall(text)
    for block in reversed(blocks):
        if defines.search(block):
            return given + block
    text = text.partition('```')[0]
    text = (text.partition('[BEGIN]')[2] or text).partition('[DONE]')[0]
    first = _FIRST_LINE.search(text)
    if first and defines.search(text, first.start()):
        return given + _without_remarks(text[first.start():], given)
    beginning = next((line for line in text.split('\n') if line.strip()), '')
    if given and beginning[:1] in (' ', '\t'):
        return given + _without_remarks(text, given)
    return given + blocks[-1] if blocks and blocks[-1].strip() else None


def _without_remarks(program: str, given: str) -> str:
    """`program` without the prose behind it; as it is if that does not make Python of it."""
    lines = program.split('\n')
    end, before = len(lines), given.count('\n')
    for _ in range(_MOST_REMARKS):
        error = _error_line(given + '\n'.join(lines[:end]))
        if error is None:
            return '\n'.join(lines[:end])
        # The line at fault, or the one at the margin above it, is where the prose begins.
        end = next((i for i in range(min(error - before, end) - 1, 0, -1) if lines[i][:1].strip()), 0)
        if end == 0:
            break
    return program


def _error_line(source: str) -> int | None:
    """The line, from 1, where `source` stops being Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ast.parse(source)
        return None
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):  # null bytes, nesting
        return 1
