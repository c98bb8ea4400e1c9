"""A stage of reinforcement learning: sample every turn, grade them, update."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import (
    dry_run, grading, layout, lora, metrics, monitor, objective, offline, plan, processes, progress, ragged, rollout,
    settings, sharding, sources, speed, tasks)
from score_jax.checkpoint import Checkpoints, exists
from score_jax.errors import UserError
from score_jax.lora import LoraConfig
from score_jax.offline import OfflineConfig
from score_jax.sources import RANDOM, stage_checkpoints, weights
from score_jax.store import hint
from score_jax.train import Stage, TrainConfig, stage_seed

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
    reference_on_host: bool
    dry_run: bool
    lora: LoraConfig
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
    """The directory that 'base' and a stage's model are: `pretrained`, else what it starts from or is held to.

    Raises:
      UserError: a path that is no directory.
    """
    directories = {key: getattr(config, key) for key in ('start_from', 'reference') if '/' in getattr(config, key)}
    for key, value in directories.items():
        if not Path(value).expanduser().is_dir():
            raise UserError(
                f'config.{key} is {value!r}, which is no directory{hint(value)}; name that of a Hugging Face model, or '
                'a stage.')
    return config.pretrained or next(iter(directories.values()), '')


class Reinforce(Stage):
    """Multi-turn REINFORCE from the parameters of another stage, held to a frozen reference."""

    config: ReinforceConfig

    def __init__(self, section, workdir: Path):
        config = settings.read(ReinforceConfig, section)
        config = dataclasses.replace(config, pretrained=pretrained(config))
        super().__init__(
            config, settings.plain(section) | {'pretrained': config.pretrained}, workdir,
            config.lora if config.lora.rank else None)
        for stage in (config.start_from, config.reference):
            if weights(stage, config.pretrained):
                self._parameters_of(stage)
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
        if self.learner.lora:
            lora.declare(self.model, self.learner.lora)  # refuses targets that are none
        if config.reference_on_host:
            self._check_host()
        self._frozen: tuple[dict, dict | None] | None = None
        self._origins: dict = {}
        self._first_attempts: offline.FirstAttempts | None = None
        self._history: list[dict] | None = None
        self._gap_checked = False

    def _check_host(self) -> None:
        if self.learner.lora:
            raise UserError(
                'config.reference_on_host is True, but with config.lora the reference is the base, which the policy '
                'needs on the devices; set it to False, or config.lora.rank to 0.')
        kinds = {memory.kind for memory in self.mesh.local_devices[0].addressable_memories()}
        if 'pinned_host' not in kinds:
            raise UserError(
                f'config.reference_on_host is True, but the devices here have no memory of the host that they can read '
                f"('pinned_host'), only {', '.join(sorted(kinds))}; set it to False.")

    def start(self) -> dict:
        config = self.config
        parameters = self._parameters_of(config.start_from)
        stages = [config.start_from, config.reference] + [config.offline.source] * bool(self._offline)
        for stage in stages[1:]:
            self._parameters_of(stage)
        sources.check_prompts(config, self.workdir, *stages)
        if directory := weights(config.start_from, config.pretrained):
            progress.say(f'{config.stage}: starts from the model in {directory}')
        elif config.start_from == RANDOM:
            progress.say(f'{config.stage}: starts from random parameters (seed {config.seed}), which know nothing')
        else:
            checkpoints = stage_checkpoints(self.workdir, config.start_from)
            progress.say(
                f'{config.stage}: starts from {config.start_from}, step {checkpoints.latest()} '
                f'({checkpoints.directory})')
        if self.learner.lora:
            self._reference_adapters()
            return self._adapters_of(config.start_from) or sources.new_adapters(
                self.model, self.learner.lora, self.mesh, self.seed)
        return lora.merge(parameters(config.memory.params), config.memory.params)

    def _parameters_of(self, stage: str):
        """What gives the parameters of a stage in a dtype; `UserError` at once if there are none.

        Random ones are a function of `config.seed` alone: the same for every stage of a workdir.
        """
        return sources.find(
            stage, self.workdir, self.model, self.mesh, pretrained=self.config.pretrained,
            seed=stage_seed(self.config.seed, RANDOM))

    def beside(self) -> list[tuple[str, str, int]]:
        return plan.beside(self.work())

    def meta(self) -> dict:
        return {'origins': self._origins} | ({'lora': self._lora_record()} if self.learner.lora else {})

    def _lora_record(self) -> dict:
        """What the adapters are, and what they stand beside."""
        return sources.lora_record(
            self.config.start_from, self.workdir, self.learner.lora, self.config.memory.params,
            pretrained=self.config.pretrained, seed=stage_seed(self.config.seed, RANDOM))

    def _adapters_of(self, stage: str) -> dict:
        """The adapters of a stage; `{}` where it has none."""
        if not sources.saved_lora(stage, self.workdir, self.config.pretrained):
            return {}
        return stage_checkpoints(self.workdir, stage).restore_params(self.learner.abstract_params())

    def _reference_adapters(self) -> dict:
        """Those that make the reference of the base; `UserError` if it is no such thing."""
        config, which = self.config, (self.learner.lora, self.config.memory.params)
        there = sources.lora_record(
            config.reference, self.workdir, *which, pretrained=config.pretrained, seed=stage_seed(config.seed, RANDOM))
        if there != self._lora_record():
            raise UserError(
                f'config.reference is {config.reference!r}, which is not what the adapters of config.start_from = '
                f'{config.start_from!r} stand beside; with config.lora the two share one base.')
        return self._adapters_of(config.reference)

    def work(self) -> plan.Work:
        """A step at its longest."""
        return plan.Work(
            learner=self.learner, sampler=self.sampler, objective=self.objective, forks=self.forks,
            batch=self.config.batch, prompt=self.task.longest_prompt('train'),
            instruction=len(self._instruction) + (self.sampler.close_token is not None),
            reference_on_host=self.config.reference_on_host)

    def run(self) -> None:
        self.learner = plan.fitted(self.work(), self.config.memory, self.config.mesh.name)
        if self.config.dry_run:
            progress.say(f'{self.config.stage}: {dry_run.report(self.work(), self.config.mesh.name)}')
            return
        plan.check(self.work())
        progress.say(f'{self.config.stage}: the objective\n{self._describe()}')
        super().run()
        self._frozen = self._first_attempts = None  # frees their memory for the stages to come

    def _describe(self) -> str:
        config = self.config
        lines = [objective.describe(self.objective), f'reference: {config.reference}']
        if self._offline:
            lines.append(
                f'{self._offline} of the {config.batch} problems of a step have first attempts by '
                f'{config.offline.source}, sampled once: prompts, on which only what follows is trained')
        return '\n'.join(lines)

    def frozen(self) -> tuple[dict, dict | None]:
        """What stays as it is: the reference, sharded like the policy, and the base of adapters.

        The reference is in bfloat16; with LoRA it is what makes it of the base: adapters, or none.
        """
        if self._frozen is None:
            config = self.config
            self._origins = sources.origins(
                (config.start_from, config.reference), self.directory.path, config.pretrained)
            if self.learner.lora:
                record = self._lora_record()
                if exists(self.directory.checkpoints):  # goes on: from what it was begun with, or not at all
                    record = Checkpoints(self.directory.checkpoints).meta()['lora']
                base = sources.find_base(record, self.directory.path, self.model, self.mesh)
                self._frozen = self._reference_adapters(), base()
            else:
                reference = lora.merge(self._parameters_of(config.reference)(jnp.bfloat16), jnp.bfloat16)
                if config.reference_on_host:
                    reference = jax.device_put(reference, jax.tree.map(
                        lambda x: x.sharding.with_memory_kind('pinned_host'), reference))
                self._frozen = reference, None
        return self._frozen

    def _stored(self, seed: int) -> offline.FirstAttempts:
        """The first attempts that are given; they are sampled if the workdir has none."""
        if self._first_attempts is None:
            config, path = self.config.offline, self.directory.path / 'first_attempts.npz'
            problems = self.task.problems('train', config.problems, seed=seed, step=0)
            if not processes.agree(path.exists()):
                progress.say(f'{self.config.stage}: {config.source} makes its first attempts ({path})')
                ragged.write(path, tokens=offline.sample(
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
        self.watch.enter('loading the reference')
        reference, base = self.frozen()
        self.watch.enter('sampling')
        config, began = self.config, time.monotonic()
        problems, given = self._problems(step)
        prompts = [tasks.prompt_tokens(self.task, problem) for problem in problems]
        grader = grading.Grader(self.task, problems, self.mesh)
        trajectory = rollout.sample(
            self.learner.whole(state.params, base), self.model, self.sampler, self.mesh, prompts,
            self._instruction, forks=self.forks, seed=self.seed, step=step, given=given, on_turn=grader.on_turn)
        sampled = time.monotonic()
        self.watch.enter('grading')
        attempts = grader.attempts()
        correct = grading.rewards(attempts)
        graded = time.monotonic()
        self.watch.enter('scoring and update')
        state, figures = self.learner.reinforce(
            state, reference, trajectory, sharding.put_batch(self.mesh, correct),
            objective=self.objective, forks=self.forks, temperature=config.temperature,
            layout=layout.choose(
                trajectory, self.forks, max(config.rollout.chunk // 4, 1), mesh=self.mesh,
                parts=self.learner.memory.accumulate),
            base=base)
        figures = jax.tree.map(float, figures) | grading.summary(attempts)
        figures |= self._transitions(correct, grading.changed(attempts))
        if 't1' not in figures:
            del figures['reward']  # there is none, which is not 0
        ended = time.monotonic()
        figures |= {
            'seconds_sample': sampled - began, 'seconds_grade': graded - sampled, 'seconds_update': ended - graded}
        figures |= self._rates(prompts, figures, ended - began)
        self._check_gap(figures['log_prob_gap'])
        return state, figures | self._warnings(figures, step), self._samples(problems, attempts, step)

    def _rates(self, prompts: list[list[int]], figures: dict, seconds: float) -> dict[str, float]:
        """Sampled tokens a second, the share of the machine's arithmetic that is used, and scoring's of the update."""
        work, lengths = self.work(), [figures[f'length_turn{t + 1}'] for t in range(self.objective.turns)]
        flops = speed.reinforce_flops(work, sum(map(len, prompts)) / len(prompts), lengths)
        rows = [work.batch * math.prod(self.forks[:t + 1]) for t in range(self.objective.turns)]
        rows[0] -= self._offline * self.forks[0]  # which are given
        tokens = sum(count * length for count, length in zip(rows, lengths))
        rates = speed.rates(tokens, sum(flops.values()), seconds, self.model, self.mesh)
        return rates | {'score_share': flops['scoring'] / (flops['scoring'] + flops['update'])}

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
            self._history = self.directory.read('metrics.jsonl')
        found = monitor.look([*self._history, figures], self.config.steps)
        for name in found.keys() - {name for line in self._history for name in line.get('warnings', ())}:
            progress.say(f'{self.config.stage:<8} {step + 1:>5}/{self.config.steps}  warning: {found[name]}')
        warnings = {'warnings': sorted(found)} if found else {}
        self._history.append({key: figures[key] for key in monitor.KEYS if key in figures} | warnings)
        return warnings

    def _check_gap(self, gap: float) -> None:
        """The first step of a run says whether sampler and learner see the same distribution."""
        if not self._gap_checked and not gap <= _LOG_PROB_TOLERANCE[self.model.dtype]:
            raise RuntimeError(
                f'The log-probabilities of the sampler and of the learner differ by {gap:.2g} on the same tokens: the '
                'gradient would be that of another distribution. This is a fault of the program, not of the config.')
        self._gap_checked = True

    def _samples(self, problems, attempts, step: int) -> list[dict]:
        if step % self.config.sample_every:
            return []
        each = len(attempts[0]) // len(problems)
        return [
            grading.sample_line(self.task, problem, [turn[i * each] for turn in attempts])
            for i, problem in enumerate(problems[:self.config.samples])]
