"""Verifiers: what a response is worth, and what was read to decide it."""

from score_jax.rewards.outcome import Outcome, Verdict

__all__ = ['Outcome', 'Verdict']
