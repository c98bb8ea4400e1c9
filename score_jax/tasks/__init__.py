"""Tasks: problems, prompts and what verifies a response."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from score_jax import chat as chats
from score_jax import progress, settings, tokenizers
from score_jax.errors import UserError
from score_jax.rewards import Verdict
from score_jax.tasks import code, maths
from score_jax.tasks.countdown import Countdown, CountdownConfig
from score_jax.tokenizers import Tokenizer

_say_once = functools.cache(progress.say)  # every stage of a pipeline makes its task


class Task(Protocol):
    """What the rest of the package needs of a task."""

    instruction: str  # what stands between two attempts; says nothing about whether the first was right
    tokenizer: Tokenizer

    def problems(self, split: str, count: int, *, seed: int, step: int) -> list[Any]:
        """The problems of a step: a function of the arguments alone, so that a run can go on from any step."""

    def distinct_problems(self, split: str, count: int, *, seed: int) -> list[Any]:
        """`count` different problems, to measure on."""

    def longest_prompt(self, split: str) -> int:
        """Tokens of the longest prompt of a split."""

    def prompt(self, problem: Any) -> str:
        """What turn 1 is asked."""

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each response to its problem; called from a thread beside the sampling."""

    def groups(self, problem: Any) -> Mapping[str, str]:
        """What the results are shown by, such as {'level': '3'}; empty where there is nothing to tell apart."""


TASKS = {
    'countdown': (Countdown, CountdownConfig),
    'gsm8k': (maths.gsm8k, maths.MathsConfig),
    'math': (maths.math, maths.MathsConfig),
    'mbpp': (code.mbpp, code.CodeConfig),
    'humaneval': (code.humaneval, code.CodeConfig),
    'jsonl': (maths.jsonl, maths.JsonlConfig),
}


def find(name: str | None) -> tuple[Callable, type]:
    """What makes the task `name`, and the dataclass of its section: a row of `TASKS`, or those of `FILE.py:CLASS`.

    Raises:
      UserError: neither.
    """
    if name in TASKS:
        return TASKS[name]
    file, _, task = str(name).rpartition(':')
    if not file.endswith('.py'):
        raise UserError(
            f'config.task.name is {name!r}; it must be one of {", ".join(TASKS)}, or FILE.py:CLASS for one of your '
            'own.')
    if not Path(file).is_file():
        raise UserError(f'config.task.name is {name!r}, but there is no file {file}; commands are run where it lies.')
    found = getattr(_module(Path(file)), task, None)
    if not dataclasses.is_dataclass(getattr(found, 'Config', None)):
        raise UserError(f'config.task.name is {name!r}; the file needs that class, with a dataclass {task}.Config.')
    return found, found.Config


def _module(file: Path):
    name = f'task in {file.resolve()}'  # dataclasses look for their module by its name
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(section: Mapping, tokenizer: str = '', chat: str = '', pretrained: str = '') -> Task:
    """The task that `config.task` names.

    Args:
      section: `config.task`.
      tokenizer: a file, or the directory of a Hugging Face model; '' is that of `pretrained`, or else the task's own.
      chat: the format of prompts and instructions, a row of `score_jax.chat.FORMATS`; '' is plain text.
      pretrained: the directory of a Hugging Face model; its template counts where the tokenizer has none beside it.

    Raises:
      UserError: no such task, key, file or format; or the format is not that of the chat template.
    """
    values = dict(section)
    task, config = find(values.pop('name', None))
    tokenizer = tokenizer or pretrained
    made = tokenizers.load(tokenizer) if tokenizer else None
    if chat:
        if made is None:
            raise UserError(
                f'config.chat is {chat!r}, but the tokenizer is the task\'s own, which knows no chat; name that of the '
                'model in config.tokenizer.')
        place = Path(tokenizer).expanduser()
        beside = place if place.is_dir() else place.parent
        places = [beside, Path(pretrained).expanduser()] if pretrained else [beside]
        found = next(filter(chats.template, places), None)
        if found is None:
            _say_once(
                f'config.chat = {chat!r} is not confirmed by a chat template: there is none in '
                f'{" and none in ".join(map(str, places))}.')
        made = chats.chat(made, chat, found or beside)
    return task(settings.read(config, values, 'config.task'), made)


def batches(problems: list, size: int) -> Iterator[tuple[list, list]]:
    """`size` problems at a time; and the same, the last of them padded to as many with the first among them."""
    for start in range(0, len(problems), size):
        part = problems[start:start + size]
        yield part, part + part[:1] * (size - len(part))


def prompt_tokens(task: Task, problem) -> list[int]:
    """What turn 1 is sampled from."""
    return task.tokenizer.prompt(task.prompt(problem))


def instruction_tokens(task: Task) -> list[int]:
    """What stands between a response and the next attempt."""
    return task.tokenizer.instruction(task.instruction)
