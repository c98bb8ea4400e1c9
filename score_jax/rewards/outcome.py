"""What a verifier can say of one response."""

from __future__ import annotations

import dataclasses
import enum
import math


class Outcome(enum.StrEnum):
    """The verdict on one response; only `CORRECT` is worth 1.

    `SANDBOX_ERROR` says that the grader failed, not the response: it is worth nothing at all (NaN), neither 1 nor 0.
    """

    CORRECT = 'correct'
    WRONG = 'wrong'
    NO_ANSWER = 'no_answer'
    TRUNCATED = 'truncated'
    RUNTIME_ERROR = 'runtime_error'
    TIMEOUT = 'timeout'
    MEMORY = 'memory'
    OUTPUT_LIMIT = 'output_limit'
    SANDBOX_ERROR = 'sandbox_error'


def compared(read: str | None, text: str) -> str:
    """What two attempts are compared by: what the verifier read, else the text."""
    return read or text


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An outcome, what the verifier read in the response (None if nothing), and how long it took (seconds)."""

    outcome: Outcome
    read: str | None = None
    seconds: float | None = None

    @property
    def reward(self) -> float:
        """1 or 0; NaN where there is no verdict."""
        return math.nan if self.outcome is Outcome.SANDBOX_ERROR else float(self.outcome is Outcome.CORRECT)
