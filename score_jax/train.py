"""The loop: a stage's steps, from its start or its last checkpoint to its end.

What a step does is the stage's own (`baselines/supervised.py`, `reinforce.py`); here it is repeated, recorded,
shown and saved. A step is a function of the state and its number alone, so a stage that was killed and run
again ends with the same parameters to the bit. Several processes do the same steps on parts of the same batch.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import signal
import time
import zlib
from pathlib import Path

import numpy as np

from score_jax import health, hf, meshes, model, processes, profiling, progress, sharding, speed, tasks
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.health import HealthConfig
from score_jax.learner import Learner, MemoryConfig
from score_jax.lora import LoraConfig
from score_jax.optimizer import OptimizerConfig, TrainState
from score_jax.settings import read
from score_jax.sharding import MeshConfig
from score_jax.store import hint
from score_jax.workdir import StageDirectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Keys that every training stage has; `configs/common.py` has the comments."""

    kind: str
    stage: str
    seed: int
    steps: int
    batch: int
    learning_rate: float
    optimizer: dict
    task: dict
    pretrained: str
    tokenizer: str
    chat: str
    model: dict
    mesh: MeshConfig
    head_chunk: int
    memory: MemoryConfig
    log_every: int
    save_every: int
    keep: int
    health: HealthConfig
    profile: bool
    allow_changes: tuple[str, ...]

    def __post_init__(self):
        for key in ('steps', 'batch', 'head_chunk', 'log_every', 'save_every', 'keep'):
            if getattr(self, key) < 1:
                raise UserError(f'config.{key} is {getattr(self, key)}; it must be at least 1.')
        check_seed(self.seed)

    @property
    def schedule_steps(self) -> int:
        """Updates until the learning rate's schedule ends."""
        return self.steps


def check_seed(seed: int) -> None:
    """Raises `UserError` for a `config.seed` that is none."""
    if not 0 <= seed < 2**31:
        raise UserError(f'config.seed is {seed}; it must lie between 0 and 2**31 - 1.')


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage's own problems and noise, so that no stage sees another's again."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]).generate_state(1)[0] >> 1)


def task_and_model(config) -> tuple[tasks.Task, model.ModelConfig]:
    """What a config says under `task`, `tokenizer`, `chat`, `model` and `pretrained`; all of it is checked.

    Raises:
      UserError: names what is wrong, and the way out.
    """
    if config.pretrained and not Path(config.pretrained).expanduser().is_dir():
        raise UserError(
            f'config.pretrained is {config.pretrained!r}, which is no directory{hint(config.pretrained)}; name the one '
            'of a Hugging Face model, where config.json, safetensors and tokenizer lie.')
    task = tasks.make(config.task, config.tokenizer, config.chat, config.pretrained)
    return task, model_config(config.model, task, config.pretrained)


def model_config(section: dict, task: tasks.Task, pretrained: str = '') -> model.ModelConfig:
    """`config.model` with the vocabulary of the task's tokenizer.

    Where `pretrained` is the directory of a Hugging Face model, that one's shape, with the dtype of `config.model`; its
    vocabulary may have more entries than the tokenizer has tokens.

    Raises:
      UserError: a key that is unknown, missing or of another type; or the vocabulary has fewer entries.
    """
    config = read(model.ModelConfig, section, 'config.model', vocab_size=task.tokenizer.vocab_size)
    if not pretrained:
        return config
    found = hf.check(Path(pretrained).expanduser())
    if found.vocab_size < config.vocab_size:
        raise UserError(
            f'the tokenizer has {config.vocab_size} tokens, but the model in {pretrained} a vocabulary of '
            f'{found.vocab_size}; set config.tokenizer to its own.')
    return dataclasses.replace(found, dtype=config.dtype)


def _stop(signals: health.StopSignals) -> signal.Signals | None:
    """The signal that tells the stage to stop, whichever process has heard it: all of them stop after the same step."""
    number = processes.largest(int(signals.received or 0))
    return signal.Signals(number) if number else None


def make_learner(config: TrainConfig, model: model.ModelConfig, lora: LoraConfig | None = None) -> Learner:
    """The learner of a stage, on the mesh that its config says, or that is chosen for it.

    Raises:
      UserError: the mesh does not fit the devices, or does not divide the batch.
    """
    optimizer = read(
        OptimizerConfig, config.optimizer, 'config.optimizer', steps=config.schedule_steps,
        learning_rate=config.learning_rate)
    memory = config.memory.fastest()
    batch, parts = config.batch, memory.accumulate
    mesh = meshes.make_mesh(config.mesh, meshes.Need(
        batch=batch // parts if batch % parts == 0 else batch, kv_heads=model.kv_heads,
        held=meshes.held(model, memory, lora)))
    sharding.check_divisible('config.batch', batch, mesh)
    each = batch // sharding.batch_shards(mesh)
    if each % parts:
        fits = [n for n in range(1, each + 1) if each % n == 0]
        raise UserError(
            f'config.memory.accumulate is {parts}, which does not divide the {each} problems that '
            f'config.batch = {batch} has for each of the {batch // each} batch shards of the mesh; '
            f'{", ".join(map(str, fits))} would.')
    return Learner(model, optimizer, mesh, config.head_chunk, memory, lora)


