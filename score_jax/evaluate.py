"""Evaluation: one rollout of every turn for each of N held-out problems, by method and temperature.

Two dearer measurements of the stages are off by default: many attempts in a row, and what more samples buy
(`scaling.py`). Every measurement is kept in a file of its own, and made again only for another checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from score_jax import (
    checkpoint, grading, hf, meshes, metrics, model, processes, progress, rollout, scaling, settings, sharding,
    sources, tasks)
from score_jax.baselines import self_refine
from score_jax.baselines.self_refine import SelfRefineConfig
from score_jax.errors import UserError
from score_jax.reinforce import SamplingConfig, sampler, stage_checkpoints, weights
from score_jax.rewards import Outcome
from score_jax.sharding import MeshConfig
from score_jax.train import check_seed, stage_seed, task_and_model
from score_jax.workdir import StageDirectory, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptsConfig:
    """`config.attempts`: many attempts in a row, by stages that were trained on fewer."""

    turns: int
    problems: int
    temperature: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """`config.scaling`: many rollouts of each problem, for pass@k and votes."""

    samples: int
    problems: int
    temperature: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`configs/evaluate.py`."""

    kind: str
    stage: str
    seed: int
    methods: tuple[str, ...]
    temperatures: tuple[float, ...]
    turns: int
    split: str
    problems: int
    samples_per_problem: int
    batch: int
    samples: int
    rollout: SamplingConfig
    self_refine: SelfRefineConfig
    attempts: AttemptsConfig
    scaling: ScalingConfig
    task: dict
    pretrained: str
    tokenizer: str
    chat: str
    model: dict
    mesh: MeshConfig

    def __post_init__(self):
        check_seed(self.seed)
        for key, value, least in (
                ('problems', self.problems, 1), ('batch', self.batch, 1), ('turns', self.turns, 2),
                ('samples_per_problem', self.samples_per_problem, 1), ('samples', self.samples, 0),
                ('attempts.problems', self.attempts.problems, 1), ('attempts.turns', self.attempts.turns, 0),
                ('attempts.temperature', self.attempts.temperature, 0),
                ('scaling.problems', self.scaling.problems, 1), ('scaling.samples', self.scaling.samples, 0)):
            if value < least:
                raise UserError(f'config.{key} is {value}; it must be at least {least}.')
        for key in ('methods', 'temperatures'):
            if not getattr(self, key):
                raise UserError(f'config.{key} is empty; it must name at least one.')
        for key, stages in (('methods', self.methods), ('self_refine.stage', (self.self_refine.stage,))):
            if path := next((stage for stage in stages if '/' in stage), None):
                raise UserError(
                    f'config.{key} has {path!r}; it must name stages of the workdir. The directory of a model is '
                    "measured as the stage 'base' of config.pretrained.")
        if min(self.temperatures) < 0:
            raise UserError(f'config.temperatures is {self.temperatures}; each must be 0 (greedy) or positive.')
        if self.attempts.turns == 1:
            raise UserError(
                'config.attempts.turns is 1; several attempts in a row are at least 2, and 0 is none at all.')
        if self.scaling.samples and self.scaling.samples < self.turns:
            raise UserError(
                f'config.scaling.samples is {self.scaling.samples}; it must be at least config.turns = '
                f'{self.turns}, or 0.')
        if self.scaling.temperature <= 0:
            raise UserError(
                f'config.scaling.temperature is {self.scaling.temperature}; it must be positive, or all samples are '
                'alike.')


