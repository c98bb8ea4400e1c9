"""The memory and the arithmetic of a stage before it runs: from its shapes, and from what the compiler says of them.

Nothing is allocated. The mesh may have more devices than there are here: `pretend` makes as many virtual ones.

Letters: B rows, T tokens of a row, L layers, D width, V vocabulary. All figures are bytes of one device.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_jax import accelerators, rollout
from score_jax import layout as layouts
from score_jax import model as lm
from score_jax.errors import UserError
from score_jax.learner import Learner, MemoryConfig
from score_jax.meshes import bytes_of, show
from score_jax.model.attention import BLOCK
from score_jax.model.kernels import decodes
from score_jax.objective import Objective
from score_jax.sharding import MeshConfig, batch_sharding, batch_shards
from score_jax.trajectory import Trajectory

# Arrays of [rows or tokens, vocabulary] in float32 that are there at once, counted in what is compiled.
_SAMPLING_COPIES = 4  # logits, scaled, probabilities and their sums
_HEAD_COPIES = 4  # logits of policy and reference, the policy's probabilities, and what is pulled back to them
# Arrays of [heads, queries, slots] in float32 in the backward pass of a block of attention: scores, weights, and what
# comes back.
_SCORE_COPIES = 4
_VIRTUAL = 2048  # devices that XLA makes of one CPU
_USABLE = 0.85  # of a device's memory, by plan: the rest is for what the plan does not know of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A step of a stage at its longest: `batch` problems, prompts and instructions of so many tokens."""

    learner: Learner
    sampler: rollout.RolloutConfig
    objective: Objective
    forks: tuple[int, ...]
    batch: int
    prompt: int
    instruction: int
    reference_on_host: bool

    @property
    def rows(self) -> int:
        """Of a step, all forks counted."""
        return self.batch * math.prod(self.forks)

    @property
    def widths(self) -> tuple[int, ...]:
        """By turn, the tokens that a row adds at most."""
        each = self.sampler.max_tokens
        return self.prompt + each, *[self.instruction + each] * (self.sampler.turns - 1)

    @property
    def slots(self) -> int:
        """Of the cache, at its longest."""
        return -(-sum(self.widths) // self.sampler.chunk) * self.sampler.chunk

    @property
    def local_slots(self) -> int | None:
        """Of the cache of a local layer, at most."""
        return rollout.local_slots(self.learner.model, self.sampler.chunk, self.instruction)

    @property
    def shared(self) -> bool:
        """Whether rows share turns, which are then read once."""
        return any(fork > 1 for fork in self.forks[1:])

    def tokens(self) -> int:
        """That a step reads, each as often as it is computed with."""
        if not self.shared:
            return self.rows * self.slots
        return sum(self.batch * math.prod(self.forks[:t + 1]) * w for t, w in enumerate(self.widths))


def pretend(mesh: MeshConfig) -> None:
    """Makes as many virtual CPU devices as `mesh.name` has, or as its sizes say, before jax has looked for any.

    Without a name, -1 counts as 1.

    Raises:
      UserError: they are too many, or jax has looked already and has another number.
    """
    devices = math.prod(max(size, 1) for size in (mesh.data, mesh.fsdp, mesh.model))
    if mesh.name:
        devices = accelerators.named(mesh.name).devices
    if devices > _VIRTUAL:
        raise UserError(
            f'config.mesh asks for {devices} devices, but a dry run can make {_VIRTUAL} of one CPU at most; look at a '
            'smaller mesh with the same fsdp and model: more devices along data hold and compute the same.')
    try:
        jax.config.update('jax_num_cpu_devices', devices)
        jax.config.update('jax_platforms', 'cpu')
    except RuntimeError:
        if jax.device_count() != devices:
            raise UserError(
                f'config.mesh asks for {devices} devices, but jax has made {jax.device_count()} in this process '
                'already; make the dry run in a process of its own.') from None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes of one device by name: what is there all the time, and what sampling and the update need beside it."""

    always: dict[str, int]
    sampling: dict[str, int]
    update: dict[str, int]


def plan(work: Work) -> Plan:
    """What a step should need, counted from shapes."""
    learner, mesh = work.learner, work.learner.mesh
    state = learner.abstract_state()
    frozen, base = abstract_frozen(work)
    always = {
        'adapters' if learner.lora else 'parameters': bytes_of(state.params),
        "optimiser (Adam's two moments)": bytes_of(state.opt_state)}
    if learner.lora:
        always['base, which is the reference too'] = bytes_of(base)
    elif not work.reference_on_host:
        always['reference'] = bytes_of(frozen)
    held, before = (
        bytes_of(rollout.abstract_cache(learner.model, mesh, work.rows, room, work.local_slots))
        for room in (work.slots, work.slots - work.sampler.chunk))
    if decodes(learner.model):  # it does not grow
        before = 0
    whole = learner.whole(learner.abstract_params(), base)
    sampling = {
        'weights, layer by layer, in the compute type': bytes_of(rollout.abstract_params(whole, learner.model)),
        'KV cache': held,
        'KV cache as it was before it grew': before,
        'distributions of the next tokens': _SAMPLING_COPIES * 4 * _rows(work, 1) * learner.model.vocab_size}
    return Plan(always, sampling, _update(work, state, frozen))


def beside(work: Work) -> list[tuple[str, str, int]]:
    """What is held beside parameters and optimiser, and the largest cache: name, what it is, bytes of one device."""
    made = plan(work)
    held = [(name, '', size) for name, size in list(made.always.items())[2:]]
    cache = f'{work.rows} rows of {work.slots} tokens, {work.learner.model.dtype}'
    return [*held, ('KV cache', cache, made.sampling['KV cache'])]


def _rows(work: Work, parts: int) -> int:
    """Of one device."""
    return -(-work.rows // (batch_shards(work.learner.mesh) * parts))


def _update(work: Work, state, frozen) -> dict[str, int]:
    learner, c, mesh = work.learner, work.learner.model, work.learner.mesh
    parts, item, model = learner.memory.accumulate, jnp.dtype(c.dtype).itemsize, mesh.shape['model']
    tokens = -(-work.tokens() // (batch_shards(mesh) * parts))
    rows, last = _rows(work, parts), work.widths[-1] if work.shared else work.slots
    products = (c.heads + 2 * c.kv_heads) * c.head_dim + 2 * c.mlp
    kept = {'nothing': 0, 'products': (products + c.heads * c.head_dim) / model + 2 * c.width}
    kept['everything'] = 2 * kept['products'] + 4 * c.width
    scores = _SCORE_COPIES * 4 * rows * c.heads / model * min(last, BLOCK) * work.slots
    gradient = bytes_of(state.params)
    if parts > 1:  # the sum in float32, and that of a part
        gradient += sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
    head = lm.abstract(c, mesh)['embedding']
    lines = {
        'gradients': gradient,
        'kept for the backward pass': int(item * c.layers * tokens * (c.width + kept[learner.memory.remat])),
        'a layer at work': int(scores + tokens * (2 * products / model + 6 * c.width) * 4),
        'head, a chunk of tokens': _HEAD_COPIES * 4 * min(learner.head_chunk, tokens) * c.vocab_size // model,
        'head, its weights and their gradient': int(
            (2 * item + (0 if learner.lora else 8)) * math.prod(head.shape) / model)}
    if work.shared:
        cache = 2 * item * c.layers * rows * (work.slots + work.widths[0]) * c.kv_heads * c.head_dim
        lines['keys and values that turns share'] = 2 * cache // model
    if work.reference_on_host:
        layers = bytes_of(frozen['layers'])
        lines['reference: a layer, and what is outside layers'] = bytes_of(frozen) - layers + layers // c.layers
    return lines


def abstract_frozen(work: Work) -> tuple[dict, dict | None]:
    """Shapes and shardings of the reference and of the base of adapters, as `Reinforce.frozen` gives them."""
    learner = work.learner
    if learner.lora:
        return {}, lm.abstract(learner.model, learner.mesh, jnp.dtype(learner.memory.params))
    reference = lm.abstract(learner.model, learner.mesh, jnp.bfloat16)
    if work.reference_on_host:
        reference = jax.tree.map(
            lambda x: x.update(sharding=x.sharding.with_memory_kind('pinned_host')), reference)
    return reference, None


def lower_update(work: Work):
    """The update, lowered but not run."""
    learner, mesh = work.learner, work.learner.mesh

    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
    reference, base = abstract_frozen(work)
    rows, turns = work.rows, work.sampler.turns
    layout = layouts.Tree(work.forks, work.widths) if work.shared else layouts.Rows()
    shape = (rows, work.slots)
    trajectory = Trajectory(
        tokens=of(shape, jnp.int32), turn=of(shape, jnp.int32), log_probs=of(shape, jnp.float32),
        length=of((rows,), jnp.int32), truncated=of((rows, turns), bool))
    return Learner.reinforce.lower(
        learner, learner.abstract_state(), reference, trajectory, of((rows, turns), jnp.float32),
        objective=work.objective, forks=work.forks, temperature=work.sampler.temperature or 1.0,
        layout=layout, base=base)


def matrix_weights(c: lm.ModelConfig) -> int:
    """Weights of the layers that each token is multiplied with."""
    return c.layers * c.width * (2 * (c.heads + c.kv_heads) * c.head_dim + 3 * c.mlp)


def flops(work: Work) -> dict[str, float]:
    """Floating-point operations of a step on all devices, counted as 2 for each weight or key that a token meets."""
    learner, c = work.learner, work.learner.model
    weights = matrix_weights(c)
    if learner.lora:
        adapters = sum(math.prod(x.shape) for x in jax.tree.leaves(learner.abstract_params()))
    head, attention = c.width * c.vocab_size, 2 * c.layers * c.heads * c.head_dim * work.slots / 2
    sampled = sum(
        work.batch * math.prod(work.forks[:t + 1]) * work.sampler.max_tokens for t in range(work.sampler.turns))
    tokens = work.tokens()
    sampling = 2 * (tokens * (weights + attention) + sampled * head)
    forward, trained = sampling, 1 if learner.lora else 2
    backward = 2 * (tokens * (2 * attention + weights * trained) + sampled * head * trained)
    again = 2 * tokens * (attention + (weights if learner.memory.remat == 'nothing' else 0))
    update = 2 * forward + backward + again
    if work.objective.kl_estimator == 'sampled':  # the policy a second time
        update += forward if learner.memory.accumulate > 1 else 2 * sampled * head
    if learner.lora:
        update += 6 * tokens * adapters
    return {'sampling': sampling, 'update': update}


def _device_memory(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of a device; None where it does not say."""
    return (mesh.local_devices[0].memory_stats() or {}).get('bytes_limit')


def fitted(work: Work, memory: MemoryConfig, name: str = '') -> Learner:
    """The learner of `work` with what is automatic in `memory` chosen: the fastest that a device has the memory for.

    Parts cost less than computing layers again, so there are as many of them as it takes first. Where devices do not
    say what memory they have, the fastest; where nothing fits, the smallest. `name` is that of the devices, where these
    are not here.
    """
    problems = work.batch // batch_shards(work.learner.mesh)
    limit = accelerators.named(name).memory if name else _device_memory(work.learner.mesh)
    parts = [n for n in range(1, problems + 1) if problems % n == 0] if memory.accumulate == 0 else [memory.accumulate]
    for remat in ('products', 'nothing') if memory.remat == 'auto' else (memory.remat,):
        for accumulate in parts:
            chosen = dataclasses.replace(memory, remat=remat, accumulate=accumulate)
            learner = dataclasses.replace(work.learner, memory=chosen)
            made = plan(dataclasses.replace(work, learner=learner))
            if not limit or sum(made.always.values()) + sum(made.update.values()) <= _USABLE * limit:
                return learner
    return learner


def check(work: Work) -> None:
    """Raises `UserError` where what is there all the time is more than a device has, as far as it says what it has."""
    limit = _device_memory(work.learner.mesh)
    always = plan(work).always
    if limit and sum(always.values()) > limit:
        raise UserError(
            f'each device has {show(limit).strip()}, but what it holds all the time is more: '
            f'{", ".join(f"{name} {show(size).strip()}" for name, size in always.items())}; raise config.mesh.fsdp, '
            "set config.memory.params or moments to 'bfloat16', or train adapters (config.lora.rank).")
