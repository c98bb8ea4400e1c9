"""The value of one expression in LaTeX: a small grammar, exact fractions, and 400 digits where roots and pi come in.

Nothing is evaluated but this grammar, and every number is bounded before it is computed, so that no text takes long.
(math-verify's grammar cannot stand here: it reads `2(3)` as 5 and `A` as `a`, and computes binomials while it parses.)

Expressions with variables are compared at rational points, the same for both sides (Schwartz-Zippel).
"""

from __future__ import annotations

import functools
import math
import random
import re
from fractions import Fraction

import mpmath

Number = Fraction | mpmath.mpc

_LONGEST, _DEEPEST = 400, 25  # characters, open brackets
_MOST_EXACT_DIGITS = 20_000
# Inexact numbers: `_DIGITS` are computed. What goes in is a fraction of at most 150 digits, no magnitude is above 1e90, so
# errors stay below 1e-300, and what is honestly different is above 1e-150. Between these no verdict is given.
_DIGITS = 400
_MOST_DIGITS_IN = 150
_LARGEST, _SMALLEST, _NOISE = mpmath.mpf('1e90'), mpmath.mpf('1e-150'), mpmath.mpf('1e-300')
_MOST_POWER, _MOST_FACTORIAL = 20_000, 2_000
_context = mpmath.mp.clone()
_context.dps = _DIGITS

_TOKEN = re.compile(r'\\[a-zA-Z]+|\d+(?:\.\d*)?|\.\d+|[a-zA-Z]|[-+*/^_(){}\[\]|!]|\s+')
_PRODUCT = {'*', '\\cdot', '\\times', '/', '\\div'}
_CLOSING = {'(': ')', '[': ']', '{': '}', '\\lfloor': '\\rfloor', '\\lceil': '\\rceil', '|': '|'}
_GREEK = {'\\' + name for name in (
    'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon '
    'phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega infty').split()}
_FUNCTIONS = {
    '\\sin': _context.sin, '\\cos': _context.cos, '\\tan': _context.tan, '\\cot': _context.cot, '\\sec': _context.sec,
    '\\csc': _context.csc, '\\arcsin': _context.asin, '\\arccos': _context.acos, '\\arctan': _context.atan,
    '\\sinh': _context.sinh, '\\cosh': _context.cosh, '\\tanh': _context.tanh, '\\ln': _context.log,
    '\\exp': _context.exp}
_INVERSE = {'\\sin': '\\arcsin', '\\cos': '\\arccos', '\\tan': '\\arctan'}


class Unreadable(ValueError):
    """No expression of this grammar, or too large to evaluate, or without a value; says which."""


# ---- parsing: text -> (operation, operands...) ----------------------------------------------------------------------


@functools.lru_cache(4096)
def parse(text: str) -> tuple:
    """The tree of an expression; raises `Unreadable`."""
    if len(text) > _LONGEST:
        raise Unreadable(f'longer than {_LONGEST} characters')
    tokens, position, depth = [], 0, 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise Unreadable(f'{text[position]!r} is not part of an expression')
        position = token.end()
        depth += (token[0] in '({[') - (token[0] in ')}]')
        if depth > _DEEPEST:
            raise Unreadable('nested too deeply')
        if not token[0].isspace():
            tokens.append(token[0])
    if tokens.count('|') > 6:  # where a bar opens and where it closes is found by trying
        raise Unreadable('too many bars')
    parser = _Parser(tokens)
    tree = parser.sum()
    if parser.next is not None:
        raise Unreadable(f'{parser.next!r} is out of place')
    return tree


