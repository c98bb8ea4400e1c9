"""The charts of a report: a table of the curves that are drawn, and the few functions that draw them.

`curves` is {stage: {key: array [N]}} with one entry a logged step and the key `step` always there; missing values
are NaN. Colours mean the same thing in every chart and on the page. `plots_evaluation.py` draws what was measured.
"""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from score_jax import plot_style
from score_jax.jsonl import number, plain
from score_jax.plot_style import Look, handle

Curves = dict[str, dict[str, np.ndarray]]

POINTS_RAW = 40  # up to this many points a curve is drawn as it is, beyond it is smoothed over faint raw points
_DASHED = (0, (4, 3))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: a key of metrics.jsonl, and how it is called and drawn."""
    key: str  # in metrics.jsonl; a key that results.json has too gets the level of the base
    label: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of the report and of `watch`: its lines, and the words beside it."""
    name: str
    title: str
    unit: str
    lines: tuple[Line, ...]  # those that nothing was logged for are left out
    caption: str
    scale: float = 1.0
    from_zero: bool = True
    supervised: bool = False  # drawn for the stages without turns instead of those with them


def _turns(key: str) -> tuple[Line, ...]:
    return tuple(Line(key=f'{key}{turn}', label=f'turn {turn}', colour=f'turn{turn}') for turn in range(1, 5))


CHARTS = (
    Chart(name='accuracy', title='Accuracy by turn', unit='accuracy (%)', scale=100, from_zero=False,
          lines=_turns('t'),
          caption='A later turn above turn 1 is self-correction. All lines should end above the base.'),
    Chart(name='delta', title='Gain of the last attempt', unit='delta (points)', scale=100, from_zero=False,
          lines=(Line(key='delta', label='delta = last turn − turn 1', colour='ink'),),
          caption='Above zero the later attempts help. If delta rises while turn 1 falls in the chart before, the '
                  'model games the bonus: it fails on purpose to look better afterwards.'),
    Chart(name='transitions', title='Repaired and broken answers', unit='share of rollouts (%)', scale=100,
          lines=(Line(key='i_to_c', label='wrong → correct', colour='better'),
                 Line(key='c_to_i', label='correct → wrong', colour='worse')),
          caption='Delta is the first line minus the second. Real correction repairs more; a gain that only comes '
                  'from breaking less is the model learning to leave its answer alone.'),
    Chart(name='changed', title='Changed answers', unit='share of rollouts (%)', scale=100,
          lines=(Line(key='changed', label='the last answer differs from the first', colour='ink'),),
          caption='Falling to near zero is the collapse into copying: later turns repeat the first, and nothing is '
                  'left to learn from.'),
    Chart(name='kl', title='Distance from the base', unit='KL (nats per response)',
          lines=_turns('kl_turn'),
          caption='How far each turn has moved from the base model. Stage I should hold turn 1 near zero while turn 2 '
                  'moves; a sudden climb is drift away from the language of the base.'),
    Chart(name='entropy', title='Entropy', unit='entropy (nats per token)',
          lines=_turns('entropy_turn'),
          caption='How much the samples still vary. Near zero every sample is the same, and there is no better one to '
                  'learn from.'),
    Chart(name='lengths', title='Length of the responses', unit='tokens per response',
          lines=_turns('length_turn'),
          caption='Sudden growth or shrinkage is often a trick rather than better reasoning: read the transcripts.'),
    Chart(name='truncation', title='Truncated responses', unit='share of rollouts (%)', scale=100,
          lines=_turns('truncated_turn'),
          caption='Responses cut off at the token limit; they count as wrong. More than a few percent calls for a '
                  'higher limit.'),
    Chart(name='base_loss', title='Supervised loss of the base', unit='loss (nats per token)', supervised=True,
          from_zero=False, lines=(Line(key='loss', label='training loss', colour='ink'),),
          caption='Should fall and flatten. Still falling steeply at the end: the base was stopped early.'),
)


def draw(curves: Curves, results: list[dict], look: Look) -> dict[str, bytes]:
    """The files of all charts that have something to show, by name, in the order of `CHARTS`.

    `results`: rows of results.json, for the level of the base.
    """
    with look.applied():
        figures = {chart.name: _chart(chart, curves, results, look) for chart in CHARTS}
        return {name: look.saved(figure) for name, figure in figures.items() if figure is not None}


