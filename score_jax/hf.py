"""Directories of Hugging Face models: safetensors straight onto the mesh, and back.

One tensor at a time passes through the host, so beside the parameters themselves (which on CPU are in host memory too)
no more is needed than the largest tensor; and of parameters that are `Streamed` one is there at a time. All names,
shapes and types are checked before the first one is read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from score_jax import model as lm
from score_jax import shards
from score_jax.errors import UserError
from score_jax.model import families
from score_jax.shards import DTYPES, INDEX, Entry
from score_jax.sharding import named_sharding
from score_jax.streamed import Streamed, made

SHARD_BYTES = 1024**3  # of a file that is written
_EMBEDDING = 'model.embed_tokens.weight'
SHOWN = 10  # of a list of wrong tensors


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file, and where it belongs.

    Attributes:
      name: in the file.
      shape: in the file; what activations are multiplied with is `[out, in]` there.
      ours: the shape that it has here; heads and head size are apart.
      axes: the logical axes that it has here.
    """

    name: str
    shape: tuple[int, ...]
    ours: tuple[int, ...]
    axes: tuple[str, ...]

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Our layout of it, a view."""
        return (array.T if _is_product(self.axes) else array).reshape(self.ours)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The file's layout of ours, a view."""
        return array.reshape(self.shape[::-1]).T if _is_product(self.axes) else array.reshape(self.shape)


def _is_product(axes: tuple[str, ...]) -> bool:
    """Whether activations are multiplied with an array of these axes; ours is then `[in, out]`."""
    return 'embed' in axes and 'vocab' not in axes and len(axes) > 1


def tensors(config: lm.ModelConfig) -> dict[tuple[str, ...], list[Tensor]]:
    """The tensors of each of our parameters: one for every layer, or a single one."""
    names = families.FAMILIES[families.family_of(config)].names
    found = {}
    for keys, param in jax.tree.leaves_with_path(lm.declare(config), is_leaf=lambda x: not isinstance(x, dict)):
        path = tuple(key.key for key in keys)
        stacked = param.axes[0] == 'layers'
        ours, axes = param.shape[stacked:], param.axes[stacked:]
        if _is_product(axes):
            inner = 1 if axes[0] == 'embed' else len(axes) - 1
            shape = (math.prod(ours[inner:]), math.prod(ours[:inner]))
        else:
            shape = ours if 'vocab' in axes else (math.prod(ours),)
        layers = range(config.layers) if stacked else [None]
        found[path] = [Tensor(names['/'.join(path)].format(i), shape, ours, axes) for i in layers]
    return found


def read_config(directory: Path) -> lm.ModelConfig:
    """The model that `directory/config.json` describes; activations are bfloat16 where the file says float16.

    Raises:
      UserError: the file is not there or not readable, or describes no model of a family that is known here.
    """
    values = read_json(directory / 'config.json')
    said = values.get('torch_dtype') or values.get('dtype') or 'float32'
    try:
        return families.from_json(values, 'float32' if said == 'float32' else 'bfloat16')
    except UserError as error:
        raise UserError(f'{directory / "config.json"}: {error}') from None


def read_json(path: Path) -> dict:
    """A JSON object; `UserError` if there is none."""
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            return values
    except (OSError, ValueError):
        pass
    raise UserError(f'{path} is not there or no JSON object; name the directory of a Hugging Face model.')


def load(directory: Path, mesh: jax.sharding.Mesh, dtype: str | None = None) -> tuple[lm.ModelConfig, dict]:
    """The model in `directory` and its parameters on `mesh`, sharded by the rules in `score_jax/sharding.py`.

    Args:
      directory: with config.json and safetensors, in one file or several.
      dtype: that of the parameters; None: each keeps its own. That of the activations is as `read_config` says.

    Raises:
      UserError: a file that is missing or damaged, a family or a value that is not known here, and the list of the
        tensors that are missing, left over, or of another shape or type. Nothing has been loaded then.
    """
    config, params = stream(directory, mesh, dtype)
    return config, jax.tree.map(made, params)


