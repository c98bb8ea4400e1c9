"""Reading files of one JSON object a line, also while a run is still writing them, and what may stand in them."""

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path


def iter_jsonl(path: Path) -> Iterator[dict]:
    """The objects of `path`, one at a time; nothing at all when there is no such file.

    Lines that hold no whole JSON object (a half-written last line, a torn write, bad bytes) are left out.
    """
    try:
        lines = open(path, encoding='utf-8', errors='replace', newline='\n')
    except OSError:
        return
    with lines:
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def read_jsonl(path: Path) -> list[dict]:
    """Every object of `path`; see `iter_jsonl` for what is left out."""
    return list(iter_jsonl(path))


def number(row: dict, key: str) -> float:
    """`row[key]` as a float, and NaN for whatever is no finite number: absent, null, text, infinite."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def plain(value: object) -> str:
    """`str(value)` with control and formatting characters made visible, so that no text can steer what shows it."""
    return re.sub(r'[^\n\t\x20-\x7e]', _visible, str(value).replace('\r\n', '\n'))


def _visible(match: re.Match) -> str:
    character = match[0]
    # Cc control (ESC), Cf formatting (bidi overrides, zero width), Cs lone surrogates, Zl/Zp line separators. The two
    # joiners are part of ordinary writing.
    if unicodedata.category(character) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp') and character not in '\u200c\u200d':
        return f'⟨U+{ord(character):04X}⟩'
    return character
