"""The objectives of SCoRe as rows of weights, and what follows from them: returns and advantages.

Letters: P problems, B rows (P x K1 x K2), N turns.

For each turn t the reward is `reward[t] * r_t + bonus[t] * (r_t - r_{t-1})`, and `kl[t]` weighs
`KL(policy || reference)` over the tokens of that turn (arXiv 2409.12917, Eq. 2-4 and the progress bonus).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp

from score_jax import settings
from score_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """Weights by turn; a name stands for the value of that symbol in `config.objective`."""

    reward: tuple[float | str, ...]
    bonus: tuple[float | str, ...]
    kl: tuple[float | str, ...]


#                            turn 1   turn 2
OBJECTIVES = {
    # Eq. 3: teach turn 2 while turn 1 is held at the base model.
    'stage1': Row(reward=(0.0, 1.0), bonus=(0.0, 0.0), kl=('beta2', 'beta1')),
    # Eq. 4: both turns, and what turn 2 gains over turn 1 counts alpha times more.
    'stage2': Row(reward=(1.0, 1.0), bonus=(0.0, 'alpha'), kl=('beta1', 'beta1')),
    # Eq. 2, the paper's baselines: each turn for itself, and turn 1 alone.
    'multi_turn': Row(reward=(1.0, 1.0), bonus=(0.0, 0.0), kl=('beta1', 'beta1')),
    'single_turn': Row(reward=(1.0, 0.0), bonus=(0.0, 0.0), kl=('beta1', 0.0)),
}
SYMBOLS = ('alpha', 'beta1', 'beta2')
KL_ESTIMATORS = ('exact', 'sampled')
BASELINES = ('leave_one_out', 'none')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """`config.objective` with its symbols resolved; `configs/common.py` says what each value means.

    Attributes:
      reward, bonus, kl: weights by turn.
      gamma: discount between turns; 0 keeps the reward of turn 2 from the tokens of turn 1.
      kl_estimator: 'exact' is the KL over the vocabulary at every token, as a loss term; 'sampled' is the
        summed log-ratio of the turn's tokens, inside that turn's reward.
      baseline: 'leave_one_out' over the other attempts of the group, or 'none'.
    """

    reward: tuple[float, ...]
    bonus: tuple[float, ...]
    kl: tuple[float, ...]
    gamma: float
    kl_estimator: str
    baseline: str

    @property
    def turns(self) -> int:
        return len(self.reward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of `config.objective` that every objective has; the others are symbols of `OBJECTIVES`."""

    name: str
    gamma: float
    kl_estimator: str
    baseline: str
    allow_gamma_hack: bool


def read(section: Mapping) -> Objective:
    """`resolve` from `config.objective`; `UserError` for a key that is unknown, missing or of another type."""
    symbols = {key: value for key, value in section.items() if key in SYMBOLS}
    for key, value in symbols.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f'config.objective.{key} is {value!r}; it must be of type float.')
    options = settings.read(
        Options, {key: value for key, value in section.items() if key not in symbols}, 'config.objective')
    return resolve(**dataclasses.asdict(options), **symbols)


def resolve(
    name: str, *, gamma: float, kl_estimator: str, baseline: str, allow_gamma_hack: bool, **symbols: float,
) -> Objective:
    """The objective `name` of `OBJECTIVES`, its symbols replaced by their values.

    Raises:
      UserError: an unknown name or option, a symbol missing or of no use to this objective, or values of gamma
        and alpha under which being wrong on purpose in turn 1 pays.
    """
    for key, value, choices in (
        ('name', name, tuple(OBJECTIVES)), ('kl_estimator', kl_estimator, KL_ESTIMATORS),
        ('baseline', baseline, BASELINES)):
        if value not in choices:
            raise UserError(f'config.objective.{key} is {value!r}; it must be one of {", ".join(choices)}.')
    row = OBJECTIVES[name]
    used = {w for weights in (row.reward, row.bonus, row.kl) for w in weights if isinstance(w, str)}
    for symbol in sorted(used ^ symbols.keys()):
        state = 'is missing' if symbol in used else 'is given'
        raise UserError(f'config.objective.{symbol} {state}, but the objective {name!r} uses {", ".join(sorted(used))}.')
    for symbol, value in (*symbols.items(), ('gamma', gamma)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f'config.objective.{symbol} is {value}; it must be a finite number of at least 0.')

    def values(weights):
        return tuple(float(symbols.get(w, w)) for w in weights)

    objective = Objective(
        reward=values(row.reward), bonus=values(row.bonus), kl=values(row.kl), gamma=float(gamma),
        kl_estimator=kl_estimator, baseline=baseline)
    if not allow_gamma_hack and any(gamma * w > 1 for w in objective.bonus):
        raise UserError(
            f'config.objective has gamma = {gamma} and a bonus of {max(objective.bonus)}: with their product above '
            '1, being wrong on purpose in turn 1 pays; set gamma to 0, or allow_gamma_hack to True to see it happen.')
    return objective