def stream(directory: Path, mesh: jax.sharding.Mesh, dtype: str | None = None) -> tuple[lm.ModelConfig, dict]:
    """As `load`, but each parameter is `Streamed`: read when it is needed, and each time that it is."""
    config, files, wanted = _open(directory)

    def streamed(keys, like: jax.ShapeDtypeStruct) -> Streamed:
        group = wanted[tuple(key.key for key in keys)]
        kept = jnp.dtype(dtype or functools.reduce(jnp.promote_types, [files.dtype(x.name) for x in group]))
        return Streamed(like.shape, kept, lambda: _load(files, group, like, mesh, kept))
    return config, jax.tree.map_with_path(streamed, lm.abstract(config, mesh))


def check(directory: Path) -> lm.ModelConfig:
    """The model in `directory`, of which headers alone are read; raises as `load` does."""
    return _open(directory)[0]


def identity(directory: Path) -> dict:
    """What differs as soon as a file of weights does: plain JSON, without reading them."""
    stats = {path.name: path.stat() for path in sorted(directory.glob('*.safetensors'))}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _open(directory: Path) -> tuple[lm.ModelConfig, _Files, dict[tuple[str, ...], list[Tensor]]]:
    """The model, its files, which have all that it needs, and the tensors of each of our parameters."""
    config, files = read_config(directory), _Files(directory)
    wanted = tensors(config)
    files.check([tensor for group in wanted.values() for tensor in group], config.tied)
    return config, files, wanted


def _load(files: _Files, group: list[Tensor], like: jax.ShapeDtypeStruct, mesh, dtype: np.dtype) -> jax.Array:
    """The parameter whose tensors are `group`, in the shape and sharding of `like`."""
    def piece(tensor: Tensor) -> jax.Array:
        host = tensor.from_file(files.read(tensor.name))
        return jax.make_array_from_callback(
            tensor.ours, named_sharding(mesh, tensor.axes, tensor.ours),
            lambda index: np.ascontiguousarray(host[index]))

    if len(like.shape) == len(group[0].ours):
        return piece(group[0]).astype(dtype)
    stack = jnp.zeros(like.shape, dtype, device=like.sharding)
    for layer, tensor in enumerate(group):
        stack = _set_layer(stack, piece(tensor), layer, like.sharding)
        stack.block_until_ready()  # else the host would read ahead of the devices
    return stack


@functools.partial(jax.jit, static_argnames=('sharding',), donate_argnames=('stack',))
def _set_layer(stack, piece, layer, sharding):
    # Not `.at[layer].set`: for bfloat16 XLA's CPU backend would copy the whole stack.
    stack = jax.lax.dynamic_update_index_in_dim(stack, piece.astype(stack.dtype), layer, 0)
    return jax.lax.with_sharding_constraint(stack, sharding)


