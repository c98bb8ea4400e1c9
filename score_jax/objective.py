"""The objectives of SCoRe as rows of weights, and what follows from them: returns and advantages.

Letters: P problems, B rows (P x K1 x K2 ...), N turns.

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
    """Weights of the first turn, of every turn between, and of the last.

    A name stands for the value of that symbol in `config.objective`.
    """

    reward: tuple[float | str, float | str, float | str]
    bonus: tuple[float | str, float | str, float | str]
    kl: tuple[float | str, float | str, float | str]


OBJECTIVES = {
    #                    first    between  last turn
    # Eq. 3: teach the last turn while those before it are held at the reference. Two turns are the paper's Stage I(a),
    # three its I(b), whose reference is the model of I(a).
    'stage1': Row(
        reward=(0.0,     0.0,     1.0),
        bonus= (0.0,     0.0,     0.0),
        kl=    ('beta2', 'beta2', 'beta1')),
    # Eq. 4: every turn, and what it gains over the turn before it counts alpha times more.
    'stage2': Row(
        reward=(1.0,     1.0,     1.0),
        bonus= (0.0,     'alpha', 'alpha'),
        kl=    ('beta1', 'beta1', 'beta1')),
    # Eq. 2, the paper's baselines: each turn for itself, and turn 1 alone.
    'multi_turn': Row(
        reward=(1.0,     1.0,     1.0),
        bonus= (0.0,     0.0,     0.0),
        kl=    ('beta1', 'beta1', 'beta1')),
    'single_turn': Row(
        reward=(1.0,     0.0,     0.0),
        bonus= (0.0,     0.0,     0.0),
        kl=    ('beta1', 0.0,     0.0)),
}
SYMBOLS = ('alpha', 'beta1', 'beta2')
KL_ESTIMATORS = {
    'exact': 'over the vocabulary at every token, as a loss term',
    'sampled': 'the log-ratio of the response, in the reward of its turn'}
BASELINES = {
    'none': 'nothing',
    'batch_mean': 'the mean of that turn over the batch, its own return included',
    'leave_one_out': 'the mean of the other responses of that turn to the same problem',
    'in_group': 'the mean of the other responses to the same context, or to the nearest one that has several'}
_ADAPT_RATE = 1.02  # beta2 changes by this factor a step at most,
_ADAPT_RANGE = 10.0  # and stays within this factor of its value in the config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """`config.objective` with its symbols resolved; `configs/common.py` says what each value means.

    Attributes:
      reward, bonus, kl: weights by turn.
      held: by turn, whether its KL weight is `beta2`, which may adapt.
      adaptive_beta2: 0, or what `adapted_scale` aims at.
      gamma: discount between turns; 0 keeps the reward of a turn from the tokens of those before it.
      kl_estimator: 'exact' is the KL over the vocabulary at every token, as a loss term; 'sampled' is the
        summed log-ratio of the turn's tokens, inside that turn's reward.
      baseline: what a return is compared with, one of `BASELINES`.
    """

    reward: tuple[float, ...]
    bonus: tuple[float, ...]
    kl: tuple[float, ...]
    held: tuple[bool, ...]
    adaptive_beta2: float
    gamma: float
    kl_estimator: str
    baseline: str

    @property
    def turns(self) -> int:
        """N, attempts at each problem."""
        return len(self.reward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of `config.objective` that every objective has; the others are symbols of `OBJECTIVES`."""

    name: str
    gamma: float
    kl_estimator: str
    baseline: str
    adaptive_beta2: float
    allow_gamma_hack: bool


def read(section: Mapping, turns: int) -> Objective:
    """`resolve` from `config.objective`; `UserError` for a key that is unknown, missing or of another type."""
    symbols = {key: value for key, value in section.items() if key in SYMBOLS}
    for key, value in symbols.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f'config.objective.{key} is {value!r}; it must be of type float.')
    options = settings.read(
        Options, {key: value for key, value in section.items() if key not in symbols}, 'config.objective')
    return resolve(turns=turns, **dataclasses.asdict(options), **symbols)


