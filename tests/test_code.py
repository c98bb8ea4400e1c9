"""The grader of programs: right ones pass, wrong ones fail, and the tests have the last word, out of reach of both."""

import math
import random
import sys
import time
from pathlib import Path

import pytest

from benchmarks.sandbox import mutants, passes_in_plain_python, reference_jobs
from score_jax.errors import UserError
from score_jax.rewards import Outcome
from score_jax.rewards.code import grade_job
from score_jax.rewards.pool import Limits, Pool
from score_jax.rewards.program import extract

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / 'shared/data'
DOUBLE = 'def f(x):\n    return 2 * x'
TESTS = ['assert f(1) == 2', 'assert f([1]) == [1, 1]']
PROMPT = 'import math\n\ndef f(x):\n    """Doubles."""\n'
LIMITS = {'wall_seconds': 5.0, 'cpu_seconds': 1, 'memory_bytes': 128 << 20, 'output_bytes': 1 << 20}
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the sandbox needs Linux')


def outcome(response: str, tests=TESTS, **job) -> Outcome:
    return grade_job({'tests': tests, 'response': response, 'limits': LIMITS, **job}).outcome


# -- what is read in a response

@pytest.mark.parametrize('response', [
    f'```python\n{DOUBLE}\n```',
    f'Sure! Here it is:\n\n```python\n{DOUBLE}\n```\nIt doubles.',
    f'```\n{DOUBLE}\n```',
    f'```py title="x"\n{DOUBLE}\n```',
    f'```python\n{DOUBLE}',  # never closed
    f'First try:\n```python\ndef f(x): return x\n```\nNo, better:\n```python\n{DOUBLE}\n```',
    f'```python\n{DOUBLE}\n```\nUse it so:\n```python\nprint(f(2))\n```',
    f'```python\n{DOUBLE}\n```\nwhich prints\n```\n4\n```',
    f'{DOUBLE}\n```\nand so on',  # the prompt opened the fence
    DOUBLE,
    f'{DOUBLE}\n',
    f'Here is it.\n{DOUBLE}\n\nThis function doubles its argument; it\'s short.',
    f'{DOUBLE}\n\n# Example\nprint(f(2))\nOutput: 4',
    f'[BEGIN]\n{DOUBLE}\n[DONE]\nWrite another function.\n[BEGIN]\ndef f(x): return 1\n[DONE]',
    f'{DOUBLE}\n[DONE]',
    '\ufeff' + DOUBLE.replace('\n', '\r\n'),
    DOUBLE.replace('    ', '\t'),
    'from math import *\n@lambda g: g\ndef f(x):\n    return x + x',
    'f = lambda x: 2 * x\n```python\nf = lambda x: x + x\n```',
])
def test_a_program_is_found_in_its_response(response):
    assert outcome(response) is Outcome.CORRECT


@pytest.mark.parametrize('response', [
    '', ' \n', 'I cannot do that.', 'It is f(x) = 2x.', '```python\n```', '```', 'def g(x): return 2 * x',
    'x' * (1 << 19)])
def test_without_a_program_there_is_no_answer(response):
    verdict = grade_job({'tests': TESTS, 'response': response})
    assert verdict.outcome is Outcome.NO_ANSWER and verdict.read is None


@pytest.mark.parametrize('response', [
    '    return 2 * x', '\n    return 2 * x\n', '    y = x\n    return x + y\n\nThat is all.',
    '    return 2 * x\n```\nDone.', f'```python\n{DOUBLE}\n```', '```python\n    return 2 * x\n```', DOUBLE])
def test_a_response_may_go_on_where_the_prompt_ends(response):
    assert outcome(response, prompt=PROMPT) is Outcome.CORRECT
    assert extract(response, 'f', PROMPT).startswith(PROMPT)


