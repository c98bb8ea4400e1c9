"""Tokens become verdicts: forked rows share attempts, truncated ones earn nothing, a change is in what was read."""

import numpy as np
import pytest
from helpers import mesh_of

from score_jax import grading, tasks
from score_jax.grading import Attempt, Grader
from score_jax.rewards import Outcome, Verdict
from score_jax.tasks.countdown import Problem
from score_jax.trajectory import Trajectory

PROBLEMS = [Problem((2, 3, 5), 17), Problem((1, 4, 6), 10)]
RIGHT, WRONG = '3 * 5 = 15 + 2 = 17', '3 + 5 = 8 + 2 = 10'


@pytest.fixture(scope='module')
def task() -> tasks.Task:
    return tasks.make(dict(name='countdown', numbers=3, largest=9, limit=40, test_share=0.3, instruction='again :'))


def trajectory(task, rows: list[list[str]], truncated: list[list[bool]] | None = None) -> Trajectory:
    """Rows of responses by turn as a rollout hands them over: between other tokens, end tokens included."""
    tokenizer, columns = task.tokenizer, 60
    tokens, turn = np.full((2, len(rows), columns), tokenizer.pad_token, np.int32)
    turn[:] = 0
    for row, responses in enumerate(rows):
        column = 0
        for number, response in enumerate(responses, 1):
            block = tokenizer.encode('6 make 4 :') + tokenizer.encode(response) + [tokenizer.end_tokens[0]]
            tokens[row, column:column + len(block)] = block
            turn[row, column + 4:column + len(block)] = number
            column += len(block)
    flags = np.array(truncated) if truncated else np.zeros((len(rows), 2), bool)
    return Trajectory(tokens=tokens, turn=turn, log_probs=None, length=None, truncated=flags)


def attempt(text: str) -> Attempt:
    return Attempt(text, len(text.split()), Verdict(Outcome.NO_ANSWER))


def graded(task, text: str) -> Attempt:
    return Attempt(text, len(text.split()), verdict(task, PROBLEMS[0], text))


def verdict(task, problem: Problem, text: str) -> Verdict:
    return task.verify([problem], [text])[0]


def test_a_response_is_graded_on_its_own_tokens_and_its_own_problem(task):
    grader = Grader(task, PROBLEMS, mesh_of(1, 1, 1))
    grader.on_turn(1, trajectory(task, [[RIGHT], ['6 + 4 * 1 = 10']]))
    (first, second), = grader.attempts()
    assert first == Attempt(RIGHT, len(RIGHT.split()) + 1, verdict(task, PROBLEMS[0], RIGHT))
    assert second == Attempt('6 + 4 * 1 = 10', 8, verdict(task, PROBLEMS[1], '6 + 4 * 1 = 10'))
    assert (first.verdict.outcome, second.verdict.outcome) == (Outcome.CORRECT, Outcome.CORRECT)


def test_the_second_turn_is_graded_on_the_second_response(task):
    grader = Grader(task, PROBLEMS[:1], mesh_of(1, 1, 1))
    whole = trajectory(task, [[WRONG, RIGHT]])
    grader.on_turn(1, whole)
    grader.on_turn(2, whole)
    assert [[a.text for a in turn] for turn in grader.attempts()] == [[WRONG], [RIGHT]]
    assert grading.rewards(grader.attempts()).tolist() == [[0, 1]]


def test_forked_rows_share_the_attempt_that_they_were_forked_from(task):
    firsts = [f'{n} + 1' for n in range(4)]  # two problems, two first attempts each
    seconds = [[first, f'{n} * 1'] for first in firsts for n in range(3)]  # and three second ones on each
    grader = Grader(task, PROBLEMS, mesh_of(1, 1, 1))
    grader.on_turn(1, trajectory(task, [[first] for first in firsts]))
    grader.on_turn(2, trajectory(task, seconds))
    turns = grader.attempts()
    assert [a.text for a in turns[0]] == [first for first in firsts for _ in range(3)]
    assert [a.text for a in turns[1]] == [second for _, second in seconds]
    assert all(turns[0][3 * i] is turns[0][3 * i + j] for i in range(4) for j in range(3))
    assert grading.rewards(turns).shape == (12, 2)


def test_forked_rows_are_graded_on_the_problem_that_they_came_from(task):
    grader = Grader(task, PROBLEMS, mesh_of(1, 1, 1))
    grader.on_turn(1, trajectory(task, [[RIGHT]] * 4))
    assert grading.rewards(grader.attempts())[:, 0].tolist() == [1, 1, 0, 0]


