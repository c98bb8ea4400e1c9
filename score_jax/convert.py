"""Between a directory of a Hugging Face model and a checkpoint of this project.

    CKPT/0/      the parameters, as every checkpoint has them; its meta says what the model is
    CKPT/hf/     config.json, tokenizer and chat template as they came, for the way back
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from score_jax import checkpoint, hf, lora, model, settings, sharding, sources
from score_jax.errors import UserError
from score_jax.streamed import Streamed

SOURCE = 'hf'
DTYPES = ('float32', 'bfloat16', 'float16')


def convert(source: Path, target: Path, *, dtype: str | None = None, like: Path | None = None) -> str:
    """Converts in the direction that `source` is not yet in, and says what was done.

    Args:
      source: a directory with safetensors; or with a checkpoint: one that was converted, or a stage's.
      target: where the other form goes; nothing is written over.
      dtype: of the parameters in `target`; None: as they are in `source`.
      like: for a way back of what was never converted: a Hugging Face directory of the same family, from which come the
        tokenizer and what config.json says beside the model.

    Raises:
      UserError: `source` is neither, or not whole; `target` has something in it; names, shapes or values are not known.
    """
    if dtype not in (None, *DTYPES):
        raise UserError(f'--dtype={dtype} is not known; it may be one of {", ".join(DTYPES)}.')
    if not source.is_dir():
        raise UserError(f'--from={source} is not a directory; name a Hugging Face model, a checkpoint or a stage.')
    hf.check_new(target)
    saved = _checkpoints(source)
    is_model = any(source.glob('*.safetensors')) or (source / hf.INDEX).exists()
    if saved is None and not is_model:
        raise UserError(f'--from={source} has neither safetensors nor a checkpoint; name a directory that has.')
    try:
        return _import(source, target, dtype, like) if is_model else _export(saved, target, dtype, like)
    except OSError as error:
        raise UserError(f'{error.filename or target}: {error.strerror or error}; nothing usable was written.') from None


def _checkpoints(source: Path) -> Path | None:
    return next((path for path in (source, source / 'checkpoints') if checkpoint.exists(path)), None)


def _import(source: Path, target: Path, dtype: str | None, like: Path | None) -> str:
    if like:
        raise UserError(f'--like={like} is for the way back; {source} has a config.json of its own.')
    config, params = hf.stream(source, _mesh(), dtype)
    checkpoints = checkpoint.Checkpoints(target, keep=1)
    checkpoints.save(0, {'params': params}, meta={'model': dataclasses.asdict(config)})
    checkpoints.close()
    (target / SOURCE).mkdir()
    hf.copy_small_files(source, target / SOURCE)
    shutil.copyfile(source / 'config.json', target / SOURCE / 'config.json')
    return f'{_count(params)} of {source} are a checkpoint in {target} now'


def _export(directory: Path, target: Path, dtype: str | None, like: Path | None) -> str:
    checkpoints = checkpoint.Checkpoints(directory)
    config = saved_model(directory)
    like = like or came_from(directory)
    hf.config_json(config, like)  # what cannot be exported is refused before it is read
    if checkpoints.meta().get('lora'):
        params = _merged(sources.restore(checkpoints, config, _mesh()), dtype)
    else:
        params = _one_by_one(checkpoints, config)
    hf.save(target, config, params, like=like, dtype=dtype)
    return f'{_count(model.abstract(config, _mesh()))} of {directory} are a Hugging Face model in {target} now'


def _merged(params: dict, dtype: str | None) -> dict:
    """Plain parameters in `dtype`, as `lora.merge` says, each merged with its adapters when it is needed."""
    def streamed(w) -> Streamed:
        weight = w.weight if isinstance(w, model.Adapted) else w
        return Streamed(weight.shape, jnp.dtype(dtype or weight.dtype), lambda: lora.merge(w, dtype))
    return jax.tree.map(streamed, params, is_leaf=lambda w: isinstance(w, model.Adapted))


def _one_by_one(checkpoints: checkpoint.Checkpoints, config: model.ModelConfig) -> dict:
    """The parameters, `Streamed`, so that the host need not hold them all."""
    like = _as_saved(checkpoints, config, _mesh())
    names = {jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in jax.tree.leaves_with_path(like)}
    wrong = names ^ checkpoints.params().keys()
    if wrong:
        raise UserError(
            f'{checkpoints.directory} is not of the model that it is said to be: {", ".join(sorted(wrong))} are '
            'missing or left over; bring back the config that it was trained with.')

    def streamed(path, x: jax.ShapeDtypeStruct) -> Streamed:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return Streamed(x.shape, x.dtype, lambda: checkpoints.restore_param(name, x))
    return jax.tree.map_with_path(streamed, like)


def restore(checkpoints: checkpoint.Checkpoints, config: model.ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """The parameters of the latest step on `mesh`, each in the dtype that it was saved in."""
    return checkpoints.restore_params(_as_saved(checkpoints, config, mesh))


def _as_saved(checkpoints: checkpoint.Checkpoints, config: model.ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    saved = checkpoints.params()

    def as_saved(path, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return x.update(dtype=saved[name].dtype) if name in saved else x

    return jax.tree.map_with_path(as_saved, model.abstract(config, mesh))


def came_from(directory: Path) -> Path | None:
    """The Hugging Face directory that checkpoints were made from, or its small files; None where neither is there."""
    if (directory / SOURCE).exists():
        return directory / SOURCE
    config = directory.parent / 'config.json'
    name = hf.read_json(config).get('pretrained') if config.exists() else None
    found = Path(name).expanduser() if name else None
    return found if found and found.is_dir() else None


def saved_model(directory: Path) -> model.ModelConfig:
    """The model of checkpoints, which their meta says; that of an older stage is in its config.json."""
    checkpoints = checkpoint.Checkpoints(directory)
    values = checkpoints.meta().get('model')
    if values is None:
        known = dataclasses.fields(model.ModelConfig)
        values = {field.name: field.default for field in known if field.default is not dataclasses.MISSING}
        values |= hf.read_json(directory.parent / 'config.json').get('model', {})
        vocabulary = checkpoints.params().get('embedding')
        values['vocab_size'] = vocabulary.shape[0] if vocabulary else 0
    return settings.read(model.ModelConfig, values, 'config.model')


def _mesh() -> jax.sharding.Mesh:
    """All devices; what is sharded at all is sharded over them."""
    return sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1, model=1))


def _count(params: dict) -> str:
    return f'{sum(x.size for x in jax.tree.leaves(params)) / 1e6:,.1f} million parameters'
