"""What a verifier can say of one response."""

from __future__ import annotations

import dataclasses
import enum


class Outcome(enum.StrEnum):
    """The verdict on one response; only `CORRECT` is worth 1, the others 0."""

    CORRECT = 'correct'
    WRONG = 'wrong'
    NO_ANSWER = 'no_answer'
    TRUNCATED = 'truncated'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An outcome, and what the verifier read in the response (None if nothing)."""

    outcome: Outcome
    read: str | None = None

    @property
    def reward(self) -> float:
        return float(self.outcome is Outcome.CORRECT)
