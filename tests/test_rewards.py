"""The Countdown verifier evaluates the expression, and nothing that the response claims about it."""

import math
import random

import pytest

from score_jax.rewards import Outcome, Verdict
from score_jax.rewards.countdown import verify

NUMBERS, TARGET = (2, 3, 5), 17


@pytest.mark.parametrize('response', [
    '3 * 5 = 15 + 2 = 17',
    '3 * 5 + 2',  # the steps need not be shown
    '5 * 3 + 2 = 17',
    '  3 * 5\n= 15 + 2\t= 17 ',
    '3 * 5 = 99 + 2 = 17',  # claims are not checked ...
    '3 * 5 = 15 + 2 = 16',
    '3 * 5 = -15 + 2 = -17',
    '3 * 5 = 15 = 15 + 2',
    '03 * 5 + 2',
])
def test_a_chain_that_reaches_the_target_is_correct(response):
    verdict = verify(NUMBERS, TARGET, response)
    assert verdict.outcome is Outcome.CORRECT and verdict.reward == 1


@pytest.mark.parametrize('response', [
    '3 + 5 + 2 = 17',  # ... nor believed
    '2 + 3 * 5 = 17',  # from left to right: (2 + 3) * 5 = 25
    '17',
    '3 * 5 = 17',  # 2 is missing
    '5 * 3 + 2 + 2 - 2',  # 2 is used more than once
    '12 + 5 = 17',  # 12 was not given
    '3 * 5 + 2 * 1',
    '3 * 5 = 15 + 2 - 0',
    '999999 * 999999 * 999999 * 999999',
    '2 - 5 = -3 * 3 = -9',
])
def test_another_value_or_other_numbers_are_wrong(response):
    verdict = verify(NUMBERS, TARGET, response)
    assert verdict.outcome is Outcome.WRONG and verdict.reward == 0


@pytest.mark.parametrize('response', [
    '',
    ' \n ',
    'seventeen',
    'the answer is 3 * 5 + 2',
    '3 * 5 + 2 is it',
    '3 * 5 + 2 =',
    '3 * 5 + 2 = x',
    '3 * 5 + 2 = --17',
    '3 * 5 + 2 = 1.7e1',
    '3 * 5 + 2 +',
    '* 3 5 + 2',
    '-3 * -5 + 2',
    '3 * 5 ++ 2',
    '3*5+2',
    '3 x 5 + 2',
    '34 / 2',
    '3 ** 5 + 2',
    '= 17',
    '\uff13 * 5 + 2',  # a full-width three
    '3 * 5 + \u0662',  # an Arabic two
    '3 * 5 + \u00b2',  # a superscript two
    '3 * 5 + 1_0',
    f'3 * 5 + {10**6}',
    f'3 * 5 + 2 = {"9" * 5000}',
    '3 * 5 + 2' + ' + 0' * 200,
    '3 * 5 + 2' + ' ' * 10**6,
])
def test_what_is_no_chain_has_no_answer(response):
    assert verify(NUMBERS, TARGET, response) == Verdict(Outcome.NO_ANSWER, None)


def test_the_order_of_the_given_numbers_does_not_matter():
    assert verify((5, 2, 3), TARGET, '3 * 5 + 2').outcome is Outcome.CORRECT


def test_a_number_given_twice_is_used_twice():
    assert verify((4, 4, 4), 20, '4 * 4 + 4').outcome is Outcome.CORRECT
    assert verify((4, 4), 20, '4 * 4 + 4').outcome is Outcome.WRONG
    assert verify((4, 4, 4), 8, '4 + 4').outcome is Outcome.WRONG


def test_what_was_read_shows_the_order_of_evaluation_and_no_claim():
    assert verify(NUMBERS, TARGET, '2 + 3 = 9 * 5 = 17').read == '(2 + 3) * 5 = 25'


def test_only_correct_is_worth_one():
    graded = [outcome for outcome in Outcome if outcome is not Outcome.SANDBOX_ERROR]
    assert [Verdict(outcome).reward for outcome in graded] == [float(o is Outcome.CORRECT) for o in graded]


def test_the_graders_own_failure_is_worth_neither_one_nor_nothing():
    assert math.isnan(Verdict(Outcome.SANDBOX_ERROR).reward)


def test_wait_may_open_a_response_once_and_is_not_read():
    verdict = verify(NUMBERS, TARGET, 'wait 3 * 5 = 15 + 2 = 17')
    assert verdict == verify(NUMBERS, TARGET, '3 * 5 = 15 + 2 = 17')
    for text in ('wait', 'wait wait 3 * 5 + 2', '3 * 5 + 2 wait', '3 wait * 5 + 2', 'waits 3 * 5 + 2'):
        assert verify(NUMBERS, TARGET, text).outcome is Outcome.NO_ANSWER


def test_verdicts_agree_with_pythons_own_arithmetic():
    rng = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        numbers = [rng.randint(0, 12) for _ in range(rng.randint(1, 5))]
        used = rng.sample(numbers, len(numbers))
        if rng.random() < 0.2:
            used[0] = rng.randint(0, 12)
        text = expression = str(used[0])
        for number in used[1:]:
            op = rng.choice('+-*')
            text += f' {op} {number}' + (f' = {rng.randint(-50, 50)}' if rng.random() < 0.5 else '')
            expression = f'({expression}) {op} {number}'
        value = eval(expression)
        target = value if rng.random() < 0.5 else rng.randint(-20, 60)
        verdict = verify(numbers, target, text)
        expected = value == target and sorted(used) == sorted(numbers)
        assert (verdict.outcome is Outcome.CORRECT) == expected, (numbers, target, text)
        claim = verdict.read.rpartition(' = ')
        assert eval(claim[0]) == int(claim[2]) == value
        outcomes.add(verdict.outcome)
    assert outcomes == {Outcome.CORRECT, Outcome.WRONG}


def test_no_text_makes_it_raise():
    rng = random.Random(0)
    words = ['2', '3', '5', '+', '-', '*', '=', '-2', '--', '', 'make', '\x00', '\u0663', '\ud800', '9' * 7]
    for _ in range(5000):
        text = rng.choice([' ', '', '\n', '\u2003']).join(rng.choices(words, k=rng.randint(0, 12)))
        text += ''.join(chr(rng.randrange(0x11000)) for _ in range(rng.randint(0, 4)))
        assert isinstance(verify(NUMBERS, TARGET, text), Verdict)
