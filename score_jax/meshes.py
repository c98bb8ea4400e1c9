"""Which mesh a model gets where the config leaves it open, and which device then holds what of every array."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from score_jax import accelerators, sharding
from score_jax import lora as adapters
from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.learner import Learner, MemoryConfig
from score_jax.lora import LoraConfig
from score_jax.sharding import RULES, MeshConfig

_SHARE = 1 / 4  # of a device's memory, for parameters and what belongs to them; caches and activations need more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a mesh is chosen for.

    Attributes:
      batch: problems that are worked on at a time; the axes data and fsdp divide them.
      kv_heads: the axis model divides them.
      held: bytes of parameters and of what is held beside them, on all devices together.
    """

    batch: int
    kv_heads: int
    held: int


def held(model: lm.ModelConfig, memory: MemoryConfig | None = None, lora: LoraConfig | None = None) -> int:
    """Bytes of the parameters; in training also of the gradient, Adam's moments and a reference in bfloat16."""
    declared = jax.tree.leaves(lm.declare(model), is_leaf=lambda x: hasattr(x, 'axes'))
    each = 4
    if memory:
        param, moment = jnp.dtype(memory.params).itemsize, jnp.dtype(memory.moments).itemsize
        each = param if lora else 2 * param + 2 * moment + 2
    return each * sum(math.prod(param.shape) for param in declared)


def make_mesh(config: MeshConfig, need: Need) -> Mesh:
    """The mesh over all devices; axes that are -1 are chosen by `propose`.

    Raises:
      UserError: the sizes do not fit the devices, or these are not those that `config.name` names.
    """
    devices, memory = jax.device_count(), device_memory(config)
    if config.name and (wanted := accelerators.named(config.name).devices) != devices:
        raise UserError(
            f'config.mesh.name is {config.name!r}, which has {wanted} devices, but there are {devices} here; leave it '
            "'' to take those, or look at the layout alone with config.dry_run=True.")
    return sharding.make_mesh(propose(config, need, devices, memory))


def device_memory(config: MeshConfig) -> int | None:
    """Bytes of a device, of those that are named or of those that are here; None where they do not say."""
    if config.name:
        return accelerators.named(config.name).memory
    return (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')


def propose(config: MeshConfig, need: Need, devices: int, memory: int | None) -> MeshConfig:
    """`config` with sizes for the axes that are -1, where there are several.

    Of the meshes whose batch and heads divide: as few devices along model as can be; with that, as few along fsdp as
    leave each device shares of what is held that are not over a quarter of its memory, or as many as there are; the
    others along data.
    """
    sizes = config.data, config.fsdp, config.model
    if sizes.count(-1) < 2 or any(size < 1 and size != -1 for size in sizes):
        return config

    def possible(size, at_most):
        return [n for n in range(1, at_most + 1) if at_most % n == 0] if size == -1 else [size]
    meshes = [
        (devices // (fsdp * model), fsdp, model)
        for model, fsdp in itertools.product(possible(config.model, devices), possible(config.fsdp, devices))
        if devices % (fsdp * model) == 0 and config.data in (-1, devices // (fsdp * model))
        and need.batch % (devices // model) == 0 and need.kv_heads % model == 0]
    if not meshes:  # which sizes would do is said where the batch is divided
        return dataclasses.replace(config, data=-1, fsdp=max(config.fsdp, 1), model=max(config.model, 1))
    room = _SHARE * memory if memory else math.inf
    roomy = [mesh for mesh in meshes if need.held / (mesh[1] * mesh[2]) <= room]
    data, fsdp, model = roomy[0] if roomy else max(meshes, key=lambda mesh: mesh[1] * mesh[2])
    return dataclasses.replace(config, data=data, fsdp=fsdp, model=model)


def table(learner: Learner, beside: Iterable[tuple[str, str, int]] = ()) -> str:
    """A line for each array that is held, its axes and how they are divided, and the bytes of one device.

    Args:
      beside: what is held beside parameters and moments: name, what it is, bytes of one device.
    """
    mesh = learner.mesh
    state = learner.abstract_state()
    lines = []
    if mesh.size > 1:
        parts = [('', adapters.declare(learner.model, learner.lora) if learner.lora else lm.declare(learner.model))]
        params = state.params
        if learner.lora:
            parts.append(('base/', lm.declare(learner.model)))
            params = [params, lm.abstract(learner.model, mesh, jnp.dtype(learner.memory.params))]
        declared = [
            (prefix + '/'.join(key.key for key in keys), param) for prefix, tree in parts
            for keys, param in jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'axes'))]
        for (name, param), like in zip(declared, jax.tree.leaves(params), strict=True):
            lines.append((name, _divided(param, mesh), bytes_of(like)))
    kind = 'adapters' if learner.lora else 'parameters'
    lines += [(f'all {kind}', learner.memory.params if not learner.lora else 'float32', bytes_of(state.params)),
              ('optimiser', f'two moments, {learner.memory.moments}', bytes_of(state.opt_state))]
    lines += beside
    width = max(len(axes) for _, axes, _ in lines)
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    return '\n'.join(
        [f'layout on {mesh.size} device{"s" * (mesh.size > 1)} ({axes}), and what one holds']
        + [f'  {name:<27}  {how:<{width}}{show(size)}' for name, how, size in lines])


def _divided(param: lm.Param, mesh: Mesh) -> str:
    spec = sharding.named_sharding(mesh, param.axes, param.shape).spec
    along = [*spec, *[None] * (len(param.shape) - len(spec))]
    return ', '.join(
        f'{axis} {size}' + (f' / {mesh.shape[RULES[axis]]} {RULES[axis]}' if place else '')
        for axis, size, place in zip(param.axes, param.shape, along))


def bytes_of(tree) -> int:
    """Bytes of arrays, or of `jax.ShapeDtypeStruct`s with shardings, that one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def show(size: int) -> str:
    """Bytes for a terminal."""
    return f'{size / 2**30:>10,.2f} GiB' if size >= 2**28 else f'{size / 2**20:>10,.2f} MiB'
