"""What more samples at inference buy: pass@k, and a vote over attempts side by side against attempts in a row.

Letters: N problems, S rollouts of each, T turns, K rollouts that vote.

All figures come from the same S rollouts of T turns. A vote of T x K first attempts costs as many responses as one over
the last attempts of K rollouts. Smaller votes are taken over many subsets of the S, so that each rollout counts as much
as another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from score_jax import metrics
from score_jax.errors import UserError
from score_jax.grading import Attempt, rewards

_SUBSETS = 256  # up to so many are all taken; of more, at least so many are drawn


def figures(attempts: list[list[Attempt]], each: int) -> dict:
    """What a row of scaling.json says of `attempts`, by turn, of `each` rollouts a problem side by side.

    `pass_at_k` has a line for each k, `vote` one for each K that fits the rollouts, both over powers of two, with
    intervals over problems. A problem is left out, and counted as `dropped`, if the grader failed at one of its
    rollouts.

    Raises:
      UserError: that is so for every problem.
    """
    correct = rewards(attempts).reshape(-1, each, len(attempts)).astype(float)  # [N, S, T]
    valid = np.flatnonzero(np.isfinite(correct).all(axis=(1, 2)))
    if not len(valid):
        raise UserError('at every problem a grading failed in the grader itself; the samples cannot be measured here.')
    row = {'n': len(valid), 'samples': each, 'turns': len(attempts)}
    if len(valid) < len(correct):
        row['dropped'] = len(correct) - len(valid)
    row['pass_at_k'] = [
        {'k': k} | _with_interval('accuracy', pass_at_k(correct[valid, :, 0], k)) for k in _powers(each)]
    read = [[attempt.verdict.read for attempt in turn] for turn in attempts]
    first, last = (
        [(read[turn][i * each:(i + 1) * each], correct[i, :, turn]) for i in valid] for turn in (0, -1))
    row['vote'] = [_compare(first, last, k, len(attempts)) for k in _powers(each // len(attempts))]
    return row


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def _compare(first: list, last: list, k: int, turns: int) -> dict:
    """A line of `vote`: from (what was read, what it is worth) of every problem's first and last attempts."""
    parallel = np.array([vote(*one, subsets(len(one[1]), turns * k)) for one in first])
    sequential = np.array([vote(*one, subsets(len(one[1]), k)) for one in last])
    change = sequential - parallel
    low, high = metrics.paired_interval(float(change.sum()), float((change**2).sum()), len(change))
    return {
        'budget': turns * k, 'rollouts': k, **_with_interval('parallel', parallel),
        **_with_interval('sequential', sequential),
        'delta': float(change.mean()), 'delta_low': low, 'delta_high': high, 'delta_p': metrics.p_value(change)}


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    low, high = metrics.mean_interval(values)
    return {name: float(values.mean()), f'{name}_low': low, f'{name}_high': high}


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """The chance that one of k samples is right, `[N]`, from `correct [N, S]` (0 or 1), k <= S.

    The unbiased estimator of Chen et al. (2021, arXiv 2107.03374, equation 1): of all subsets of k, the share that
    holds a right one.
    """
    samples, right = correct.shape[1], correct.sum(axis=1).astype(int)
    drawn = np.arange(k)
    none = np.array([np.prod(np.maximum(samples - c - drawn, 0) / (samples - drawn)) for c in range(samples + 1)])
    return 1 - none[right]


def subsets(count: int, size: int) -> np.ndarray:
    """Sets of `size` of `count` places, `[R, size]`: all of them if they are few, else random ones, always the same.

    Random ones are cut from permutations, so that every place comes up about as often as another.
    """
    if math.comb(count, size) <= _SUBSETS:
        return np.array(list(itertools.combinations(range(count), size)))
    rng, blocks = np.random.default_rng([count, size]), count // size
    orders = [rng.permutation(count)[:blocks * size].reshape(blocks, size) for _ in range(-(-_SUBSETS // blocks))]
    return np.concatenate(orders)


def vote(read: Sequence[str | None], worth: np.ndarray, chosen: np.ndarray) -> float:
    """The accuracy of a majority vote, on average over the sets `chosen [R, size]` of responses.

    Responses vote for what the verifier read in them, letter for letter; those in which it read nothing do not vote.
    Where several answers have the most votes, one of them is taken at random: the mean of what they are worth counts.

    Args:
      read: by response, the answer.
      worth: `[S]`, 0 or 1, what the verifier gives for it.
    """
    answers = {answer: i for i, answer in enumerate(dict.fromkeys(answer for answer in read if answer is not None))}
    if not answers:
        return 0.0
    ballot = np.zeros((len(read), len(answers)))
    for i, answer in enumerate(read):
        if answer is not None:
            ballot[i, answers[answer]] = 1
    right = ballot.T @ worth / ballot.sum(axis=0)
    taken = np.zeros((len(chosen), len(read)))
    taken[np.arange(len(chosen))[:, None], chosen] = 1
    counts = taken @ ballot  # [R, answers]
    most = counts.max(axis=1, keepdims=True)
    leading = (counts == most) & (most > 0)
    return float((leading @ right / np.maximum(leading.sum(axis=1), 1)).mean())
