"""The grammar of one expression in LaTeX: numbers, variables, fractions, roots, powers, functions.

A tree is `(operation, operands...)`, with the leaves `('number', Fraction)` and `('symbol', name)`. Ours, since the one
that math-verify brings reads `2(3)` as 5 and `A` as `a`, and computes binomials, without bounds, while it parses.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

FUNCTIONS = tuple('\\' + name for name in (
    'sin', 'cos', 'tan', 'cot', 'sec', 'csc', 'arcsin', 'arccos', 'arctan', 'sinh', 'cosh', 'tanh', 'ln', 'exp'))
_INVERSE = {'\\sin': '\\arcsin', '\\cos': '\\arccos', '\\tan': '\\arctan'}
_LONGEST, _DEEPEST = 400, 25  # characters, open brackets

_TOKEN = re.compile(r'\\[a-zA-Z]+|\d+(?:\.\d*)?|\.\d+|[a-zA-Z]|[-+*/^_(){}\[\]|!]|\s+')
_PRODUCT = {'*', '\\cdot', '\\times', '/', '\\div'}
_CLOSING = {'(': ')', '[': ']', '{': '}', '\\lfloor': '\\rfloor', '\\lceil': '\\rceil', '|': '|'}
_NO_FACTOR = _PRODUCT | {'+', '-', '^', '_', '!', ')', ']', '}', '\\rfloor', '\\rceil'}
_GREEK = {'\\' + name for name in (
    'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau '
    'upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega infty').split()}


class Unreadable(ValueError):
    """No expression of this grammar, or too large to evaluate, or without a value; says which."""


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
        if token is None or token in _NO_FACTOR:
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
        if token in FUNCTIONS or token == '\\log':
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
            while self._starts_factor() and self.next not in FUNCTIONS and self.next not in ('\\log', '('):
                argument = ('*', argument, self.factor())
        if name == '\\log':
            tree = ('/', ('\\ln', argument), ('\\ln', base or ('number', Fraction(10))))
        else:
            tree = (name, argument)
        return tree if power is None else ('^', tree, power)
