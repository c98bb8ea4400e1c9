"""From sampled tokens to verdicts: one `Attempt` for each response, graded beside the sampling."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jax.sharding import Mesh

from score_jax import processes
from score_jax.rewards import Outcome, Verdict
from score_jax.rewards.outcome import compared
from score_jax.sharding import own_problems
from score_jax.tasks import Task
from score_jax.trajectory import Trajectory

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # upper edges of the histogram of grading times
_SHOWN = 500  # characters of a slow response in metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One response: its text, its length in tokens (the end token included), and the verdict."""

    text: str
    tokens: int
    verdict: Verdict

    @property
    def answer(self) -> str:
        """What two attempts are compared by."""
        return compared(self.verdict.read, self.text)

    def line(self) -> dict:
        """As it stands in samples.jsonl."""
        return {
            'response': self.text, 'tokens': self.tokens, 'outcome': str(self.verdict.outcome),
            'reward': self.verdict.reward, 'read': self.verdict.read,
            'truncated': self.verdict.outcome is Outcome.TRUNCATED}


def _grade(task: Task, problems: Sequence, turn: int, trajectory: Trajectory, grade: bool) -> list[Attempt]:
    """Attempts of one turn, one for each row; rows of the same problem stand side by side."""
    rows_each = len(trajectory.tokens) // max(len(problems), 1)
    responses = [tokens[abs(turns) == turn].tolist() for tokens, turns in zip(trajectory.tokens, trajectory.turn)]
    texts = [task.tokenizer.decode(response) for response in responses]
    if not grade:
        return [Attempt(text, len(response), Verdict(Outcome.NO_ANSWER)) for text, response in zip(texts, responses)]
    whole = np.flatnonzero(~trajectory.truncated[:, turn - 1])
    verdicts = [Verdict(Outcome.TRUNCATED)] * len(texts)
    graded = task.verify([problems[row // rows_each] for row in whole], [texts[row] for row in whole])
    for row, verdict in zip(whole, graded, strict=True):
        verdicts[row] = verdict
    return [Attempt(text, len(response), verdict) for text, response, verdict in zip(texts, responses, verdicts)]


class Grader:
    """Grades the turns of one rollout on a thread while the next turn is sampled.

    Pass `grader.on_turn` to `rollout.sample`, then read `grader.attempts()`. Responses of the turns in `ungraded` are
    no answers, and the verdict on them is that there is none.

    Of several processes each grades the rows of its own problems on `mesh`, and all of them get to know all attempts.
    """

    _executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix='grading')

    def __init__(self, task: Task, problems: Sequence, mesh: Mesh, ungraded: Sequence[int] = ()):
        self._task, self._ungraded = task, ungraded
        self._own = own_problems(mesh, len(problems))
        self._problems = [problems[place] for place in self._own]
        self._turns: list[Future] = []

    def on_turn(self, turn: int, trajectory: Trajectory) -> None:
        """Takes a turn that is done, as arrays on the host: the rows of this process."""
        grade = turn not in self._ungraded
        self._turns.append(self._executor.submit(_grade, self._task, self._problems, turn, trajectory, grade))

    def attempts(self) -> list[list[Attempt]]:
        """By turn, for every row of the finished trajectory; forked rows share their earlier attempts."""
        parts = processes.gather((self._own, [future.result() for future in self._turns]))
        turns = [_in_order([(own, turns[t]) for own, turns in parts]) for t in range(len(self._turns))]
        rows = len(turns[-1])
        return [[attempt for attempt in turn for _ in range(rows // len(turn))] for turn in turns]


def _in_order(parts: list[tuple[np.ndarray, list[Attempt]]]) -> list[Attempt]:
    """The attempts at all problems, from those of each process at its own."""
    by_problem = {}
    for own, attempts in parts:
        for number, problem in enumerate(own):
            each = len(attempts) // len(own)
            by_problem[problem] = attempts[number * each:(number + 1) * each]
    return [attempt for problem in sorted(by_problem) for attempt in by_problem[problem]]


def rewards(attempts: list[list[Attempt]]) -> np.ndarray:
    """`[B, N]` float32: 1 where the turn's answer is right, NaN where its grader failed."""
    return np.array([[a.verdict.reward for a in turn] for turn in attempts], np.float32).T


def changed(attempts: list[list[Attempt]]) -> np.ndarray:
    """`[B]` bool: the last answer differs from the first."""
    return np.array([first.answer != last.answer for first, last in zip(attempts[0], attempts[-1])])


def sample_line(task: Task, problem, row: Sequence[Attempt]) -> dict:
    """One row of a rollout as it stands in samples.jsonl."""
    return {
        **task.groups(problem), 'problem': task.prompt(problem), 'instruction': task.instruction,
        'turns': [attempt.line() for attempt in row]}


def summary(attempts: list[list[Attempt]]) -> dict:
    """What metrics.jsonl says of the grading of a batch; forked rows count their earlier attempts once.

    `outcomes`: by turn, how many responses had which. `no_answer_turnN`: the share in which the verifier found none.
    Where the graders keep time, `grading_seconds`: by turn, how many took up to which of `SECONDS`; and `slowest`: the
    ten that took longest.
    """
    turns = [list({id(attempt): attempt for attempt in turn}.values()) for turn in attempts]
    outcomes = [collections.Counter(attempt.verdict.outcome for attempt in turn) for turn in turns]
    names = [f'turn{t + 1}' for t in range(len(turns))]
    line: dict = {'outcomes': {
        name: {str(outcome): count for outcome, count in sorted(counts.items())}
        for name, counts in zip(names, outcomes)}}
    for name, turn, counts in zip(names, turns, outcomes):
        line[f'no_answer_{name}'] = counts[Outcome.NO_ANSWER] / len(turn)
    timed = [
        (a.verdict.seconds, name, a) for name, turn in zip(names, turns) for a in turn if a.verdict.seconds is not None]
    if timed:
        line['grading_seconds'] = {name: _histogram([s for s, of, _ in timed if of == name]) for name in names}
        slowest = sorted(timed, key=lambda entry: -entry[0])[:10]
        line['slowest'] = [
            {'seconds': round(seconds, 4), 'turn': name, 'outcome': str(attempt.verdict.outcome),
             'response': attempt.text[:_SHOWN]} for seconds, name, attempt in slowest]
    return line


def _histogram(seconds: list[float]) -> dict[str, int]:
    counts = np.histogram(seconds, (0.0, *SECONDS, math.inf))[0]
    return {f'{limit:g}': int(count) for limit, count in zip((*SECONDS, math.inf), counts)}
