"""Where parameters come from: a stage of the workdir, the directory of a Hugging Face model, or nowhere ('random').

A checkpoint of adapters says in its meta, under `lora`, what they stand beside, and the base is found again from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from score_jax import checkpoint, hf, lora, model, settings
from score_jax.errors import UserError
from score_jax.lora import LoraConfig
from score_jax.workdir import StageDirectory

RANDOM = 'random'  # in place of a stage's name: freshly initialised parameters
_MIB = 1 << 20
_BASE = 'base'  # the stage that `config.pretrained` stands for
_OWN_FILE = (_BASE, 'stage1', 'stage1b', 'stage2')  # stages whose config is the file of that name


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
            f'{directory} holds no checkpoint of {stage!r}; first run {_command(stage, workdir)}')
    checkpoints = checkpoint.Checkpoints(directory)
    steps, latest = StageDirectory(workdir, stage, {}).saved_config().get('steps', 0), checkpoints.latest()
    if latest < steps:
        raise UserError(
            f'{directory} is at step {latest} of {steps}; run {stage!r} to its end first: {_command(stage, workdir)}')
    return checkpoints


def _command(stage: str, workdir: Path) -> str:
    """What makes a stage; which config has those that have no file of their own, the user knows."""
    file = f'configs/{stage}.py' if stage in _OWN_FILE else '<the config of that stage>'
    return f'python launch/main.py --config={file} --workdir={workdir}'


@functools.partial(jax.jit, static_argnames=('config', 'mesh', 'dtype'))
def _initialise(config: model.ModelConfig, mesh: jax.sharding.Mesh, key, dtype) -> dict:
    return jax.lax.with_sharding_constraint(model.initialise(config, key, dtype), model.shardings(config, mesh))


def find(
    name: str, workdir: Path, config: model.ModelConfig, mesh: jax.sharding.Mesh, *,
    pretrained: str = '', seed: int = 0,
) -> Callable[[jnp.dtype], dict]:
    """What gives the parameters of a stage, a directory or 'random' in a dtype; `UserError` at once if there are none.

    Args:
      config: the model, whose shape they must have.
      pretrained: the directory that 'base' means; '' is the stage of that name.
      seed: of random parameters.
    """
    if directory := weights(name, pretrained):
        found = dataclasses.replace(hf.check(directory), dtype=config.dtype)
        if found != config:
            raise UserError(
                f'the model in {directory} is of another shape than that of this run; config.start_from, '
                'config.reference and config.pretrained must be of one.')
        return lambda dtype: hf.load(directory, mesh, jnp.dtype(dtype).name)[1]
    if name == RANDOM:
        return lambda dtype: _initialise(config, mesh, jax.random.key(seed), jnp.dtype(dtype))
    checkpoints = stage_checkpoints(workdir, name)
    _check_model(checkpoints, config)
    return lambda dtype: restore(checkpoints, config, mesh, dtype)


def restore(
    checkpoints: checkpoint.Checkpoints, config: model.ModelConfig, mesh: jax.sharding.Mesh, dtype=jnp.float32, *,
    step: int | None = None,
) -> dict:
    """Parameters for `forward` as saved at `step` (None: the latest) on `mesh`; adapters with their base.

    Args:
      dtype: of the parameters; but what adapters stand beside has the one that they were trained with.

    Raises:
      UserError: as `Checkpoints.restore_params`, or they are those of another model, or the base of adapters is gone or
        another one now.
    """
    _check_model(checkpoints, config, step)
    record = checkpoints.meta(step=step).get('lora')
    if not record:
        return checkpoints.restore_params(model.abstract(config, mesh, dtype), step=step)
    base = find_base(record, Path(checkpoints.directory).parent, config, mesh)
    which = LoraConfig(**{key: record[key] for key in ('rank', 'alpha', 'targets')})
    adapters = checkpoints.restore_params(model.place(lora.declare(config, which), mesh), step=step)
    return lora.adapt(base(), adapters, which)


def _check_model(checkpoints: checkpoint.Checkpoints, config: model.ModelConfig, step: int | None = None) -> None:
    """Refuses parameters of another forward pass, of which their shapes may say nothing."""
    saved, here = checkpoints.meta(step=step).get('model', {}), settings.plain(dataclasses.asdict(config))
    differ = [f'{key} = {value}, not {here[key]}' for key, value in sorted(saved.items())
              if key in here and key != 'dtype' and value != here[key]]
    if differ:
        raise UserError(
            f'{checkpoints.directory} does not fit this run: its model has {"; ".join(differ)}; give config.model the '
            'values that it was trained with, or choose another workdir.')


def check_prompts(config, workdir: Path, *stages: str) -> None:
    """Refuses a config whose prompts are not those that the stages of `workdir` among `stages` were trained with.

    Prompts and instructions of another task may be others, and so may what `config.allow_changes` names.

    Raises:
      UserError: names the keys and both values.
    """
    allowed = getattr(config, 'allow_changes', ())
    for stage in stages:
        if stage == RANDOM or weights(stage, config.pretrained):
            continue
        there, here = _prompts(StageDirectory(workdir, stage, {}).saved_config()), _prompts(vars(config))
        if there.get('task.name') != here['task.name']:
            here = {key: value for key, value in here.items() if not key.startswith('task.')}
        differ = [f'config.{key} = {there[key]!r}, not {value!r}' for key, value in here.items()
                  if there.get(key, value) != value and key not in allowed]
        if differ:
            raise UserError(
                f'{workdir / stage} was trained with {"; ".join(differ)}: it would be asked what it never saw; give '
                'this run the same values.')


def _prompts(config: Mapping) -> dict[str, str]:
    """The keys of a config that say how a problem is put to the model."""
    task = {f'task.{key}': value for key, value in config.get('task', {}).items()}
    keys = ('chat', 'tokenizer', 'task.name', 'task.prompt', 'task.instruction')
    return {key: value for key, value in {**config, **task}.items() if key in keys}


def find_base(record: dict, stage: Path, config: model.ModelConfig, mesh: jax.sharding.Mesh) -> Callable[[], dict]:
    """What gives the parameters that the adapters in the folder `stage` of a workdir stand beside, see `lora_record`.

    Raises:
      UserError: they are gone, or others now.
    """
    try:
        base = find(record['base'], stage.parent, config, mesh, seed=record['seed'])
        identity = _identity(record['base'], stage.parent)
    except UserError as error:
        raise UserError(
            f'{stage} holds adapters to {record["base"]!r}, without which they are nothing: {error}') from None
    if not _same(record['identity'], identity):
        raise UserError(
            f'{stage} holds adapters to {record["base"]!r} as it was when they were trained; it has changed since: '
            'bring the old one back, or train the adapters anew.')
    return lambda: base(record['dtype'])


def lora_record(
    name: str, workdir: Path, which: LoraConfig, dtype: str, *, pretrained: str = '', seed: int = 0) -> dict:
    """What the meta of a checkpoint says of adapters that start from `name`: themselves, and what they stand beside.

    That is `name` itself or, where that is a stage of adapters, what those stand beside; its adapters are then gone on
    from.

    Raises:
      UserError: the adapters of `name` are others than `which`.
    """
    before = saved_lora(name, workdir, pretrained)
    asked = dataclasses.asdict(which) | {'dtype': dtype}
    if before:
        differ = [f'{key} = {before[key]}, not {value}' for key, value in asked.items() if before[key] != value]
        if differ:
            raise UserError(
                f'{name!r} has adapters with {"; ".join(differ)}; give config.lora and config.memory.params the same '
                'values, or set config.lora.rank to 0 to train the merged parameters.')
        return before
    directory = weights(name, pretrained)
    base = str(directory.resolve()) if directory else name
    return asked | {'base': base, 'seed': seed, 'identity': _identity(base, workdir)}


def new_adapters(config: model.ModelConfig, which: LoraConfig, mesh: jax.sharding.Mesh, seed: int) -> dict:
    """Adapters that leave their base as it is, float32 on `mesh`."""
    declared = lora.declare(config, which)
    placed = jax.tree.map(lambda x: x.sharding, model.place(declared, mesh))
    return jax.jit(lambda key: model.draw(declared, key), out_shardings=placed)(jax.random.key(seed))


def saved_lora(name: str, workdir: Path, pretrained: str = '') -> dict | None:
    """The `lora` of the meta of a stage's latest checkpoint; None where it, or what `name` is, has no adapters."""
    if name == RANDOM or weights(name, pretrained):
        return None
    return stage_checkpoints(workdir, name).meta().get('lora')


