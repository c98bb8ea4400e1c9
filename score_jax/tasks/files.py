"""Files of problems: one JSON object a line, read strictly, so that no problem is lost without a word."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from score_jax.errors import UserError


def read_records(path: Path, fields: Sequence[str]) -> Iterator[dict]:
    """The objects of `path` (`.jsonl`, or `.gz` of it), in order; empty lines are passed over.

    Raises:
      UserError: no such file; a line that is no JSON object or lacks one of `fields`, by its number.
    """
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rt', encoding='utf-8') as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _record(line, f'{path}, line {number}', fields)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be read ({reason}); it must be a file of one JSON object a line.') from None


def _record(line: str, where: str, fields: Sequence[str]) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f'{where} is no JSON object; write one a line, such as {{"problem": ..., "answer": ...}}.')
    for field in fields:
        if field not in record:
            raise UserError(
                f'{where} has no field {field!r}, only {", ".join(map(repr, record)) or "none"}; every line needs '
                f'{" and ".join(map(repr, fields))}.')
    return record
