"""A stage of reinforcement learning: sample both turns, grade them, update."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import checkpoint, grading, model, objective, progress, rollout, settings, sharding, tasks
from score_jax.errors import UserError
from score_jax.metrics import transitions
from score_jax.train import Stage, TrainConfig, stage_seed
from score_jax.workdir import StageDirectory

RANDOM = 'random'  # in place of a stage's name: freshly initialised parameters

# How far the sampler's log-probabilities may lie from the learner's on the first step of a run.
_LOG_PROB_TOLERANCE = {'float32': 1e-3, 'bfloat16': 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """`config.group`: first attempts at each problem, and second attempts on each first."""

    first: int
    second: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """`config.rollout`: the part of `rollout.RolloutConfig` that is no tokenizer's."""

    max_tokens: int
    max_length: int
    chunk: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceConfig(TrainConfig):
    """`configs/stage1.py` and `configs/stage2.py`."""

    start_from: str
    reference: str
    before: dict
    group: GroupConfig
    rollout: SamplingConfig
    temperature: float
    objective: dict
    sample_every: int
    samples: int


def sampler(config: SamplingConfig, task: tasks.Task, turns: int, temperature: float) -> rollout.RolloutConfig:
    """`config.rollout` for a task's tokenizer."""
    return rollout.RolloutConfig(
        turns=turns, temperature=temperature, **dataclasses.asdict(config), end_tokens=task.tokenizer.end_tokens,
        pad_token=task.tokenizer.pad_token)


def stage_checkpoints(workdir: Path, stage: str) -> checkpoint.Checkpoints:
    """The checkpoints of a stage that must be there, to its end; `UserError` says what to run if they are not."""
    directory = StageDirectory(workdir, stage, {}).checkpoints
    if not checkpoint.exists(directory):
        raise UserError(
            f'{directory} holds no checkpoint of {stage!r}; first run '
            f'python launch/main.py --config=configs/{stage}.py --workdir={workdir}')
    checkpoints = checkpoint.Checkpoints(directory)
    steps, latest = StageDirectory(workdir, stage, {}).saved_config().get('steps', 0), checkpoints.latest()
    if latest < steps:
        raise UserError(
            f'{directory} is at step {latest} of {steps}; run {stage!r} to its end first: '
            f'python launch/main.py --config=configs/{stage}.py --workdir={workdir}')
    return checkpoints


class Reinforce(Stage):
    """Multi-turn REINFORCE from the parameters of another stage, held to a frozen reference."""

    config: ReinforceConfig

    def __init__(self, section, workdir: Path):
        config = settings.read(ReinforceConfig, section)
        super().__init__(config, section, workdir)
        self.objective = objective.read(config.objective)
        self.forks = (config.group.first, config.group.second)
        for key, least in (('sample_every', 1), ('samples', 0)):
            if getattr(config, key) < least:
                raise UserError(f'config.{key} is {getattr(config, key)}; it must be at least {least}.')
        if min(self.forks) < 1:
            raise UserError(f'config.group is {self.forks}; both numbers must be at least 1.')
        if self.objective.baseline == 'leave_one_out' and self.forks[0] < 2:
            raise UserError(
                f'config.group.first is {self.forks[0]}, but the leave-one-out baseline compares first attempts with '
                'each other; it must be at least 2.')
        self.sampler = sampler(config.rollout, self.task, self.objective.turns, config.temperature)
        if config.temperature == 0:
            raise UserError('config.temperature is 0; training samples, so it must be positive.')
        self._instruction = self.task.tokenizer.encode(self.task.instruction)
        self.sampler.check_length(self.task.longest_prompt('train'), len(self._instruction))
        self._reference = None
        self._gap_checked = False

    def start(self) -> dict:
        config = self.config
        if config.reference != RANDOM:
            stage_checkpoints(self.workdir, config.reference)
        if config.start_from == RANDOM:
            progress.say(f'{config.stage}: starts from random parameters (seed {config.seed}), which know nothing')
            return self._random(jnp.float32)
        checkpoints = stage_checkpoints(self.workdir, config.start_from)
        progress.say(
            f'{config.stage}: starts from {config.start_from}, step {checkpoints.latest()} ({checkpoints.directory})')
        return checkpoints.restore_params(model.abstract(self.model, self.mesh))

    def _random(self, dtype) -> dict:
        """Freshly initialised parameters, a function of `config.seed` alone: the same for every stage of a workdir."""
        key = jax.random.key(stage_seed(self.config.seed, RANDOM))
        return jax.jit(
            lambda: jax.tree.map(lambda x: x.astype(dtype), model.initialise(self.model, key)),
            out_shardings=model.shardings(self.model, self.mesh))()

    def run(self) -> None:
        progress.say(f'{self.config.stage}: the objective\n{objective.describe(self.objective)}')
        super().run()
        self._reference = None  # frees its memory for the stages to come

    def reference(self) -> dict:
        """The frozen parameters in bfloat16, sharded like the policy."""
        if self._reference is None and self.config.reference == RANDOM:
            self._reference = self._random(jnp.bfloat16)
        elif self._reference is None:
            checkpoints = stage_checkpoints(self.workdir, self.config.reference)
            self._reference = checkpoints.restore_params(model.abstract(self.model, self.mesh, jnp.bfloat16))
        return self._reference

    def step(self, state, step: int):
        config, began = self.config, time.monotonic()
        problems = self.task.problems('train', config.batch, seed=self.seed, step=step)
        grader = grading.Grader(self.task, problems)
        trajectory = rollout.sample(
            state.params, self.model, self.sampler, self.mesh,
            [tasks.prompt_tokens(self.task, problem) for problem in problems], self._instruction,
            forks=self.forks, seed=self.seed, step=step, on_turn=grader.on_turn)
        sampled = time.monotonic()
        attempts = grader.attempts()
        correct, changed = grading.rewards(attempts), grading.changed(attempts)
        graded = time.monotonic()
        state, metrics = self.learner.reinforce(
            state, self.reference(), trajectory, sharding.put_batch(self.mesh, correct),
            objective=self.objective, forks=self.forks, temperature=config.temperature)
        metrics = jax.tree.map(float, metrics) | grading.summary(attempts)
        valid = np.isfinite(correct).all(axis=1)
        if valid.any():
            metrics |= transitions(correct[valid], changed[valid])
        else:
            del metrics['reward']  # there is none, which is not 0
        metrics |= {
            'seconds_sample': sampled - began, 'seconds_grade': graded - sampled,
            'seconds_update': time.monotonic() - graded}
        self._check_gap(metrics['log_prob_gap'])
        return state, metrics, self._samples(problems, attempts, step)

    def _check_gap(self, gap: float) -> None:
        """The first step of a run says whether sampler and learner see the same law."""
        if not self._gap_checked and not gap <= _LOG_PROB_TOLERANCE[self.model.dtype]:
            raise RuntimeError(
                f'The log-probabilities of the sampler and of the learner differ by {gap:.2g} on the same tokens: the '
                'gradient would be that of another law. This is a fault of the program, not of the config.')
        self._gap_checked = True

    def _samples(self, problems, attempts, step: int) -> list[dict]:
        if step % self.config.sample_every:
            return []
        each = len(attempts[0]) // len(problems)
        return [
            grading.sample_line(self.task, problem, [turn[i * each] for turn in attempts])
            for i, problem in enumerate(problems[:self.config.samples])]
