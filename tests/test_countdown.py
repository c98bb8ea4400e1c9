"""Countdown: problems are functions of their arguments, splits never meet, generated dialogues have their habits."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from score_jax.errors import UserError
from score_jax.rewards import Outcome
from score_jax.rewards.countdown import solutions, verify
from score_jax.tasks import countdown
from score_jax.tasks.countdown import Countdown, CountdownConfig, Habits, Problem

CONFIG = CountdownConfig(numbers=3, largest=6, limit=40, test_share=0.3, instruction='look again :')
HABITS = Habits(solve=0.4, keep_right=0.7, keep_wrong=0.2, solve_again=0.3)


@pytest.fixture(scope='module')
def task() -> Countdown:
    return Countdown(CONFIG)


@pytest.fixture(scope='module')
def wide() -> Countdown:
    """A task in which a random chain seldom hits the target and seldom comes twice."""
    return Countdown(dataclasses.replace(CONFIG, numbers=5, largest=20, limit=4000))


@pytest.fixture(scope='module')
def all_problems() -> set[Problem]:
    """Every problem of `CONFIG`, by trying every chain."""
    found = set()
    for numbers in itertools.product(range(1, CONFIG.largest + 1), repeat=3):
        for a, b in itertools.product('+-*', repeat=2):
            steps = eval(f'{numbers[0]} {a} {numbers[1]}'), eval(f'({numbers[0]} {a} {numbers[1]}) {b} {numbers[2]}')
            if all(0 <= step <= CONFIG.limit for step in steps):
                found.add(Problem(tuple(sorted(numbers)), steps[-1]))
    return found


def near(flags: list[bool], p: float, slack: float = 0.0) -> bool:
    """The share of `flags` is p within four standard deviations; `slack` more is what chance adds at most."""
    reach = 4 * math.sqrt(p * (1 - p) / len(flags))
    return p - reach <= sum(flags) / len(flags) <= p + slack + reach


def right(task: Countdown, problem: Problem, response: str) -> bool:
    return task.verify([problem], [response])[0].outcome is Outcome.CORRECT


def test_problems_are_functions_of_their_arguments_alone(task):
    again = Countdown(CONFIG)
    again.problems('train', 7, seed=9, step=9)  # what was drawn before does not matter
    assert again.problems('train', 50, seed=1, step=2) == task.problems('train', 50, seed=1, step=2)
    assert task.problems('train', 50, seed=1, step=2)[:20] == task.problems('train', 20, seed=1, step=2)


@pytest.mark.parametrize('other', [('test', 1, 2), ('train', 2, 2), ('train', 1, 3)])
def test_split_seed_and_step_each_give_other_problems(task, other):
    split, seed, step = other
    assert task.problems(split, 50, seed=seed, step=step) != task.problems('train', 50, seed=1, step=2)


def test_no_problem_is_in_both_splits_in_any_order_of_its_numbers(task, all_problems):
    drawn = {split: {p for step in range(10) for p in task.problems(split, 2000, seed=0, step=step)}
             for split in ('train', 'test')}
    assert all(p.numbers == tuple(sorted(p.numbers)) for problems in drawn.values() for p in problems)
    assert not drawn['train'] & drawn['test']
    assert drawn['train'] | drawn['test'] == all_problems


def test_the_held_out_share_is_that_of_the_config(task, all_problems):
    test = set(task.problems('test', 20_000, seed=0, step=0))
    assert near([problem in test for problem in all_problems], CONFIG.test_share)


def test_distinct_problems_are_distinct_and_of_their_split(task, all_problems):
    problems = task.distinct_problems('test', 100, seed=3)
    assert len(problems) == len(set(problems)) == 100
    assert not set(problems) & set(task.problems('train', 20_000, seed=3, step=0))
    assert problems == task.distinct_problems('test', 100, seed=3)


def test_more_distinct_problems_than_there_are_is_an_error_that_says_how_many(task, all_problems):
    with pytest.raises(UserError, match=r'config\.problems is 1000, but the test split .* only \d+ '):
        task.distinct_problems('test', 1000, seed=0)


def test_a_split_without_problems_is_an_error_and_no_endless_search(monkeypatch):
    class Impatient:
        def __init__(self):
            self.rng, self.left = np.random.default_rng(0), 10_000

        def integers(self, *args):
            self.left -= 1
            assert self.left, 'still searching'
            return self.rng.integers(*args)

    monkeypatch.setattr(countdown, '_generator', lambda *_: Impatient())
    empty = Countdown(dataclasses.replace(CONFIG, test_share=1e-12))
    with pytest.raises(UserError, match='test split'):
        empty.distinct_problems('test', 1, seed=0)


def test_an_unknown_split_is_an_error(task):
    with pytest.raises(UserError, match="'validation'.*train and test"):
        task.problems('validation', 1, seed=0, step=0)


@pytest.mark.parametrize('change', [
    dict(numbers=1), dict(largest=0), dict(limit=17), dict(test_share=0.0), dict(test_share=1.0)])
def test_values_that_make_no_task_are_errors_that_name_them(change):
    with pytest.raises(UserError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


def test_generated_solutions_are_correct(task, wide):
    habits = Habits(solve=1, keep_right=0, keep_wrong=0, solve_again=1)
    for made_by in (task, wide):
        for problem, responses in made_by.dialogues(500, habits, seed=0, step=0):
            assert all(right(made_by, problem, response) for response in responses)


def test_what_a_generated_response_claims_is_true(wide):
    for problem, responses in wide.dialogues(300, HABITS, seed=0, step=0):
        for response in responses:
            words = response.split()
            claims = [int(word) for symbol, word in zip(words, words[1:]) if symbol == '=']
            assert all(0 <= claim <= 4000 for claim in claims) and len(claims) == len(problem.numbers) - 1
            assert wide.verify([problem], [response])[0].read.endswith(f'= {claims[-1]}')


def test_dialogues_are_about_the_training_problems_of_their_step(task):
    problems = [problem for problem, _ in task.dialogues(600, HABITS, seed=4, step=5)]
    assert problems == task.problems('train', 600, seed=4, step=5)


def test_dialogues_have_the_stated_habits(wide):
    rows = []
    for problem, (first, second) in wide.dialogues(20_000, HABITS, seed=0, step=0):
        rows.append((right(wide, problem, first), right(wide, problem, second), first == second))
    chance = 0.01  # that none of a few random chains misses
    assert near([first for first, _, _ in rows], HABITS.solve, chance)
    assert near([same for first, _, same in rows if not first], HABITS.keep_wrong, chance)
    assert near([second for first, second, same in rows if not first and not same], HABITS.solve_again, chance)
    assert near([same for first, _, same in rows if first], HABITS.keep_right, chance)


def test_a_second_attempt_is_the_first_word_for_word_or_opens_with_wait(wide):
    for _, (first, second) in wide.dialogues(2_000, HABITS, seed=0, step=0):
        assert not first.startswith('wait')
        assert second == first or second.startswith('wait ')


def test_a_third_attempt_treats_the_second_as_that_treats_the_first(wide):
    rows = []
    for problem, (first, second, third) in wide.dialogues(10_000, HABITS, seed=0, step=0, turns=3):
        copied = third == second.removeprefix('wait ')
        assert copied or third.startswith('wait ')
        rows.append((right(wide, problem, second), copied))
    assert near([copied for was_right, copied in rows if was_right], HABITS.keep_right, 0.01)
    assert near([copied for was_right, copied in rows if not was_right], HABITS.keep_wrong, 0.01)


def test_generated_text_is_one_token_a_word_and_comes_back_whole(task, wide):
    for made_by in (task, wide):
        texts = [made_by.instruction]
        for problem, responses in made_by.dialogues(200, HABITS, seed=0, step=0):
            texts += [made_by.prompt(problem), *responses]
        for text in texts:
            tokens = made_by.tokenizer.encode(text)
            assert len(tokens) == len(text.split())
            assert made_by.tokenizer.decode(tokens) == text


def test_a_prompt_shows_the_sorted_numbers_and_the_target_and_no_more(wide):
    for problem in wide.problems('train', 200, seed=0, step=0):
        *numbers, make, target, colon = wide.prompt(problem).split()
        assert (make, target, colon) == ('make', str(problem.target), ':')
        assert numbers == [str(n) for n in sorted(problem.numbers)]


@pytest.mark.parametrize('numbers', [(2, 3, 5), (4, 4, 7), (6, 6, 6), (3, 8)])
def test_solutions_are_counted_as_the_verifier_would_call_them_right(numbers):
    values = collections.Counter()
    for order in set(itertools.permutations(numbers)):
        for ops in itertools.product('+-*', repeat=len(numbers) - 1):
            chain = f'{order[0]} ' + ' '.join(f'{op} {number}' for op, number in zip(ops, order[1:]))
            values[int(verify(numbers, 0, chain).read.split()[-1])] += 1
    assert {target: solutions(numbers, target) for target in values} == values
    assert solutions(numbers, 10_000) == 0


def test_a_problem_is_grouped_by_how_many_chains_solve_it(task, all_problems):
    names = {problem: task.groups(problem)['solutions'] for problem in all_problems}
    bounds = {'1': (1, 1), '2': (2, 2), '3-5': (3, 5), '6+': (6, 99)}
    assert set(names.values()) == set(bounds)
    for problem, name in names.items():
        low, high = bounds[name]
        assert low <= solutions(problem.numbers, problem.target) <= high