def test_a_truncated_response_earns_nothing_even_if_it_is_right(task):
    grader = Grader(task, PROBLEMS[:1], mesh_of(1, 1, 1))
    grader.on_turn(1, trajectory(task, [[RIGHT], [RIGHT]], truncated=[[True, False], [False, True]]))
    cut, whole = grader.attempts()[0]
    assert cut.verdict == Verdict(Outcome.TRUNCATED) and cut.text == RIGHT and cut.line()['truncated']
    assert whole.verdict.outcome is Outcome.CORRECT and not whole.line()['truncated']
    assert grading.rewards([[cut, whole]]).tolist() == [[0], [1]]


@pytest.mark.parametrize('first, second, differs', [
    (WRONG, RIGHT, True),
    (RIGHT, RIGHT, False),
    (RIGHT, '3 * 5 = 99 + 2 = 0', False),  # other claims, the same chain
    (RIGHT, '3 *  5 + 2', False),
    (RIGHT, 'no answer', True),
    ('no answer', 'no answer', False),
    ('no answer', 'none either', True),
])
def test_changed_compares_what_the_verifier_read(task, first, second, differs):
    assert grading.changed([[graded(task, first)], [graded(task, second)]]).tolist() == [differs]


def test_changed_is_about_the_first_turn_and_the_last():
    turns = [[attempt('a'), attempt('a')], [attempt('b'), attempt('b')], [attempt('a'), attempt('b')]]
    assert grading.changed(turns).tolist() == [False, True]


def test_an_error_of_the_verifier_is_not_swallowed(task, monkeypatch):
    def fail(problems, responses):
        raise ZeroDivisionError

    monkeypatch.setattr(task, 'verify', fail)
    grader = Grader(task, PROBLEMS[:1], mesh_of(1, 1, 1))
    grader.on_turn(1, trajectory(task, [[RIGHT]]))
    with pytest.raises(ZeroDivisionError):
        grader.attempts()


def timed(outcome: Outcome, seconds: float | None, text: str = 'a') -> Attempt:
    return Attempt(text, 1, Verdict(outcome, seconds=seconds))


def test_a_failed_grading_is_neither_right_nor_wrong():
    assert np.isnan(grading.rewards([[timed(Outcome.SANDBOX_ERROR, None)]])).all()


def test_a_summary_counts_outcomes_by_turn_and_a_forked_attempt_once():
    firsts = [timed(Outcome.WRONG, None), timed(Outcome.NO_ANSWER, None)]
    seconds = [timed(outcome, None) for outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.CORRECT)]
    line = grading.summary([[firsts[0], firsts[0], firsts[1], firsts[1]], seconds])
    assert line['outcomes'] == {
        'turn1': {'no_answer': 1, 'wrong': 1}, 'turn2': {'correct': 2, 'no_answer': 1, 'wrong': 1}}
    assert (line['no_answer_turn1'], line['no_answer_turn2']) == (0.5, 0.25)
    assert 'slowest' not in line and 'grading_seconds' not in line  # no grader kept time


def test_a_summary_has_the_histogram_of_grading_times_and_the_ten_slowest():
    first = [timed(Outcome.WRONG, 0.0005 * n, f'answer {n}') for n in range(12)]
    second = [timed(Outcome.TIMEOUT, 20.0, 'x' * 10_000), timed(Outcome.TRUNCATED, None)]
    line = grading.summary([first, second])
    assert line['grading_seconds']['turn1'] | {'0.001': 2, '0.003': 4, '0.01': 6} == line['grading_seconds']['turn1']
    assert line['grading_seconds']['turn2']['inf'] == 1 and sum(line['grading_seconds']['turn2'].values()) == 1
    slowest = line['slowest']
    assert len(slowest) == 10 and [entry['seconds'] for entry in slowest[:2]] == [20.0, 0.0055]
    assert slowest[0] | {'turn': 'turn2', 'outcome': 'timeout'} == slowest[0] and len(slowest[0]['response']) == 500


def test_a_sample_line_tells_the_whole_story(task):
    line = grading.sample_line(task, PROBLEMS[0], [graded(task, WRONG), graded(task, RIGHT)])
    assert line['problem'] == '2 3 5 make 17 :' and line['instruction'] == 'again :'
    assert [turn['response'] for turn in line['turns']] == [WRONG, RIGHT]
    assert [turn['outcome'] for turn in line['turns']] == ['wrong', 'correct']
    assert [turn['reward'] for turn in line['turns']] == [0, 1]
    assert line['turns'][1]['read'] == '(3 * 5) + 2 = 17' and line['turns'][1]['tokens'] == len(RIGHT.split())
