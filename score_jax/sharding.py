"""The mesh, the rules that map logical axes onto it, and the way between the host's arrays and the devices'."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from score_jax.errors import UserError

# Logical axis -> mesh axes. A dimension that its mesh axes do not divide is replicated.
RULES = {
    'batch': ('data', 'fsdp'),
    'row': 'data',  # of an array whose embed lies on fsdp
    'layers': None,
    'vocab': 'model',
    'embed': 'fsdp',
    'heads': 'model',
    'kv_heads': 'model',
    'head_dim': None,
    'mlp': 'model',
    'rank': None,
    'slot': None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 means all that are left, several -1 are `score_jax.meshes.propose`'s to choose.

    `name` is that of the devices, as in `score_jax.accelerators`; '' is those that are here.
    """

    data: int
    fsdp: int
    model: int
    name: str = ''


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh `(data, fsdp, model)` over all devices; `UserError` if they do not fit."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(f'this is one of {jax.process_count()} processes; start each of them with --processes=auto.')
    names = ('data', 'fsdp', 'model')
    sizes = [getattr(config, name) for name in names]
    devices = jax.device_count()
    shown = ', '.join(f'{name} = {size}' for name, size in zip(names, sizes))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f'config.mesh has {shown}; sizes must be positive, and at most one may be -1 (all the rest).')
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise UserError(
            f'config.mesh has {shown}, which does not fit the {devices} device(s) here; '
            f'set one of them to -1 and make the others divide {devices}.')
    return jax.make_mesh(tuple(sizes), names, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch is divided into."""
    return math.prod(mesh.shape[name] for name in RULES['batch'])


def check_divisible(key: str, size: int, mesh: Mesh) -> None:
    """Raises `UserError`, with the nearest sizes that work, for a batch that the mesh does not divide."""
    shards = batch_shards(mesh)
    if size % shards:
        below, above = size // shards * shards, -(-size // shards) * shards
        nearest = f'{below} or {above}' if below else f'{above}'
        raise UserError(
            f'{key} is {size}, which the {shards} batch shards of the mesh '
            f'(data = {mesh.shape["data"]} x fsdp = {mesh.shape["fsdp"]}) do not divide; {nearest} would work.')


def named_sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical axes."""
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        rule = RULES[axis] if axis else None
        names = (rule,) if isinstance(rule, str) else (rule or ())
        parts = math.prod(mesh.shape[name] for name in names)
        fits = parts > 1 and size % parts == 0
        spec.append(rule if fits else None)
    while spec and spec[-1] is None:  # as XLA spells it, so that a result fits where the argument came from
        spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec))


def on_mesh(function):
    """`function`, traced for the mesh of its first argument, which `spread` finds there."""
    @functools.wraps(function)
    def traced(first, *args, **kwargs):
        with jax.sharding.use_abstract_mesh(first.mesh.abstract_mesh):
            return function(first, *args, **kwargs)
    return traced


def spread(x, axes: tuple[str | None, ...]):
    """`x`, laid out by the rules for these logical axes over the mesh that is traced for; as it is where there is none.

    Unless it is told, the compiler may keep all rows of an activation on every device, and sum what the shares of a
    parameter contribute to them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes, x.shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over the data axes, the others whole."""
    return NamedSharding(mesh, PartitionSpec(RULES['batch']))


def put_batch(mesh: Mesh, tree):
    """Host arrays `[B, ...]`, the same in every process, onto the devices, `B` over the data axes.

    Each process places the rows of its own devices.
    """
    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, batch_sharding(mesh), lambda index: x[index])
    return jax.tree.map(put, tree)


def to_host(tree):
    """Whole arrays as copies on the host, also of rows that lie in other processes, all of which must call it."""
    return jax.tree.map(lambda x: np.array(multihost_utils.process_allgather(x, tiled=True)), tree)


def own_problems(mesh: Mesh, count: int) -> np.ndarray:
    """Which of `count` problems, divided over the data axes, this process reads and grades, `[n]`; each has one such.

    Processes that share a part of the batch, as the axis `model` reaches over several, divide it among them.
    """
    shards = mesh.devices.reshape(batch_shards(mesh), -1)
    own = []
    for places, devices in zip(np.split(np.arange(count), len(shards)), shards):
        holders = sorted({device.process_index for device in devices})
        if jax.process_index() in holders:
            own.append(np.array_split(places, len(holders))[holders.index(jax.process_index())])
    return np.concatenate(own)


def own_rows(mesh: Mesh, tree, problems: int):
    """Of arrays `[B, ...]`, `B / problems` rows a problem, those of `own_problems` as copies on the host, in order."""
    def copy(x):
        each = len(x) // problems
        rows = (own_problems(mesh, problems)[:, None] * each + np.arange(each)).ravel()
        if x.is_fully_addressable:
            return np.asarray(x)[rows]
        found = np.empty((len(rows), *x.shape[1:]), x.dtype)
        parts = {shard.index[0].indices(len(x))[:2]: shard.data for shard in x.addressable_shards}  # once, of replicas
        for (start, stop), part in parts.items():
            here = (start <= rows) & (rows < stop)
            found[here] = np.asarray(part)[rows[here] - start]
        return found
    return jax.tree.map(copy, tree)
