"""From sampled tokens to verdicts: one `Attempt` for each response, graded beside the sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from score_jax.rewards import Outcome, Verdict
from score_jax.tasks import Task
from score_jax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One response: its text, its length in tokens (the end token included), and the verdict."""

    text: str
    tokens: int
    verdict: Verdict

    @property
    def answer(self) -> str:
        """What two attempts are compared by: what the verifier read, else the text."""
        return self.verdict.read or self.text

    def line(self) -> dict:
        """As it stands in samples.jsonl."""
        return {
            'response': self.text, 'tokens': self.tokens, 'outcome': str(self.verdict.outcome),
            'reward': self.verdict.reward, 'read': self.verdict.read,
            'truncated': self.verdict.outcome is Outcome.TRUNCATED}


def _grade(task: Task, problems: Sequence, turn: int, trajectory: Trajectory) -> list[Attempt]:
    """Attempts of one turn, one for each row; rows of the same problem stand side by side."""
    rows_each = len(trajectory.tokens) // len(problems)
    attempts = []
    for row, (tokens, turns) in enumerate(zip(trajectory.tokens, trajectory.turn)):
        response = tokens[turns == turn].tolist()
        text = task.tokenizer.decode(response)
        if trajectory.truncated[row, turn - 1]:
            verdict = Verdict(Outcome.TRUNCATED)
        else:
            verdict = task.verify(problems[row // rows_each], text)
        attempts.append(Attempt(text, len(response), verdict))
    return attempts


class Grader:
    """Grades the turns of one rollout on a thread while the next turn is sampled.

    Pass `grader.on_turn` to `rollout.sample`, then read `grader.attempts()`.
    """

    _executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix='grading')

    def __init__(self, task: Task, problems: Sequence):
        self._task, self._problems = task, problems
        self._turns: list[Future] = []

    def on_turn(self, turn: int, trajectory: Trajectory) -> None:
        """Takes a turn that is done, as arrays on the host."""
        self._turns.append(self._executor.submit(_grade, self._task, self._problems, turn, trajectory))

    def attempts(self) -> list[list[Attempt]]:
        """By turn, for every row of the finished trajectory; forked rows share their earlier attempts."""
        turns = [future.result() for future in self._turns]
        rows = len(turns[-1])
        return [[attempt for attempt in turn for _ in range(rows // len(turn))] for turn in turns]


def rewards(attempts: list[list[Attempt]]) -> np.ndarray:
    """`[B, N]` float32: 1 where the turn's answer is right."""
    return np.array([[a.verdict.reward for a in turn] for turn in attempts], np.float32).T


def changed(attempts: list[list[Attempt]]) -> np.ndarray:
    """`[B]` bool: the second answer differs from the first."""
    return np.array([first.answer != second.answer for first, second in zip(*attempts[:2])])


def sample_line(task: Task, problem, row: Sequence[Attempt]) -> dict:
    """One row of a rollout as it stands in samples.jsonl."""
    return {
        'problem': task.prompt(problem), 'instruction': task.instruction,
        'turns': [attempt.line() for attempt in row]}