def origins(names: Iterable[str], stage: Path, pretrained: str = '') -> dict:
    """What the stage in the folder `stage` of a workdir comes from, by name: what differs as soon as that does.

    Its checkpoints say it in their meta, under `origins`, and it goes on from the same alone; but what is gone and no
    longer needed may be.

    Args:
      names: of what it starts from and is held to.

    Raises:
      UserError: one of them is another now than when the stage was begun.
    """
    saved = {}
    if checkpoint.exists(stage / 'checkpoints'):
        saved = checkpoint.Checkpoints(stage / 'checkpoints').meta().get('origins', {})
    now = {}
    for name in sorted(set(names) - {RANDOM}):
        directory = weights(name, pretrained)
        if directory or checkpoint.exists(StageDirectory(stage.parent, name, {}).checkpoints):
            base = str(directory.resolve()) if directory else name
            now[base] = _identity(base, stage.parent)
    for name in saved.keys() & now.keys():
        if not _same(saved[name], now[name]):
            raise UserError(
                f'{stage} was begun with {name!r} as it was then, which has changed since: bring the old one back, or '
                f'move {stage} away to start it anew.')
    return saved | now


def _identity(base: str, workdir: Path):
    """What differs if a base does: a checkpoint's checksum, or sizes and digests of a directory's files.

    The directory may move; of its files, too large to be read each time, the digest takes the ends.
    """
    if directory := weights(base, ''):
        return {path.name: [path.stat().st_size, _digest(path)] for path in sorted(directory.glob('*.safetensors'))}
    return None if base == RANDOM else stage_checkpoints(workdir, base).checksum()


def _digest(path: Path) -> str:
    """SHA-256 of the header of safetensors, and of the first and the last MiB after it."""
    with path.open('rb') as file:
        header = int.from_bytes(file.read(8), 'little')
        file.seek(0)
        digest = hashlib.sha256(file.read(8 + min(header, 100 * _MIB) + _MIB))  # the format allows 100 MB
        file.seek(max(path.stat().st_size - _MIB, 0))
        digest.update(file.read())
    return digest.hexdigest()


def _same(saved, now) -> bool:
    """Whether two identities are one; of a directory, older checkpoints have sizes alone."""
    if isinstance(saved, dict) and all(isinstance(size, int) for size in saved.values()):
        now = {file: size for file, (size, _) in now.items()}
    return saved == now
