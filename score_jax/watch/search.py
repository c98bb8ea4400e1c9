"""Pages of the samples that pass a filter and hold a text, and how many pass at all.

Filters look at the index alone. A text is looked for in the files, in the order of the page, for no longer than
`SECONDS`; the answer then says how far it came and where to go on, so that no question takes long to answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from score_jax.jsonl import number, plain
from score_jax.report_html import KINDS
from score_jax.watch.samples import COPIED, Index, SampleFile, answer, parse, turns_of

SECONDS = 0.1  # for reading what is on a page
PAGE_BYTES = 8 << 20  # of lines on one page, at least one
SLICE_ROWS = 2000  # that are searched at once
SLICE_BYTES = 4 << 20
SNIPPET = 200  # characters of a text in a list
_NONE = np.zeros(0, np.uint32)
LONGEST = 20_000  # characters of a text that are shown; the middle of a longer one is left out


class Filter(NamedTuple):
    """What a sample must be; empty fields ask for nothing."""

    labels: tuple[str, ...] = ()  # all of them
    source: str = ''  # as `samples.source_of` names it
    upto: int | None = None  # trained no further than this step
    text: str = ''  # in the problem, a response, or what was read; letters A-Z match their small ones


class Place(NamedTuple):
    """A sample's file and its line among the readable ones; the address of a sample."""

    run: str
    stage: str
    row: int


Files = Sequence[tuple[str, str, SampleFile]]  # (run, stage, file) in the order of the page


def rows(file: SampleFile, index: Index, wanted: Filter, bits: dict[str, int]) -> np.ndarray:
    """Rows `[M]` that pass all but the text, in the order of the page."""
    passing = np.ones(len(index), bool)
    if wanted.labels:
        mask = sum({bits.get(name, 0) for name in wanted.labels})
        passing &= (index.labels & mask) == mask if all(name in bits for name in wanted.labels) else False
    if wanted.source:
        passing &= index.source == file.sources.index(wanted.source) if wanted.source in file.sources else False
    if wanted.upto is not None:
        passing &= index.step <= wanted.upto
    found = np.flatnonzero(passing)
    return found[::-1] if file.latest_first else found


def count(files: Files, wanted: Filter, bits: dict[str, int]) -> dict:
    """How many samples pass all but the text, and how many would if one thing were chosen otherwise.

    `total` passes; `sources` by source whatever source is asked for; `labels` also asked for, where a sample has one
    kind only, so that the kinds are counted whatever kind is asked for.
    """
    any_kind = wanted._replace(labels=tuple(name for name in wanted.labels if name not in KINDS))
    by_source, labels, of_any_kind = {}, [_NONE], [_NONE]
    for _, _, file in files:
        index = file.index
        codes = _taken(index.source, rows(file, index, wanted._replace(source=''), bits))
        for name, share in zip(file.sources, np.bincount(codes, minlength=len(file.sources)).tolist()):
            by_source[name] = by_source.get(name, 0) + share
        labels.append(_taken(index.labels, rows(file, index, wanted, bits)))
        if any_kind != wanted:
            of_any_kind.append(_taken(index.labels, rows(file, index, any_kind, bits)))
    passing = np.concatenate(labels)
    kinds = _count_bits(passing if any_kind == wanted else np.concatenate(of_any_kind),
                        {name: bits[name] for name in KINDS})
    by_label = _count_bits(passing, {name: bit for name, bit in bits.items() if name not in KINDS}) | kinds
    return {'total': len(passing), 'labels': by_label, 'sources': by_source}


def _count_bits(labels: np.ndarray, bits: dict[str, int]) -> dict[str, int]:
    scratch = np.empty_like(labels)  # fresh memory for each bit would cost more than the counting
    return {name: int(np.count_nonzero(np.bitwise_and(labels, np.uint32(bit), out=scratch)))
            for name, bit in bits.items()}


def _taken(column: np.ndarray, found: np.ndarray) -> np.ndarray:
    return column if len(found) == len(column) else column[found]


def page(files: Files, wanted: Filter, bits: dict[str, int], start: Place | None, limit: int) -> dict:
    """At most `limit` samples from `start` on: their `rows`, the place `next` (None at the end), `scanned` lines.

    A page is shorter where time or `PAGE_BYTES` run out first.
    """
    until, read, found = time.monotonic() + SECONDS, 0, []
    scanned = 0
    for run, stage, file in _from(files, start):
        index = file.index
        todo = rows(file, index, wanted, bits)
        if start is not None and (run, stage) == start[:2]:
            todo = todo[todo <= start.row] if file.latest_first else todo[todo >= start.row]
        for part in _slices(index, todo):
            if scanned and time.monotonic() > until:
                return {'rows': found, 'next': Place(run, stage, int(part[0])), 'scanned': scanned}
            for row, line in _matching(file, index, part, wanted.text):
                if found and (len(found) == limit or read + len(line) > PAGE_BYTES or time.monotonic() > until):
                    scanned += int(np.argmax(part == row))
                    return {'rows': found, 'next': Place(run, stage, row), 'scanned': scanned}
                read += len(line)
                sample = parse(line)
                if sample is not None and (not wanted.text or _holds(sample, wanted.text)):
                    found.append(_summary(Place(run, stage, row), sample, file, index, bits))
            scanned += len(part)
    return {'rows': found, 'next': None, 'scanned': scanned}


