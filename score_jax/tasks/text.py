"""Tasks over a finite set of problems in words: what mathematics, code and files of your own share.

The data position is no state: which problems a step sees is a function of (seed, step) alone. Every epoch goes through
the problems once, in an order of its own:

    step     0     1     2     3          batches of 2 from 5 problems
    epoch    3 0 | 4 1 | 2,1 | 4 0 | ...  epoch 0 ends inside step 2, where epoch 1 begins
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from score_jax import progress
from score_jax.errors import UserError
from score_jax.rewards import Verdict
from score_jax.rewards.maths import LIMITS
from score_jax.rewards.pool import Limits, Pool
from score_jax.tokenizers import Bytes, Tokenizer

_FIELD = re.compile(r'(?<![\\\w])\{[a-z_]+\}')  # {verdict}, but not the braces of \boxed{answer}


@dataclasses.dataclass(frozen=True)
class TextProblem:
    """A problem, what its grader needs beside the response, and the groups that results are shown by."""

    id: str
    text: str
    job: Mapping
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Keys of `config.task` that all of these tasks have; `configs/tasks.py` has the comments."""

    prompt: str
    instruction: str
    max_prompt: int
    workers: int
    seconds: float

    def __post_init__(self):
        if self.prompt.count('{problem}') != 1:
            raise UserError(
                f'config.task.prompt is {self.prompt!r}; it must have the field {{problem}} once, where the problem '
                'goes.')
        if not self.instruction.strip():
            raise UserError('config.task.instruction is empty; the second attempt needs at least a word between.')
        field = _FIELD.search(self.instruction)
        if field:
            raise UserError(
                f'config.task.instruction has the field {field[0]}; it is the same text after a right and after a '
                'wrong answer, so that it cannot reveal the verdict: write it without fields.')
        for key, least in (('max_prompt', 1), ('workers', 1)):
            if getattr(self, key) < least:
                raise UserError(f'config.task.{key} is {getattr(self, key)}; it must be at least {least}.')
        if not self.seconds > 0:
            raise UserError(f'config.task.seconds is {self.seconds}; it must be positive.')


class TextTask:
    """Problems from `splits`, each loaded when it is first asked for, graded by `grader` in processes of their own.

    Args:
      config: prompts and limits.
      tokenizer: of the model; None reads and writes bytes.
      splits: by name, what loads the problems of a split.
      grader: 'module:function', which a `Pool` applies to `problem.job` with the response in it.
    """

    def __init__(
        self, config: TextConfig, tokenizer: Tokenizer | None, *, splits: Mapping[str, Callable[[], list[TextProblem]]],
        grader: str):
        self.instruction = config.instruction
        self.tokenizer: Tokenizer = tokenizer or Bytes()
        self._config, self._splits, self._grader = config, splits, grader
        self._loaded: dict[str, list[TextProblem]] = {}

    def prompt(self, problem: TextProblem) -> str:
        """What turn 1 is asked."""
        return self._config.prompt.replace('{problem}', problem.text)

    def groups(self, problem: TextProblem) -> Mapping[str, str]:
        """What the results are shown by, such as the level."""
        return problem.groups

    def problems(self, split: str, count: int, *, seed: int, step: int) -> list[TextProblem]:
        """The `count` problems of step number `step`, epoch by epoch."""
        known = self._problems(split)
        places = range(step * count, (step + 1) * count)
        return [known[_order(len(known), seed, place // len(known))[place % len(known)]] for place in places]

    def distinct_problems(self, split: str, count: int, *, seed: int) -> list[TextProblem]:
        """`count` different problems; all of them, where that many there are.

        Raises:
          UserError: there are fewer.
        """
        known = self._problems(split)
        if count > len(known):
            raise UserError(f'config.problems is {count}, but the {split} split has {len(known)}; ask for no more.')
        return [known[place] for place in _order(len(known), seed, 0)[:count]]

    def longest_prompt(self, split: str) -> int:
        """Tokens of the longest prompt."""
        return max(self._length(problem) for problem in self._problems(split))

    def verify(self, problems: Sequence[TextProblem], responses: Sequence[str]) -> list[Verdict]:
        """The verdicts on responses to these problems, graded side by side."""
        return self._pool.map([
            {**problem.job, 'response': response} for problem, response in zip(problems, responses, strict=True)])

    @functools.cached_property
    def _pool(self) -> Pool:
        seconds = self._config.seconds
        limits = Limits(wall_seconds=seconds, cpu_seconds=seconds, memory_bytes=LIMITS.memory_bytes)
        return Pool(self._grader, workers=self._config.workers, limits=limits)

    def _length(self, problem: TextProblem) -> int:
        return len(self.tokenizer.prompt(self.prompt(problem)))

    def _problems(self, split: str) -> list[TextProblem]:
        """The problems of a split whose prompt is not too long; says how many are."""
        if split not in self._splits:
            raise UserError(f'split is {split!r}; this task has {", ".join(self._splits)}.')
        if split not in self._loaded:
            every = self._splits[split]()
            limit = self._config.max_prompt
            kept = [problem for problem in every if self._length(problem) <= limit]
            if not kept:
                raise UserError(
                    f'config.task.max_prompt is {limit}, but none of the {len(every)} prompts of the {split} split has '
                    'so few tokens; raise it, and config.rollout.max_length with it.')
            if len(kept) < len(every):
                progress.say(
                    f'{split}: {len(every) - len(kept)} of {len(every)} problems are left out; their prompts have more '
                    f'than config.task.max_prompt = {limit} tokens')
            self._loaded[split] = kept
        return self._loaded[split]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
