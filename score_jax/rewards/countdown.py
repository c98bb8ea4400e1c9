"""The Countdown verifier: evaluates the expression, and nothing that the response claims about it."""

from __future__ import annotations

import collections
import functools
import operator
from collections.abc import Sequence

from score_jax.rewards.outcome import Outcome, Verdict

AGAIN = 'wait'  # may open a response
OPERATORS = {'+': operator.add, '-': operator.sub, '*': operator.mul}
_LONGEST = 400  # characters; a response of Countdown has some tens
_DIGITS = 6


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) <= _DIGITS else None


def verify(numbers: Sequence[int], target: int, response: str) -> Verdict:
    """Does `response` reach `target` with each of `numbers` exactly once?

    A response is a chain, worked from left to right, `3 * 5 = 15 + 2 = 17`: a number, then operators each with
    a number. What stands behind `=` is the response's own claim: it is skipped, neither used nor checked. So is
    the word `wait` before the chain.

    Returns:
      `NO_ANSWER` if the response is not such a chain, else `CORRECT` or `WRONG`, with the chain as it was read.
    """
    words = response.split() if len(response) <= _LONGEST else []
    words = words[1:] if words[:1] == [AGAIN] else words
    value = _number(words[0]) if words else None
    if value is None or len(words) % 2 == 0:
        return Verdict(Outcome.NO_ANSWER)
    used, read = [value], words[0]
    for symbol, word in zip(words[1::2], words[2::2]):
        number = _number(word)
        if symbol == '=' and (number is not None or _number(word.removeprefix('-')) is not None):
            continue
        if symbol not in OPERATORS or number is None:
            return Verdict(Outcome.NO_ANSWER)
        read = f'({read}) {symbol} {number}' if len(used) > 1 else f'{read} {symbol} {number}'
        used.append(number)
        value = OPERATORS[symbol](value, number)
    right = value == target and sorted(used) == sorted(numbers)
    return Verdict(Outcome.CORRECT if right else Outcome.WRONG, f'{read} = {value}')


def solutions(numbers: Sequence[int], target: int) -> int:
    """How many different chains `verify` would call right: the fewer, the harder to find."""
    return _values(tuple(sorted(numbers)))[target]


@functools.lru_cache(maxsize=4096)
def _values(numbers: tuple[int, ...]) -> collections.Counter:
    """How many different chains over all of `numbers` (ascending) have which value."""
    if len(numbers) == 1:
        return collections.Counter(numbers)
    found: collections.Counter = collections.Counter()
    for place, last in enumerate(numbers):
        if last not in numbers[:place]:
            for value, count in _values(numbers[:place] + numbers[place + 1:]).items():
                for operation in OPERATORS.values():
                    found[operation(value, last)] += count
    return found