@pytest.mark.parametrize(('program', 'expected'), [
    ('def f(x): return x', Outcome.WRONG),
    ('def f(x):', Outcome.RUNTIME_ERROR),  # no Python
    ('def f(x): return "\0"', Outcome.RUNTIME_ERROR),
    ('def f(x): return y', Outcome.RUNTIME_ERROR),
    ('def f(): return 2', Outcome.RUNTIME_ERROR),
    ('def g(x): return 2 * x', Outcome.RUNTIME_ERROR),
    ('async def f(x): return 2 * x', Outcome.WRONG),
    ('def f(x): print(2 * x)', Outcome.WRONG),
    ('def f(x): yield 2 * x', Outcome.WRONG),
    ('def f(x): return input()', Outcome.RUNTIME_ERROR),
    ('n = int(input())\ndef f(x): return 2 * x', Outcome.RUNTIME_ERROR),
    ('def f(x): return bytearray(1 << 40)', Outcome.MEMORY),
    ('def f(x): return "x" * (5 << 20)', Outcome.OUTPUT_LIMIT),
    ('def f(x):\n    while True: pass', Outcome.TIMEOUT),
    ('import numpy\ndef f(x): return 2 * x', Outcome.RUNTIME_ERROR),  # the standard library alone
    (DOUBLE + '\n' + '# ' + 'x' * 200000, Outcome.CORRECT),
    (DOUBLE + '\nf = f', Outcome.CORRECT),
    ('class f:\n    def __new__(cls, x): return 2 * x', Outcome.CORRECT),
])
def test_a_program_gets_a_defined_verdict(program, expected):
    verdict = grade_job({'tests': TESTS, 'response': f'```python\n{program}\n```', 'limits': LIMITS})
    assert verdict.outcome is expected
    assert verdict.read.strip() == program and verdict.seconds > 0


@pytest.mark.parametrize('part', [
    ' ', '\n', '\t\n', '```\n', '`', 'def f(', '(', '"', '"\"\"', '[BEGIN]', '\\\n', 'if 1:\n '])
