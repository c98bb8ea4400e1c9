"""The value of an expression: exact fractions, and 400 digits where roots and pi come in.

Every number is bounded before it is computed, so that no expression takes long. Expressions with variables are compared
at rational points, the same for both sides (Schwartz-Zippel).
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import mpmath

from score_jax.rewards.maths.grammar import FUNCTIONS, Unreadable, parse

__all__ = ['Unreadable', 'close', 'evaluate', 'parse', 'points', 'proportional', 'same', 'shown', 'symbols']

Number = Fraction | mpmath.mpc

# Exact numbers have up to 4,000 digits. Of inexact ones 400 are computed; what goes in is a fraction of at most 150,
# and no magnitude is above 1e90: errors stay below 1e-300, and what is honestly different is above 1e-150. In between
# there is no verdict.
_MOST_EXACT_BITS = 13_000
_DIGITS = 400
_MOST_DIGITS_IN = 150
_LARGEST, _SMALLEST, _NOISE = mpmath.mpf('1e90'), mpmath.mpf('1e-150'), mpmath.mpf('1e-300')
_SAME = mpmath.mpf('1e-280')
_MOST_POWER, _MOST_FACTORIAL = 13_000, 2_000
_MOST_IN_EXPONENTIAL, _MOST_IN_FUNCTION = 200, 10 ** 6
_context = mpmath.mp.clone()
_context.dps = _DIGITS
_NAMES = {'arcsin': 'asin', 'arccos': 'acos', 'arctan': 'atan', 'ln': 'log'}
_FUNCTIONS = {name: getattr(_context, _NAMES.get(name[1:], name[1:])) for name in FUNCTIONS}


def symbols(tree: tuple) -> set[str]:
    """The variables of a tree; pi, e and i are none."""
    if tree[0] == 'symbol':
        return {tree[1]} - {'\\pi', 'e', 'i', '\\circ'}
    return set().union(*(symbols(child) for child in tree[1:] if isinstance(child, tuple)))


def _inexact(x: Number) -> mpmath.mpc:
    if isinstance(x, Fraction):
        if max(abs(x.numerator), x.denominator) >= 10 ** _MOST_DIGITS_IN:
            raise Unreadable('a number too long to be used with roots or pi')
        return _context.mpf(x.numerator) / x.denominator
    return x


def _bounded(x: Number) -> Number:
    """`x`, if it is neither too large nor so small that it cannot be told from 0."""
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > _MOST_EXACT_BITS:
            raise Unreadable('too large a number')
        return x
    size = abs(x)
    if not size < _LARGEST or _NOISE < size < _SMALLEST:  # `not <` also refuses nan
        raise Unreadable('too large or too small a number')
    return x if size >= _SMALLEST else Fraction(0)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0:
            if exponent <= 0:
                raise Unreadable('0 to a power that is not positive')
            return base
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) > _MOST_POWER or bits * abs(exponent) > _MOST_EXACT_BITS:
                raise Unreadable('too large a power')
            return base ** int(exponent)
        if base < 0 and exponent.denominator % 2:  # the real root of odd order
            value = _power(-base, exponent)
            return -value if exponent.numerator % 2 else value
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0 or abs(exponent * _context.log(base)) > 210:
        raise Unreadable('too large a power')
    return _context.exp(exponent * _context.log(base))


def _whole(x: Number, most: int) -> int:
    if not isinstance(x, Fraction) or x.denominator != 1 or not 0 <= x <= most:
        raise Unreadable(f'not a whole number up to {most}')
    return int(x)


def _apply(operation: str, args: list[Number]) -> Number:
    if operation in '+*/' and not all(isinstance(arg, Fraction) for arg in args):
        args = [_inexact(arg) for arg in args]
    match operation:
        case '+':
            return args[0] + args[1]
        case '*':
            return args[0] * args[1]
        case '/':
            return args[0] / args[1]
        case 'neg':
            return -args[0]
        case '^':
            return _power(*args)
        case 'abs':
            return abs(args[0])
        case 'floor' | 'ceiling':
            if not isinstance(args[0], Fraction):
                raise Unreadable('rounding of an inexact number')
            return Fraction(math.floor(args[0]) if operation == 'floor' else math.ceil(args[0]))
        case '!':
            return Fraction(math.factorial(_whole(args[0], _MOST_FACTORIAL)))
        case 'binomial':
            return Fraction(math.comb(_whole(args[0], _MOST_FACTORIAL), _whole(args[1], _MOST_FACTORIAL)))
    argument = _inexact(args[0])
    exponential = abs(argument) if operation.endswith(('exp', 'h')) else abs(_context.im(argument))
    if exponential > _MOST_IN_EXPONENTIAL or abs(argument) > _MOST_IN_FUNCTION:
        raise Unreadable('too large an argument')
    return _FUNCTIONS[operation](argument)


def evaluate(tree: tuple, point: dict[str, Fraction], degree: Number = None) -> Number:
    """The value of `tree` with variables as in `point`; a degree counts pi/180 or `degree`. Raises `Unreadable`."""
    operation = tree[0]
    if operation == 'number':
        return _bounded(tree[1])
    if operation == 'symbol':
        constants = {'\\pi': _context.pi, 'e': _context.e, 'i': _context.j}
        if tree[1] == '\\circ':
            raise Unreadable('a degree sign out of place')
        return +constants[tree[1]] if tree[1] in constants else point[tree[1]]
    args = [evaluate(child, point, degree) for child in tree[1:]]
    if operation == 'degrees':
        operation, args = '*', [args[0], _context.pi / 180 if degree is None else degree]
    try:
        return _bounded(_apply(operation, args))
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f'no value ({error})') from None


def points(*trees: tuple) -> list[dict[str, Fraction]]:
    """Where two trees are compared: three points of positive numbers and, per variable, one where it alone is negative.

    Roots and logarithms of negative variables have no agreed value: with any in both trees, all points are positive.
    """
    names = sorted(set().union(*map(symbols, trees)))
    if not names:
        return [{}]
    found = [{name: _at(name, k) for name in names} for k in range(3)]
    if not all(map(_has_root, trees)):
        found += [{**found[0], name: -found[0][name]} for name in names]
    return found


def _at(name: str, k: int) -> Fraction:
    """A number for a variable, always the same one."""
    chance = random.Random(f'{name} {k}')
    return Fraction(chance.randint(11, 99), chance.choice((7, 11, 13, 17)))


def _has_root(tree: tuple) -> bool:
    if tree[0] == '^' and symbols(tree[1]):
        exponent = tree[2][1] if tree[2][0] == 'neg' else tree[2]
        if exponent[0] != 'number' or exponent[1].denominator != 1:
            return True
    return tree[0] == '\\ln' or any(_has_root(child) for child in tree[1:] if isinstance(child, tuple))


def shown(x: Number) -> str:
    """A value for the eye: exact, or 15 digits; cut where it is long."""
    text = str(x) if isinstance(x, Fraction) else _context.nstr(x, 15)
    return text if len(text) <= 40 else f'{text[:40]}...'


def close(a: Number, b: Number) -> bool:
    """Are two values the same? Exactly, where both are rational."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _inexact(a), _inexact(b)
    return abs(a - b) <= _SAME * max(abs(a), abs(b), mpmath.mpf(1))


def same(a: tuple, b: tuple, degree: Number = None) -> bool:
    """Do two trees have the same value, wherever it is looked for? Raises `Unreadable`."""
    return all(close(evaluate(a, point, degree), evaluate(b, point, degree)) for point in points(a, b))


def proportional(a: tuple, b: tuple) -> int | None:
    """The sign of `a / b` if that is constant, else None: by such a factor relations may differ and say the same."""
    ratios = []
    for point in points(a, b):
        above, below = evaluate(a, point), evaluate(b, point)
        if above == 0 or below == 0:
            return None
        ratios.append(_apply('/', [above, below]))
    if any(not close(ratio, ratios[0]) for ratio in ratios):
        return None
    first = _context.mpc(_inexact(ratios[0]))
    return None if first.imag != 0 else 1 if first.real > 0 else -1
