"""A stage of reinforcement learning: sample every turn, grade them, update."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import (
    checkpoint, grading, hf, metrics, model, monitor, objective, offline, progress, rollout, settings, sharding, tasks)
from score_jax.errors import UserError
from score_jax.jsonl import read_jsonl
from score_jax.offline import OfflineConfig
from score_jax.train import Stage, TrainConfig, stage_seed
from score_jax.trajectory import shared_widths
from score_jax.workdir import StageDirectory

RANDOM = 'random'  # in place of a stage's name: freshly initialised parameters
_BASE = 'base'  # the stage that `config.pretrained` stands for

# How far the sampler's log-probabilities may lie from the learner's on the first step of a run.
_LOG_PROB_TOLERANCE = {'float32': 1e-3, 'bfloat16': 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """`config.group`: first attempts at each problem, second attempts on each first, later ones on each before."""

    first: int
    second: int
    later: int

    def forks(self, turns: int) -> tuple[int, ...]:
        """By turn, how many attempts are sampled from each row of the turn before."""
        return (self.first, self.second, *[self.later] * (turns - 2))


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
    turns: int
    group: GroupConfig
    offline: OfflineConfig
    rollout: SamplingConfig
    temperature: float
    objective: dict
    sample_every: int
    samples: int


def sampler(config: SamplingConfig, task: tasks.Task, turns: int, temperature: float) -> rollout.RolloutConfig:
    """`config.rollout` for a task's tokenizer."""
    return rollout.RolloutConfig(
        turns=turns, temperature=temperature, **dataclasses.asdict(config), end_tokens=task.tokenizer.end_tokens,
        pad_token=task.tokenizer.pad_token, close_token=task.tokenizer.close_token)


def pretrained(config) -> str:
    """The directory that says a stage's model: what it starts from or is held to, if that is one, else `pretrained`."""
    return next((name for name in (config.start_from, config.reference) if '/' in name), config.pretrained)


def weights(stage: str, directory: str) -> Path | None:
    """The directory of a Hugging Face model that `stage` means: a path, or the base where `directory` stands for it.

    None: a stage of the workdir, or random parameters.
    """
    found = stage if '/' in stage else directory if stage == _BASE else ''
    return Path(found).expanduser() if found else None


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


@functools.partial(jax.jit, static_argnames=('config', 'mesh', 'dtype'))
def _initialise(config: model.ModelConfig, mesh: jax.sharding.Mesh, key, dtype) -> dict:
    return jax.lax.with_sharding_constraint(model.initialise(config, key, dtype), model.shardings(config, mesh))


