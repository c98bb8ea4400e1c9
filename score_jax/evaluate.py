"""Evaluation: one rollout of every turn for each of N held-out problems, by method and temperature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from score_jax import checkpoint, grading, hf, metrics, model, progress, report, rollout, settings, sharding, tasks
from score_jax.errors import UserError
from score_jax.reinforce import SamplingConfig, sampler, stage_checkpoints, weights
from score_jax.sharding import MeshConfig
from score_jax.train import stage_seed, task_and_model
from score_jax.workdir import StageDirectory, write_json

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
    task: dict
    pretrained: str
    tokenizer: str
    chat: str
    model: dict
    mesh: MeshConfig


class Evaluation:
    """Measures the stages of a workdir on the same problems and writes `results.json` and the report."""

    def __init__(self, section, workdir: Path):
        self.config = settings.read(EvaluateConfig, section)
        self.workdir = workdir
        self.directory = StageDirectory(workdir, self.config.stage, section)
        self.task, self.model = task_and_model(self.config)
        self.mesh = sharding.make_mesh(self.config.mesh)
        for key, least in (('problems', 1), ('batch', 1), ('samples_per_problem', 1), ('turns', 2)):
            if getattr(self.config, key) < least:
                raise UserError(f'config.{key} is {getattr(self.config, key)}; it must be at least {least}.')
        sharding.check_divisible('config.batch', self.config.batch, self.mesh)
        if self.config.samples < 0:
            raise UserError(f'config.samples is {self.config.samples}; it must be at least 0.')
        for key in ('methods', 'temperatures'):
            if not getattr(self.config, key):
                raise UserError(f'config.{key} is empty; it must name at least one.')
        if min(self.config.temperatures) < 0:
            raise UserError(f'config.temperatures is {self.config.temperatures}; each must be 0 (greedy) or positive.')
        self.problems = self.task.distinct_problems(self.config.split, self.config.problems, seed=self.config.seed)
        self._sampler(1.0).check_length(
            self.task.longest_prompt(self.config.split), len(tasks.instruction_tokens(self.task)))
        self.directory.check()

    def _sampler(self, temperature: float) -> rollout.RolloutConfig:
        return sampler(self.config.rollout, self.task, self.config.turns, temperature)

    def run(self) -> None:
        """Evaluates every method that has a checkpoint; what is measured already is taken from there."""
        config = self.config
        missing = [
            method for method in config.methods
            if not weights(method, config.pretrained)
            and not checkpoint.exists(StageDirectory(self.workdir, method, {}).checkpoints)]
        if len(missing) == len(config.methods):
            stage_checkpoints(self.workdir, config.methods[0])
        if missing:
            progress.say(f'{config.stage}: no checkpoint of {", ".join(missing)} in {self.workdir}; left out')
        self.directory.open()
        rows, samples = [], []
        for temperature in config.temperatures:
            for method in config.methods:
                if method not in missing:
                    row, lines = self._row(method, temperature)
                    rows.append(row)
                    samples += lines
        write_json(self.workdir / 'results.json', rows)
        self.directory.replace('samples.jsonl', samples)
        progress.results_table(rows)
        progress.say(f'results: {self.workdir / "results.json"}\nreport:  {report.write(self.workdir)}')

    def _row(self, method: str, temperature: float) -> tuple[dict, list[dict]]:
        """The row of results and the sample lines, from the cache where the checkpoint is the same."""
        if directory := weights(method, self.config.pretrained):
            source = {'files': hf.identity(directory)}
        else:
            checkpoints = stage_checkpoints(self.workdir, method)
            source = {'step': checkpoints.latest(), 'checksum': checkpoints.checksum()}
        cache = self.directory.path / f'{method}-{temperature:g}.json'
        if cache.exists():
            saved = json.loads(cache.read_text())
            if saved['source'] == source:
                progress.say(f'{self.config.stage}: {method} at temperature {temperature:g} is measured already')
                return saved['row'], saved['samples']
        if directory:
            params = hf.load(directory, self.mesh, 'float32')[1]
        else:
            params = checkpoints.restore_params(model.abstract(self.model, self.mesh))
        each = self.config.samples_per_problem if temperature else 1  # greedy samples are all the same
        attempts = measure(
            params, self.model, self._sampler(temperature), self.mesh, self.task, self.problems, batch=self.config.batch,
            each=each, seed=stage_seed(self.config.seed, self.config.stage))
        row = {'method': method, 'seed': self.config.seed, 'temperature': temperature}
        row |= figures(self.task, self.problems, attempts)
        if each > 1:
            row['samples_per_problem'] = each
        samples = [
            {'method': method, 'temperature': temperature} | grading.sample_line(self.task, problem, attempts_of_row)
            for problem, *attempts_of_row in list(zip(self.problems, *(turn[::each] for turn in attempts)))
            [:self.config.samples]]
        write_json(cache, {'source': source, 'row': row, 'samples': samples})
        progress.say(
            f'{self.config.stage}: {method} at temperature {temperature:g}: {progress.turns(row)}  '
            f'delta {100 * row["delta"]:+.1f}')
        return row, samples


def figures(task: tasks.Task, problems: list, attempts: list[list[grading.Attempt]]) -> dict:
    """What a row of results.json says of rollouts, as many of each problem: the figures with their intervals.

    Rollouts whose grader failed are left out, and counted as `dropped`. Where the task tells problems apart, `by` has
    the same figures for each group, such as `by['level']['3']`.
    """
    correct, changed = grading.rewards(attempts), grading.changed(attempts)
    problem = np.repeat(np.arange(len(problems)), len(correct) // len(problems))
    valid = np.isfinite(correct).all(axis=1)
    if not valid.any():
        raise UserError('every one of the gradings failed in the grader itself; the samples cannot be measured here.')

    def of(rows: np.ndarray) -> dict:
        row = {'n': len(np.unique(problem[rows]))}
        return row | metrics.with_intervals(correct[rows], changed[rows], problem[rows])

    row = of(valid)
    if not valid.all():
        row['dropped'] = int((~valid).sum())
    groups = [task.groups(one) for one in problems]
    by: dict[str, dict] = {}
    for kind in dict.fromkeys(kind for group in groups for kind in group):
        names = np.array([group.get(kind, '?') for group in groups])[problem]
        by[kind] = {str(name): of(valid & (names == name)) for name in np.unique(names[valid])}
    return row | ({'by': by} if by else {})


def measure(
    params, config: model.ModelConfig, sampling: rollout.RolloutConfig, mesh, task: tasks.Task, problems: list, *,
    batch: int, seed: int, each: int = 1,
) -> list[list[grading.Attempt]]:
    """Attempts by turn, `each` rollouts for each problem side by side, `batch` problems at a time."""
    turns: list[list[grading.Attempt]] = [[] for _ in range(sampling.turns)]
    instruction = tasks.instruction_tokens(task)
    for step, start in enumerate(range(0, len(problems), batch)):
        part = problems[start:start + batch]
        padded = part + part[:1] * (batch - len(part))
        grader = grading.Grader(task, padded)
        rollout.sample(
            params, config, sampling, mesh, [tasks.prompt_tokens(task, problem) for problem in padded], instruction,
            forks=(each,) + (1,) * (sampling.turns - 1), seed=seed, step=step, on_turn=grader.on_turn)
        for turn, attempts in zip(turns, grader.attempts()):
            turn += attempts[:len(part) * each]
    return turns
