"""Every trajectory of a policy that is a table of logits, a row for each context; and what follows from sums over them.

Letters: R responses of a turn, M = R^N trajectories, C contexts, V tokens, G groups of B rows.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.learner import policy_loss
from score_jax.token_statistics import TokenStatistics
from score_jax.trajectory import Trajectory


# Each is run once, so time spent on compiling it well is lost.
compiled = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True})


@dataclasses.dataclass(frozen=True)
class World:
    """All N-turn trajectories over a few tokens; token 0 ends a response, else its length does.

    Attributes:
      responses: all R of one turn; trajectory m has those that the digits of m in base R say, the last turn's last.
      context: `[M, T]` row of the table that each token is drawn from; -1 where it is not the model's.
      correct: `[M, N]`, each a function of the responses so far.
    """

    responses: list
    trajectory: Trajectory
    context: np.ndarray
    correct: np.ndarray
    contexts: int
    vocab: int

    @property
    def turns(self) -> int:
        return self.correct.shape[1]


def world(vocab: int, limit: int, turns: int = 2) -> World:
    grown = [[()]]
    for _ in range(limit):
        grown.append([(*r, token) for r in grown[-1] if r[-1:] != (0,) for token in range(vocab)])
    responses = [r for n, rs in enumerate(grown) for r in rs if r and (r[-1] == 0 or n == limit)]
    table, rows = {}, []
    for attempts in itertools.product(responses, repeat=turns):
        tokens, turn, context = [], [], []
        for t, response in enumerate(attempts):
            tokens += [1, *response]
            turn += [0, *[t + 1] * len(response)]
            context += [-1, *(table.setdefault((attempts[:t], response[:i]), len(table)) for i in range(len(response)))]
        rows.append((tokens, turn, context))
    width = turns * (1 + limit)
    tokens, turn, context = (
        np.array([r[i] + [fill] * (width - len(r[i])) for r in rows]) for i, fill in enumerate((0, 0, -1)))
    trajectory = Trajectory(
        tokens=tokens, turn=turn, log_probs=np.zeros(tokens.shape), length=np.array([len(r[0]) for r in rows]),
        truncated=np.zeros((len(rows), turns), bool))
    rng, count = np.random.default_rng(4), len(responses)
    right = [np.arange(count) % 2] + [rng.random(count**t) < 0.5 for t in range(2, turns + 1)]
    correct = np.stack([np.repeat(r, len(rows) // len(r)) for r in right], axis=1).astype(float)
    return World(responses, trajectory, context, correct, len(table), vocab)


def tables(w: World):
    """The policy's and the reference's logits `[C, V]`."""
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.normal(size=(w.contexts, w.vocab))), rng.normal(size=(w.contexts, w.vocab))


def statistics(w: World, policy, reference) -> TokenStatistics:
    own, target = w.context >= 0, np.asarray(w.trajectory.tokens)
    law, other = jax.nn.log_softmax(policy), jax.nn.log_softmax(reference)
    def at(x):
        return jnp.where(own, x, 0.0)
    return TokenStatistics(
        log_probs=at(law[w.context, target]), reference_log_probs=at(other[w.context, target]), entropy=at(0.0),
        kl=at(jnp.sum(jnp.exp(law) * (law - other), axis=-1)[w.context]))


def turn_log_probs(w: World, values):
    """`[M, N]`: of each trajectory's response to each turn."""
    turn = abs(w.trajectory.turn)
    return jnp.stack([jnp.sum(jnp.where(turn == t + 1, values, 0.0), axis=1) for t in range(w.turns)], axis=1)


def given(w: World) -> World:
    """The same trajectories, their first attempts prompts."""
    turn = np.where(w.trajectory.turn == 1, -1, w.trajectory.turn)
    return dataclasses.replace(w, trajectory=w.trajectory.replace(turn=turn))


def exact_objective(w: World, policy, reference, rewards, kl, gamma: float = 0.0, first=None):
    """`sum_t E[G_t - kl_t * KL_t]` over all trajectories, `G_t = sum_{u >= t} gamma^(u - t) R_u`.

    The policy is differentiated in turn t where it is credited for turn t; other turns' probabilities are taken as they
    are.

    Args:
      rewards: `[M, N]`.
      first: logits that first attempts are drawn from, which then are not the policy's to change; None: the policy's.
    """
    stats = statistics(w, policy, reference)
    own, other = turn_log_probs(w, stats.log_probs), turn_log_probs(w, stats.reference_log_probs)
    p = jnp.exp(own)
    if first is not None:
        p = p.at[:, 0].set(jnp.exp(turn_log_probs(w, statistics(w, first, first).log_probs))[:, 0])
    total = 0.0
    for t in range(0 if first is None else 1, w.turns):
        weight = jnp.prod(jnp.where(np.arange(w.turns) == t, p, jax.lax.stop_gradient(p)), axis=1)
        earned = sum(gamma**(u - t) * rewards[:, u] for u in range(t, w.turns))
        total += jnp.sum(weight * (earned - kl[t] * (own - other)[:, t]))
    return total


def groups_of(w: World, policy, forks, first=None):
    """Every group of `forks` that one problem can have, `[G, B]` indices of trajectories, and its probability.

    Args:
      first: as in `exact_objective`.
    """
    count = len(w.responses)
    p = np.exp(turn_log_probs(w, statistics(w, policy, policy).log_probs))
    if first is not None:
        p[:, 0] = np.exp(turn_log_probs(w, statistics(w, first, first).log_probs))[:, 0]

    def below(t: int, start: int, each: int):
        """Every way to fork turn t from the trajectories `start` to `start + each`, which share what was before."""
        if t == w.turns:
            return [((start,), 1.0)]
        step = each // count
        subtrees = [
            (rows, p[start + i * step, t] * q) for i in range(count)
            for rows, q in below(t + 1, start + i * step, step)]
        return [
            (sum((rows for rows, _ in chosen), ()), float(np.prod([q for _, q in chosen])))
            for chosen in itertools.product(subtrees, repeat=forks[t])]

    trees = below(0, 0, count**w.turns)
    probability = np.array([q for _, q in trees])
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    return np.array([rows for rows, _ in trees]), probability


def group_loss(w: World, policy, reference, objective, forks, rows, failed=()):
    """`policy_loss` of the trajectories `rows [B]`; of those at `failed` the grader has no verdict on turn 2."""
    stats, trajectory, correct = jax.tree.map(
        lambda x: jnp.asarray(x)[rows], (statistics(w, policy, reference), w.trajectory, w.correct))
    correct = correct.at[np.array(failed, int), 1].set(jnp.nan)
    return policy_loss(stats, trajectory, correct, objective, forks)[0]


def expected_gradient(w: World, policy, reference, objective, forks, *, first=None, failed=()):
    """The gradient `[C, V]` of `-policy_loss`, its mean over the distribution of its groups."""
    groups, probability = groups_of(w, policy, forks, first)

    def loss(policy):
        losses = jax.vmap(lambda rows: group_loss(w, policy, reference, objective, forks, rows, failed))(groups)
        return -jnp.sum(probability * losses)
    return compiled(jax.grad(loss))(policy)


def gradients_by_group(w: World, policy, reference, objective, forks):
    """The gradient of `policy_loss` of every group `[G, C, V]`, and the group's probability."""
    groups, probability = groups_of(w, policy, forks)
    gradient = jax.grad(group_loss, argnums=1)
    return np.asarray(compiled(jax.vmap(
        lambda rows: gradient(w, policy, reference, objective, forks, rows)))(groups)), probability
