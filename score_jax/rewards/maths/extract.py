"""What a response gives as its answer, in the form that it was asked for and no other: never a number by luck."""

from __future__ import annotations

import re

FORMS = ('boxed', 'final_answer', '####', 'any')

_BOX = re.compile(r'\\(?:boxed|fbox)\s*')
_TAIL = 200_000  # characters of a response that are looked at
_MOST_BOXES = 20  # that stand side by side and are read as one list
_BETWEEN_BOXES = re.compile(r'[\s$,;]*(?:\\text\s*\{\s*(?:and|or)\s*\}|and|or)?[\s$,;]*')
_FINAL = re.compile(r'final\s+answer', re.IGNORECASE)
_BEFORE_FINAL = re.compile(r'[\s*_]*(?:\([^()\n]{0,40}\))?[\s*_]*(?:is\b|:|=)?[\s*_:]*(?:is\b)?[\s:]*', re.IGNORECASE)
_HOPE = re.compile(r'I hope (?:it|this) is correct', re.IGNORECASE)
_HASHES = re.compile(r'(?<!#)####(?!#)')
_DRAWING = re.compile(r'\[asy\].*?\[/asy\]', re.DOTALL)


def read(response: str, form: str) -> str | None:
    """The answer that stands in `response`, as it is written there; None if the form is absent.

    `boxed`: the content of the last `\\boxed`, or of the last ones if they are a list, `\\boxed{1} and \\boxed{2}`.
    `final_answer`: the rest of the last line that says 'final answer', or the line below it if that is all it says.
    `####`: the rest of the line behind the last `####`.
    `any`: whichever of these comes last.
    """
    response = response[-_TAIL:]
    if form == 'boxed':
        found = _last_boxes(response)
    elif form == 'final_answer':
        found = _final(response)
    elif form == '####':
        found = _hashes(response)
    else:
        found = max((_last_boxes(response), _final(response), _hashes(response)), key=lambda found: found[0])
    answer = found[1].strip()
    return answer or None


def gold(solution: str) -> str:
    """The gold of a MATH solution: all its boxes, in order, each value once; an empty box means 0.

    204 problems have several boxes; what is drawn (`[asy]`) or invisible (`\\phantom`) is no answer.
    """
    from score_jax.rewards.maths.compare import equal

    boxes: list[str] = []
    text = _DRAWING.sub('', solution)
    for match in _BOX.finditer(text):
        box = (_braced(text, match.end()) or ('', 0))[0].strip()
        if not box.startswith('\\phantom') and not any(equal(earlier, box)[0] for earlier in boxes):
            boxes.append(' '.join(box.split()))
    return ', '.join(boxes) or '0'


def _braced(text: str, start: int) -> tuple[str, int] | None:
    """The group or single token at `start`, and where it ends; None if it never closes."""
    if text[start:start + 1] != '{':
        token = re.compile(r'\\[a-zA-Z]+|[^\s{}$]').match(text, start)
        return token and (token[0], token.end())
    depth = 0
    for brace in re.compile(r'\\.|[{}]', re.DOTALL).finditer(text, start):
        depth += {'{': 1, '}': -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1:brace.start()], brace.end()
    return None


def _last_boxes(text: str) -> tuple[int, str]:
    starts = [match.span() for match in _BOX.finditer(text)][-_MOST_BOXES:]
    boxes: list[str] = []
    following = None  # where the box behind begins
    for begin, inside in reversed(starts):
        group = _braced(text, inside)
        if group is None or following is not None and (
                group[1] > following or not _BETWEEN_BOXES.fullmatch(text, group[1], following)):
            break
        boxes.insert(0, group[0])
        following = begin
    return starts[-1][0] if starts else -1, ', '.join(boxes)


def _final(text: str) -> tuple[int, str]:
    said = None
    for said in _FINAL.finditer(text):
        pass
    if said is None:
        return -1, ''
    rest = text[_BEFORE_FINAL.match(text, said.end()).end():]
    if display := re.match(r'(?:\\\[|\$\$?)\s*\n', rest):  # the formula is on the lines below
        rest = rest[display.end():]
    line = _HOPE.split(_line(rest), maxsplit=1)[0].rstrip('. ')
    box = _last_boxes(line)
    return said.start(), box[1] if box[0] >= 0 else _bare(line)


def _line(text: str) -> str:
    """Up to the first line break outside braces."""
    depth = 0
    for mark in re.compile(r'\\.|[{}\n]').finditer(text):
        depth += {'{': 1, '}': -1}.get(mark[0], 0)
        if mark[0] == '\n' and depth <= 0:
            return text[:mark.start()]
    return text


def _bare(line: str) -> str:
    """Without emphasis, the dollars of a formula and the full stop around it."""
    line = line.strip('*_ \t\r')
    if line.count('$') - line.count('\\$') == 2:
        line = re.sub(r'^\$(.*)(?<!\\)\$\.?$', r'\1', line)
    return line


def _hashes(text: str) -> tuple[int, str]:
    mark = None
    for mark in _HASHES.finditer(text):
        pass
    return (-1, '') if mark is None else (mark.start(), _line(text[mark.end():]))