class _Parser:
    """Recursive descent; `sum`, `product`, `factor` and so on take what they name off the tokens."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens[::-1]
        self._bars = 0

    @property
    def next(self) -> str | None:
        return self._tokens[-1] if self._tokens else None

    def _take(self, *wanted: str) -> str | None:
        return self._tokens.pop() if self._tokens and self._tokens[-1] in wanted else None

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise Unreadable(f'{wanted!r} is missing')

    def sum(self) -> tuple:
        tree = self._signed(self.product)
        while sign := self._take('+', '-'):
            right = self.product()
            tree = ('+', tree, right if sign == '+' else ('neg', right))
        return tree

    def _signed(self, operand) -> tuple:
        if sign := self._take('+', '-'):
            value = self._signed(operand)
            return ('neg', value) if sign == '-' else value
        return operand()

    def product(self) -> tuple:
        tree = self.factor()
        divisor = None  # of the last division, for `1/2x`
        while True:
            if symbol := self._take(*_PRODUCT):
                right = self._signed(self.factor)
                is_division = symbol in ('/', '\\div')
                tree = ('/' if is_division else '*', tree, right)
                divisor = right if is_division else None
            elif self._starts_factor():
                if self.next[0].isdigit() or self.next[0] == '.':
                    raise Unreadable('a number directly behind another factor')
                if divisor is not None and divisor[0] != 'number':
                    raise Unreadable('a product behind a division, without brackets')
                tree = ('*', tree, self.factor())
            else:
                return tree

    def _starts_factor(self) -> bool:
        token = self.next
        if token is None or token in _PRODUCT or token in ('+', '-', '^', '_', '!', ')', ']', '}', '\\rfloor', '\\rceil'):
            return False
        return token != '|' or self._bars == 0

    def factor(self) -> tuple:
        tree = self._base()
        while symbol := self._take('^', '!'):
            if symbol == '!':
                tree = ('!', tree)
            elif self.next == '\\circ':
                self._take('\\circ')
                tree = ('degrees', tree)
            elif tree[0] == '^':
                raise Unreadable('a power of a power, without brackets')
            else:
                exponent = self._exponent()
                tree = ('degrees', tree) if exponent == ('symbol', '\\circ') else ('^', tree, exponent)
        return tree

    def _exponent(self) -> tuple:
        return self._signed(self._base)

    def _argument(self) -> tuple:
        """What a command takes without brackets: a group, or one token, of a number one digit."""
        if self.next == '{':
            return self._base()
        if self.next and self.next.isdigit():
            digits = self._tokens.pop()
            self._tokens += [digits[1:]] if digits[1:] else []
            return ('number', Fraction(int(digits[0])))
        return self._base()

    def _base(self) -> tuple:
        token = self._tokens.pop() if self._tokens else None
        if token is None:
            raise Unreadable('it ends too early')
        if token[0].isdigit() or token[0] == '.':
            return self._number(token)
        if token in _CLOSING:
            return self._group(token)
        if token == '\\frac':
            return ('/', self._argument(), self._argument())
        if token == '\\binom':
            return ('binomial', self._argument(), self._argument())
        if token == '\\sqrt':
            return self._root()
        if token in _FUNCTIONS or token == '\\log':
            return self._function(token)
        if token == '\\pi' or token == '\\circ':
            return ('symbol', token)
        if token.isalpha() or token in _GREEK:
            return ('symbol', token + self._subscript())
        raise Unreadable(f'{token!r} is out of place')

    def _number(self, token: str) -> tuple:
        if self.next == '_':
            raise Unreadable('a number in another base')
        value = Fraction(token)
        if self.next == '\\frac' and token.isdigit():  # 2\frac{1}{2} is two and a half
            self._take('\\frac')
            above, below = self._argument(), self._argument()
            kinds = above[0] == below[0] == 'number'
            if kinds and above[1].denominator == below[1].denominator == 1 and 0 < above[1] < below[1]:
                return ('number', value + above[1] / below[1])
            return ('*', ('number', value), ('/', above, below))
        return ('number', value)

    def _group(self, opening: str) -> tuple:
        self._bars, outer = int(opening == '|'), self._bars
        tree = self.sum()
        self._expect(_CLOSING[opening])
        self._bars = outer
        name = {'|': 'abs', '\\lfloor': 'floor', '\\lceil': 'ceiling'}.get(opening)
        return (name, tree) if name else tree

    def _root(self) -> tuple:
        index = ('number', Fraction(2))
        if self._take('['):
            index = self.sum()
            self._expect(']')
        return ('^', self._argument(), ('/', ('number', Fraction(1)), index))

    def _subscript(self) -> str:
        if not self._take('_'):
            return ''
        if not self._take('{'):
            return '_' + self._tokens.pop() if self._tokens else ''
        name = ''
        while self.next and self.next != '}':
            name += self._tokens.pop()
        self._expect('}')
        return '_' + name

    def _function(self, name: str) -> tuple:
        base = power = None
        while symbol := self._take('^', '_'):
            if symbol == '_':
                base = self._argument()
            else:
                power = self._exponent()
        if power == ('neg', ('number', Fraction(1))) and name in _INVERSE:
            name, power = _INVERSE[name], None
        if self.next in ('(', '{', '['):
            argument = self._base()
        else:
            argument = self._signed(self.factor)
            while self._starts_factor() and self.next not in _FUNCTIONS and self.next not in ('\\log', '('):
                argument = ('*', argument, self.factor())
        if name == '\\log':
            tree = ('/', ('\\ln', argument), ('\\ln', base or ('number', Fraction(10))))
        else:
            tree = (name, argument)
        return tree if power is None else ('^', tree, power)


# ---- evaluating: tree -> Number -------------------------------------------------------------------------------------


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
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > 4 * _MOST_EXACT_DIGITS:
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
            if abs(exponent) > _MOST_POWER or bits * abs(exponent) > 4 * _MOST_EXACT_DIGITS:
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
    if abs(argument) > 10 ** 6 or abs(_context.im(argument)) > 200 or operation.endswith(('exp', 'h')) and abs(argument) > 200:
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
    """A value for the eye, to 15 digits."""
    return _context.nstr(_inexact(x), 15)


def close(a: Number, b: Number) -> bool:
    """Are two values the same? Exactly, where both are rational."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _inexact(a), _inexact(b)
    return abs(a - b) <= mpmath.mpf('1e-280') * max(abs(a), abs(b), mpmath.mpf(1))


def same(a: tuple, b: tuple, degree: Number = None) -> bool:
    """Do two trees have the same value, wherever it is looked for? Raises `Unreadable`."""
    return all(close(evaluate(a, point, degree), evaluate(b, point, degree)) for point in points(a, b))


def proportional(a: tuple, b: tuple) -> Fraction | None:
    """The constant `a / b`, as a sign (1 or -1), or None if there is none: equations and inequalities say the same by it."""
    ratios = []
    for point in points(a, b):
        above, below = evaluate(a, point), evaluate(b, point)
        if above == 0 or below == 0:
            return None
        ratios.append(_apply('/', [above, below]))
    if any(not close(ratio, ratios[0]) for ratio in ratios):
        return None
    first = _context.mpc(_inexact(ratios[0]))
    return None if first.imag != 0 else Fraction(1 if first.real > 0 else -1)