class Stage(abc.ABC):
    """One training stage; a subclass says what it starts from and what a step is."""

    def __init__(self, config: TrainConfig, section, workdir: Path, lora: LoraConfig | None = None):
        """Reads and checks everything that can be checked without device work."""
        self.config, self.workdir = config, workdir
        self.directory = StageDirectory(workdir, config.stage, section)
        self.seed = stage_seed(config.seed, config.stage)
        self.task, self.model = task_and_model(config)
        self.learner = make_learner(config, self.model, lora)
        self.mesh = self.learner.mesh
        self.directory.check()
        self.watch = health.Watchdog(config.stage, config.health.stuck_seconds)

    @abc.abstractmethod
    def start(self) -> dict:
        """What is trained as it is at step 0, on the mesh."""

    @abc.abstractmethod
    def step(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float], list[dict]]:
        """Step number `step` (0 for the first): the next state, metrics, lines for samples.jsonl."""

    def rates(self, began: float, rows: int, length: float) -> dict[str, float]:
        """What metrics.jsonl says of a supervised step on `rows` rows of `length` tokens that began at `began`."""
        seconds = time.monotonic() - began
        return {'seconds_update': seconds} | speed.rates(
            rows * length, speed.imitate_flops(self.model, rows, length), seconds, self.model, self.mesh)

    def beside(self) -> list[tuple[str, str, int]]:
        """What is held beside parameters and optimiser: name, what it is, bytes of one device."""
        return []

    def meta(self) -> dict:
        """What a checkpoint must say beside the state: of what it is not whole without."""
        return {}

    def run(self) -> None:
        """Goes on from the last checkpoint that is intact, or starts, and runs to the end.

        Raises:
          Interrupted: a signal said so; the state is saved.
          UserError: nothing is learned any more, and the state is saved; or what cannot be read or written.
        """
        config = self.config
        checkpoints = Checkpoints(self.directory.checkpoints, keep=config.keep)
        with contextlib.closing(checkpoints), health.StopSignals(config.stage) as signals, self.watch:
            if processes.agree(checkpoints.latest() or 0) >= config.steps:
                progress.say(f'{config.stage}: all {config.steps} steps are done already ({self.directory.path})')
                return
            with self.directory.held():
                progress.say(f'{config.stage}: {meshes.table(self.learner, self.beside())}')
                self.watch.enter('loading the parameters')
                done, state = self._first_state(checkpoints)
                self.directory.open(done)
                self.directory.truncate(done)
                self._steps(checkpoints, signals, state, done)
        progress.say(f'{config.stage}: done; metrics, samples and checkpoints are in {self.directory.path}')

    def _first_state(self, checkpoints: Checkpoints) -> tuple[int, TrainState]:
        """Steps done, and the state after them."""
        config, found = self.config, checkpoints.resume(self.learner.abstract_state())
        if not found:
            return 0, self.learner.new_state(self.start())
        done, state, warnings = found
        for warning in warnings:
            progress.say(f'{config.stage}: warning: {warning}')
        progress.say(f'{config.stage}: goes on after step {done} of {config.steps} ({self.directory.path})')
        return done, state

    def _steps(self, checkpoints: Checkpoints, signals: health.StopSignals, state: TrainState, done: int) -> None:
        config, history = self.config, self.directory.read('metrics.jsonl')
        skipped = health.SkippedUpdates(config.health.skipped, history)
        if stop := _stop(signals):
            raise health.Interrupted(f'{config.stage}: stopped before step {done + 1} ({stop.name})', stop)
        meter = speed.Meter()
        profile = profiling.Profile(
            config.stage, self.directory.path / 'profile', config.profile and processes.first())
        with progress.Steps(config.stage, config.steps, config.log_every, done, history) as steps, profile:
            for step in range(done + 1, config.steps + 1):
                self.watch.enter('the update')
                with meter.step(), profile.step(step):
                    state, metrics, samples = self.step(state, step - 1)
                self.watch.enter('saving')
                metrics |= meter.figures() | self.watch.slow()
                profile.add(metrics)
                where = {'stage': config.stage, 'step': step}
                self.directory.append('metrics.jsonl', [where | {'steps': config.steps} | metrics])
                self.directory.append('samples.jsonl', [where | sample for sample in samples])
                steps.add(step, metrics, samples)
                hopeless, stop = skipped.add(metrics), _stop(signals)
                if step % config.save_every == 0 or step == config.steps or hopeless or stop:
                    with meter.waiting():
                        checkpoints.wait()
                    self._save(checkpoints, step, state, metrics)
                    with meter.waiting():
                        self.directory.push(checkpoints.wait)
                if hopeless or stop:
                    checkpoints.wait()
                    after = f'{config.stage}: stopped after step {step} of {config.steps}, which is saved'
                    if hopeless:
                        raise UserError(f'{after}: {hopeless}.')
                    raise health.Interrupted(f'{after} ({stop.name}); the same command goes on from there', stop)
            checkpoints.wait()

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState, metrics: dict) -> None:
        config = self.config
        meta = {'stage': config.stage, 'seed': config.seed, 'problems': step * config.batch,
                'model': dataclasses.asdict(self.model)} | self.meta()
        checkpoints.save(step, state, meta=meta, reward=metrics.get('reward'))
