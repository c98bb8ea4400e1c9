"""STaR and Pair-SFT: supervised training on pairs of attempts that the model made and the verifier chose.

Both are baselines of arXiv 2409.12917 (sections 4 and 6). A pair is a first attempt and a right second one:

    'rollout'    both of one rollout (STaR, Zelikman et al. 2022, on two turns)
    'problem'    a first attempt, and another one, right and drawn at random, at the same problem (Pair-SFT)

First attempts of pairs are wrong; with `keep_right` right ones have pairs too. What is imitated are right responses
alone: a wrong one is context. Every iteration samples from what the iteration before it came to (the first from
`start_from`), and then trains anew from `start_from`.

    WORKDIR/STAGE/pairs-I.npz    the pairs of iteration I
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax import grading, lora, metrics, progress, ragged, rollout, settings, sharding, sources, tasks
from score_jax.baselines.supervised import lay_out
from score_jax.errors import UserError
from score_jax.reinforce import SamplingConfig, sampler
from score_jax.train import Stage, TrainConfig, stage_seed

KINDS = ('rollout', 'problem')
_BATCH = 64  # problems sampled at a time, or the next number that the mesh divides


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """`config.group`: first attempts at each problem, and second attempts on each first."""

    first: int
    second: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig(TrainConfig):
    """`configs/baselines.py`."""

    start_from: str
    pairs: str
    keep_right: bool
    iterations: int
    problems: int
    group: GroupConfig
    rollout: SamplingConfig
    temperature: float
    samples: int

    def __post_init__(self):
        super().__post_init__()
        if self.pairs not in KINDS:
            raise UserError(f'config.pairs is {self.pairs!r}; it must be one of {", ".join(KINDS)}.')
        for key, least in (('iterations', 1), ('problems', 1), ('samples', 0)):
            if getattr(self, key) < least:
                raise UserError(f'config.{key} is {getattr(self, key)}; it must be at least {least}.')
        if self.steps % self.iterations:
            each = max(self.steps // self.iterations, 1)
            raise UserError(
                f'config.steps is {self.steps}, which config.iterations = {self.iterations} does not divide; '
                f'{each * self.iterations} would do.')
        if min(self.group.first, self.group.second) < 1:
            raise UserError(f'config.group is {self.group}; each number must be at least 1.')
        if self.pairs == 'problem' and self.group.first < 2:
            raise UserError(
                'config.group.first is 1, but config.pairs = \'problem\' pairs first attempts at a problem with each '
                'other; it must be at least 2.')
        if self.temperature <= 0:
            raise UserError(f'config.temperature is {self.temperature}; pairs are sampled, so it must be positive.')

    @property
    def schedule_steps(self) -> int:
        """Updates of one iteration, which has a schedule of its own."""
        return self.steps // self.iterations


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled response: its tokens, and whether the verifier found it right."""

    tokens: list[int]
    right: bool


def from_rollouts(rollouts: Sequence[Sequence[Response]], keep_right: bool) -> list[tuple[Response, Response]]:
    """The rollouts, first and second response each, whose second is right and (unless `keep_right`) first is wrong."""
    return [(first, second) for first, second in rollouts if second.right and (keep_right or not first.right)]


def from_problem(
    attempts: Sequence[Response], keep_right: bool, rng: np.random.Generator) -> list[tuple[Response, Response]]:
    """Each wrong one of the attempts at a problem (with `keep_right` each one) with another, right one, at random."""
    pairs = []
    for place, first in enumerate(attempts):
        others = [other for i, other in enumerate(attempts) if other.right and i != place]
        if others and (keep_right or not first.right):
            pairs.append((first, others[rng.integers(len(others))]))
    return pairs


