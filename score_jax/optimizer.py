"""What an update changes, and how: Adam, the train state, and what of it is kept in bfloat16."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from score_jax.bits import mix, places
from score_jax.errors import UserError
from score_jax.sharding import replicated

_ROUNDING = 0x5C0EE  # seed of the noise of rounding, which is a function of it, the step and the array
SCHEDULES = {
    'constant': lambda peak, steps: optax.constant_schedule(peak),
    'linear': lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    'cosine': lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`config.optimizer` and the stage's steps and learning rate; `configs/common.py` has the comments."""

    steps: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    adam_b1: float
    adam_b2: float
    adam_eps: float
    clip_norm: float

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(
                f'config.optimizer.schedule is {self.schedule!r}; it must be one of {", ".join(SCHEDULES)}.')
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f'config.optimizer.warmup_steps is {self.warmup_steps}; it must be at least 0 and below '
                f'config.steps = {self.steps}.')
        for key, value in (('learning_rate', self.learning_rate), ('optimizer.clip_norm', self.clip_norm)):
            if not value > 0:
                raise UserError(f'config.{key} is {value}; it must be positive.')

    def learning_rate_at(self, step):
        """The rate of update `step` (0 for the first): linear warm-up, then the schedule."""
        after = SCHEDULES[self.schedule](self.learning_rate, self.steps - self.warmup_steps)
        warmup = optax.linear_schedule(
            self.learning_rate / (self.warmup_steps + 1), self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])(step)

    def build(self) -> optax.GradientTransformation:
        """Adam with the gradient clipped by its global norm."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adam(self.learning_rate_at, self.adam_b1, self.adam_b2, self.adam_eps))


@flax.struct.dataclass
class TrainState:
    """What an update changes: updates done, parameters or adapters, the optimiser, the factor on an adaptive beta2."""

    step: jax.Array  # []
    params: dict
    opt_state: optax.OptState
    beta2_scale: jax.Array  # []


def abstract_state(optimizer: OptimizerConfig, params, moments: str, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes and shardings of a train state: moments of type `moments` lie like their parameters, scalars everywhere.

    `params` are `jax.ShapeDtypeStruct`s with shardings.
    """
    def scalar(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
    transform = optimizer.build()
    opt_state = optax.tree_utils.tree_map_params(
        transform, lambda _, p: p.update(dtype=jnp.dtype(moments)), jax.eval_shape(transform.init, params), params,
        transform_non_params=scalar)
    return TrainState(
        step=scalar(jnp.zeros((), jnp.int32)), params=params, opt_state=opt_state, beta2_scale=scalar(jnp.ones(())))


def new_state(optimizer: OptimizerConfig, params, like: TrainState) -> TrainState:
    """A train state at step 0 with a fresh optimiser, as `like` says; takes `params` over."""
    def make(params):
        state = TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.build().init(params),
            beta2_scale=jnp.ones(()))
        return jax.tree.map(lambda x, y: x.astype(y.dtype), state, like)
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, like), donate_argnums=0)(params)


def apply(state: TrainState, optimizer: OptimizerConfig, grads, metrics, has_rows=True, **changes):
    """One update; it is skipped, and counted, where there is nothing to learn from, or loss or gradient are not finite.

    It is computed in float32. What the state keeps in bfloat16 is rounded at random, up or down with probabilities such
    that the mean is exact: rounded to the nearest, a weight would stay where it is under every step below 0.2 % of it,
    which is more than a step of fine-tuning.
    """
    grads, params, opt_state = _float32((grads, state.params, state.opt_state))
    updates, opt_state = optimizer.build().update(grads, opt_state, params)
    norm = optax.tree.norm(grads)
    learn = has_rows & jnp.isfinite(norm) & jnp.isfinite(metrics['loss'])
    metrics = metrics | {
        'grad_norm': norm, 'learning_rate': optimizer.learning_rate_at(state.step), 'skipped': ~learn}
    updated = state.replace(
        step=state.step + 1, params=optax.apply_updates(params, updates), opt_state=opt_state, **changes)
    updated = _stored(updated, state, jax.random.fold_in(jax.random.key(_ROUNDING), state.step))
    return jax.tree.map(lambda new, old: jnp.where(learn, new, old), updated, state), metrics


def _float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def _stored(tree, like, key: jax.Array):
    """`tree` in the types of `like`; each array that loses bits has noise of its own."""
    arrays, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        x if x.dtype == y.dtype else round_at_random(x, jax.random.fold_in(key, index))
        for index, (x, y) in enumerate(zip(arrays, jax.tree.leaves(like), strict=True)))


def round_at_random(x, key: jax.Array):
    """float32 `x [...]` in bfloat16: one of its two neighbours there, the nearer more often, so that the mean is `x`.

    The noise is a hash of `key` and of the place in the array. That fuses with what stands around it; the bits of
    `jax.random` are arrays of their own, larger than what is saved.
    """
    noise = mix(mix(places(x.shape)) ^ jax.random.bits(key, (), jnp.uint32)) >> 16
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)