class _Files:
    """The tensors in the safetensors of a directory, by name."""

    def __init__(self, directory: Path):
        self.directory = directory
        names = {'model.safetensors'}
        if (directory / INDEX).exists():
            names = set(read_json(directory / INDEX).get('weight_map', {}).values())
        self._file = {}
        for name in sorted(names):
            try:  # read, not mapped: what is mapped stays in memory until the file is closed
                file = safetensors.safe_open(directory / name, framework='np', backend='pread')
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(
                    f'{directory / name} cannot be read as safetensors ({error}); copy the model there again, and '
                    'convert other formats to safetensors first.') from None
            self._file |= {tensor: file for tensor in file.keys()}

    def read(self, name: str) -> np.ndarray:
        return self._file[name].get_tensor(name)

    def dtype(self, name: str) -> np.dtype:
        return DTYPES[self._file[name].get_slice(name).get_dtype()]

    def check(self, wanted: list[Tensor], tied: bool) -> None:
        """Refuses a directory whose tensors are not those of the model, with the list of what is wrong."""
        shapes = {tensor.name: tensor.shape for tensor in wanted}
        extra = {name for name in self._file.keys() - shapes.keys() if not name.endswith('rotary_emb.inv_freq')}
        head, embedding = 'lm_head.weight', _EMBEDDING
        if tied and {head, embedding} <= self._file.keys():
            if self.read(head).tobytes() != self.read(embedding).tobytes():
                raise UserError(
                    f'{self.directory}: config.json has tie_word_embeddings = true, but {head} is not {embedding}; set '
                    'it to false.')
            extra.remove(head)
        wrong = [f'{name} is missing' for name in sorted(shapes.keys() - self._file.keys())]
        wrong += [f'{name} is not known' for name in sorted(extra)]
        for name in sorted(shapes.keys() & self._file.keys()):
            found = self._file[name].get_slice(name)
            if tuple(found.get_shape()) != shapes[name]:
                wrong.append(f'{name} has shape {found.get_shape()}, not {list(shapes[name])}')
            elif found.get_dtype() not in DTYPES:
                wrong.append(f'{name} is of type {found.get_dtype()}, not one of {", ".join(DTYPES)}')
        if wrong:
            more = f'; and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
            raise UserError(
                f'{self.directory} is not the model of its config.json: {"; ".join(wrong[:SHOWN])}{more}. Mend '
                'config.json or name another directory.')


def save(
    directory: Path, config: lm.ModelConfig, params: dict, *, like: Path | None = None, dtype: str | None = None):
    """Writes a directory that `transformers` and vLLM load, whole or not at all.

    Args:
      directory: must not exist yet, or be empty.
      params: on any mesh of this process; of those that are `Streamed` one is there at a time.
      like: a directory of the same family, for the tokenizer's files and for what config.json says beside the model:
        special tokens, lengths.
      dtype: of the tensors; None: that of the parameters.

    Raises:
      UserError: there is something in `directory`, or `config` is of no family, or of another than `like`.
    """
    directory = directory.resolve()
    check_new(directory)
    values = config_json(config, like)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f'.{directory.name}-') as temporary:
        partial = Path(temporary) / directory.name
        partial.mkdir()
        values['torch_dtype'] = _write_tensors(partial, config, params, dtype)
        copy_small_files(like, partial)
        (partial / 'config.json').write_text(json.dumps(values, indent=2) + '\n')
        os.replace(partial, directory)


def config_json(config: lm.ModelConfig, like: Path | None = None) -> dict:
    """What `save` writes as config.json, but for the type; raises as that does."""
    return families.to_json(config, read_json(like / 'config.json') if like else {})


def check_new(directory: Path) -> None:
    """Raises `UserError` for a directory with something in it."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f'{directory} exists already; name another one, or move it away.')


def copy_small_files(source: Path | None, target: Path) -> None:
    """Copies tokenizer, chat template and generation config of a model, what there is of them."""
    for path in sorted(source.iterdir()) if source else []:
        if path.suffix in ('.json', '.model', '.spm', '.txt', '.jinja') and path.name not in ('config.json', INDEX):
            shutil.copyfile(path, target / path.name)


def _write_tensors(directory: Path, config: lm.ModelConfig, params: dict, dtype: str | None) -> str:
    """The files of `save`; returns the type of the embedding in them."""
    groups = [(functools.reduce(dict.__getitem__, path, params), group) for path, group in tensors(config).items()]
    entries = [
        Entry(tensor.name, tensor.shape, np.dtype(dtype or param.dtype)) for param, group in groups for tensor in group]
    shards.write(directory, entries, _host_tensors(groups), SHARD_BYTES)
    return next(str(entry.dtype) for entry in entries if entry.name == _EMBEDDING)


def _host_tensors(groups: list[tuple[jax.Array | Streamed, list[Tensor]]]) -> Iterator[np.ndarray]:
    """The value of each tensor, in the layout of the file."""
    for param, group in groups:
        array = made(param)
        for layer, tensor in enumerate(group):
            yield tensor.to_file(np.asarray(array if array.ndim == len(tensor.ours) else array[layer]))
        del array  # before the next is made
