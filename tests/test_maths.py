"""Maths answers: the configured form is read and no other, equal is equal, different different, hostile harmless."""

import json
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest

from hostile_answers import GOLDS, responses
from score_jax.rewards import Outcome, maths
from score_jax.rewards.maths import value
from score_jax.rewards.pool import Pool

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'
PAIRS = Path(__file__).parent / 'golden' / 'maths_pairs.txt'
WRITTEN = {'boxed': 'So we get $\\boxed{%s}$.', 'final_answer': 'The final answer is $%s$. I hope it is correct.',
           '####': 'So.\n#### %s'}
needs_data = pytest.mark.skipif(not (DATA / 'math').is_dir(), reason=f'{DATA} is absent')


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / path).open(encoding='utf-8')]


def pairs() -> list[tuple[str, str, bool]]:
    found = [re.fullmatch(r'(.*?) (==|!=) (.*)', line) for line in PAIRS.read_text(encoding='utf-8').split('\n')
             if line and not line.startswith('#')]
    return [(match[1], match[3], match[2] == '==') for match in found]


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('response, answer', [
    ('\\boxed{1} then \\boxed{2}', '2'),
    ('$\\boxed{\\frac{1}{\\sqrt{2}}}$ is it', '\\frac{1}{\\sqrt{2}}'),
    ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
    ('\\boxed 7', '7'),
    ('\\fbox{7}', '7'),
    ('\\boxed{x = \\boxed{5}}', '5'),
    ('$\\boxed{(-2,18)}$ and $\\boxed{(8,38)}$', '(-2,18), (8,38)'),
    ('first \\boxed{1}, but no: \\boxed{2}', '2'),
    ('\\boxed{}', None),
    ('\\boxed{1} and \\boxed{2', None),
    ('the answer is 5', None),
    ('', None)])
def test_boxed_is_the_last_box_with_its_braces(response, answer):
    assert maths.read(response, 'boxed') == answer


@pytest.mark.parametrize('response, answer', [
    ('Final answer: 5', '5'),
    ('The final answer is $\\frac12$. I hope it is correct.', '\\frac12'),
    ('**Final Answer:** 5', '5'),
    ('Final answer:\n\n5\nthat is all', '5'),
    ('Final answer: $\\boxed{5}$', '5'),
    ('Final answer: 4\nno, wait. Final answer: 5', '5'),
    ('final answer\n\\[\n5\n\\]', '5'),
    ('FINAL ANSWER = 5 apples', '5 apples'),
    ('The answer is 5', None),
    ('5', None)])
def test_final_answer_is_the_last_line_that_says_so(response, answer):
    assert maths.read(response, 'final_answer') == answer


@pytest.mark.parametrize('response, answer', [
    ('6 * 7 = 42\n#### 42', '42'), ('#### 1,080\n', '1,080'), ('#### 1\n#### 2', '2'), ('##### 3', None), ('42', None)])
def test_hashes_are_the_last_ones(response, answer):
    assert maths.read(response, '####') == answer


def test_any_is_what_comes_last_and_never_a_bare_number():
    assert maths.read('\\boxed{1}\n#### 2', 'any') == '2'
    assert maths.read('#### 2\nFinal answer: 3', 'any') == '3'
    assert maths.read('2 + 2 = 4', 'any') is None


def test_an_answer_in_another_form_than_asked_for_is_no_answer():
    job = {'gold': '5', 'response': '\\boxed{5}'}
    assert maths.grade_job({**job, 'form': 'boxed'}).outcome is Outcome.CORRECT
    assert maths.grade_job({**job, 'form': '####'}).outcome is Outcome.NO_ANSWER
    assert maths.grade_job(job).outcome is Outcome.CORRECT


def test_the_gold_of_a_solution_is_every_value_that_it_boxes_in_order():
    assert maths.gold('so \\boxed{(-2,18)} and \\boxed{(8,38)}') == '(-2,18), (8,38)'
    assert maths.gold('so \\boxed{\\dfrac{1}{6}}. Or: \\boxed{\\frac{1}{6}}') == '\\dfrac{1}{6}'
    assert maths.gold('[asy]label("\\boxed{3}");[/asy] \\boxed{\\phantom{09}} \\boxed{-5}') == '-5'
    assert maths.gold('the remainder is \\boxed{}') == '0'


# ---- equality -------------------------------------------------------------------------------------------------------


def test_hard_corners_are_right():
    """The table has 250 pairs or more; none may be equal that is not."""
    table = pairs()
    got = [(gold, answer, wanted, *maths.equal(gold, answer)) for gold, answer, wanted in table]
    assert len(table) >= 250
    assert [row for row in got if row[3] and not row[2]] == []
    assert [row for row in got if row[2] and not row[3]] == []


def test_the_pairs_that_are_equal_are_so_in_the_pool_too_with_the_same_verdicts():
    table = random.Random(0).sample(pairs(), 60)
    jobs = [{'gold': gold, 'response': f'\\boxed{{{answer}}}', 'form': 'boxed'} for gold, answer, _ in table if answer]
    with Pool('score_jax.rewards.maths:grade_job', workers=1, limits=maths.LIMITS) as pool:
        assert [v.outcome for v in pool.map(jobs)] == [maths.grade_job(job).outcome for job in jobs]


