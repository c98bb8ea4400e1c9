"""Charts of what was measured: one function a chart, from the rows of results.json, attempts.json and scaling.json.

Each returns None where there is nothing to draw. Shares are shown in percent, with their 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from score_jax.jsonl import number, plain
from score_jax.plot_style import (
    MARKERS, METHODS, Look, handle, legend, panels, row_label, shorten, temperature_label, turn_keys)

KINDS = {'i->c': 'better', 'c->i': 'worse', 'c->c': 'turn1', 'i->i': 'muted'}  # of a histogram, and their colours
_GROUPS = 12  # groups of problems that a chart has room for


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rows as the files of a workdir have them; none has to be whole."""

    results: Sequence[dict]
    attempts: Sequence[dict] = ()
    scaling: Sequence[dict] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure on an evaluation: the words beside it, and what draws it (None where nothing was measured)."""
    name: str
    title: str
    caption: str
    draw: Callable[[Measured, Look], Figure | None]


def draw(measured: Measured, look: Look) -> dict[str, bytes]:
    """The files of all charts that have something to show, by name, in the order of `CHARTS`."""
    with look.applied():
        figures = {chart.name: chart.draw(measured, look) for chart in CHARTS}
        return {name: look.saved(figure) for name, figure in figures.items() if figure is not None}


def sampled(results: Sequence[dict]) -> list[dict]:
    """The rows at the temperature nearest to that of training (1)."""
    distances = [abs(number(row, 'temperature') - 1.0) for row in results]
    nearest = min((d for d in distances if math.isfinite(d)), default=math.nan)
    return [row for row, d in zip(results, distances) if d == nearest]


def lines_of(row: dict, key: str, x: str, *names: str) -> list[dict]:
    """The entries of the list `row[key]` that have `x` and all `names` as numbers, by `x`."""
    entries = row.get(key)
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    entries = [entry for entry in entries if all(math.isfinite(number(entry, name)) for name in (x, *names))]
    return sorted((entry for entry in entries if number(entry, x) > 0), key=lambda entry: entry[x])


def histograms(row: dict) -> dict[str, np.ndarray]:
    """`row['edit_histogram']` as counts by kind, each as long as another; empty if it is none."""
    found = row.get('edit_histogram')
    found = {kind: found[kind] for kind in KINDS if kind in found} if isinstance(found, dict) else {}
    counts = {kind: [number({'': value}, '') for value in values] for kind, values in found.items()
              if isinstance(values, list)}
    counts = {kind: np.array(values) for kind, values in counts.items() if values and np.isfinite(values).all()}
    lengths = {len(values) for values in counts.values()}
    return counts if len(lengths) == 1 and lengths.pop() > 1 else {}


def groups_of(row: dict) -> tuple[str, dict[str, dict]]:
    """The first kind of groups in `row['by']`, and the figures of each group by its name."""
    by = row.get('by')
    for kind, groups in by.items() if isinstance(by, dict) else ():
        if isinstance(groups, dict):
            groups = {name: group for name, group in groups.items() if isinstance(group, dict) and turn_keys([group])}
            if 1 < len(groups) <= _GROUPS:
                return kind, groups
    return '', {}


# --- the parts


def _interval(row: dict, key: str) -> tuple[float, float, float]:
    """Lower end, value and upper end in percent; NaN where the row has none."""
    low, value, high = (100 * number(row, name) for name in (f'{key}_low', key, f'{key}_high'))
    return low, value, high


def _dot(panel: Axes, row: dict, key: str, place: float, colour: str, marker: str) -> None:
    low, value, high = _interval(row, key)
    panel.plot([low, high], [place] * 2, color=colour, linewidth=2.2, alpha=0.45)
    panel.plot(value, place, marker, color=colour, markersize=5)


def _names(panel: Axes, rows: Sequence[dict], longest: int = 24) -> None:
    """A line for each row, from above."""
    panel.set_yticks(range(len(rows)), [shorten(row_label(row, rows), longest) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis='x')


def _shifts(count: int) -> np.ndarray:
    """Where `count` marks of one line stand, around its middle."""
    return (np.arange(count) - (count - 1) / 2) * min(0.26, 0.7 / max(count, 1))


def _band(panel: Axes, x: Sequence[float], rows: Sequence[dict], keys: Sequence[str], colour: str, marker: str) -> None:
    """A line through `rows[i][keys[i]]` at `x[i]`, and its intervals behind it."""
    low, value, high = np.array([_interval(row, key) for row, key in zip(rows, keys)]).T
    panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    panel.plot(x, value, color=colour, marker=marker, markersize=3.5, linewidth=1.6)


def _powers(panel: Axes, ticks: Sequence[float]) -> None:
    panel.set_xscale('log', base=2)
    panel.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis='y')


def _tall(look: Look, count: int, lines: int) -> tuple[Figure, list[Axes]]:
    """`count` panels of one column each, side by side, for `lines` lines of methods."""
    height = look.size / 9 * (0.75 + 0.26 * min(lines, 90)) + 0.2
    figure = Figure(figsize=(look.width, height), layout='constrained')
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


# --- the charts


def _evaluation(measured: Measured, look: Look) -> Figure | None:
    """Accuracy of every turn, a line for each method and a panel for each temperature."""
    groups: dict[str, list[dict]] = {}
    for row in measured.results:
        if turn_keys([row]) or math.isfinite(number(row, 't2')):
            groups.setdefault(temperature_label(row), []).append(row)
    if not groups:
        return None
    heights = [len(rows) for rows in groups.values()]
    height = look.size / 9 * min(0.9 + 0.55 * len(groups) + 0.42 * sum(heights), 30)
    figure = Figure(figsize=(look.width, height), layout='constrained')
    grid = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    keys = turn_keys(measured.results) or ['t1', 't2']
    for panel, (temperature, rows) in zip(grid, groups.items()):
        panel.set_title(temperature)
        _names(panel, rows)
        for place, row in enumerate(rows):
            for turn, (key, shift) in enumerate(zip(keys, _shifts(len(keys)))):
                _dot(panel, row, key, place + shift, look.turn(turn + 1), MARKERS[turn % len(MARKERS)])
    grid[-1].set_xlabel('accuracy (%) with 95 % interval')
    legend(figure, _turn_handles(keys, look))
    return figure


def _turn_handles(keys: Sequence, look: Look) -> list:
    return [handle(look.turn(t + 1), f'turn {t + 1}', MARKERS[t % len(MARKERS)]) for t in range(len(keys))]


def _transitions(measured: Measured, look: Look) -> Figure | None:
    """Delta, what was repaired, broken and changed, at the temperature of training."""
    rows = [row for row in sampled(measured.results) if math.isfinite(number(row, 'delta'))]
    if not rows:
        return None
    columns = (('delta', 'delta', 'ink'), ('i_to_c', 'i → c', 'better'), ('c_to_i', 'c → i', 'worse'),
               ('changed', 'changed', 'muted'))
    figure, grid = _tall(look, len(columns), len(rows))
    for panel, (key, title, colour) in zip(grid, columns):
        panel.set_title(title)
        _names(panel, rows, 14)
        for place, row in enumerate(rows):
            _dot(panel, row, key, place, look.colours[colour], 'o')
        panel.xaxis.set_major_locator(MaxNLocator(3))
        if key == 'delta':
            panel.axvline(0, color=look.colours['muted'], linewidth=0.8)
    figure.supxlabel(f'percent of all problems, {temperature_label(rows[0])}')
    return figure


def _edit_distance(measured: Measured, look: Look) -> Figure | None:
    """How far the last response is from the first, by outcome, a panel for each method."""
    rows = [(row, counts) for row in sampled(measured.results) if (counts := histograms(row))]
    rows = [(row, counts) for row, counts in rows if sum(c.sum() for c in counts.values()) > 0][:8]
    if not rows:
        return None
    figure, grid = panels(look, len(rows), sharex=True, sharey=True, height=0.95)
    own = [row for row, _ in rows]
    for panel, (row, counts) in zip(grid, rows):
        total, below = sum(c.sum() for c in counts.values()), np.zeros(len(next(iter(counts.values()))))
        bins = len(below) - 1
        centres = np.concatenate([[-0.75 / bins], (np.arange(bins) + 0.5) / bins])  # copies stand apart
        for kind, values in counts.items():
            share = 100 * values / total
            panel.bar(centres, share, 0.86 / bins, bottom=below, color=look.colours[KINDS[kind]], linewidth=0)
            below = below + share
        panel.set_title(shorten(row_label(row, own), 20))
        panel.set_xticks([centres[0], 0.5, 1], ['same', '0.5', '1'])
        panel.grid(axis='y')
    figure.supxlabel('edit distance, last to first response')
    figure.supylabel('responses (%)')
    legend(figure, [handle(look.colours[colour], kind.replace('->', ' → ')) for kind, colour in KINDS.items()])
    return figure


def _difficulty(measured: Measured, look: Look) -> Figure | None:
    """Accuracy of the first and the last turn by group of problems, a panel for each method."""
    rows = [(row, *groups_of(row)) for row in sampled(measured.results)]
    rows = [(row, groups) for row, kind, groups in rows if groups and kind == next(k for _, k, g in rows if g)][:8]
    if not rows:
        return None
    kind = groups_of(rows[0][0])[0]
    names = sorted({name for _, groups in rows for name in groups})[:_GROUPS]
    figure, grid = panels(look, len(rows), sharex=True, sharey=True, height=0.95)
    own, seen = [row for row, _ in rows], set()
    for panel, (row, groups) in zip(grid, rows):
        keys = turn_keys(groups.values())
        for turn in dict.fromkeys((0, len(keys) - 1)):
            places = [i for i, name in enumerate(names) if math.isfinite(number(groups.get(name, {}), keys[turn]))]
            _band(panel, places, [groups[names[i]] for i in places], [keys[turn]] * len(places), look.turn(turn + 1),
                  MARKERS[turn % len(MARKERS)])
            seen.add(turn)
        panel.set_title(shorten(row_label(row, own), 20))
        crowded = sum(min(len(name), 12) for name in names) > 20
        panel.set_xticks(range(len(names)), [shorten(plain(name), 12) for name in names], rotation=60 if crowded else 0)
        panel.grid(axis='y')
    figure.supxlabel(shorten(plain(kind)))
    figure.supylabel('accuracy (%)')
    legend(figure, [handle for turn, handle in enumerate(_turn_handles(range(max(seen) + 1), look)) if turn in seen])
    return figure


def _unanswered(measured: Measured, look: Look) -> Figure | None:
    """Responses that were cut off, and those without an answer, by turn."""
    rows = [row for row in sampled(measured.results)
            if any(math.isfinite(number(row, f'{name}_turn1')) for name in ('truncated', 'no_answer'))]
    if not rows:
        return None
    keys = turn_keys(rows)
    figure, grid = _tall(look, 2, 1.4 * len(rows))
    for panel, (name, title) in zip(grid, (('truncated', 'cut off'), ('no_answer', 'no answer found'))):
        panel.set_title(title)
        _names(panel, rows, 16)
        for place, row in enumerate(rows):
            for turn, shift in enumerate(_shifts(len(keys))):
                _dot(panel, row, f'{name}_turn{turn + 1}', place + shift, look.turn(turn + 1),
                     MARKERS[turn % len(MARKERS)])
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_xlim(left=min(0, panel.get_xlim()[0]), right=max(panel.get_xlim()[1], 1))
    figure.supxlabel(f'responses (%), {temperature_label(rows[0])}')
    legend(figure, _turn_handles(keys, look))
    return figure


def _by_method(rows: Sequence[dict], look: Look) -> list[tuple[dict, str, str]]:
    """Each row with its colour and marker."""
    return [(row, look.colours[METHODS[i % len(METHODS)]], MARKERS[i % len(MARKERS)]) for i, row in enumerate(rows)]


def _method_handles(rows: Sequence[dict], look: Look) -> list:
    return [handle(colour, shorten(row_label(row, rows), 14), marker) for row, colour, marker in _by_method(rows, look)]


def _attempts(measured: Measured, look: Look) -> Figure | None:
    """Accuracy of one attempt after the other."""
    rows = [row for row in measured.attempts if len(turn_keys([row])) > 1]
    if not rows:
        return None
    figure = Figure(figsize=(look.width, 0.7 * look.width), layout='constrained')
    panel = figure.subplots()
    for row, colour, marker in _by_method(rows, look):
        keys = turn_keys([row])
        _band(panel, range(1, len(keys) + 1), [row] * len(keys), keys, colour, marker)
    panel.grid(axis='y')
    panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    panel.set_ylim(bottom=0)
    panel.set_xlabel(f'attempt, {temperature_label(rows[0])}')
    panel.set_ylabel('accuracy (%)')
    legend(figure, _method_handles(rows, look))
    return figure


def _pass_at_k(measured: Measured, look: Look) -> Figure | None:
    """The chance that one of k first attempts is right."""
    rows = [row for row in measured.scaling if lines_of(row, 'pass_at_k', 'k', 'accuracy')]
    if not rows:
        return None
    figure = Figure(figsize=(look.width, 0.7 * look.width), layout='constrained')
    panel = figure.subplots()
    for row, colour, marker in _by_method(rows, look):
        lines = lines_of(row, 'pass_at_k', 'k', 'accuracy')
        _band(panel, [line['k'] for line in lines], lines, ['accuracy'] * len(lines), colour, marker)
    _powers(panel, sorted({line['k'] for row in rows for line in lines_of(row, 'pass_at_k', 'k', 'accuracy')}))
    panel.set_xlabel(f'k, {temperature_label(rows[0])}')
    panel.set_ylabel('pass@k (%)')
    legend(figure, _method_handles(rows, look))
    return figure


def _vote(measured: Measured, look: Look) -> Figure | None:
    """A vote of first attempts against one of last attempts, at the same number of responses, by method."""
    rows = [row for row in measured.scaling if lines_of(row, 'vote', 'budget', 'parallel', 'sequential')][:8]
    if not rows:
        return None
    figure, grid = panels(look, len(rows), sharex=True, sharey=True, height=0.95)
    series = (('parallel', 'turn1', 'o', 'first attempts side by side'),
              ('sequential', 'turn2', 'D', 'last of attempts in a row'))
    budgets = set()
    for panel, row in zip(grid, rows):
        lines = lines_of(row, 'vote', 'budget', 'parallel', 'sequential')
        for key, colour, marker, _ in series:
            _band(panel, [line['budget'] for line in lines], lines, [key] * len(lines), look.colours[colour], marker)
        budgets |= {line['budget'] for line in lines}
        panel.set_title(shorten(row_label(row, rows), 20))
    for panel in grid:
        _powers(panel, sorted(budgets))
    figure.supxlabel(f'responses to a problem, {temperature_label(rows[0])}')
    figure.supylabel('majority vote, accuracy (%)')
    handles = [handle(look.colours[colour], label, marker) for _, colour, marker, label in series]
    figure.legend(handles=handles, loc='outside upper left', ncols=1, borderaxespad=0.2)
    return figure


CHARTS = (
    Chart(name='evaluation', title='All attempts of every method', draw=_evaluation, caption=(
        'Circle: first attempt; diamond: second; then others; bars: 95 % intervals. A later mark to the right of its '
        'circle is self-correction. Training should move all of them to the right of the base: a circle that moves '
        'left while the others stay is a gain bought by failing first.')),
    Chart(name='outcomes', title='What became of the first answers', draw=_transitions, caption=(
        'Delta is i → c less c → i: what was repaired less what was broken. Good correction has a small c → i.')),
    Chart(name='edit_distance', title='How far the last response is from the first', draw=_edit_distance, caption=(
        'Characters taken out and put in, over the characters of both; copies stand on the left. Colours are what '
        'became of the answer. All mass on the left is the collapse into copying; repairs far on the right are new '
        'attempts, near the left mended ones.')),
    Chart(name='difficulty', title='By difficulty', draw=_difficulty, caption=(
        'First and last attempt within groups of problems. Where the task names levels they are those; Countdown '
        'groups its problems by how many different chains solve them.')),
    Chart(name='unanswered', title='Cut off or without an answer', draw=_unanswered, caption=(
        'Both count as wrong. Many responses that are cut off call for a higher limit, many without an answer for a '
        'prompt that asks for the form that is read.')),
    Chart(name='attempts', title='Many attempts in a row', draw=_attempts, caption=(
        'Each attempt sees all before it. Beyond the number of turns that a model was trained on, it shows whether '
        'correction goes on, stands still or falls apart.')),
    Chart(name='pass_at_k', title='One right among k first attempts', draw=_pass_at_k, caption=(
        'The unbiased estimate from all samples. Where training only makes likely what the base could do already, the '
        'lines meet at large k.')),
    Chart(name='vote', title='Side by side, or in a row', draw=_vote, caption=(
        'Majority votes that cost the same number of responses: of first attempts, or of the last attempts of as many '
        'rows as that pays for. A tie counts as the mean of what is tied.')),
)
