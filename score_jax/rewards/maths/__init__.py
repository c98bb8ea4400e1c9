"""Maths answers: what a response gives as its answer, and whether that is the gold.

`grade_job` is for the workers of a `score_jax.rewards.pool.Pool` with `LIMITS`; nothing that it does is unbounded but
math-verify, which is used for golds that our own grammar cannot read.
"""

from __future__ import annotations

from score_jax.rewards.maths import compare
from score_jax.rewards.maths.compare import LONGEST, equal
from score_jax.rewards.maths.extract import FORMS, gold, read
from score_jax.rewards.outcome import Outcome, Verdict
from score_jax.rewards.pool import Limits

__all__ = ['FORMS', 'LIMITS', 'LONGEST', 'equal', 'gold', 'grade_job', 'read']

LIMITS = Limits(wall_seconds=1.8, cpu_seconds=1.5, memory_bytes=512 << 20)


def prepare() -> None:
    """Loads math-verify, so that no job has to; a worker calls it before its first job."""
    compare.load_math_verify()


def grade_job(job: dict) -> Verdict:
    """The verdict on `job['response']` against `job['gold']`; `job['form']` is one of `FORMS`, 'any' if absent."""
    answer = read(job['response'], job.get('form', 'any'))
    if answer is None:
        return Verdict(Outcome.NO_ANSWER)
    return Verdict(Outcome.CORRECT if equal(job['gold'], answer)[0] else Outcome.WRONG, answer)