def _from(files: Files, start: Place | None) -> Iterator[tuple[str, str, SampleFile]]:
    waiting = start is not None
    for run, stage, file in files:
        waiting = waiting and (run, stage) != start[:2]
        if not waiting:
            yield run, stage, file


def _slices(index: Index, todo: np.ndarray) -> Iterator[np.ndarray]:
    """`todo` in pieces of at most `SLICE_ROWS` rows that lie within `SLICE_BYTES`, at least one row each."""
    start = 0
    while start < len(todo):
        part = todo[start:start + SLICE_ROWS]
        offsets, ends = index.offset[part], index.offset[part] + index.length[part]
        span = np.maximum.accumulate(ends) - np.minimum.accumulate(offsets)
        part = part[:max(int(np.searchsorted(span, SLICE_BYTES, side='right')), 1)]
        yield part
        start += len(part)


def _matching(file: SampleFile, index: Index, part: np.ndarray, text: str) -> Iterator[tuple[int, bytes]]:
    """The lines of `part`, of which those are left out whose bytes say that they do not hold `text`."""
    base = int(index.offset[part].min())
    data = file.read(base, int((index.offset[part] + index.length[part]).max()) - base)
    if text:
        part = part[_candidates(data, base, index, part, text)]
    for row in part.tolist():
        start = int(index.offset[row]) - base
        yield row, data[start:start + int(index.length[row])]


def _candidates(data: bytes, base: int, index: Index, part: np.ndarray, text: str) -> np.ndarray:
    """Which of `part` `[M]` may hold the text: JSON may have written it in ASCII or in UTF-8."""
    starts = index.offset[part] - base
    ends = starts + index.length[part]
    order = np.argsort(starts)
    keep = np.zeros(len(part), bool)
    data = data.lower()
    for ascii_only in (True, False):
        needle = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode('utf-8', 'replace').lower()
        at = data.find(needle)
        while at >= 0:
            place = int(np.searchsorted(starts[order], at, side='right')) - 1
            end = at + 1
            if place >= 0 and at < ends[order[place]]:
                keep[order[place]] = True
                end = int(ends[order[place]])
            at = data.find(needle, end)
    return keep


def _texts(sample: dict) -> Iterator[str]:
    yield str(sample.get('problem') or '')
    for turn in turns_of(sample):
        yield str(turn.get('response') or '')
        yield str(turn.get('read') or '')


def _holds(sample: dict, text: str) -> bool:
    small = text.lower()
    return any(small in value.lower() for value in _texts(sample))


# --- what is shown of a sample


def _summary(place: Place, sample: dict, file: SampleFile, index: Index, bits: dict[str, int]) -> dict:
    labels = int(index.labels[place.row])
    turns = turns_of(sample)
    return {
        'place': place, 'problem': _snippet(sample.get('problem')), 'step': _finite(sample, 'step'),
        'source': file.sources[index.source[place.row]], 'kind': next((k for k in KINDS if labels & bits[k]), None),
        'copied': bool(labels & bits[COPIED]),
        'turns': [{'outcome': _outcome(turn), 'answer': _snippet(answer(turn))}
                  for turn in turns[:4]]}


def detail(sample: dict, place: Place, source: str, labels: list[str]) -> dict:
    """A sample as it is shown by itself; texts as `text` gives them."""
    return {
        'place': place, 'source': source, 'labels': labels, 'step': _finite(sample, 'step'),
        'problem': text(sample.get('problem')), 'instruction': text(sample.get('instruction')),
        'turns': [{
            'response': text(turn.get('response')), 'read': None if turn.get('read') is None else text(turn['read']),
            'outcome': _outcome(turn), 'tokens': _finite(turn, 'tokens'), 'reward': _finite(turn, 'reward'),
            'truncated': turn.get('truncated') is True} for turn in turns_of(sample)[:16]]}


def text(value: object) -> dict:
    """`{'text', 'left_out'}`: control characters made visible, the middle of a very long text left out."""
    value = '' if value is None else str(value)
    left_out = max(len(value) - LONGEST, 0)
    if left_out:
        head, tail = LONGEST * 2 // 3, LONGEST - LONGEST * 2 // 3
        value = f'{value[:head]}\n[… {left_out:,} characters left out …]\n{value[-tail:]}'
    return {'text': plain(value), 'left_out': left_out}


def _snippet(value: object) -> str:
    value = '' if value is None else value if isinstance(value, str) else str(value)
    return plain(value[:SNIPPET]) + ('…' if len(value) > SNIPPET else '')


def _outcome(turn: dict) -> str:
    return plain(str(turn.get('outcome') or 'not graded')[:60])


def _finite(row: dict, key: str) -> float | None:
    value = number(row, key)
    return value if value == value else None
