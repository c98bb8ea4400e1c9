"""The plainest verifier: the answer that a response gives, letter for letter."""

from score_jax.rewards.maths import extract
from score_jax.rewards.outcome import Outcome, Verdict


def grade_job(job: dict) -> Verdict:
    """The verdict on `job['response']`: is what stands there in `job['form']` the text `job['gold']`?"""
    answer = extract.read(job['response'], job['form'])
    if answer is None:
        return Verdict(Outcome.NO_ANSWER)
    return Verdict(Outcome.CORRECT if answer == job['gold'].strip() else Outcome.WRONG, answer)