def drawn(count: int, batch: int, step: int, seed: Sequence[int]) -> np.ndarray:
    """Which of `count` entries step `step` trains on, `[batch]`: all of them once, in a random order, then again."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: np.random.default_rng([*seed, epoch]).permutation(count) for epoch in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


class Pairs(Stage):
    """Maximises the likelihood of the right responses of pairs."""

    config: PairsConfig

    def __init__(self, section, workdir: Path):
        super().__init__(settings.read(PairsConfig, section), section, workdir)
        config, turns = self.config, 2 if self.config.pairs == 'rollout' else 1
        self.sampler = sampler(config.rollout, self.task, turns, config.temperature)
        self.forks = (config.group.first, config.group.second)[:turns]
        self._instruction = tasks.instruction_tokens(self.task)
        sampler(config.rollout, self.task, 2, config.temperature).check_length(
            self.task.longest_prompt('train'), len(self._instruction))
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        self._origins: dict = {}

    def start(self) -> dict:
        config = self.config
        parameters = sources.find(
            config.start_from, self.workdir, self.model, self.mesh, pretrained=config.pretrained,
            seed=stage_seed(config.seed, sources.RANDOM))
        sources.check_prompts(config, self.workdir, config.start_from)
        progress.say(f'{config.stage}: starts from {config.start_from}')
        return lora.merge(parameters(config.memory.params), config.memory.params)

    def meta(self) -> dict:
        return {'origins': self._origins}

    def step(self, state, step: int):
        iteration, within = divmod(step, self.config.schedule_steps)
        found: dict = {}
        lines: list[dict] = []
        path = self.directory.path / f'pairs-{iteration}.npz'
        if self._rows is None or within == 0:  # goes on, or begins an iteration
            self._origins = sources.origins((self.config.start_from,), self.directory.path, self.config.pretrained)
        if within == 0:
            self.watch.enter('sampling')
            rows, found, lines = self._make(state.params, iteration)
            tokens, turns = zip(*rows)
            ragged.write(path, tokens=tokens, turns=turns)
            if iteration:
                state = self.learner.new_state(self.start())
            self.watch.enter('the update')
        if self._rows is None or within == 0:
            self._rows = read(path, self.config.rollout.chunk, self.task.tokenizer.pad_token)
        chosen = drawn(len(self._rows[0]), self.config.batch, within, (self.seed, iteration))
        batch = tuple(part[chosen] for part in self._rows)
        began, ends = time.monotonic(), batch[1].shape[1] - (batch[1][:, ::-1] > 0).argmax(axis=1)
        state, figures = self.learner.imitate(state, *sharding.put_batch(self.mesh, batch))
        return state, jax.tree.map(float, figures) | found | self.rates(began, len(chosen), float(ends.mean())), lines

    def _make(self, params, iteration: int) -> tuple[list[tuple[list[int], list[int]]], dict, list[dict]]:
        """The rows to train on (tokens, turns), what is said of them in metrics.jsonl, and transcripts."""
        config, rows, lines = self.config, [], []
        attempts: list[list[grading.Attempt]] = [[] for _ in self.forks]
        rng = np.random.default_rng([self.seed, iteration])
        for problem, responses, graded in self._sampled(params, iteration):
            if config.pairs == 'rollout':
                pairs = from_rollouts(responses, config.keep_right)
            else:
                pairs = from_problem([first for first, in responses], config.keep_right, rng)
            rows += [lay_out(self.task, problem, [one.tokens for one in pair], [one.right for one in pair])
                     for pair in pairs]
            if len(lines) < config.samples and config.pairs == 'rollout':
                lines.append(grading.sample_line(self.task, problem, [turn[0] for turn in graded]))
            for turn, more in zip(attempts, graded):
                turn += more
        if not rows:
            raise UserError(
                f'{config.stage}: none of {len(attempts[0])} samples of iteration {iteration} makes a pair with a '
                'right second response; raise config.problems or config.group, or set config.keep_right.')
        correct, changed = grading.rewards(attempts), grading.changed(attempts)
        valid = np.isfinite(correct).all(axis=1)
        found = {'pairs': len(rows), 'sampled': len(correct), 'dropped': int((~valid).sum())}
        if config.pairs == 'rollout':
            found |= metrics.transitions(correct[valid], changed[valid])
        progress.say(
            f'{config.stage}: iteration {iteration + 1} of {config.iterations} has {len(rows)} pairs of {len(correct)} '
            'samples')
        return rows, found, lines

    def _sampled(
        self, params, iteration: int) -> Iterator[tuple[Any, list[list[Response]], list[list[grading.Attempt]]]]:
        """By problem: the responses of each of its rollouts (but those whose grader failed), and attempts by turn."""
        config = self.config
        problems = self.task.problems('train', config.problems, seed=self.seed, step=iteration)
        shards = sharding.batch_shards(self.mesh)
        batch = -(-_BATCH // shards) * shards
        for part, (some, padded) in enumerate(tasks.batches(problems, batch)):
            grader = grading.Grader(self.task, padded, self.mesh)
            trajectory = rollout.sample(
                params, self.model, self.sampler, self.mesh, [tasks.prompt_tokens(self.task, p) for p in padded],
                self._instruction, forks=self.forks, seed=self.seed, step=iteration << 20 | part,
                on_turn=grader.on_turn)
            attempts, each = grader.attempts(), math.prod(self.forks)
            rewards = grading.rewards(attempts)
            tokens, turns = sharding.to_host((trajectory.tokens, trajectory.turn))
            for number, problem in enumerate(some):
                own = range(number * each, (number + 1) * each)
                yield problem, [
                    [Response(tokens[row][turns[row] == t + 1].tolist(), bool(rewards[row, t]))
                     for t in range(len(attempts))] for row in own if np.isfinite(rewards[row]).all()
                ], [turn[own.start:own.stop] for turn in attempts]


def read(path: Path, multiple: int, pad_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and turns of the pairs in a file, `[N, T]` each; T is a multiple of `multiple`.

    Raises:
      UserError: the file is not there.
    """
    if not path.exists():
        raise UserError(
            f'{path} is gone, and with it what the stage was training on; move {path.parent} away to start anew.')
    columns = ragged.read(path)
    tokens, _ = rollout.pad_rows(columns['tokens'], multiple, pad_token)
    return tokens, rollout.pad_rows(columns['turns'], multiple, 0)[0]
