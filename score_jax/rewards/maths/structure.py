"""What kind of answer it is: a number with its unit, a tuple or interval, a set, list, matrix, relation, or words."""

from __future__ import annotations

import dataclasses
import functools
import re

from score_jax.rewards.maths import value

_OPENING = {'(', '[', '{', '\\{', '\\langle', '\\begin'}
_CLOSING = {')', ']', '}', '\\}', '\\rangle', '\\end'}
_BRACKETS = {'(', '[', '\\{', '\\langle', ')', ']', '\\}', '\\rangle'}
_RELATIONS = {'=', '<', '>', '\\le', '\\ge', '\\ne', '\\approx', '\\equiv', '\\in', '\\to'}
_TOKEN = re.compile(r'\\[a-zA-Z]+|\\.|.', re.DOTALL)
_MATRIX = re.compile(
    r'\\begin\s*\{([a-zA-Z]*)(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1(?:matrix|array)\}', re.DOTALL)
_BASE = re.compile(
    r'\(?(-?(?:[\d.]*\d[0-9A-Za-z.]*|[0-9A-Z]*\d[0-9A-Z]*))\)?'
    r'(?:_\{?(\d{1,2})\}?|\\text\{base(\d{1,2})\}|base(\d{1,2}))')
_THOUSANDS = re.compile(r'[-+]?(?:\\\$)?\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])')
_WORDS = re.compile(r'(?:\\text\{[^{}]*\}|[A-Za-z.\'’: -])+')
_UNIT = re.compile(
    r'\\text\{([^{}]*)\}(?:\s*\^\s*\{?([23])\}?)?$|'
    r'(?<![\\A-Za-z])([A-Za-z][A-Za-z./ ]*)(?:\^\s*\{?([23])\}?)?$')

# Measures by their names; other nouns ('apples', 'integers') say nothing that could be wrong.
_MEASURES = {
    name: names.split()[0] for names in (
        'cm centimeter centimeters centimetre centimetres', 'm meter meters metre metres', 'mm millimeter millimeters',
        'km kilometer kilometers kilometre kilometres', 'inch inches in', 'foot feet ft', 'yard yards yd',
        'mile miles mi', 'mph', 'second seconds sec secs s', 'minute minutes min mins', 'hour hours hr hrs h',
        'day days', 'week weeks', 'month months', 'year years yr yrs', 'g gram grams', 'kg kilogram kilograms', 'mg',
        'pound pounds lb lbs', 'ounce ounces oz', 'liter liters litre litres l', 'ml milliliter milliliters',
        'gallon gallons', 'dollar dollars usd', 'cent cents', 'euro euros', 'degree degrees deg', 'percent percentage',
        'am a.m', 'pm p.m', 'rad radian radians', 'acre acres', 'unit units', 'kph', 'nickel nickels', 'dime dimes',
        'quarter quarters', 'cup cups')
    for name in names.split()}


@dataclasses.dataclass(frozen=True)
class Node:
    """A part of an answer.

    `kind`: scalar, base (`detail` is the base), words, list, set, brackets (`detail` is the pair), union, ratio,
    matrix (`items` are rows, `detail` the bars or '') or relation (`detail` are the signs). `text` is what was read.
    """

    kind: str
    text: str
    items: tuple[Node, ...] = ()
    detail: tuple[str, ...] = ()
    unit: str | None = None


@functools.lru_cache(4096)
def readings(text: str) -> tuple[Node, ...]:
    """A cleaned answer as a tree; two trees for '100,200', which may be one number or a list."""
    node = read(text)
    number = _THOUSANDS.match(text)
    if number and ',' not in text[number.end():]:
        return read(number[0].replace(',', '') + text[number.end():]), node
    return (node,)


def read(text: str) -> Node:
    """The tree of a cleaned answer, or of a part of one."""
    text = re.sub(r'^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*', '', text.strip())
    text = re.sub(r'^\\approx(?![a-zA-Z])\s*', '', text)
    parts, _ = _split(text, {',', ';'})
    if len(parts) > 1:
        items = [read(part) for part in parts if part.strip()]
        return Node('list', text, tuple(_flat(items)))
    if re.search(r'\\[pm][mp](?![a-zA-Z])', text):
        upper = re.sub(r'\\pm(?![a-zA-Z])', '+', re.sub(r'\\mp(?![a-zA-Z])', '-', text))
        lower = re.sub(r'\\pm(?![a-zA-Z])', '-', re.sub(r'\\mp(?![a-zA-Z])', '+', text))
        if upper != lower:
            return Node('list', text, (read(upper), read(lower)))
    parts, signs = _split(text, _RELATIONS)
    if len(parts) > 1:
        return Node('relation', text, tuple(_scalar(part.strip()) for part in parts), tuple(signs))
    for kind, sign in (('union', '\\cup'), ('ratio', ':')):
        parts, _ = _split(text, {sign})
        if len(parts) > 1 and all(part.strip() for part in parts):
            return Node(kind, text, tuple(read(part) for part in parts))
    return _bracketed(text) or _scalar(text)


