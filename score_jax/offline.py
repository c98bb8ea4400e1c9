"""First attempts that are sampled once, from another stage, and then given as prompts: only what follows is trained.

    WORKDIR/STAGE/first_attempts.npz    `problems` x `attempts` responses, of problems that the stage's seed says

Which of them a step sees is a function of (seed, step) alone, and so is the file: deleted, it is made again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from score_jax import model, ragged, rollout, sharding, tasks
from score_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """`config.offline`; `configs/common.py` says what each value means."""

    share: float
    source: str
    problems: int
    attempts: int

    def problems_a_step(self, batch: int, first: int) -> int:
        """How many of a step's `batch` problems have their `first` first attempts from the store.

        Raises:
          UserError: a share that is none, or a store too small for a step.
        """
        count = round(self.share * batch)
        if not 0 <= self.share <= 1 or (self.share and not count):
            raise UserError(
                f'config.offline.share is {self.share}; it must lie between 0 and 1, and be 0 or at least one of '
                f'config.batch = {batch} problems.')
        if count and (self.attempts < first or self.problems < count):
            raise UserError(
                f'config.offline has problems = {self.problems}, attempts = {self.attempts}; a step takes {count} '
                f'problems with config.group.first = {first} attempts each: raise them.')
        return count


@dataclasses.dataclass(frozen=True)
class FirstAttempts:
    """Problems, and the responses `[problem][attempt]` to each as token lists."""

    problems: list[Any]
    responses: list[list[list[int]]]

    def draw(self, count: int, first: int, *, seed: int, step: int) -> tuple[list[Any], list[list[int]]]:
        """`count` different entries of the store, and `first` different samples of each, side by side."""
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(len(self.problems), count, replace=False)
        attempts = [rng.choice(len(self.responses[i]), first, replace=False) for i in chosen]
        return [self.problems[i] for i in chosen], [
            self.responses[i][j] for i, those in zip(chosen, attempts) for j in those]


def sample(
    params, config: model.ModelConfig, sampling: rollout.RolloutConfig, mesh, task: tasks.Task, problems: list, *,
    attempts: int, batch: int, seed: int,
) -> list[list[int]]:
    """`attempts` responses of one turn to each of `problems`, side by side, `batch` problems at a time."""
    rows: list[list[int]] = []
    for step, (part, padded) in enumerate(tasks.batches(problems, batch)):
        trajectory = rollout.sample(
            params, config, sampling, mesh, [tasks.prompt_tokens(task, problem) for problem in padded], [],
            forks=(attempts,), seed=seed, step=step)
        tokens, turns = sharding.to_host((trajectory.tokens, trajectory.turn))
        rows += [row[own == 1].tolist() for row, own in zip(tokens, turns)][:len(part) * attempts]
    return rows


def read(path: Path, problems: list, attempts: int) -> FirstAttempts:
    """What `ragged.write` wrote, as `tokens`, of `attempts` responses to each of `problems`.

    Raises:
      UserError: there are more or fewer.
    """
    rows = ragged.read(path)['tokens']
    if len(rows) != len(problems) * attempts:
        raise UserError(
            f'{path} has {len(rows)} responses, not {attempts} to each of {len(problems)} problems; delete it, then it '
            'is made anew.')
    return FirstAttempts(problems, [rows[i:i + attempts] for i in range(0, len(rows), attempts)])
