"""Countdown: reach a target with each of a few small numbers used once.

Problems are generated, so they never run out; checking an answer is easier than finding one, so there is
something to correct. A problem's split follows from a hash of its numbers and target: what is in the test
split is never drawn in training, in no order of its numbers.

A response is a chain worked from left to right that shows its steps:

    problem    2 3 5 make 17 :
    response   3 + 5 = 8 * 2 = 16
    response   wait 3 * 5 = 15 + 2 = 17

`wait` says that what follows is a new attempt, and no copy of the one before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from score_jax.errors import UserError
from score_jax.rewards import Verdict
from score_jax.rewards import countdown as verifier
from score_jax.tokenizers import Tokenizer, word_sentencepiece

OPERATORS = '+-*'
SPLITS = ('train', 'test')
_PATIENCE = 1000  # draws without a problem of the split before it counts as empty
_COUNTED = 5  # numbers of a problem up to which its solutions are counted
_SOLUTIONS = ((6, '6+'), (3, '3-5'), (2, '2'), (0, '1'))  # from so many on
_CANDIDATES = 4  # chains drawn at a time while looking for one that stays in range


@dataclasses.dataclass(frozen=True)
class Problem:
    """Numbers in ascending order, and the target."""

    numbers: tuple[int, ...]
    target: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Habits:
    """How the generated dialogues of the base model answer: probabilities.

    Attributes:
      solve: a first attempt is a solution, else a random chain that misses the target.
      keep_right: a later attempt copies a right one before it.
      keep_wrong: a later attempt copies a wrong one before it.
      solve_again: a later attempt that is no copy, and so opens with `wait`, is a solution, else one that misses.
    """

    solve: float
    keep_right: float
    keep_wrong: float
    solve_again: float

    def check(self, path: str) -> None:
        """`UserError` for what is no probability; `path` is the section's name."""
        for key, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise UserError(f'{path}.{key} is {value}; it must lie between 0 and 1.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountdownConfig:
    """`config.task`.

    Attributes:
      numbers: how many numbers a problem has.
      largest: numbers are drawn from 1 to this.
      limit: no step of a generated chain and no target lies outside 0 to this.
      test_share: share of all problems held out.
      instruction: what stands between two attempts.
    """

    numbers: int
    largest: int
    limit: int
    test_share: float
    instruction: str

    def __post_init__(self):
        if self.numbers < 2 or self.largest < 1 or self.limit < self.numbers * self.largest:
            raise UserError(
                f'config.task has numbers = {self.numbers}, largest = {self.largest}, limit = {self.limit}; it needs '
                f'at least 2 numbers, and a limit of at least numbers * largest = {self.numbers * self.largest}.')
        if not self.instruction.split():
            raise UserError('config.task.instruction is empty; the second attempt needs at least a word between.')
        if not 0 < self.test_share < 1:
            raise UserError(f'config.task.test_share is {self.test_share}; it must lie between 0 and 1.')


class Countdown:
    """The task that `config.task` describes."""

    def __init__(self, config: CountdownConfig, tokenizer: Tokenizer | None = None):
        self._numbers, self._largest, self._limit = config.numbers, config.largest, config.limit
        self._test_share = config.test_share
        self.instruction = config.instruction
        words = [str(n) for n in range(config.limit + 1)] + list(OPERATORS) + ['=', ':', 'make', verifier.AGAIN]
        own_words = words + sorted(set(config.instruction.split()) - set(words))
        self.tokenizer: Tokenizer = tokenizer or word_sentencepiece(own_words)

    def prompt(self, problem: Problem) -> str:
        """What turn 1 is asked."""
        return f'{" ".join(map(str, problem.numbers))} make {problem.target} :'

    def longest_prompt(self, split: str) -> int:
        """Tokens of a prompt; a tokenizer that splits numbers needs most for the largest."""
        largest = Problem((self._largest,) * self._numbers, self._limit)
        return len(self.tokenizer.prompt(self.prompt(largest)))

    def groups(self, problem: Problem) -> dict[str, str]:
        """How hard a problem is: by how many different chains solve it. With many numbers that takes long to count."""
        if self._numbers > _COUNTED:
            return {}
        count = verifier.solutions(problem.numbers, problem.target)
        return {'solutions': next(name for least, name in _SOLUTIONS if count >= least)}

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """The verdicts on responses to these problems."""
        return [
            verifier.verify(problem.numbers, problem.target, response)
            for problem, response in zip(problems, responses, strict=True)]

    def problems(self, split: str, count: int, *, seed: int, step: int) -> list[Problem]:
        """`count` problems, a function of the arguments alone."""
        stream = self._draw(_generator(split, seed, step), split)
        return [problem for problem, _ in _take(stream, count)]

    def distinct_problems(self, split: str, count: int, *, seed: int) -> list[Problem]:
        """`count` different problems; `UserError` if the split does not seem to have that many."""
        found: dict[Problem, None] = {}
        for drawn, (problem, _) in enumerate(self._draw(_generator(split, seed, 0), split)):
            found[problem] = None
            if len(found) == count:
                return list(found)
            if drawn > 200 * count:
                raise UserError(
                    f'config.problems is {count}, but the {split} split of this task seems to have only {len(found)} '
                    'different ones; ask for fewer, or raise config.task.largest or config.task.numbers.')
        raise AssertionError('the stream of problems does not end')

    def dialogues(
        self, count: int, habits: Habits, *, seed: int, step: int, turns: int = 2) -> list[tuple[Problem, list[str]]]:
        """Problems of the train split with `turns` responses each, in the manner of `habits`."""
        rng = _generator('train', seed, step)
        drawn = list(_take(self._draw(rng, 'train'), count))
        numbers = np.array([problem.numbers for problem, _ in drawn])
        targets = np.array([problem.target for problem, _ in drawn])
        solutions = np.array([chain for _, chain in drawn])

        def attempt(solve: float) -> np.ndarray:
            solved = rng.random(count) < solve
            return np.where(solved[:, None], solutions, self._miss(rng, numbers, targets))

        chains = attempt(habits.solve)
        texts = [self._show(chains)]
        for _ in range(turns - 1):
            fresh = attempt(habits.solve_again)
            right = self._values(chains)[:, -1] == targets
            keep = rng.random(count) < np.where(right, habits.keep_right, habits.keep_wrong)
            chains = np.where(keep[:, None], chains, fresh)
            opening = np.where(keep, '', f'{verifier.AGAIN} ')
            texts.append(list(map(str.__add__, opening.tolist(), self._show(chains))))
        return [(problem, list(responses)) for (problem, _), *responses in zip(drawn, *texts)]

    # A chain is a row of ints: n numbers, then n - 1 indices into OPERATORS.

    def _values(self, chains: np.ndarray) -> np.ndarray:
        """The value after each step, `[B, n - 1]`."""
        n = self._numbers
        value, values = chains[:, 0], []
        for i in range(1, n):
            number, op = chains[:, i], chains[:, n + i - 1]
            value = np.choose(op, [value + number, value - number, value * number])
            values.append(value)
        return np.stack(values, axis=1)

    def _in_range(self, chains: np.ndarray) -> np.ndarray:
        values = self._values(chains)
        return ((values >= 0) & (values <= self._limit)).all(axis=1)

    def _draw(self, rng: np.random.Generator, split: str) -> Iterator[tuple[Problem, np.ndarray]]:
        """Problems of a split without end, each with the chain that it was made from."""
        size, left = 512, _PATIENCE
        while left:
            numbers = rng.integers(1, self._largest + 1, (size, self._numbers))
            ops = rng.integers(0, len(OPERATORS), (size, self._numbers - 1))
            chains = np.concatenate([numbers, ops], axis=1)
            targets = self._values(chains)[:, -1]
            keys = np.concatenate([np.sort(numbers, axis=1), targets[:, None]], axis=1)
            test = _hash(keys) < self._test_share
            found = np.flatnonzero(self._in_range(chains) & (test == (split == 'test')))
            left = _PATIENCE if len(found) else left - 1
            for i in found:
                yield Problem(tuple(keys[i, :-1].tolist()), int(targets[i])), chains[i]

        raise UserError(
            f'the {split} split of this task seems to be empty; config.task.test_share is {self._test_share}, and '
            'config.task.largest and config.task.numbers say how many problems there are: change one of them.')

    def _miss(self, rng: np.random.Generator, numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """A random chain over each row of `numbers` that stays in range and misses: one of a few, else the sum."""
        chains = np.concatenate([numbers, np.zeros_like(numbers[:, 1:])], axis=1)
        for _ in range(_CANDIDATES):
            ops = rng.integers(0, len(OPERATORS), (len(numbers), self._numbers - 1))
            candidates = np.concatenate([rng.permuted(numbers, axis=1), ops], axis=1)
            misses = self._in_range(candidates) & (self._values(candidates)[:, -1] != targets)
            chains = np.where(misses[:, None], candidates, chains)
        return chains

    def _show(self, chains: np.ndarray) -> list[str]:
        """Chains as text with their steps shown."""
        n, texts = self._numbers, []
        for chain, values in zip(chains.tolist(), self._values(chains).tolist()):
            steps = (f'{OPERATORS[op]} {number} = {value}' for op, number, value in zip(chain[n:], chain[1:n], values))
            texts.append(f'{chain[0]} {" ".join(steps)}')
        return texts


def _generator(split: str, seed: int, step: int) -> np.random.Generator:
    if split not in SPLITS:
        raise UserError(f'split is {split!r}; Countdown has {" and ".join(SPLITS)}.')
    return np.random.default_rng([SPLITS.index(split), seed, step])


def _take(stream, count: int):
    return (item for item, _ in zip(stream, range(count)))


def _hash(keys: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each row of small ints (splitmix64 over its entries), the same everywhere."""
    state = np.zeros(len(keys), np.uint64)
    for column in keys.T:
        state = (state ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) / 2.0**53