def _flat(items: list[Node]) -> list[Node]:
    return [part for item in items for part in (item.items if item.kind == 'list' else (item,))]


def _split(text: str, signs: set[str]) -> tuple[list[str], list[str]]:
    """`text` parted at those `signs` that stand in no brackets, and the signs found."""
    parts, found, depth, start = [], [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0 and token[0] in signs:
            parts.append(text[start:token.start()])
            found.append(token[0])
            start = token.end()
    return [*parts, text[start:]], found


def _bracketed(text: str) -> Node | None:
    """A matrix, tuple, interval or set; None if `text` as a whole is none."""
    matrix = _MATRIX.fullmatch(text)
    if matrix and '\\begin' not in matrix[2]:
        rows = [row for row in matrix[2].split('\\\\') if row.strip()]
        items = tuple(Node('row', row, tuple(read(cell) for cell in row.split('&'))) for row in rows)
        return Node('matrix', text, items, ('|',) if matrix[1].lower() == 'v' else ('',))
    if text in ('\\emptyset', '\\{\\}', '\\{ \\}'):
        return Node('set', text)
    tokens = list(_TOKEN.finditer(text))
    if len(tokens) < 3 or tokens[0][0] not in _BRACKETS or tokens[-1][0] not in _BRACKETS:
        return None
    depth = 0
    for token in tokens[:-1]:
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0:  # the first bracket closes before the end
            return None
    inside = text[tokens[0].end():tokens[-1].start()]
    parts, _ = _split(inside, {',', ';'})
    pair = tuple({'\\langle': '(', '\\rangle': ')'}.get(token[0], token[0]) for token in (tokens[0], tokens[-1]))
    if pair == ('\\{', '\\}'):
        return Node('set', text, tuple(_flat([read(part) for part in parts])))
    if len(parts) > 1:
        return Node('brackets', text, tuple(read(part) for part in parts), pair)
    return read(inside) if pair == ('(', ')') else None


def _scalar(text: str) -> Node:
    """A number or expression with its unit, digits in a base, or words."""
    based = _BASE.fullmatch(text.replace(' ', ''))
    if based:
        base = next(group for group in based.groups()[1:] if group)
        if base != '10':
            return Node('base', re.sub(r'^(-?)0+(?=\w)', r'\1', based[1].upper()), detail=(base,))
        text = based[1]
    number, unit = _without_unit(text)
    if unit is None and _WORDS.fullmatch(text) and re.search(r'\\text|[A-Za-z]{4,}|[A-Za-z] [A-Za-z]{2,}', text):
        return Node('words', words(text))
    return Node('scalar', number, unit=unit)


def _without_unit(text: str) -> tuple[str, str | None]:
    """An expression and its unit: measures by one name, `cm^2`; '' for any other noun, None if there is none."""
    money = re.match(r'([-+]?)\s*\\\$\s*', text)
    if money:
        return _without_unit(money[1] + text[money.end():])[0], 'dollar'
    leading = re.match(r'([-+]?)\s*\\text\{(euro|pound)\}\s*(?=\d)', text)
    if leading:
        return leading[1] + text[leading.end():], leading[2]
    if _is_in_degrees(text):
        return text.removesuffix('^\\circ').strip(), 'degree'
    for ending, name in (('%', 'percent'), ('\\$', 'dollar')):
        if text.endswith(ending):
            number = text.removesuffix(ending).strip()
            return (number, name) if _is_readable(number) else (text, None)
    found = _UNIT.search(text)
    if not found:
        return text, None
    number, name = text[:found.start()].strip(), (found[1] or found[3] or '').strip().casefold()
    is_noun = found[1] is not None or name.rstrip('.') in _MEASURES and len(name) > 1 or re.search(r'[a-z]{4}', name)
    if not is_noun or not _is_readable(number):
        return text, None
    return number, _measure(name, found[2] or found[4])


def _measure(name: str, power: str | None) -> str:
    for word, exponent in (('square', '2'), ('cubic', '3'), ('sq', '2')):
        if name.startswith(word + ' '):
            name, power = name.removeprefix(word).strip(), exponent
    measure = _MEASURES.get(name.rstrip('.'), '')
    return f'{measure}^{power}' if measure and measure != 'unit' and power else '' if measure == 'unit' else measure


def _is_in_degrees(text: str) -> bool:
    """`30^\\circ` is; `\\cos 30^\\circ` is a number like any other."""
    if not text.endswith('^\\circ') or not _is_readable(text):
        return False
    tree = value.parse(text)
    return tree[0] == 'degrees' or tree[0] == 'neg' and tree[1][0] == 'degrees'


def _is_readable(text: str) -> bool:
    try:
        value.parse(text)
        return True
    except value.Unreadable:
        return False


def words(text: str) -> str:
    """Words without commands, spaces' number, marks and case; the case of a single letter counts."""
    plain = re.sub(r'\\text\{([^{}]*)\}', r' \1 ', text)
    plain = ' '.join(re.sub(r'[^\w\s:-]', '', plain).split())
    return plain.casefold() if len(plain) > 1 else plain
