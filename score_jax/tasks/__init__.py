"""Tasks: problems, prompts and what verifies a response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from score_jax import settings
from score_jax.errors import UserError
from score_jax.rewards import Verdict
from score_jax.tasks.countdown import Countdown, CountdownConfig
from score_jax.tokenizers import Tokenizer


class Task(Protocol):
    """What the rest of the package needs of a task."""

    instruction: str  # what stands between two attempts; says nothing about whether the first was right
    tokenizer: Tokenizer

    def problems(self, split: str, count: int, *, seed: int, step: int) -> list[Any]: ...

    def distinct_problems(self, split: str, count: int, *, seed: int) -> list[Any]: ...

    def prompt(self, problem: Any) -> str: ...

    def verify(self, problem: Any, response: str) -> Verdict: ...


TASKS = {'countdown': (Countdown, CountdownConfig)}


def make(section: Mapping) -> Task:
    """The task that `config.task` names."""
    values = dict(section)
    name = values.pop('name', None)
    if name not in TASKS:
        raise UserError(f'config.task.name is {name!r}; it must be one of {", ".join(TASKS)}.')
    task, config = TASKS[name]
    return task(settings.read(config, values, 'config.task'))


def prompt_tokens(task: Task, problem) -> list[int]:
    """What turn 1 is sampled from."""
    return [*task.tokenizer.begin_tokens, *task.tokenizer.encode(task.prompt(problem))]
