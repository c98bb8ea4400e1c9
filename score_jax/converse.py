"""One problem, attempted before a person's eyes as often as they like: `launch/try.py`.

An attempt is a rollout of one turn, sampled behind the exact tokens of all that came before it, so the model reads what
it read in training:

    prompt  attempt 1  instruction  attempt 2  instruction  attempt 3 ...

The verdict goes to the person and never into these tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from score_jax import chat, convert, grading, hf, model, rollout, sharding, sources, tasks, tokenizers
from score_jax.checkpoint import Checkpoints, exists
from score_jax.errors import UserError
from score_jax.jsonl import plain
from score_jax.rewards import Outcome, Verdict
from score_jax.sharding import MeshConfig
from score_jax.tasks.countdown import Countdown, Problem
from score_jax.tasks.text import TextConfig, TextProblem, TextTask
from score_jax.workdir import FREE_TASK_KEYS, StageDirectory

_UNLIMITED = 1 << 30  # tokens of a row: it grows with every attempt
_MAX_TOKENS = 256  # of a response, where the stage's config has no sampling (a supervised stage)
_CHUNK = 128  # tokens between two widths of the cache, each of which is compiled: a pause before a person's eyes
_INSTRUCTION = '\n\nGo through this once more. It may be right, or there may be a mistake in it. Then answer anew.\n\n'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Parameters with what it takes to sample from them.

    Attributes:
      name: what it is, for a person to read.
      section: `config.task` as the stage was run with.
      sampling: of as many turns as it was loaded for.
      restore: gives the parameters; called when the first token is sampled.
    """

    name: str
    model: model.ModelConfig
    mesh: jax.sharding.Mesh
    task: tasks.Task
    section: Mapping
    sampling: rollout.RolloutConfig
    restore: Callable[[], dict]

    @functools.cached_property
    def params(self) -> dict:
        """The parameters, on the mesh; restored once."""
        return self.restore()


def load(
    workdir: Path, stage: str | None = None, *, turns: int = 1, step: int | None = None,
    temperature: float | None = None, max_tokens: int | None = None, data_dir: str = '') -> Policy:
    """A checkpoint of a stage; the config that lies beside it says its model, task and tokenizer.

    Args:
      workdir: or the directory of a Hugging Face model, or of one that was converted: it has no task but what is asked.
      stage: None takes the one that was saved last.
      turns: of `Policy.sampling`; a `Conversation` samples one at a time.
      step: None takes the latest.
      temperature, max_tokens: None takes those of training.
      data_dir: `config.task.data_dir`, of tasks that have one; it is no part of what a stage is saved with.

    Raises:
      UserError: no such workdir, stage or step, or what is there is damaged.
    """
    if exists(workdir) or any(workdir.glob('*.safetensors')):
        return _untrained(workdir, turns, 1.0 if temperature is None else temperature, max_tokens or _MAX_TOKENS)
    stage = stage or _saved_last(workdir)
    directory = StageDirectory(workdir, stage, {})
    if not exists(directory.checkpoints):
        raise UserError(f'{directory.checkpoints} holds no checkpoint; {_advice(workdir)}')
    config = directory.saved_config()
    if not {'model', 'task', 'tokenizer'} <= config.keys():
        raise UserError(f'{directory.path} has checkpoints but no config.json that says what they are; bring it back.')
    task = tasks.make(
        _whole_task(config['task'], data_dir), config['tokenizer'], config.get('chat', ''),
        config.get('pretrained', ''))
    shape = convert.saved_model(directory.checkpoints)
    sampling = _sampling(
        task, turns, config.get('temperature', 1.0) if temperature is None else temperature,
        max_tokens or config.get('rollout', {}).get('max_tokens', _MAX_TOKENS))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, model=-1))  # a batch of one
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.meta(step=step)  # names a step that is not there
    return Policy(
        name=f'{stage} of {workdir}, step {checkpoints.latest() if step is None else step}', model=shape, mesh=mesh,
        task=task, section=config['task'], sampling=sampling,
        restore=lambda: sources.restore(checkpoints, shape, mesh, step=step))


def _untrained(directory: Path, turns: int, temperature: float, max_tokens: int) -> Policy:
    """A model as it came: prompts and instructions are in the format of its chat template, if it has one."""
    def no_problems():
        raise UserError(f'{directory} is a model without a task, so it has no problems; write one behind the command.')

    converted = exists(directory)
    files = directory / convert.SOURCE if converted else directory
    shape = convert.saved_model(directory) if converted else hf.check(directory)
    tokenizer = tokenizers.load(str(files))
    if name := chat.suited(tokenizer, files):
        tokenizer = chat.chat(tokenizer, name, files)
    section = TextConfig(prompt='{problem}', instruction=_INSTRUCTION, max_prompt=_UNLIMITED, workers=1, seconds=1.0)
    task = TextTask(section, tokenizer, splits={'test': no_problems}, grader='')
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, model=-1))  # a batch of one
    return Policy(
        name=f'the model in {directory}' + (f' with its chat format ({name})' if name else ''), model=shape, mesh=mesh,
        task=task, section=dataclasses.asdict(section), sampling=_sampling(task, turns, temperature, max_tokens),
        restore=lambda: (
            convert.restore(Checkpoints(directory), shape, mesh) if converted else hf.load(directory, mesh)[1]))


def _sampling(task: tasks.Task, turns: int, temperature: float, max_tokens: int) -> rollout.RolloutConfig:
    tokenizer = task.tokenizer
    return rollout.RolloutConfig(
        turns=turns, max_tokens=max_tokens, max_length=_UNLIMITED, temperature=temperature, chunk=_CHUNK,
        end_tokens=tokenizer.end_tokens, pad_token=tokenizer.pad_token, close_token=tokenizer.close_token)