class Reinforce(Stage):
    """Multi-turn REINFORCE from the parameters of another stage, held to a frozen reference."""

    config: ReinforceConfig

    def __init__(self, section, workdir: Path):
        config = settings.read(ReinforceConfig, section)
        config = dataclasses.replace(config, pretrained=pretrained(config))
        super().__init__(config, settings.plain(section) | {'pretrained': config.pretrained}, workdir)
        self.objective = objective.read(config.objective, config.turns)
        self.forks = config.group.forks(config.turns)
        for key, least in (('sample_every', 1), ('samples', 0)):
            if getattr(config, key) < least:
                raise UserError(f'config.{key} is {getattr(config, key)}; it must be at least {least}.')
        if min(self.forks) < 1:
            raise UserError(f'config.group is {self.forks}; each number must be at least 1.')
        if self.objective.baseline in ('leave_one_out', 'in_group') and self.forks[0] < 2:
            raise UserError(
                f'config.group.first is {self.forks[0]}, but the baseline {self.objective.baseline!r} compares first '
                'attempts with each other; it must be at least 2.')
        self._offline = config.offline.problems_a_step(config.batch, config.group.first)
        self.sampler = sampler(config.rollout, self.task, self.objective.turns, config.temperature)
        if config.temperature == 0:
            raise UserError('config.temperature is 0; training samples, so it must be positive.')
        self._instruction = tasks.instruction_tokens(self.task)
        self.sampler.check_length(self.task.longest_prompt('train'), len(self._instruction))
        self._reference = None
        self._first_attempts: offline.FirstAttempts | None = None
        self._history: list[dict] | None = None
        self._gap_checked = False

    def start(self) -> dict:
        config = self.config
        parameters = self._parameters_of(config.start_from)
        self._parameters_of(config.reference)
        if self._offline:
            self._parameters_of(config.offline.source)
        if directory := weights(config.start_from, config.pretrained):
            progress.say(f'{config.stage}: starts from the model in {directory}')
        elif config.start_from == RANDOM:
            progress.say(f'{config.stage}: starts from random parameters (seed {config.seed}), which know nothing')
        else:
            checkpoints = stage_checkpoints(self.workdir, config.start_from)
            progress.say(
                f'{config.stage}: starts from {config.start_from}, step {checkpoints.latest()} '
                f'({checkpoints.directory})')
        return parameters(jnp.float32)

    def _parameters_of(self, stage: str) -> Callable[[jnp.dtype], dict]:
        """What gives the parameters of a stage in a dtype; `UserError` at once if there are none.

        Random ones are a function of `config.seed` alone: the same for every stage of a workdir.
        """
        if directory := weights(stage, self.config.pretrained):
            self._check_shape(directory)
            return lambda dtype: hf.load(directory, self.mesh, jnp.dtype(dtype).name)[1]
        if stage != RANDOM:
            checkpoints = stage_checkpoints(self.workdir, stage)
            return lambda dtype: checkpoints.restore_params(model.abstract(self.model, self.mesh, dtype))
        key = jax.random.key(stage_seed(self.config.seed, RANDOM))
        return lambda dtype: _initialise(self.model, self.mesh, key, dtype)

    def _check_shape(self, directory: Path) -> None:
        found = dataclasses.replace(hf.check(directory), dtype=self.model.dtype)
        if found != self.model:
            raise UserError(
                f'{directory} and {self.config.pretrained} hold models of different shapes; config.start_from and '
                'config.reference must be of one.')

    def run(self) -> None:
        progress.say(f'{self.config.stage}: the objective\n{self._describe()}')
        super().run()
        self._reference = self._first_attempts = None  # frees their memory for the stages to come

    def _describe(self) -> str:
        config = self.config
        lines = [objective.describe(self.objective), f'reference: {config.reference}']
        if self._offline:
            lines.append(
                f'{self._offline} of the {config.batch} problems of a step have first attempts by '
                f'{config.offline.source}, sampled once: prompts, on which only what follows is trained')
        return '\n'.join(lines)

    def reference(self) -> dict:
        """The frozen parameters in bfloat16, sharded like the policy."""
        if self._reference is None:
            self._reference = self._parameters_of(self.config.reference)(jnp.bfloat16)
        return self._reference

    def _stored(self, seed: int) -> offline.FirstAttempts:
        """The first attempts that are given; they are sampled if the workdir has none."""
        if self._first_attempts is None:
            config, path = self.config.offline, self.directory.path / 'first_attempts.npz'
            problems = self.task.problems('train', config.problems, seed=seed, step=0)
            if not path.exists():
                progress.say(f'{self.config.stage}: {config.source} makes its first attempts ({path})')
                offline.write(path, offline.sample(
                    self._parameters_of(config.source)(jnp.float32), self.model,
                    dataclasses.replace(self.sampler, turns=1), self.mesh, self.task, problems,
                    attempts=config.attempts, batch=self.config.batch, seed=seed))
            self._first_attempts = offline.read(path, problems, config.attempts)
        return self._first_attempts

    def _problems(self, step: int) -> tuple[list, list[list[int]]]:
        """The problems of a step, and a first attempt for each of their rows: `[]` where it is to be sampled."""
        config, given, problems = self.config, [], []
        if self._offline:
            seed = stage_seed(config.seed, f'{config.stage}-offline')
            problems, given = self._stored(seed).draw(self._offline, config.group.first, seed=seed, step=step)
        fresh = self.task.problems('train', config.batch - self._offline, seed=self.seed, step=step)
        return problems + fresh, given + [[]] * (len(fresh) * config.group.first)

    def step(self, state, step: int):
        config, began = self.config, time.monotonic()
        problems, given = self._problems(step)
        grader = grading.Grader(self.task, problems)
        trajectory = rollout.sample(
            state.params, self.model, self.sampler, self.mesh,
            [tasks.prompt_tokens(self.task, problem) for problem in problems], self._instruction,
            forks=self.forks, seed=self.seed, step=step, given=given, on_turn=grader.on_turn)
        sampled = time.monotonic()
        attempts = grader.attempts()
        correct = grading.rewards(attempts)
        graded = time.monotonic()
        state, figures = self.learner.reinforce(
            state, self.reference(), trajectory, sharding.put_batch(self.mesh, correct),
            objective=self.objective, forks=self.forks, temperature=config.temperature,
            widths=shared_widths(trajectory, self.forks, max(config.rollout.chunk // 4, 1)))
        figures = jax.tree.map(float, figures) | grading.summary(attempts)
        figures |= self._transitions(correct, grading.changed(attempts))
        if 't1' not in figures:
            del figures['reward']  # there is none, which is not 0
        figures |= {
            'seconds_sample': sampled - began, 'seconds_grade': graded - sampled,
            'seconds_update': time.monotonic() - graded}
        self._check_gap(figures['log_prob_gap'])
        return state, figures | self._warnings(figures, step), self._samples(problems, attempts, step)

    def _transitions(self, correct: np.ndarray, changed: np.ndarray) -> dict[str, float]:
        """Those of the rows that have a verdict; where only some first attempts are given, theirs by another name."""
        valid = np.isfinite(correct).all(axis=1)
        given = np.arange(len(correct)) < self._offline * math.prod(self.forks)
        parts = {'': valid} if given.all() else {'': valid & ~given, 'offline_': valid & given}
        return {
            prefix + name: value for prefix, rows in parts.items() if rows.any()
            for name, value in metrics.transitions(correct[rows], changed[rows]).items()}

    def _warnings(self, figures: dict, step: int) -> dict[str, list[str]]:
        """What the monitor finds, for metrics.jsonl; what is new is said."""
        if self._history is None:
            self._history = read_jsonl(self.directory.path / 'metrics.jsonl')
        found = monitor.look([*self._history, figures], self.config.steps)
        for name in found.keys() - {name for line in self._history for name in line.get('warnings', ())}:
            progress.say(f'{self.config.stage:<8} {step + 1:>5}/{self.config.steps}  warning: {found[name]}')
        warnings = {'warnings': sorted(found)} if found else {}
        self._history.append({key: figures[key] for key in monitor.KEYS if key in figures} | warnings)
        return warnings

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
