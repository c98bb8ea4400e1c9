"""Is an answer equal to the gold? First by text, then kind by kind, down to numbers; math-verify for what is left."""

from __future__ import annotations

import functools
import logging
import re
import string

from score_jax.rewards.maths import value
from score_jax.rewards.maths.clean import clean, compact
from score_jax.rewards.maths.structure import Node, readings, words

LONGEST = 1000  # characters of an answer; the longest gold of MATH has 159
_MIRRORED = {'<': '>', '>': '<', '\\le': '\\ge', '\\ge': '\\le', '=': '=', '\\ne': '\\ne'}

Result = tuple[bool, str]


def equal(gold: str, answer: str) -> Result:
    """Whether they say the same, and why. Never symmetric for units: what the gold leaves out, an answer may add.

    Ordered: tuples, intervals, matrices, ratios. In any order: sets, and lists without brackets. A tuple is no set, and
    `25%` is 0.25; it is 25 only where percent were asked for: the gold says `%`, or is above 1.
    """
    if max(len(gold), len(answer)) > LONGEST:
        return gold.strip() == answer.strip(), f'longer than {LONGEST} characters: compared as text'
    gold, answer = clean(gold), clean(answer)
    if not answer:
        return False, 'the answer is empty'
    if compact(gold) == compact(answer):
        return True, 'the same text'
    result = False, ''
    for a in readings(answer):
        for g in readings(gold):
            result = _nodes(g, a)
            if result[0]:
                return result
    return result


def _nodes(g: Node, a: Node) -> Result:
    if g.kind == 'relation' or a.kind == 'relation':
        return _relations(g, a)
    if 'words' in (g.kind, a.kind):
        same = words(g.text) == words(a.text) and not (g.unit or a.unit)
        return same, f'as words: {words(g.text)!r} and {words(a.text)!r}'
    if {g.kind, a.kind} in ({'list', 'set'}, {'scalar', 'set'}, {'list', 'union'}):
        return _in_any_order(*((node,) if node.kind == 'scalar' else node.items for node in (g, a)))
    if g.kind != a.kind:
        return False, f'a {g.kind} and a {a.kind}'
    if g.detail != a.detail:
        return False, f'{g.kind}: {" ".join(g.detail)} and {" ".join(a.detail)}'
    match g.kind:
        case 'scalar':
            return _scalars(g, a)
        case 'base':
            return g.text == a.text, f'digits in base {g.detail[0]}: {g.text} and {a.text}'
        case 'list' | 'set' | 'union':
            return _in_any_order(g.items, a.items)
    return _in_order(g.items, a.items)


