"""`grade` answers every line of its input, in order, whatever the lines do to the workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from score_jax.errors import UserError
from score_jax.rewards import Outcome, grade

ROOT = Path(__file__).resolve().parents[1]


def run(text: str, *flags: str) -> tuple[list[dict], str, int]:
    done = subprocess.run([sys.executable, '-m', 'score_jax.rewards.grade', '--workers=1', *flags], cwd=ROOT,
                          input=text, capture_output=True, text=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode


def test_lines_come_back_in_order_as_outcome_extracted_seconds():
    jobs = [{'gold': str(i), 'response': f'\\boxed{{{i + i % 2}}}'} for i in range(200)]
    out, _, code = run(''.join(json.dumps(job) + '\n' for job in jobs), '--kind=math')
    assert code == 0 and all(set(line) == {'outcome', 'extracted', 'seconds'} and line['seconds'] > 0 for line in out)
    assert [line['extracted'] for line in out] == [str(i + i % 2) for i in range(200)]
    assert [line['outcome'] for line in out] == ['wrong' if i % 2 else 'correct' for i in range(200)]


def test_the_form_is_a_flag_or_stands_in_the_line():
    lines = '{"gold": "5", "response": "#### 5"}\n{"gold": "5", "response": "#### 5", "form": "####"}\n'
    out, _, _ = run(lines, '--kind=math', '--form=boxed')
    assert [line['outcome'] for line in out] == ['no_answer', 'correct']


def test_a_line_that_is_no_job_is_named_and_the_others_are_graded():
    good = '{"gold": "5", "response": "#### 5"}\n'
    out, err, code = run(good + 'nonsense\n' + '{"gold": 5, "response": "5"}\n' + '[]\n' + good, '--kind=math')
    assert code == 2 and [line['outcome'] for line in out] == ['correct', *['sandbox_error'] * 3, 'correct']
    assert [line.split(':')[0] for line in err.splitlines()] == ['line 2', 'line 3', 'line 4']
    assert out[1]['seconds'] is None and "'gold' must be a string" in err


def test_gradings_that_are_killed_still_have_their_line():
    """Integrals go to math-verify; the pool ends what takes too long there."""
    slow = {'gold': '\\int \\frac{x}{x^9+x+1} dx', 'response': '\\boxed{\\int \\frac{x+1}{x^9+x+1} dx}'}
    quick = {'gold': '5', 'response': '\\boxed{5}'}
    out, _, code = run(''.join(json.dumps(job) + '\n' for job in (slow, quick, slow, quick)), '--kind=math')
    assert code == 0 and [line['outcome'] for line in out] == ['timeout', 'correct'] * 2


def test_verdicts_stream_while_the_input_is_still_open():
    """What is done comes out as more comes in; only so much is read ahead that memory stays bounded."""
    job = {'gold': '5', 'response': '\\boxed{5}'}
    taken = 0

    def lines():
        nonlocal taken
        for taken in range(1, 100_001):
            yield json.dumps(job)

    verdicts = grade.grade(lines(), 'math', workers=1)
    assert next(verdicts).outcome is Outcome.CORRECT and taken <= 64
    verdicts.close()


@pytest.mark.parametrize('line, kind, says', [
    ('{', 'math', 'no JSON'), ('5', 'math', 'a JSON object'), ('{"gold": "5"}', 'math', "'response' must be a string"),
    ('{"gold": "5", "response": "5", "form": "x"}', 'math', "'form' must be one of"),
    ('{"response": "5"}', 'code', "'tests', or 'check' and 'entry_point'"), ('[' * 100_000, 'math', 'no JSON')])
def test_what_is_wrong_with_a_line_is_said(line, kind, says):
    with pytest.raises(UserError, match=says):
        grade.job_of(line, kind)


def test_programs_are_graded_through_the_same_command():
    tests = {'tests': ['assert double(2) == 4', 'assert double(0) == 0']}
    check = {'check': 'def check(f):\n    assert f(2) == 4', 'entry_point': 'double'}
    lines = [
        {**tests, 'response': 'def double(x):\n    return 2 * x'},
        {**tests, 'response': 'def double(x):\n    return 4'},
        {**check, 'response': 'def double(x): return x + x'},
        {'tests': ['no tests'], 'response': 'x = 1'}]
    out, err, code = run(''.join(json.dumps(line) + '\n' for line in lines), '--kind=code')
    assert code == 0 and [line['outcome'] for line in out] == ['correct', 'wrong', 'correct', 'sandbox_error']
    assert 'Traceback' not in err and out[0]['extracted'].startswith('def double')


def test_no_input_is_no_output():
    assert run('', '--kind=math')[::2] == ([], 0)


def test_neither_jax_nor_sympy_is_loaded_to_grade():
    code = 'import sys, score_jax.rewards.grade, score_jax.rewards.explain; print({"jax", "sympy"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == 'set()'