@needs_data
def test_every_gold_of_gsm8k_is_read_and_equal_to_itself_in_every_form():
    for row in lines('gsm8k/train.jsonl') + lines('gsm8k/test.jsonl'):
        gold = maths.read(row['answer'], '####')
        for form, text in WRITTEN.items():
            answer = maths.read(text % gold, form)
            assert answer == gold and maths.equal(gold, answer)[0], (gold, form)


@needs_data
def test_every_gold_of_math_is_read_and_equal_to_itself_in_every_form():
    rows = lines('math/train.jsonl') + lines('math/test.jsonl')
    golds = {maths.gold(row['solution']) for row in rows} | {row['answer'] for row in rows if row['answer'].strip()}
    golds |= {row['answer'] for row in lines('math/math500.jsonl')}
    for gold in golds:
        gold = ' '.join(gold.split())  # an answer line is one line
        for form, text in WRITTEN.items():
            answer = maths.read(text % gold, form)
            assert answer is not None and maths.equal(gold, answer)[0], (gold, form, answer)


@needs_data
def test_golds_of_one_subject_are_equal_only_if_their_values_are():
    """Values by plain floating point, from the few forms that it can be sure of."""
    rows = lines('math/train.jsonl') + lines('math/test.jsonl')
    numbers = [(row['subject'], row['answer'], plain_number(row['answer'])) for row in rows]
    sure = [row for row in numbers if row[2] is not None]
    assert len(sure) > 9000
    chance = random.Random(0)
    by_subject: dict[str, list] = {}
    for subject, text, number in sure:
        by_subject.setdefault(subject, []).append((text, number))
    for _ in range(5000):
        (gold, x), (answer, y) = chance.sample(by_subject[chance.choice(sorted(by_subject))], 2)
        assert maths.equal(gold, answer)[0] == (abs(x - y) < 1e-9), (gold, answer)


def plain_number(text: str) -> float | None:
    """The value of a few forms, by other means than the grader's: numbers, fractions, a root or pi times them."""
    text = text.replace('\\!', '').replace(',', '') if re.fullmatch(r'-?\d{1,3}(,\\?!?\d{3})+', text) else text
    match = re.fullmatch(
        r'(-?)(?:(\d+(?:\.\d+)?)|[dt]?\\?[dt]?frac\{(\d+)\}\{(\d+)\})? ?(\\sqrt\{\d+\}|\\pi)?',
        text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac'))
    if not match or not any(match.groups()[1:]):
        return None
    sign, number, above, below, root = match.groups()
    size = float(number) if number else int(above) / int(below) if above else 1.0
    factor = 1.0 if not root else 3.141592653589793 if root == '\\pi' else int(root[6:-1]) ** 0.5
    return (-1 if sign else 1) * size * factor


def test_the_longest_answer_is_compared_and_a_longer_one_only_as_text():
    long = '+'.join(['1'] * 190)
    assert maths.equal('190', long)[0]
    too_long = '+'.join(['1'] * 2000)
    assert not maths.equal('2000', too_long)[0] and maths.equal(too_long, too_long)[0]


@pytest.mark.parametrize('text, number', [
    ('1/2x', None), ('\\frac12', Fraction(1, 2)), ('\\frac{1}{2}^2', Fraction(1, 4)), ('2^{-2}', Fraction(1, 4)),
    ('-2^2', Fraction(-4)), ('(-2)^2', Fraction(4)), ('3-2-1', Fraction(0)), ('8/4/2', Fraction(1)),
    ('2\\cdot -3', Fraction(-6)), ('\\lfloor 2.5 \\rfloor', Fraction(2)), ('||-3|-1|', Fraction(2)),
    ('3!', Fraction(6)), ('2^3!', Fraction(40320)), ('5 5', 'unreadable'), ('2^3^4', 'unreadable'),
    ('(1', 'unreadable'), ('1)', 'unreadable'), ('', 'unreadable'), ('1/0', 'unreadable')])
def test_expressions_have_the_values_that_mathematics_gives_them(text, number):
    try:
        tree = value.parse(text)
        found = None if value.symbols(tree) else value.evaluate(tree, {})
    except value.Unreadable:
        found = 'unreadable'
    assert found == number


# ---- hostile answers ------------------------------------------------------------------------------------------------


def test_hostile_answers_are_answered_at_once_and_reach_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    jobs = [{'gold': gold, 'response': text} for text in responses() for gold in chance.sample(GOLDS, 3)]
    with Pool('score_jax.rewards.maths:grade_job', workers=2, limits=maths.LIMITS) as pool:
        verdicts = pool.map(jobs)
    wrong = [(job['gold'], job['response'][:40], verdict) for job, verdict in zip(jobs, verdicts)
             if verdict.outcome not in (Outcome.WRONG, Outcome.NO_ANSWER) or verdict.seconds > 2]
    assert wrong == [] and list(tmp_path.iterdir()) == []


def test_a_gold_that_needs_math_verify_is_bounded_by_the_pool():
    """The one slow path: the gold itself is an integral, and the answer is made of it."""
    start = time.monotonic()
    with Pool('score_jax.rewards.maths:grade_job', workers=1, limits=maths.LIMITS) as pool:
        verdict, after = pool.map([
            {'gold': '\\int \\frac{x}{x^9+x+1} dx', 'response': '\\boxed{\\int \\frac{x+1}{x^9+x+1} dx}'},
            {'gold': '5', 'response': '\\boxed{5}'}])
    assert verdict.outcome in (Outcome.WRONG, Outcome.TIMEOUT, Outcome.MEMORY) and verdict.seconds < 3
    assert after.outcome is Outcome.CORRECT and time.monotonic() - start < 30
