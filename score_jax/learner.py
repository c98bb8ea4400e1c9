"""The update: the policy-gradient loss of token statistics, its gradient, one Adam step.

Letters: B rows, T tokens, N turns.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_jax import layout as layouts
from score_jax import lora as adapters
from score_jax import model as lm
from score_jax import objective as objectives
from score_jax import optimizer as optimizers
from score_jax.errors import UserError
from score_jax.lora import LoraConfig
from score_jax.optimizer import OptimizerConfig, TrainState
from score_jax.sharding import batch_shards, on_mesh
from score_jax.token_statistics import Head, Sampled, TokenStatistics
from score_jax.trajectory import Trajectory

FLOATS = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """`config.memory`; `configs/common.py` says what each value means."""

    params: str
    moments: str
    remat: str
    accumulate: int

    def __post_init__(self):
        for key in ('params', 'moments'):
            if getattr(self, key) not in FLOATS:
                raise UserError(
                    f'config.memory.{key} is {getattr(self, key)!r}; it must be one of {", ".join(FLOATS)}.')
        if self.remat not in ('auto', *lm.REMAT):
            raise UserError(f'config.memory.remat is {self.remat!r}; it must be one of auto, {", ".join(lm.REMAT)}.')
        if self.accumulate < 0:
            raise UserError(f'config.memory.accumulate is {self.accumulate}; it must be at least 1, or 0 for auto.')

    def fastest(self) -> MemoryConfig:
        """With what is fastest in place of what is automatic."""
        remat = 'products' if self.remat == 'auto' else self.remat
        return dataclasses.replace(self, remat=remat, accumulate=max(self.accumulate, 1))


def _later_in_turn(values, masks):
    """For each token the sum of `values` over the later tokens of its turn; `[B, T]`, `masks [N, B, T]`."""
    def suffix_sum(x):
        return jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1] - x
    return sum(mask * suffix_sum(mask * values) for mask in masks)


def _mean_of(values, valid):
    """The mean over the first axis of what is `valid`, 0 where nothing is."""
    return jnp.sum(jnp.where(valid, values, 0.0), axis=0) / jnp.maximum(jnp.sum(valid, axis=0), 1)


def policy_loss(
    stats: TokenStatistics, trajectory: Trajectory, correct, objective: objectives.Objective, forks: tuple[int, ...],
    beta2_scale=1.0,
):
    """REINFORCE with a KL term, the mean over rows of sums over tokens.

    A row with a NaN in `correct` is left out of it all: of the means, the baselines and every turn's gradient.
    A response that was given is a prompt: it has no gradient, no KL, and is in no baseline.

    Its gradient is that of `-E[sum_t return_t - kl[t] * KL_t]`, KL_t over the tokens of turn t alone:

    - 'sampled': `-kl[t] * (log pi - log ref)` of the response, detached, is part of the return of its turn.
    - 'exact': KL(pi || ref) over the vocabulary at every token, as a term that is differentiated, and with it
      what a token does to the KL of the tokens after it: `log pi(token) * (KL still to come in its turn)`.
      Without the second part the gradient would take the visited contexts as given.

    Args:
      correct: `[B, N]`, 1 where the verifier found the turn's answer right, NaN where it failed.
      forks: `(K1, K2, ...)`, as in `rollout.sample`.
      beta2_scale: factor on the KL weights of held turns.

    Returns:
      the loss, and metrics by name (each a mean over rows; `dropped` counts the rows left out).
    """
    valid = jnp.isfinite(correct).all(axis=1)
    correct = jnp.where(valid[:, None], correct, 0.0)
    masks = jnp.stack([trajectory.mask(t + 1) for t in range(objective.turns)])  # [N, B, T]
    own = valid[:, None] & masks.any(axis=2).T  # [B, N] sampled, and with a verdict
    kl_weights = objectives.kl_weights(objective, beta2_scale)
    rewards = objectives.turn_rewards(objective, correct)

    def by_turn(values):  # [B, T] -> [B, N], summed over the tokens of each turn
        return jnp.sum(masks * values, axis=2).T

    penalty, kl_loss = 0.0, 0.0
    if objective.kl_estimator == 'sampled':
        penalty = kl_weights * by_turn(stats.log_probs - stats.reference_log_probs)
    else:
        later = jax.lax.stop_gradient(_later_in_turn(stats.kl, masks))
        kl_loss = _mean_of(jnp.sum(kl_weights * by_turn(stats.kl + later * stats.log_probs), axis=1), valid)
    advantages = jax.lax.stop_gradient(objectives.advantages(objective, rewards, forks, penalty, own))
    reinforce = -_mean_of(jnp.sum(advantages * by_turn(stats.log_probs), axis=1), valid)
    metrics = {
        'loss': reinforce + kl_loss,
        'reward': _mean_of(jnp.sum(rewards, axis=1), valid),
        'dropped': jnp.sum(~valid),
        'log_prob_gap': jnp.max(
            jnp.where(masks.any(axis=0), jnp.abs(stats.log_probs - trajectory.log_probs), 0.0)),
    }
    lengths = _mean_of(by_turn(jnp.ones_like(stats.kl)), own)
    entropy = _mean_of(by_turn(stats.entropy), own) / jnp.maximum(lengths, 1e-6)
    figures = {
        'reward': _mean_of(rewards, own), 'kl': _mean_of(by_turn(stats.kl), own), 'entropy': entropy, 'length': lengths,
        'truncated': _mean_of(trajectory.truncated, own)}
    metrics |= {f'{name}_turn{t + 1}': values[t] for name, values in figures.items() for t in range(objective.turns)}
    # From what the loss is made of: a response that was given earns and costs nothing, and is in the means.
    earned, cost = (_mean_of(values, valid[:, None]) for values in (jnp.where(own, rewards, 0.0), by_turn(stats.kl)))
    metrics['next_beta2_scale'] = objectives.adapted_scale(objective, beta2_scale, earned, cost)
    return reinforce + kl_loss, metrics


@dataclasses.dataclass(frozen=True)
class Scorer:
    """From what is trained to the statistics of a batch, and back.

    Attributes:
      whole: from what is trained to parameters for `forward`.
      reference: frozen parameters, or None; no gradient flows into them.
    """

    head: Head
    remat: str
    whole: Callable[[dict], dict]
    reference: dict | None

    def _read(self, params, batch, sampled: Sampled):
        """Hidden states `[G, M, D]` that sampled tokens follow, and the head."""
        trajectory, layout = batch
        hidden = layout.hidden(params, self.head.model, trajectory, self.head.shards, self.remat)
        return jax.vmap(lambda x, where: x[where])(hidden, sampled.hidden), self.head.weights(params)

    def _read_reference(self, batch, sampled: Sampled) -> tuple:
        return () if self.reference is None else (self._read(self.reference, batch, sampled),)

    def _sampled(self, batch) -> Sampled:
        trajectory, layout = batch
        mask = (trajectory.turn > 0) & layout.read_once(trajectory)
        return Sampled.find(
            mask, layout.number(trajectory, self.head.shards), trajectory.tokens, self.head.shards,
            self.head.places(mask.size // self.head.shards))

    def statistics(self, params, batch) -> TokenStatistics:
        """`[B, T]`, of the rows of `batch`: a trajectory and its layout."""
        (trajectory, _), sampled = batch, self._sampled(batch)
        reads = self._read(self.whole(params), batch, sampled), *self._read_reference(batch, sampled)
        known = self.head.read(*zip(*reads), sampled, trajectory.tokens.size // self.head.shards)
        return self._spread(known, batch)

    def gradient(
        self, params, batch, derivatives, *, first_pass: bool, reference: bool = True) -> tuple[TokenStatistics, dict]:
        """The statistics and, with a loss's derivatives by them, its gradient.

        Args:
          derivatives: from `TokenStatistics [B, T]` to the same of derivatives. Those by a token may depend on later
            tokens alone, or `first_pass` is true.
          reference: whether the reference is read. Where it is not, and in the second pass, there is no gradient by
            what it says, the KL included.
        """
        (trajectory, _), sampled = batch, self._sampled(batch)
        own, back = jax.vjp(lambda params: self._read(self.whole(params), batch, sampled), params)
        reads, width = (own,), trajectory.tokens.size // self.head.shards
        if reference:
            reads += self._read_reference(batch, sampled)

        def by_what_is_read_once(known, alone: bool = not reference):
            stats, spread_back = jax.vjp(lambda known: self._spread(known, batch), known)
            by = spread_back(derivatives(stats))[0]
            if alone and self.reference is not None:
                nothing = jnp.zeros_like(by.kl)
                by = by.replace(reference_log_probs=nothing, kl=nothing)
            return by

        of_all = None
        if first_pass:
            known = self.head.read(*zip(*reads), sampled, width)
            of_all, reads = by_what_is_read_once(known, alone=True), (own,)
        learned, by_hidden, by_head = self.head.learn(
            *zip(*reads), sampled, width, lambda learned: of_all or by_what_is_read_once(learned))
        (gradient,) = back((by_hidden, by_head.astype(own[1].dtype)))
        return self._spread(known if first_pass else learned, batch), gradient

    def _spread(self, known: TokenStatistics, batch) -> TokenStatistics:
        trajectory, layout = batch
        return layout.spread(trajectory, jax.tree.map(lambda x: x.reshape(trajectory.tokens.shape), known))


def gradient_in_parts(scorer, loss, params, batch, *, problems: int, parts: int, first_pass: bool):
    """The gradient of `loss(scorer.statistics(params, batch))`, in memory for a part of the problems at a time.

    The loss is one function of the statistics of the whole batch, so its baselines and its means are those of the
    undivided update. They are small, `[B, T]`: once its derivatives by the statistics of a part are known, they are
    pulled back to the parameters, and the gradients of the parts add up, in float32.

    Args:
      loss: `TokenStatistics [B, T] -> (value, metrics)`.
      batch: arrays `[B, ...]`, B / problems rows of each problem side by side.
      first_pass: whether a token's derivatives depend on the statistics of other rows or of earlier tokens. All are
        then computed once before, those of the reference just then; the loss has no gradient by the KL.

    Returns:
      the gradient, and metrics.
    """
    derivatives = jax.grad(lambda stats: loss(stats)[0])
    if parts == 1:
        stats, gradient = scorer.gradient(params, batch, derivatives, first_pass=first_pass)
        return gradient, loss(stats)[1]

    def split(x):
        return layouts.split(x, problems, parts)

    def join(x):  # and back
        x = x.reshape(parts, problems // parts, -1, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(-1, *x.shape[3:])

    batch = jax.tree.map(split, batch)
    if first_pass:
        known = jax.lax.map(lambda part: scorer.statistics(params, part), batch)
    else:
        like = jax.eval_shape(jax.vmap(lambda part: scorer.statistics(params, part)), batch)
        known = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def step(gradient, inputs):
        index, part = inputs

        def of_part(stats):
            whole = known if first_pass else jax.tree.map(lambda all, own: all.at[index].set(own), known, stats)
            return jax.tree.map(lambda x: split(x)[index], derivatives(jax.tree.map(join, whole)))
        stats, own = scorer.gradient(params, part, of_part, first_pass=False, reference=not first_pass)
        return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradient, own), stats

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
    gradient, stats = jax.lax.scan(step, zeros, (jnp.arange(parts), batch))
    return gradient, loss(jax.tree.map(join, known if first_pass else stats))[1]


@dataclasses.dataclass(frozen=True)
class Learner:
    """The jitted updates of one stage; a call compiles once for each shape of its batch.

    Attributes:
      head_chunk: sampled tokens of a shard of the batch that the head is applied to at a time.
      lora: where it is not None, adapters are what is trained: parameters of a state and of a reference are adapters,
        and the updates take the base that both share.
    """

    model: lm.ModelConfig
    optimizer: OptimizerConfig
    mesh: jax.sharding.Mesh
    head_chunk: int
    memory: MemoryConfig
    lora: LoraConfig | None = None

    def abstract_params(self) -> dict:
        """Shapes and shardings of what is trained."""
        if self.lora:
            return lm.place(adapters.declare(self.model, self.lora), self.mesh)
        return lm.abstract(self.model, self.mesh, jnp.dtype(self.memory.params))

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of a train state: what a checkpoint is restored onto."""
        return optimizers.abstract_state(self.optimizer, self.abstract_params(), self.memory.moments, self.mesh)

    def new_state(self, params) -> TrainState:
        """A train state at step 0 with a fresh optimiser; takes `params` over."""
        return optimizers.new_state(self.optimizer, params, self.abstract_state())

    def whole(self, params, base=None) -> dict:
        """Parameters for `forward` from those that are trained, on top of the base where these are adapters."""
        return adapters.adapt(base, params, self.lora) if self.lora else params

    @functools.partial(
        jax.jit, static_argnames=('self', 'objective', 'forks', 'temperature'), donate_argnames=('state',))
    @on_mesh
    def reinforce(
        self, state: TrainState, reference, trajectory: Trajectory, correct, *,
        objective: objectives.Objective, forks: tuple[int, ...], temperature: float,
        layout: layouts.Rows | layouts.Tree = layouts.Rows(), base=None):
        """One policy-gradient step on a fresh trajectory.

        Args:
          reference: frozen parameters of the KL's other side, on the devices or in the host's memory.
          correct: `[B, N]`, as in `policy_loss`.
          temperature: that of the sampler.
          layout: how the rows are read.
          base: frozen parameters that adapters stand beside.

        Returns:
          the next state, and metrics as scalars on the device.
        """
        reference = lm.fetch_all_but_layers(self.whole(reference, base))

        def loss(stats):
            return policy_loss(stats, trajectory, correct, objective, forks, state.beta2_scale)

        grads, metrics = gradient_in_parts(
            self._scorer(temperature, reference, base), loss, state.params, (trajectory, layout),
            problems=len(correct) // math.prod(forks), parts=self.memory.accumulate,
            first_pass=objective.kl_estimator == 'sampled')
        metrics['padding'] = layouts.padding(layout, trajectory, batch_shards(self.mesh))
        if objective.adaptive_beta2:
            metrics['beta2_scale'] = state.beta2_scale
        has_rows = metrics['dropped'] < len(correct)
        scale = metrics.pop('next_beta2_scale')
        return self._updated(state, grads, metrics, has_rows, beta2_scale=scale)

    @functools.partial(jax.jit, static_argnames=('self',), donate_argnames=('state',))
    @on_mesh
    def imitate(self, state: TrainState, tokens, turn):
        """One step of supervised training on the model's own tokens: `tokens`, `turn` `[B, T]`, where turn > 0."""
        dialogues = Trajectory(tokens=tokens, turn=turn, log_probs=None, length=None, truncated=None)

        def loss(stats):
            mask = (turn > 0).at[:, 0].set(False)
            value = -jnp.sum(jnp.where(mask, stats.log_probs, 0.0)) / jnp.maximum(jnp.sum(turn > 0), 1)
            return value, {'loss': value}

        grads, metrics = gradient_in_parts(
            self._scorer(1.0), loss, state.params, (dialogues, layouts.Rows()), problems=len(tokens),
            parts=self.memory.accumulate, first_pass=False)
        return self._updated(state, grads, metrics)

    def _scorer(self, temperature: float, reference=None, base=None) -> Scorer:
        head = Head(self.model, batch_shards(self.mesh), temperature, self.head_chunk, trained=not self.lora)
        return Scorer(head, self.memory.remat, lambda params: self.whole(params, base), reference)

    def _updated(self, state: TrainState, *args, **changes):
        state, metrics = optimizers.apply(state, self.optimizer, *args, **changes)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        return jax.lax.with_sharding_constraint(state, shardings), metrics