def _stages(workdir: Path) -> list[Path]:
    """The folders of `workdir` that hold a checkpoint, the one that was saved last at the end."""
    folders = [path for path in workdir.iterdir() if exists(path / 'checkpoints')] if workdir.is_dir() else []
    return sorted(folders, key=lambda path: (path / 'checkpoints').stat().st_mtime)


def _advice(workdir: Path) -> str:
    found = sorted(path.name for path in _stages(workdir))
    return (f'{workdir} has checkpoints of {", ".join(found)}: name one of these.' if found else
            f'train first: python launch/main.py --config=configs/stage1.py --workdir={workdir}')


def _saved_last(workdir: Path) -> str:
    stages = _stages(workdir)
    if not stages:
        raise UserError(f'--workdir={workdir} holds no checkpoint of any stage; {_advice(workdir)}')
    return stages[-1].name


def _whole_task(section: Mapping, data_dir: str) -> dict:
    """`config.task` as it was saved, with the keys that are no part of a stage."""
    fields = {field.name for field in dataclasses.fields(tasks.find(section.get('name'))[1])}
    given = {'workers': 1, 'data_dir': data_dir}
    return {**section, **{key: given[key] for key in FREE_TASK_KEYS if key in fields}}


def problem_from(policy: Policy, text: str):
    """The problem that a person wrote, and whether there is a verifier for it.

    Raises:
      UserError: it is no problem of the task.
    """
    text = text.strip()
    if not text:
        raise UserError('the problem is empty; write one, or leave it out to see problems of the test split.')
    if isinstance(policy.task, Countdown):
        return _countdown(text, policy.section), True
    if not isinstance(policy.task, TextTask):
        raise UserError(
            f'the task {policy.section["name"]!r} takes no problem in words; leave it out to see its test split.')
    problem = TextProblem('yours', text, {})
    length, most = len(tasks.prompt_tokens(policy.task, problem)), policy.section['max_prompt']
    if length > most:
        raise UserError(
            f'the problem makes a prompt of {length} tokens, but config.task.max_prompt is {most}, and the model was '
            'trained on none longer; shorten it.')
    return problem, False


def _countdown(text: str, section: Mapping) -> Problem:
    match = re.fullmatch(r'((?:\d{1,9}[\s,]+)+)make\s+(\d{1,9})\s*:?', text, re.ASCII)
    numbers = tuple(sorted(map(int, re.findall(r'\d+', match[1])))) if match else ()
    count, limit = section['numbers'], section['limit']
    example = f'{" ".join(map(str, range(2, 2 + count)))} make {sum(range(2, 2 + count))}'
    if len(numbers) != count:
        raise UserError(
            f'the problem {plain(text[:60])!r} is none of Countdown with {count} numbers; write it like "{example}".')
    largest = max(*numbers, int(match[2]))
    if largest > limit:
        raise UserError(f'the problem has the number {largest}, but this model knows those from 0 to {limit} alone.')
    return Problem(numbers, int(match[2]))


class TextStream:
    """Tokens into text as they come, of which no more is given out than is certain: never half a character."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode, self._tokens, self._given = decode, [], ''

    def add(self, token: int) -> str:
        """What is certain with `token` and was not before; '' where that is nothing."""
        self._tokens.append(token)
        # The first bytes of a character decode to U+FFFD until the last one is there, and \r may become \r\n.
        return self._new(self._decode(self._tokens).rstrip('\ufffd\r'))

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        return self._new(self._decode(self._tokens))

    def _new(self, text: str) -> str:
        if not text.startswith(self._given):  # held back: a tokenizer that writes a piece anew when another follows it
            return ''
        new, self._given = text[len(self._given):], text
        return new


class Conversation:
    """A problem and the attempts at it so far.

    Args:
      graded: whether the task can verify responses to this problem.
      seed: of the noise; an attempt is a function of it, its number and all before it.
    """

    def __init__(self, policy: Policy, problem, *, graded: bool, seed: int):
        self._policy, self._problem, self._graded, self._seed = policy, problem, graded, seed
        self._tokens = tasks.prompt_tokens(policy.task, problem)
        self.attempts = 0

    def attempt(self, show: Callable[[str], None]) -> Verdict | None:
        """Samples one more attempt, and hands its text to `show` as it comes, control characters made visible.

        Returns:
          the verdict; None where there is no verifier for this problem.
        """
        policy, task = self._policy, self._policy.task
        if self.attempts:
            closing = rollout.closing(policy.sampling.close_token, self._tokens[-1])
            self._tokens += closing + tasks.instruction_tokens(task)
        self.attempts += 1
        stream, grader = TextStream(task.tokenizer.decode), grading.Grader(task, [self._problem], policy.mesh)
        trajectory = rollout.sample(
            policy.params, policy.model, policy.sampling, policy.mesh, [self._tokens], [], forks=(1,), seed=self._seed,
            step=self.attempts, on_turn=grader.on_turn if self._graded else None,
            on_token=lambda tokens: show(plain(stream.add(int(tokens[0])))))
        show(plain(stream.rest()))
        self._tokens = np.asarray(trajectory.tokens)[0, :int(trajectory.length[0])].tolist()
        if self._graded:
            return grader.attempts()[0][0].verdict
        return Verdict(Outcome.TRUNCATED) if bool(trajectory.truncated[0, 0]) else None
