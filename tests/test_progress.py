"""What a run prints: plain lines without a terminal, a block and tables in one, and nothing that text can steer."""

import io
import sys

import pytest
from rich.console import Console

from score_jax import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def metrics(t1: float, t2: float, **more) -> dict:
    return {
        't1': t1, 't2': t2, 'delta': t2 - t1, 'changed': 0.5, 'kl_turn1': 0.25, 'kl_turn2': 2.0, 'truncated_turn1': 0.0,
        'truncated_turn2': 0.0, 'loss': 1.0, 'length_turn1': 10.0, 'length_turn2': 5.0,
        'outcomes': {'turn1': {'correct': 3, 'wrong': 1}, 'turn2': {'correct': 10, 'wrong': 6}}} | more


def sample(*responses: str, problem: str = '2 3 5 make 17 :') -> dict:
    return {'problem': problem, 'turns': [
        {'response': response, 'outcome': 'wrong', 'read': response and f'read {response}'} for response in responses]}


def open_terminal(monkeypatch) -> Terminal:
    """Takes the place of stdout; called in the test itself, since pytest puts its own there before every phase."""
    monkeypatch.setattr(sys, 'stdout', stream := Terminal())
    for name, value in {'TERM': 'xterm', 'COLUMNS': '100', 'LINES': '50'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('NO_COLOR', raising=False)
    return stream


def rendered(item, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(item)
    return console.file.getvalue()


def run(lines: list[dict], every: int, samples=(), first: int = 0, history=()) -> None:
    total = first + len(lines)
    with progress.Steps('stage1', total, every, first, history) as steps:
        for step, line in enumerate(lines, first + 1):
            steps.add(step, line, samples)


def test_without_a_terminal_there_is_a_line_every_few_steps_and_at_the_end(capsys):
    run([metrics(0.2, 0.2), metrics(0.4, 0.8), metrics(0.0, 1.0)], every=2, samples=[sample('a', 'b')])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith('stage1       2/3') and ' left  ' in lines[0]
    assert lines[0].endswith('t1 30.0  t2 50.0  delta +20.0  changed 50.0  KL 0.250 2.000')


def test_what_is_cut_off_or_dropped_is_said_only_where_something_is(capsys):
    run([metrics(0, 1, truncated_turn2=0.0001, dropped=0), metrics(0, 1, truncated_turn2=0.25, dropped=3)], every=1)
    first, second = capsys.readouterr().out.splitlines()
    assert 'truncated' not in first and 'dropped' not in first
    assert second.endswith('truncated 0.0 25.0  dropped 3.0 a step')


def test_a_figure_that_some_steps_lack_is_the_mean_of_the_others():
    lines = [{'t1': 0.5}, {'loss': 2.0}, {'t1': float('nan'), 'outcomes': {}}]
    assert progress.means(lines) == {'t1': 0.5, 'loss': 2.0}


def test_a_supervised_stage_shows_its_loss(capsys):
    run([{'loss': 1.0}, {'loss': 2.0}], every=2)
    assert capsys.readouterr().out.endswith('left  loss 1.5000\n')


def test_a_terminal_shows_how_far_figures_have_come(monkeypatch):
    terminal = open_terminal(monkeypatch)
    run([metrics(0.5, 0.5), metrics(0.3, 0.9)], every=1)
    for text in ('2/2', '30.0', '↓20.0', '90.0', '↑40.0', '+60.0', '↑60.0', 'against the first 1 steps',
                 'KL 0.250 2.000', 'changed 50.0', 'truncated 0.0 0.0', 'rollouts/s', 'tokens/s'):
        assert text in terminal.getvalue()


def test_a_stage_that_goes_on_is_compared_with_its_first_steps_all_the_same(monkeypatch):
    terminal = open_terminal(monkeypatch)
    run([metrics(0.9, 0.9)], every=2, first=2, history=[metrics(0.5, 0.5), metrics(0.7, 0.7)])
    assert '↑30.0' in terminal.getvalue() and '3/3' in terminal.getvalue()


def test_rollouts_and_tokens_are_those_of_every_turn():
    assert progress._amounts([metrics(0, 0)]) == (16, 4 * 10 + 16 * 5)


def test_a_terminal_shows_samples_once(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with progress.Steps('stage1', 4, 2, 0) as steps:
        steps.add(1, metrics(0, 0), [sample('one', 'two')])
        for step in (2, 3, 4):
            steps.add(step, metrics(0, 0))
    assert terminal.getvalue().count('read one') == 1 and 'stage1, step 2' in terminal.getvalue()


def test_an_error_leaves_the_terminal_as_it_was(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), progress.Steps('stage1', 4, 2, 0):
        raise ZeroDivisionError
    assert terminal.getvalue().rindex('\x1b[?25h') > terminal.getvalue().rindex('\x1b[?25l')  # the cursor is back
    assert sys.stdout is terminal


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv('TERM', 'dumb')
    run([metrics(0.5, 0.5)], every=1)
    assert '\x1b' not in terminal.getvalue() and terminal.getvalue().endswith('KL 0.250 2.000\n')


HOSTILE = '[red]x[/red] [/] \x1b[31m\x1b]0;title\x07 \u202e \x9b2J \r\n\ttail'


def test_text_of_a_model_steers_nothing():
    samples = [sample(HOSTILE, HOSTILE + '!', problem=HOSTILE)]
    text = rendered(progress.samples_table(samples, '[bold]title[/bold]'), 300)
    assert text.count('[red]x[/red] [/] ⟨U+001B⟩[31m') == 5 and '[bold]title' in text
    assert all(character.isprintable() for character in text.replace('\n', ''))


def test_long_text_keeps_its_start_and_its_end():
    text = rendered(progress.samples_table([sample('start ' + 'x' * 10**6 + ' the end', 'b')], 't'), 300)
    assert 'start' in text and 'the end' in text and len(text) < 5000


def test_samples_of_any_number_of_turns_have_a_row_each():
    lines = rendered(progress.samples_table([sample('a', 'b', 'b'), sample('c')], 't'), 140).splitlines()
    head, first = (next(line for line in lines if word in line) for word in ('problem', 'read a'))
    assert [head.index(word) for word in ('first', 'second', 'third', 'verdicts', 'read')] == sorted(
        head.index(word) for word in ('first', 'second', 'third', 'verdicts', 'read'))
    assert 'the same' in first and any('read c' in line for line in lines)


@pytest.mark.parametrize('metrics, line', [
    ({'loss': float('nan')}, 'loss nan'), ({'loss': 0.5, 'dropped': 16}, 'loss 0.5000  dropped 16.0 a step')])
@pytest.mark.parametrize('terminal', [False, True])
def test_a_loss_that_is_no_number_and_rollouts_without_a_verdict_are_shown(
        terminal, metrics, line, monkeypatch, capsys):
    shown = open_terminal(monkeypatch) if terminal else None
    with progress.Steps('base', 1, 1, 0) as steps:
        steps.add(1, metrics)
    assert line in (shown.getvalue() if terminal else capsys.readouterr().out)
