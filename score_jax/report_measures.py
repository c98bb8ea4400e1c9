"""The part of a report that looks closer: charts of what was measured, each with its numbers in a table."""

import math
from collections.abc import Iterable, Sequence

from score_jax.jsonl import number
from score_jax.plot_style import row_label, temperature_label, turn_keys
from score_jax.plots_evaluation import CHARTS, Measured, lines_of
from score_jax.report_html import figure, interval_cell, text

Column = tuple[str, str, bool]  # key of a row, heading, whether it is a signed difference


def section(measured: Measured, figures: dict[str, bytes]) -> str:
    """HTML of all charts but that of the results, which stands beside their table."""
    tables = {'edit_distance': _edit_distance, 'unanswered': _unanswered, 'attempts': _attempts,
              'pass_at_k': _pass_at_k, 'vote': _vote}
    shown = [chart for chart in CHARTS if chart.name in figures and chart.name != 'evaluation']
    if not shown:
        return '<p class="empty">Nothing measured yet: there is no readable results.json.</p>'
    drawn = ''.join(
        figure(chart.title, chart.caption, figures[chart.name],
               tables[chart.name](measured) if chart.name in tables else '') for chart in shown)
    more = '' if measured.attempts and measured.scaling else (
        '<p class="caption">Many attempts in a row, pass@k and votes are measured by '
        '<code>--config=configs/evaluate.py:full</code>.</p>')
    return f'<div class="charts">{drawn}</div>{more}'


def sequential_finding(scaling: Sequence[dict], method: str) -> list[tuple[str, str]]:
    """(tone, sentence): whether attempts in a row beat attempts side by side, and from which number of responses on."""
    row = next((row for row in reversed(scaling) if str(row.get('method')) == method), {})
    votes = lines_of(row, 'vote', 'budget', 'delta', 'delta_low', 'delta_high')
    if not votes:
        return []
    last = votes[-1]
    said = (f'A vote of {last["budget"]:g} responses by {method}: {100 * number(last, "parallel"):.1f} % side by side, '
            f'{100 * number(last, "sequential"):.1f} % in a row; the difference is {100 * last["delta"]:+.1f} points '
            f'[{100 * last["delta_low"]:+.1f}, {100 * last["delta_high"]:+.1f}]').replace('-', '−')
    first = len(votes)  # of those at the end that are all clearly better
    while first and votes[first - 1]['delta_low'] > 0:
        first -= 1
    if first < len(votes):
        return [('good', f'{said}: in a row is better from {votes[first]["budget"]:g} responses on.')]
    worse = last['delta_high'] < 0
    return [('bad' if worse else 'plain', f'{said}: in a row is {"worse" if worse else "not clearly better"}.')]


def _edit_distance(measured: Measured) -> str:
    return _methods(measured.results, [('edit_distance', 'mean distance (%)', False)])


def _unanswered(measured: Measured) -> str:
    turns = range(1, len(turn_keys(measured.results)) + 1)
    return _methods(measured.results, [
        (f'{key}_turn{turn}', f'{title} {turn}', False)
        for key, title in (('truncated', 'cut off'), ('no_answer', 'no answer')) for turn in turns])


def _attempts(measured: Measured) -> str:
    keys = turn_keys(measured.attempts)
    return _methods(measured.attempts, [(key, key, False) for key in keys] + [('delta', 'last − first', True)])


def _pass_at_k(measured: Measured) -> str:
    rows, every = [], set()
    for row in measured.scaling:
        lines = lines_of(row, 'pass_at_k', 'k', 'accuracy')
        every |= {line['k'] for line in lines}
        rows.append({key: row.get(key) for key in ('method', 'seed', 'temperature')} | {
            f'k{line["k"]:g}{end}': line.get(f'accuracy{end}') for line in lines for end in ('', '_low', '_high')})
    return _methods(rows, [(f'k{k:g}', f'k = {k:g}', False) for k in sorted(every)])


def _vote(measured: Measured) -> str:
    columns = [('parallel', 'side by side', False), ('sequential', 'in a row', False), ('delta', 'difference', True)]
    parts = []
    for row in measured.scaling:
        lines = lines_of(row, 'vote', 'budget', 'parallel', 'sequential')
        parts.append(_table('responses', [(f'{line["budget"]:g}', line) for line in lines], columns,
                            _head(row, measured.scaling)))
    return _details(parts)


def _head(row: dict, rows: Sequence[dict]) -> str:
    count, samples = number(row, 'n'), number(row, 'samples')
    said = f'{row_label(row, list(rows))}, {temperature_label(row)}'
    return said + (f', {count:g} problems, {samples:g} samples each' if math.isfinite(count + samples) else '')


def _methods(rows: Sequence[dict], columns: Sequence[Column]) -> str:
    """A table of rows by temperature and method."""
    temperatures = dict.fromkeys(temperature_label(row) for row in rows)
    parts = []
    for temperature in temperatures:
        own = [row for row in rows if temperature_label(row) == temperature]
        parts.append(_table('method', [(row_label(row, own), row) for row in own], columns, temperature))
    return _details(parts)


def _table(head: str, rows: Iterable[tuple[str, dict]], columns: Sequence[Column], caption: str) -> str:
    heads = ''.join(f'<th scope=col>{text(title)}</th>' for _, title, _ in columns)
    lines = ''.join(f'<tr><th scope=row>{text(label)}</th>' + ''.join(interval_cell(row, *column) for column in columns)
                    + '</tr>' for label, row in rows)
    return (f'<p class="caption">{text(caption)}</p><div class="wide"><table><thead><tr><th scope=col>{text(head)}</th>'
            f'{heads}</tr></thead><tbody>{lines}</tbody></table></div>')


def _details(parts: Sequence[str]) -> str:
    return f'<details><summary>The numbers</summary>{"".join(parts)}</details>'
