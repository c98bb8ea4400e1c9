"""Supervised training on dialogues: how the base model of the embedded default is made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from score_jax import model, progress, settings, sharding, tasks
from score_jax.errors import UserError
from score_jax.rollout import closing, pad_rows
from score_jax.tasks.countdown import Habits
from score_jax.train import Stage, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TrainConfig):
    """`configs/base.py`."""

    turns: int
    practice: Habits
    practice_steps: int
    habits: Habits

    def __post_init__(self):
        super().__post_init__()
        self.practice.check('config.practice')
        self.habits.check('config.habits')
        if self.turns < 2:
            raise UserError(f'config.turns is {self.turns}; a dialogue has at least 2, an attempt and its correction.')
        if not 0 <= self.practice_steps <= self.steps:
            raise UserError(
                f'config.practice_steps is {self.practice_steps}; it must lie between 0 and config.steps, '
                f'{self.steps}.')


def lay_out(
    task: tasks.Task, problem, responses: Sequence[list[int]], trained: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Tokens and turns of a dialogue as the rollout lays it out; the turn of a response that is not trained is 0."""
    tokens = tasks.prompt_tokens(task, problem)
    turn, instruction = [0] * len(tokens), tasks.instruction_tokens(task)
    for i, (own, train) in enumerate(zip(responses, trained, strict=True)):
        between = closing(task.tokenizer.close_token, tokens[-1]) + instruction if i else []
        tokens += [*between, *own]
        turn += [0] * len(between) + [(i + 1) * train] * len(own)
    return tokens, turn


def encode_dialogue(task: tasks.Task, problem, responses: Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens and turns of a dialogue in words, all of it trained; every response has its end token."""
    own = [[*task.tokenizer.encode(response), task.tokenizer.end_tokens[0]] for response in responses]
    return lay_out(task, problem, own, [True] * len(own))


class Supervised(Stage):
    """Maximises the likelihood of every response of generated dialogues."""

    def __init__(self, section, workdir: Path):
        super().__init__(settings.read(SupervisedConfig, section), section, workdir)
        if not hasattr(self.task, 'dialogues'):
            raise UserError(
                f'config.task.name is {self.config.task["name"]!r}, for which no dialogues can be generated to learn '
                "from; set config.pretrained to the directory of a model, or config.task.name to 'countdown'.")

    def start(self) -> dict:
        progress.say(f'{self.config.stage}: starts from random parameters (seed {self.config.seed})')
        key = jax.random.key(self.seed)
        return jax.jit(
            lambda: model.initialise(self.model, key, self.config.memory.params),
            out_shardings=model.shardings(self.model, self.mesh))()

    def step(self, state, step: int):
        habits = self.config.practice if step < self.config.practice_steps else self.config.habits
        dialogues = self.task.dialogues(
            self.config.batch, habits, seed=self.seed, step=step, turns=self.config.turns)
        rows = [encode_dialogue(self.task, problem, responses) for problem, responses in dialogues]
        tokens, _ = pad_rows([tokens for tokens, _ in rows], 1, self.task.tokenizer.pad_token)
        turn, _ = pad_rows([turn for _, turn in rows], 1, 0)
        began, length = time.monotonic(), sum(len(tokens) for tokens, _ in rows) / len(rows)
        state, metrics = self.learner.imitate(state, *sharding.put_batch(self.mesh, (tokens, turn)))
        return state, jax.tree.map(float, metrics) | self.rates(began, len(rows), length), []
