"""Runs a program that a model wrote, and asks it for values: it never sees a test, an expected value or the verdict.

    with Session(active()) as session:
        session.load('def square(x): return x * x')
        session.call('square', [3])  # 9

`python -m score_jax.rewards.sandbox` says which layers stand between a program and this machine, and attacks them.
"""

from score_jax.rewards.sandbox.layers import LAYERS, active, require
from score_jax.rewards.sandbox.session import Failure, Limits, SandboxError, Session, Source

__all__ = ['Failure', 'LAYERS', 'Limits', 'SandboxError', 'Session', 'Source', 'active', 'require']