def by_turn(weights: tuple, turns: int) -> tuple:
    """Weights of (first, between, last) as one for each turn."""
    first, between, last = weights
    return (first, *[between] * (turns - 2), last)


def resolve(
    name: str, *, turns: int, gamma: float, kl_estimator: str, baseline: str, allow_gamma_hack: bool,
    adaptive_beta2: float, **symbols: float,
) -> Objective:
    """The objective `name` of `OBJECTIVES` over so many turns, its symbols replaced by their values.

    Raises:
      UserError: an unknown name or option, a symbol missing or of no use to this objective, or values of gamma
        and alpha under which being wrong on purpose pays.
    """
    for key, value, choices in (
        ('name', name, OBJECTIVES), ('kl_estimator', kl_estimator, KL_ESTIMATORS), ('baseline', baseline, BASELINES)):
        if value not in choices:
            raise UserError(f'config.objective.{key} is {value!r}; it must be one of {", ".join(choices)}.')
    if turns < 2:
        raise UserError(f'config.turns is {turns}; an objective needs at least 2, an attempt and its correction.')
    row = OBJECTIVES[name]
    used = {w for weights in (row.reward, row.bonus, row.kl) for w in weights if isinstance(w, str)}
    for symbol in sorted(used ^ symbols.keys()):
        state = 'is missing' if symbol in used else 'is given'
        raise UserError(
            f'config.objective.{symbol} {state}, but the objective {name!r} uses {", ".join(sorted(used))}.')
    for symbol, value in (*symbols.items(), ('gamma', gamma), ('adaptive_beta2', adaptive_beta2)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f'config.objective.{symbol} is {value}; it must be a finite number of at least 0.')
    if adaptive_beta2 and not symbols.get('beta2'):
        raise UserError(
            f'config.objective.adaptive_beta2 is {adaptive_beta2}, but there is no beta2 above 0 that could adapt in '
            f'the objective {name!r}; set it to 0.')

    def values(weights):
        return tuple(float(symbols.get(w, w)) for w in by_turn(weights, turns))

    objective = Objective(
        reward=values(row.reward), bonus=values(row.bonus), kl=values(row.kl),
        held=tuple(w == 'beta2' for w in by_turn(row.kl, turns)), adaptive_beta2=float(adaptive_beta2),
        gamma=float(gamma), kl_estimator=kl_estimator, baseline=baseline)
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
        adapts = ' at the start, then adapted' if objective.held[t] and objective.adaptive_beta2 else ''
        lines.append(f'turn {t + 1}: {reward}, KL to the reference x {objective.kl[t]:g}{adapts}')
    lines.append(
        f'gamma = {objective.gamma:g}: ' + (
            'the reward of a turn reaches the tokens of the turns before it' if objective.gamma else
            'the reward of a turn reaches its own tokens alone'))
    lines.append(f'KL estimator {objective.kl_estimator}: {KL_ESTIMATORS[objective.kl_estimator]}')
    lines.append(f'baseline {objective.baseline}: {BASELINES[objective.baseline]}')
    if objective.adaptive_beta2:
        lines.append(
            f'beta2 adapts: the KL of held turns is to cost {objective.adaptive_beta2:g} times what the others earn')
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


def kl_weights(objective: Objective, scale=1.0):
    """The KL weight of each turn `[N]`, `beta2` times `scale`."""
    return jnp.asarray(objective.kl) * jnp.where(jnp.asarray(objective.held), scale, 1.0)


