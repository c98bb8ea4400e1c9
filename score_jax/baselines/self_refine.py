"""Self-Refine (Madaan et al., 2023, arXiv 2303.17651): prompting alone, nothing is trained.

A model answers, is asked for feedback on its answer, then for a refined answer:

    prompt  answer  `feedback`  what it says  `refine`  refined answer

What it says is not graded; results compare the refined answer with the answer.
"""

from __future__ import annotations

import dataclasses

from score_jax.tasks import Task

METHOD = 'self_refine'  # its name in `config.methods`
TURNS, FEEDBACK = 3, 2  # turns of a rollout, and the one that is feedback


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfRefineConfig:
    """`config.self_refine`: the stage that is prompted, and what it is asked; '' is the task's own instruction."""

    stage: str
    feedback: str
    refine: str

    def instructions(self, task: Task) -> tuple[str, str]:
        """What stands before the feedback, and before the refined answer."""
        return self.feedback or task.instruction, self.refine or task.instruction