def describe(objective: Objective) -> str:
    """The objective in words and numbers, a line for each turn."""
    lines = []
    for t in range(objective.turns):
        terms = [f'{objective.reward[t]:g} * r{t + 1}'] if objective.reward[t] else []
        if objective.bonus[t]:
            terms.append(f'{objective.bonus[t]:g} * (r{t + 1} - r{t})')
        reward = ' + '.join(terms) or 'no reward'
        lines.append(f'turn {t + 1}: {reward}, KL to the reference x {objective.kl[t]:g}')
    lines.append(
        f'gamma = {objective.gamma:g}, KL estimator {objective.kl_estimator}, baseline {objective.baseline}')
    return '\n'.join(lines)


def turn_rewards(objective: Objective, correct):
    """The reward of each turn `[B, N]` from the verifier's `correct [B, N]` (0 or 1)."""
    before = jnp.concatenate([jnp.zeros_like(correct[:, :1]), correct[:, :-1]], axis=1)
    return jnp.asarray(objective.reward) * correct + jnp.asarray(objective.bonus) * (correct - before)


def returns(rewards, gamma: float):
    """Discounted sums over the turns to come: `G_t = R_t + gamma * G_{t+1}`, `[B, N]`."""
    columns = [rewards[:, -1]]
    for t in reversed(range(rewards.shape[1] - 1)):
        columns.append(rewards[:, t] + gamma * columns[-1])
    return jnp.stack(columns[::-1], axis=1)


def advantages(objective: Objective, rewards, forks: tuple[int, ...], penalty=0.0, valid=None):
    """Returns less their baselines, `[B, N]`, one action a turn, no division by a standard deviation.

    `penalty [B, N]` is taken from the return of its own turn alone, whatever gamma is.

    A response of turn t stands in every row that was forked from it; its return is the mean over them.
    Leave-one-out (RLOO, Ahmadian et al. 2024) compares it with its siblings: the other responses to the same
    context where the turn was forked, else the other responses of that turn to the same problem.
    In-group baselines remove `-alpha * r1` from turn 2 exactly, since siblings share their first attempt.

    Rows that are not `valid [B]` count as never sampled: their advantages are 0, and no mean and no baseline has them
    in it. A response with no valid sibling left has nothing to be compared with, and the advantage 0.
    """
    weight = (jnp.ones(len(rewards)) if valid is None else valid.astype(rewards.dtype)).reshape(-1, *forks)
    columns = []
    for t, value in enumerate((returns(rewards, objective.gamma) - penalty).T):
        tree = value.reshape(-1, *forks)
        later = tuple(range(t + 2, len(forks) + 1))
        rows = weight.sum(later, keepdims=True)  # that were forked from each response
        nodes = (weight * tree).sum(later, keepdims=True) / jnp.maximum(rows, 1)
        counted = (rows > 0).astype(tree.dtype)
        if objective.baseline == 'leave_one_out':
            siblings = (t + 1,) if forks[t] > 1 else tuple(range(1, t + 2))
            count = math.prod(nodes.shape[axis] for axis in siblings)
            if count < 2:
                raise UserError(f'the leave-one-out baseline of turn {t + 1} needs 2 responses or more; forks is {forks}.')
            others = counted.sum(siblings, keepdims=True) - counted
            baseline = ((counted * nodes).sum(siblings, keepdims=True) - counted * nodes) / jnp.maximum(others, 1)
            nodes = jnp.where(others > 0, nodes - baseline, 0)
        columns.append((weight * nodes).reshape(-1))
    return jnp.stack(columns, axis=1)