def test_no_text_keeps_the_reader_busy(part):
    start = time.monotonic()
    for text in (part * (200000 // len(part)), 'def f(x):\n' + part * (200000 // len(part))):
        extract(text, 'f', PROMPT)
    assert time.monotonic() - start < 30


# -- what the tests may do

@pytest.mark.parametrize(('program', 'tests'), [
    ('def f(x): return [x, x]', ['assert set(f(1)) == {1}', 'assert tuple(f(2)) == (2, 2)', 'assert len(f(3)) == 2']),
    ('def f(x): return x / 3', ['assert math.isclose(f(1), 0.333, rel_tol=1e-2)', 'assert abs(f(3) - 1) < 1e-9']),
    ('def f(x): return x / 3', ['import math as m\nassert m.floor(f(5)) == 1']),
    ('def f(x, y=0): return x - y', ['assert f(3, y=1) == 2', 'assert f(*[5], **{"y": 2}) == 3']),
    ('def f(x): return (i for i in range(x))', ['assert list(f(3)) == [0, 1, 2]']),
    ('def sum(a, b): return a * b', ['assert sum(2, 3) == 6']),  # hides one of Python's own
    ('def f(xs, kind): return [x for x in xs if type(x) is not kind]', ['assert f((1, 2.5), int) == [2.5]']),
    ('class P:\n    def __init__(self, a): self.a = a\ndef f(ps): return [p.a for p in ps]',
     ['assert f([P(1), P(a=2)]) == [1, 2]']),
    ('def g(x): return x + 1\ndef f(x): return x * 2', ['assert f(g(2)) == 6 and g(f(2)) == 5']),
    ('def f(x): x.append(1); return x', ['y = [0]\nassert f(y) == [0, 1]']),
    ('def f(x): return x', ['assert [f(i) for i in range(3)] == [0, 1, 2]', 'assert f(b"\\xff") == b"\\xff"']),
    ('def f(x): return 1', ['assert f(0) == True', 'assert f(0) == 1.0']),  # as Python has it
])
def test_tests_are_python(program, tests):
    assert outcome(f'```python\n{program}\n```', tests) is Outcome.CORRECT


def test_setup_makes_what_tests_pass():
    program = '```python\nclass Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.next.v\n```'
    job = {'setup': 'root = Node(1)\nroot.next = Node(2)', 'tests': ['assert f(root) == 2']}
    assert outcome(program, **job) is Outcome.CORRECT
    assert outcome(program, **{**job, 'tests': ['assert f(root) == 1']}) is Outcome.WRONG


def test_every_test_must_hold():
    assert outcome('```python\ndef f(x): return 2\n```') is Outcome.WRONG


def check(source: str, response: str, prompt: str = PROMPT) -> Outcome:
    job = {'check': source, 'entry_point': 'f', 'prompt': prompt, 'response': response, 'limits': LIMITS}
    return grade_job(job).outcome


def test_a_check_is_given_the_program_and_the_helpers_of_the_prompt():
    prompt = 'def helper(x):\n    return x + x\n\n' + PROMPT
    source = '''
def check(candidate):
    assert candidate(2) == helper(2)
    assert f(3) == 6 and math.floor(candidate(1)) == 2'''
    assert check(source, '    return helper(x)', prompt) is Outcome.CORRECT
    assert check(source, '    return helper(x) + 1', prompt) is Outcome.WRONG


def test_a_check_that_swallows_exceptions_passes_no_program_that_fails():
    source = 'def check(candidate):\n    try:\n        candidate(1)\n    except Exception:\n        pass'
    assert check(source, '    return 1 / 0') is Outcome.RUNTIME_ERROR


def test_a_check_that_draws_its_inputs_draws_the_same_ones_every_time():
    source = 'import random\ndef check(candidate):\n    assert candidate(random.random()) > 0.5'
    outcomes = {check(source, '    return x') for _ in range(4)}
    assert len(outcomes) == 1


@pytest.mark.parametrize('answer', ['"text"', 'None', '10 ** 400', 'float("nan")', '[]', '1j'])
def test_an_answer_that_a_test_cannot_work_with_is_wrong(answer):
    assert outcome(f'```python\ndef f(x): return {answer}\n```', ['assert abs(f(1) - 0.5) < 1e-6']) is Outcome.WRONG


@pytest.mark.parametrize('tests', [['assert f(1) == unknown'], ['assert f(object()) == 1']])
def test_tests_that_cannot_be_run_are_the_graders_failure(tests):
    verdict = grade_job({'tests': tests, 'response': DOUBLE})
    assert verdict.outcome is not Outcome.CORRECT and math.isnan(verdict.reward)


@pytest.mark.parametrize(('job', 'message'), [
    ({'tests': []}, 'no assert'), ({'tests': ['f(1)']}, 'no assert'), ({'tests': ['assert 1 == 1']}, 'no function'),
    ({'tests': ['assert f(1) =']}, 'not Python'), ({'check': 'def check(c): pass'}, 'entry_point')])
def test_what_would_pass_anything_is_refused(job, message):
    with pytest.raises(UserError, match=message):
        grade_job({**job, 'response': DOUBLE})


def test_an_answer_that_is_slow_to_compare_ends_the_worker_and_not_the_batch():
    slow = '''
import os, time
def f(x):
    items = ','.join(f'["n","{n * (2 ** 61 - 1):x}"]' for n in range(40000))  # all of the same hash
    body = f'["value",["s",{items}]]'.encode()
    for fd in range(3, 16):
        try: os.write(fd, len(body).to_bytes(4, 'big') + body)
        except OSError: pass
    time.sleep(60)  # a second answer would give it away'''
    jobs = [{'tests': ['assert f(1) == {0}'], 'response': f'```python\n{program}\n```'}
            for program in (slow, 'def f(x): return {0}')]
    limits = Limits(wall_seconds=60, cpu_seconds=1, memory_bytes=1 << 30)
    with Pool('score_jax.rewards.code:grade_job', workers=1, limits=limits) as pool:
        assert [verdict.outcome for verdict in pool.map(jobs)] == [Outcome.TIMEOUT, Outcome.CORRECT]


# -- the data sets

@pytest.fixture(scope='module')
def references() -> dict[str, dict]:
    if not (DATA / 'mbpp/mbpp.jsonl').exists():
        pytest.skip(f'MBPP and HumanEval are not in {DATA}')
    jobs = reference_jobs(DATA)
    corners = [f'MBPP/{n}' for n in (367, 533, 596, 601, 912)] + [f'HumanEval/{n}' for n in (32, 33, 38)]
    return {name: jobs[name] for name in dict.fromkeys([*corners, *list(jobs)[::25]])}


def test_reference_solutions_pass(references):
    """A sample, and what is odd among them; `benchmarks/sandbox.py` does all of them."""
    outcomes = {name: grade_job(job).outcome for name, job in references.items()}
    assert outcomes == dict.fromkeys(references, Outcome.CORRECT)


def test_a_mutant_passes_only_if_its_tests_hold_in_plain_python_too(references):
    rng = random.Random(0)
    jobs = [mutant for job in list(references.values())[::3] for mutant in mutants({**job, 'limits': LIMITS}, rng)]
    passed = [job['response'] for job in jobs if grade_job(job).outcome is Outcome.CORRECT]
    assert len(passed) < len(jobs) / 4
    assert [job['response'] for job in jobs if passes_in_plain_python(job)] == passed