def _in_order(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> Result:
    if len(gold) != len(answer):
        return False, f'{len(gold)} parts and {len(answer)}'
    for number, (g, a) in enumerate(zip(gold, answer), 1):
        same, why = _nodes(g, a)
        if not same:
            return False, f'part {number}: {why}'
    return True, 'equal part by part'


def _in_any_order(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> Result:
    gold, answer = _without_name(gold), _without_name(answer)
    if len(gold) != len(answer):
        return False, f'{len(gold)} parts and {len(answer)}'
    left = list(answer)
    for g in gold:
        found = next((a for a in left if bool(_assigned(g)) == bool(_assigned(a)) and _nodes(g, a)[0]), None)
        if found is None:
            return False, f'nothing equals {g.text}'
        left.remove(found)
    return True, 'equal part by part, in any order'


def _without_name(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """`x = 1, 2` and `x = 1, x = 2` without their x, where it is the same one throughout."""
    names = {_assigned(item)[0] for item in items if _assigned(item)}
    first, *rest = items or (None,)
    if len(names) == 1 and _assigned(first) and all(_assigned(item) or item.kind != 'relation' for item in rest):
        return tuple(_assigned(item)[1] if _assigned(item) else item for item in items)
    return items


# ---- relations ------------------------------------------------------------------------------------------------------


def _assigned(node: Node) -> tuple[str, Node] | None:
    """The name and the value of `x = 5`, `f(x) = 5` or `x = 2 + 3 = 5`; None for any other relation."""
    if node is None or node.kind != 'relation' or set(node.detail) - {'=', '\\approx'}:
        return None
    name = compact(node.items[0].text)
    if re.fullmatch(r'\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\([A-Za-z]\)', name):
        return (name, _result(node.items[1:])) if _result(node.items[1:]) else None
    return None


def _result(items: tuple[Node, ...]) -> Node | None:
    """The last side of a chain of equal ones; None if they are not equal."""
    *before, last = items
    last = readings(last.text)[0] if last.unit is None else last
    return last if all(_nodes(last, item)[0] for item in before) else None


def _relations(g: Node, a: Node) -> Result:
    if g.kind == a.kind:
        if _assigned(g) and _assigned(a) and _assigned(g)[0] == _assigned(a)[0]:
            return _nodes(_assigned(g)[1], _assigned(a)[1])
        return _two_relations(g, a)
    relation, other = (g, a) if g.kind == 'relation' else (a, g)
    if _assigned(relation):
        alone = _assigned(relation)[1]
        return _nodes(alone, other) if relation is g else _nodes(other, alone)
    if set(relation.detail) <= {'=', '\\approx'} and not any(map(_names, relation.items)):
        alone = _result(relation.items)  # 0.56 = 56% has its result at the end
        if alone is None:
            return False, 'an equation that is not true'
        return _nodes(alone, other) if relation is g else _nodes(other, alone)
    interval = _interval(relation)
    if interval is None:
        return False, f'a relation and a {other.kind}'
    return _nodes(interval, other) if relation is g else _nodes(other, interval)


def _two_relations(g: Node, a: Node) -> Result:
    """Equal sides, sides exchanged, or differences of the sides in a constant proportion: `2x = 6` is `x = 3`."""
    if len(g.items) == len(a.items):
        if g.detail == a.detail and _in_order(g.items, a.items)[0]:
            return True, 'equal on all sides'
        mirrored = tuple(_MIRRORED.get(sign, '') for sign in reversed(a.detail))
        if g.detail == mirrored and _in_order(g.items, a.items[::-1])[0]:
            return True, 'equal on all sides, exchanged'
    if len(g.items) == len(a.items) == 2 and any(map(_names, g.items)):
        try:
            sign = value.proportional(_difference(g), _difference(a))
        except value.Unreadable as error:
            return False, f'relations that cannot be compared: {error}'
        wanted = a.detail[0] if sign == 1 else _MIRRORED.get(a.detail[0])
        if sign is not None and g.detail[0] == wanted:
            return True, 'the same relation, in a constant proportion'
    return False, 'other relations'


def _difference(relation: Node) -> tuple:
    left, right = (value.parse(item.text) for item in relation.items)
    return '+', left, ('neg', right)


def _interval(relation: Node) -> Node | None:
    """The interval of `1 < x \\le 2` or `x > 5`; None for any other relation."""
    at = [k for k, item in enumerate(relation.items) if re.fullmatch(r'\\?[A-Za-z]+', item.text) and not item.unit]
    signs, items = relation.detail, relation.items
    if len(at) != 1 or set(signs) - {'<', '>', '\\le', '\\ge'} or len(items) - at[0] > 2 or at[0] > 1:
        return None
    below, above = Node('scalar', '-\\infty'), Node('scalar', '\\infty')
    opening, closing = '(', ')'
    for sign, bound, is_left in [(signs[k], items[k if k < at[0] else k + 1], k < at[0]) for k in range(len(signs))]:
        bracketed = sign in ('\\le', '\\ge')
        if (sign in ('<', '\\le')) == is_left:
            below, opening = bound, '[' if bracketed else '('
        else:
            above, closing = bound, ']' if bracketed else ')'
    if len(signs) == 2 and (signs[0] in ('<', '\\le')) != (signs[1] in ('<', '\\le')):
        return None
    return Node('brackets', relation.text, (below, above), (opening, closing))


# ---- numbers and expressions ----------------------------------------------------------------------------------------


def _names(node: Node) -> set[str]:
    try:
        return value.symbols(value.parse(node.text))
    except value.Unreadable:
        return {node.text}


def _scalars(g: Node, a: Node) -> Result:
    if g.unit and a.unit and g.unit != a.unit:
        return False, f'units: {g.unit} and {a.unit}'
    try:
        gold = value.parse(g.text)
    except value.Unreadable as error:
        return _by_math_verify(g.text, a.text, str(error))
    try:
        answer = value.parse(a.text)
        return _values(gold, g.unit, answer, a.unit), f'by value: {_shown(gold)} and {_shown(answer)}'
    except value.Unreadable as error:
        return compact(g.text) == compact(a.text), f'compared as text, since the value is not read: {error}'


def _values(gold: tuple, gold_unit: str | None, answer: tuple, answer_unit: str | None) -> bool:
    as_written = value.same(gold, answer) or value.same(gold, answer, degree=value.Fraction(1))
    if gold_unit == answer_unit or not {'percent', 'degree'} & {gold_unit, answer_unit}:
        return as_written
    hundredth, degree = ('number', value.Fraction(1, 100)), ('/', ('symbol', '\\pi'), ('number', value.Fraction(180)))
    factor = hundredth if 'percent' in (gold_unit, answer_unit) else degree
    if gold_unit:
        return as_written or value.same(('*', gold, factor), answer)
    in_unit = value.same(gold, ('*', answer, factor))
    if answer_unit == 'percent':
        return in_unit or as_written and _is_above_one(gold)
    return in_unit or as_written


def _is_above_one(tree: tuple) -> bool:
    if value.symbols(tree):
        return False
    size = value.evaluate(tree, {})
    return abs(size) > 1


def _shown(tree: tuple) -> str:
    """The value for the eye; at a point where there are variables."""
    number = value.evaluate(tree, value.points(tree)[0])
    at = ' at ' + ', '.join(f'{k}={v}' for k, v in value.points(tree)[0].items()) if value.symbols(tree) else ''
    return value.shown(number) + at


@functools.cache
def load_math_verify() -> tuple:
    """The parser and the comparison of math-verify; a second to import, so only where they may be needed."""
    logging.getLogger('math_verify').setLevel(logging.CRITICAL)  # it warns that it sets no limits: the pool does
    from latex2sympy2_extended.latex2sympy2 import latex2sympy
    from math_verify import verify

    return latex2sympy, verify


@functools.lru_cache(1024)
def _by_math_verify(gold: str, answer: str, reason: str) -> Result:
    """For golds beyond our grammar (integrals, sums, functions without a formula); slow, so for these alone.

    What its parser is known to misread, or to compute without bounds while it parses, is not given to it.
    """
    if compact(gold) == compact(answer):
        return True, 'the same text'
    risky = r"\\sqrt\s*\[|\\binom|!|'|\d{7}|\^\s*\{[^{}]*\^|\d\s*\(|\d\s+\d|\.\d|\^\s*\{?\d{3}|%"
    letters = [set(re.sub(r'\\[A-Za-z]+', '', text)) & set(string.ascii_letters) for text in (gold, answer)]
    if any(len(text) > 200 or re.search(risky, text) for text in (gold, answer)) or letters[0] != letters[1]:
        return False, f'compared as text, since the gold is not read: {reason}'
    latex2sympy, verify = load_math_verify()
    try:
        trees = [latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=None)
                 for text in (gold, answer)]
        return bool(verify(*trees, timeout_seconds=None)), f'by math-verify: {trees[0]} and {trees[1]}'
    except MemoryError:
        raise
    except Exception as error:  # its parsers raise whatever they like on what they cannot read
        return False, f'compared as text, since math-verify cannot read them: {type(error).__name__}'