def adapted_scale(objective: Objective, scale, rewards, kl):
    """The factor on `beta2` for the next step, from the batch means by turn `[N]` of the rewards and of the KL.

    The KL of the held turns costs `C = sum_held scale * beta2 * KL_t`; the other turns earn
    `J = sum_others R_t - beta1 * KL_t`. Where C lies above `adaptive_beta2 * |J|` they are held harder, else less hard,
    by the ratio of the two, but by 2 % a step at most and a factor of 10 in all. That is the controller of Ziegler et
    al. (arXiv 1909.08593, 2.2) with `adaptive_beta2 * |J|` as its target; the paper gives no formula.
    """
    if not objective.adaptive_beta2:
        return scale
    held, weights = jnp.asarray(objective.held), kl_weights(objective, scale)
    cost = jnp.sum(jnp.where(held, weights * kl, 0.0))
    earned = jnp.sum(jnp.where(held, 0.0, rewards - weights * kl))
    excess = cost / jnp.maximum(objective.adaptive_beta2 * jnp.abs(earned), 1e-6)
    return jnp.clip(scale * jnp.clip(excess, 1 / _ADAPT_RATE, _ADAPT_RATE), 1 / _ADAPT_RANGE, _ADAPT_RANGE)


def _compared_from(baseline: str, forks: tuple[int, ...]) -> int:
    """The first axis of `[P, K1, ..., Kt]` along which the responses of turn t are compared; `forks` are K1 to Kt."""
    if baseline == 'in_group':
        return 1 + max((level for level, count in enumerate(forks) if count > 1), default=0)
    return 0 if baseline == 'batch_mean' else 1


def advantages(objective: Objective, rewards, forks: tuple[int, ...], penalty=0.0, valid=None):
    """Returns less their baselines, `[B, N]`, one action a turn, no division by a standard deviation.

    `penalty [B, N]` is taken from the return of its own turn alone, whatever gamma is.

    A response of turn t stands in every row that was forked from it; its return is the mean over them.
    'leave_one_out' (RLOO, Ahmadian et al. 2024) compares it with the other responses of that turn to the same problem,
    'in_group' with those to the same context where the turn was forked, else with those that share most of it. Both
    leave the expected gradient as it is. In-group baselines remove `-alpha * r1` from turn 2 exactly, since siblings
    share their first attempt. 'batch_mean' has each response in its own baseline, so the expected gradient shrinks by
    `(n - 1) / n` for n responses of that turn in the batch.

    What is not `valid`, `[B]` rows or `[B, N]` responses, counts as never sampled: its advantage is 0, and no mean and
    no baseline has it in it. A response with no valid sibling left has nothing to be compared with: advantage 0.
    """
    valid = jnp.ones_like(rewards) if valid is None else valid.astype(rewards.dtype)
    valid = jnp.broadcast_to(valid.reshape(len(rewards), -1), rewards.shape)
    columns = []
    for t, value in enumerate((returns(rewards, objective.gamma) - penalty).T):
        tree, weight = (x.reshape(-1, *forks) for x in (value, valid[:, t]))
        later = tuple(range(t + 2, len(forks) + 1))
        rows = weight.sum(later, keepdims=True)  # that were forked from each response
        nodes = (weight * tree).sum(later, keepdims=True) / jnp.maximum(rows, 1)
        if objective.baseline != 'none':
            nodes = _less_baseline(objective.baseline, nodes, (rows > 0).astype(tree.dtype), t, forks)
        columns.append((weight * nodes).reshape(-1))
    return jnp.stack(columns, axis=1)


def _less_baseline(baseline: str, nodes, counted, t: int, forks: tuple[int, ...]):
    """The returns of turn t (0 for the first) `[P, K1, ..., 1, ...]` less what their `counted` siblings have."""
    siblings = tuple(range(_compared_from(baseline, forks[:t + 1]), t + 2))
    sums, number = ((x * counted).sum(siblings, keepdims=True) for x in (nodes, jnp.ones_like(nodes)))
    if baseline == 'batch_mean':
        return nodes - sums / jnp.maximum(number, 1)
    if math.prod(nodes.shape[axis] for axis in siblings) < 2:
        raise UserError(f'the {baseline} baseline of turn {t + 1} needs 2 responses or more; forks is {forks}.')
    others = number - counted
    return jnp.where(others > 0, nodes - (sums - counted * nodes) / jnp.maximum(others, 1), 0)