def is_supervised(columns: dict[str, np.ndarray]) -> bool:
    """True for a stage that logs nothing that only turns have; `columns` are `[N]`, by step."""
    return not any(key in columns for key in ('t1', 't2', 'delta', 'reward', 'kl_turn1', 'kl_turn2'))


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about a twentieth of the [N] points; NaN are left out, ends use what they have."""
    half = len(values) // 40
    window = np.ones(2 * half + 1)
    seen = np.isfinite(values)
    total = np.convolve(np.where(seen, values, 0.0), window)[half : half + len(values)]
    count = np.convolve(seen.astype(float), window)[half : half + len(values)]
    return np.where(seen, total / np.maximum(count, 1), np.nan)


def base_row(results: list[dict]) -> dict:
    """The base's row at the temperature nearest to that of training (1), or an empty row."""
    rows = [row for row in results if row.get('method') == 'base' and math.isfinite(number(row, 'temperature'))]
    return min(rows, key=lambda row: abs(number(row, 'temperature') - 1.0), default={})


def _chart(chart: Chart, curves: Curves, results: list[dict], look: Look) -> Figure | None:
    lines = [line for line in chart.lines if any(_visible(columns, line.key) for columns in curves.values())]
    stages = {stage: columns for stage, columns in curves.items()
              if is_supervised(columns) == chart.supervised and any(_visible(columns, line.key) for line in lines)}
    if not stages:
        return None
    base = {} if chart.supervised else base_row(results)
    # A short stage keeps enough width to be read beside a long one.
    steps = [columns['step'][-1] for columns in stages.values()]
    widths = [max(step / max(max(steps), 1), 0.4) for step in steps]
    figure = Figure(figsize=(look.width, 0.65 * look.width), layout='constrained')
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False, width_ratios=widths)[0]
    for panel, width, (stage, columns) in zip(panels, widths, stages.items()):
        panel.grid(axis='y')
        room = width / sum(widths)
        panel.set_title(plot_style.shorten(plain(stage), max(round(36 * room), 7)))
        panel.xaxis.set_major_locator(MaxNLocator(max(round(6 * room), 2), steps=[1, 2, 5, 10], integer=True))
        if len(columns['step']) == 1:
            panel.set_xticks(columns['step'])
        for line in lines:
            _curve(panel, columns, line, chart.scale, look)
            level = number(base, line.key) * chart.scale
            if math.isfinite(level):
                panel.axhline(level, color=look.colours[line.colour], linewidth=1.2, linestyle=_DASHED, alpha=0.85)
        if any(line.key == 'delta' for line in lines):
            panel.axhline(0, color=look.colours['muted'], linewidth=0.8)
    if chart.from_zero and min(panel.dataLim.y0 for panel in panels) >= 0:
        # Estimates of a KL may lie below zero. Shares that are zero throughout get an axis of whole percents.
        panels[0].set_ylim(bottom=0, top=max(panels[0].get_ylim()[1], 1.0 if chart.scale == 100 else 0.0))
    panels[0].set_ylabel(chart.unit)
    figure.supxlabel('training step')
    handles = [handle(look.colours[line.colour], line.label) for line in lines]
    if any(math.isfinite(number(base, line.key)) for line in lines):
        label = 'base' if number(base, 'temperature') == 1 else f'base, {plot_style.temperature_label(base)}'
        handles.append(handle(look.colours['muted'], label, style=_DASHED))
    plot_style.legend(figure, handles)
    return figure


def _visible(columns: dict[str, np.ndarray], key: str) -> bool:
    return key in columns and bool(np.isfinite(columns[key]).any())


def _curve(panel: Axes, columns: dict[str, np.ndarray], line: Line, scale: float, look: Look) -> None:
    if not _visible(columns, line.key):
        return
    seen = np.isfinite(columns[line.key])
    steps, values = columns['step'][seen], columns[line.key][seen] * scale
    colour = look.colours[line.colour]
    if len(values) > POINTS_RAW:
        panel.plot(steps, values, '.', color=colour, markersize=3.2, alpha=0.3, markeredgewidth=0)
        panel.plot(steps, smooth(values), color=colour, linewidth=1.9)
    else:
        panel.plot(steps, values, color=colour, linewidth=1.9, marker='o', markersize=3)