class Evaluation:
    """Measures the stages of a workdir on the same problems and writes `results.json` and the report."""

    def __init__(self, section, workdir: Path):
        self.config = config = settings.read(EvaluateConfig, section)
        self.workdir = workdir
        self.directory = StageDirectory(workdir, config.stage, section)
        self.task, self.model = task_and_model(config)
        self.mesh = meshes.make_mesh(config.mesh, meshes.Need(
            batch=config.batch, kv_heads=self.model.kv_heads, held=meshes.held(self.model)))
        sharding.check_divisible('config.batch', config.batch, self.mesh)
        self.problems = self.task.distinct_problems(config.split, config.problems, seed=config.seed)
        self._longest_prompt = self.task.longest_prompt(config.split)
        self._sampler(1.0).check_length(self._longest_prompt, self._length(self.task.instruction))
        if self_refine.METHOD in config.methods:
            longest = max(map(self._length, config.self_refine.instructions(self.task)))
            self._sampler(1.0, self_refine.TURNS).check_length(self._longest_prompt, longest)
        self.directory.check()

    def _length(self, text: str) -> int:
        return len(self.task.tokenizer.instruction(text))

    def _sampler(self, temperature: float, turns: int | None = None) -> rollout.RolloutConfig:
        return sampler(self.config.rollout, self.task, turns or self.config.turns, temperature)

    def _stage(self, method: str) -> str:
        """The stage whose parameters a method has."""
        return self.config.self_refine.stage if method == self_refine.METHOD else method

    def run(self) -> None:
        """Evaluates every method that has a checkpoint; what is measured already is taken from there."""
        config = self.config
        missing = [
            method for method in config.methods
            if not weights(self._stage(method), config.pretrained)
            and not checkpoint.exists(StageDirectory(self.workdir, self._stage(method), {}).checkpoints)]
        if len(missing) == len(config.methods):
            stage_checkpoints(self.workdir, self._stage(config.methods[0]))
        if missing:
            progress.say(f'{config.stage}: no checkpoint of {", ".join(missing)} in {self.workdir}; left out')
        methods = [method for method in config.methods if method not in missing]
        self._parameters = {  # before anything is measured: a stage that is not done is refused
            stage: sources.find(stage, self.workdir, self.model, self.mesh, pretrained=config.pretrained)
            for stage in map(self._stage, methods)}
        sources.check_prompts(config, self.workdir, *self._parameters)
        self.directory.open()
        stages = [method for method in methods if method != self_refine.METHOD]
        cells = [self._row(method, temperature) for temperature in config.temperatures for method in methods]
        rows = [row for row, _ in cells]
        write_json(self.workdir / 'results.json', rows)
        self.directory.replace('samples.jsonl', [line for _, lines in cells for line in lines])
        self._write('attempts.json', [self._attempts(stage) for stage in stages] if config.attempts.turns else [])
        self._write('scaling.json', [self._scaling(stage) for stage in stages] if config.scaling.samples else [])
        progress.results_table(rows)
        if processes.first():
            from score_jax import report  # here, since a run draws at its end alone
            progress.say(f'results: {self.workdir / "results.json"}\nreport:  {report.write(self.workdir)}')

    def _write(self, name: str, rows: list[dict]) -> None:
        """A file of rows in the workdir; what an earlier evaluation left there goes where there are none."""
        if rows:
            write_json(self.workdir / name, rows)
        elif processes.first():
            (self.workdir / name).unlink(missing_ok=True)

    def _cached(
        self, name: str, method: str, asked: dict, make: Callable[[dict], tuple[dict, list[dict]]],
    ) -> tuple[dict, list[dict]]:
        """What `make` gives for the parameters of a method: a row, and sample lines.

        From the cache, NAME.json, where checkpoint and `asked` are the same.
        """
        stage = self._stage(method)
        if directory := weights(stage, self.config.pretrained):
            source = {'files': hf.identity(directory)} | settings.plain(asked)
        else:
            checkpoints = stage_checkpoints(self.workdir, stage)
            source = {'step': checkpoints.latest(), 'checksum': checkpoints.checksum()} | settings.plain(asked)
        cache, said = self.directory.path / f'{name}.json', f'{self.config.stage}: {name.replace("-", ", ")}'
        saved = processes.agree(json.loads(cache.read_text()) if cache.exists() else {})
        if saved.get('source') == source:
            progress.say(f'{said} is measured already')
            return saved['row'], saved['samples']
        row, samples = make(self._parameters[stage](jnp.float32))
        row = {'method': method, 'seed': self.config.seed} | row
        write_json(cache, {'source': source, 'row': row, 'samples': samples})
        self.directory.push()
        progress.say(f'{said}: {_shown(row)}')
        return row, samples

    def _row(self, method: str, temperature: float) -> tuple[dict, list[dict]]:
        """A row of results.json, and transcripts."""
        config, each = self.config, self.config.samples_per_problem if temperature else 1  # greedy: all the same
        refined = method == self_refine.METHOD

        def make(params: dict) -> tuple[dict, list[dict]]:
            feedback, changes = [], {}
            if refined:
                instructions = config.self_refine.instructions(self.task)
                first, feedback, last = self._measure(
                    params, self._sampler(temperature, self_refine.TURNS), self.problems, each=each,
                    instruction=[self.task.tokenizer.instruction(text) for text in instructions],
                    ungraded=(self_refine.FEEDBACK,))
                attempts, changes = [first, last], {'instruction': instructions[-1]}
            else:
                attempts = self._measure(params, self._sampler(temperature), self.problems, each=each)
            row = {'temperature': temperature} | figures(self.task, self.problems, attempts)
            if each > 1:
                row['samples_per_problem'] = each
            samples = []
            for i, problem in enumerate(self.problems[:config.samples]):
                line = grading.sample_line(self.task, problem, [turn[i * each] for turn in attempts]) | changes
                samples.append({'method': method, 'temperature': temperature} | line | (
                    {'feedback': feedback[i * each].text} if feedback else {}))
            return row, samples

        asked = {'self_refine': dataclasses.asdict(config.self_refine)} if refined else {}
        return self._cached(f'{method}-{temperature:g}', method, asked, make)

    def _attempts(self, stage: str) -> dict:
        """A row of attempts.json."""
        config, problems = self.config.attempts, self.problems[:self.config.attempts.problems]
        sampling = self._sampler(config.temperature, config.turns)
        needed = self._longest_prompt + config.turns * (sampling.max_tokens + self._length(self.task.instruction) + 1)
        sampling = dataclasses.replace(sampling, max_length=needed)  # what two turns are limited to is too short

        def make(params: dict) -> tuple[dict, list[dict]]:
            attempts = self._measure(params, sampling, problems)
            return {'temperature': config.temperature} | figures(self.task, problems, attempts), []

        return self._cached(f'{stage}-attempts', stage, {'attempts': dataclasses.asdict(config)}, make)[0]

    def _scaling(self, stage: str) -> dict:
        """A row of scaling.json."""
        config, problems = self.config.scaling, self.problems[:self.config.scaling.problems]
        shards = sharding.batch_shards(self.mesh)
        batch = max(self.config.batch // config.samples // shards, 1) * shards  # as many rows at a time as else

        def make(params: dict) -> tuple[dict, list[dict]]:
            attempts = self._measure(
                params, self._sampler(config.temperature), problems, each=config.samples, batch=batch)
            return {'temperature': config.temperature} | scaling.figures(attempts, config.samples), []

        return self._cached(f'{stage}-scaling', stage, {'scaling': dataclasses.asdict(config)}, make)[0]

    def _measure(
        self, params: dict, sampling: rollout.RolloutConfig, problems: list, *, each: int = 1, batch: int = 0,
        **instruction) -> list[list[grading.Attempt]]:
        return measure(
            params, self.model, sampling, self.mesh, self.task, problems, batch=batch or self.config.batch, each=each,
            seed=stage_seed(self.config.seed, self.config.stage), **instruction)


def _shown(row: dict) -> str:
    """The main figures of a row, in percent."""
    if 'vote' in row:
        best = row['vote'][-1]
        return (f'a vote of {best["budget"]}: side by side {100 * best["parallel"]:.1f}  '
                f'in a row {100 * best["sequential"]:.1f}')
    return f'{progress.turns(row)}  delta {100 * row["delta"]:+.1f}'


def figures(task: tasks.Task, problems: list, attempts: list[list[grading.Attempt]]) -> dict:
    """What a row of results.json says of rollouts, as many of each problem: the figures with their intervals.

    Those of `metrics.transitions`; `edit_distance` from the first to the last response, and its histogram by outcome,
    `edit_histogram`; `truncated_turnN` and `no_answer_turnN`. Rollouts whose grader failed are left out, and counted as
    `dropped`. Where the task tells problems apart, `by` has the same figures for each group, such as
    `by['level']['3']`.

    Raises:
      UserError: every grading failed in the grader.
    """
    correct, changed = grading.rewards(attempts), grading.changed(attempts)
    problem = np.repeat(np.arange(len(problems)), len(correct) // len(problems))
    valid = np.isfinite(correct).all(axis=1)
    if not valid.any():
        raise UserError('every one of the gradings failed in the grader itself; the samples cannot be measured here.')
    distances = metrics.edit_distances(*([attempt.text for attempt in attempts[turn]] for turn in (0, -1)))
    shares = {'edit_distance': distances} | _without_answer(attempts)

    def of(rows: np.ndarray) -> dict:
        row = {'n': len(np.unique(problem[rows]))}
        return row | metrics.with_intervals(
            correct[rows], changed[rows], problem[rows], {name: values[rows] for name, values in shares.items()})

    row = of(valid) | {'edit_histogram': metrics.distance_histogram(distances[valid], correct[valid])}
    if not valid.all():
        row['dropped'] = int((~valid).sum())
    groups = [task.groups(one) for one in problems]
    by: dict[str, dict] = {}
    for kind in dict.fromkeys(kind for group in groups for kind in group):
        names = np.array([group.get(kind, '?') for group in groups])[problem]
        by[kind] = {str(name): of(valid & (names == name)) for name in np.unique(names[valid])}
    return row | ({'by': by} if by else {})


def _without_answer(attempts: list[list[grading.Attempt]]) -> dict[str, np.ndarray]:
    """By turn, which responses were cut off, and in which the verifier found no answer, `[B]`."""
    return {
        f'{name}_turn{t + 1}': np.array([attempt.verdict.outcome is outcome for attempt in turn], float)
        for name, outcome in (('truncated', Outcome.TRUNCATED), ('no_answer', Outcome.NO_ANSWER))
        for t, turn in enumerate(attempts)}


def measure(
    params, config: model.ModelConfig, sampling: rollout.RolloutConfig, mesh, task: tasks.Task, problems: list, *,
    batch: int, seed: int, each: int = 1, instruction: list[list[int]] | None = None, ungraded: Sequence[int] = (),
) -> list[list[grading.Attempt]]:
    """Attempts by turn, `each` rollouts for each problem side by side, `batch` problems at a time.

    `instruction`: tokens of each gap between two turns, the task's own without it. Responses of the turns in `ungraded`
    are no answers: they get no verdict.
    """
    turns: list[list[grading.Attempt]] = [[] for _ in range(sampling.turns)]
    instruction = instruction or tasks.instruction_tokens(task)
    for step, (part, padded) in enumerate(tasks.batches(problems, batch)):
        grader = grading.Grader(task, padded, mesh, ungraded)
        rollout.sample(
            params, config, sampling, mesh, [tasks.prompt_tokens(task, problem) for problem in padded], instruction,
            forks=(each,) + (1,) * (sampling.turns - 1), seed=seed, step=step, on_turn=grader.on_turn)
        for turn, attempts in zip(turns, grader.attempts()):
            turn += attempts[:len(part) * each]
    return turns
