"""`explain` shows what was read, how both sides were understood, and why they are or are not equal."""

import subprocess
import sys
from pathlib import Path

from score_jax.rewards.explain import explain

ROOT = Path(__file__).resolve().parents[1]


def test_it_shows_what_was_read_both_trees_and_the_reason():
    text = explain('(\\frac{1}{2}, 3)', 'so \\boxed{(0.5, 4)}')
    assert text.splitlines() == [
        'read     (0.5, 4)',
        'gold     (\\frac {1}{2}, 3)',
        '  brackets (( )): (\\frac {1}{2}, 3)',
        '    scalar: \\frac {1}{2}',
        '    scalar: 3',
        'answer   (0.5, 4)',
        '  brackets (( )): (0.5, 4)',
        '    scalar: 0.5',
        '    scalar: 4',
        'NOT EQUAL: part 2: by value: 3 and 4']


def test_an_answer_without_any_form_is_taken_whole():
    text = explain('20', '20 cm')
    assert "no form 'any' in it: taken whole" in text and 'unit cm' in text
    assert text.splitlines()[-1].startswith('EQUAL')


def test_what_could_not_be_read_is_said():
    assert 'too large a power' in explain('5', '9^{9^{9}}')
    assert 'longer than' in explain('5', '1' * 5000)


def test_the_command_shows_no_control_characters():
    run = subprocess.run([sys.executable, '-m', 'score_jax.rewards.explain', '5', '\\boxed{\x1b[31m5}'],
                         cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and '\x1b' not in run.stdout and 'NOT EQUAL' in run.stdout
