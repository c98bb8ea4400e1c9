"""The charts of a report: a table of what is drawn, and the few functions that draw it.

`curves` is {stage: {key: array [N]}} with one entry a logged step and the key `step` always there; missing values
are NaN. `results` are the rows of results.json. Colours mean the same thing in every chart and on the page.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from score_jax.jsonl import number, plain

Curves = dict[str, dict[str, np.ndarray]]

# Blue and vermilion for the turns, green and purple for the better and the worse (Okabe and Ito's colour-blind
# safe set, lightened for the dark page). `face` is the background of the cards the charts lie on.
LIGHT = dict(face='#ffffff', ink='#1d2430', muted='#667085', grid='#e6e9ee',
             turn1='#0072b2', turn2='#d55e00', better='#00845f', worse='#a3457f')
DARK = dict(face='#191d24', ink='#e6e9ee', muted='#98a2b3', grid='#2c323c',
            turn1='#56b4e9', turn2='#f28e4b', better='#35c79b', worse='#dd8fbb')

WIDTH = 4.3  # inches; small enough that 9 pt text is still readable at the width of a phone
LABEL = 24  # characters of a method's name that a chart has room for
POINTS_RAW = 40  # up to this many points a curve is drawn as it is, beyond it is smoothed over faint raw points


@dataclass(frozen=True, kw_only=True)
class Line:
    key: str  # in metrics.jsonl; a key that results.json has too gets the level of the base
    label: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    name: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    caption: str
    scale: float = 1.0
    from_zero: bool = True
    supervised: bool = False  # drawn for the stages without turns instead of those with them


def _turns(key: str) -> tuple[Line, Line]:
    return (Line(key=f'{key}1', label='turn 1', colour='turn1'), Line(key=f'{key}2', label='turn 2', colour='turn2'))


CHARTS = (
    Chart(name='accuracy', title='Accuracy of both turns', unit='accuracy (%)', scale=100, from_zero=False,
          lines=_turns('t'),
          caption='Turn 2 above turn 1 is self-correction. Both lines should end above the base.'),
    Chart(name='delta', title='Gain of the second attempt', unit='delta (points)', scale=100, from_zero=False,
          lines=(Line(key='delta', label='delta = turn 2 − turn 1', colour='ink'),),
          caption='Above zero the second attempt helps. If delta rises while turn 1 falls in the chart before, the '
                  'model games the bonus: it fails on purpose to look better afterwards.'),
    Chart(name='transitions', title='Repaired and broken answers', unit='share of rollouts (%)', scale=100,
          lines=(Line(key='i_to_c', label='wrong → correct', colour='better'),
                 Line(key='c_to_i', label='correct → wrong', colour='worse')),
          caption='Delta is the first line minus the second. Real correction repairs more; a gain that only comes '
                  'from breaking less is the model learning to leave its answer alone.'),
    Chart(name='changed', title='Changed answers', unit='share of rollouts (%)', scale=100,
          lines=(Line(key='changed', label='answer differs between the turns', colour='ink'),),
          caption='Falling to near zero is the collapse into copying: the second turn repeats the first, and nothing '
                  'is left to learn from.'),
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


def draw_all(curves: Curves, results: list[dict], theme: dict[str, str]) -> dict[str, bytes]:
    """PNG bytes of every chart that has something to show, by name, `evaluation` first."""
    figures = {'evaluation': _evaluation(results, theme)}
    figures |= {chart.name: _chart(chart, curves, results, theme) for chart in CHARTS}
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def is_supervised(columns: dict[str, np.ndarray]) -> bool:
    """True for a stage that logs nothing that only turns have."""
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


def _chart(chart: Chart, curves: Curves, results: list[dict], theme: dict[str, str]) -> Figure | None:
    lines = [line for line in chart.lines if any(_visible(columns, line.key) for columns in curves.values())]
    stages = {stage: columns for stage, columns in curves.items()
              if is_supervised(columns) == chart.supervised and any(_visible(columns, line.key) for line in lines)}
    if not stages:
        return None
    base = {} if chart.supervised else base_row(results)
    # A short stage keeps enough width to be read beside a long one.
    steps = [columns['step'][-1] for columns in stages.values()]
    widths = [max(step / max(max(steps), 1), 0.4) for step in steps]
    figure = Figure(figsize=(WIDTH, 2.8), facecolor=theme['face'], layout='constrained')
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False, width_ratios=widths)[0]
    for panel, width, (stage, columns) in zip(panels, widths, stages.items()):
        _style(panel, theme)
        room = width / sum(widths)
        panel.set_title(_shorten(plain(stage), max(round(36 * room), 7)), fontsize=9.5, color=theme['muted'],
                        loc='left', parse_math=False)
        panel.xaxis.set_major_locator(MaxNLocator(max(round(6 * room), 2), steps=[1, 2, 5, 10], integer=True))
        if len(columns['step']) == 1:
            panel.set_xticks(columns['step'])
        for line in lines:
            _curve(panel, columns, line, chart.scale, theme)
            level = number(base, line.key) * chart.scale
            if math.isfinite(level):
                panel.axhline(level, color=theme[line.colour], linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.85)
        if any(line.key == 'delta' for line in lines):
            panel.axhline(0, color=theme['muted'], linewidth=0.8)
    if chart.from_zero and min(panel.dataLim.y0 for panel in panels) >= 0:
        # Estimates of a KL may lie below zero. Shares that are zero throughout get an axis of whole percents.
        panels[0].set_ylim(bottom=0, top=max(panels[0].get_ylim()[1], 1.0 if chart.scale == 100 else 0.0))
    panels[0].set_ylabel(chart.unit, fontsize=9.5, color=theme['ink'])
    figure.supxlabel('training step', fontsize=9.5, color=theme['ink'])
    handles = [Line2D([], [], color=theme[line.colour], linewidth=2, label=line.label) for line in lines]
    if any(math.isfinite(number(base, line.key)) for line in lines):
        handles.append(Line2D([], [], color=theme['muted'], linewidth=1.2, linestyle=(0, (4, 3)),
                              label='base' if number(base, 'temperature') == 1 else f'base, {temperature_label(base)}'))
    _legend(figure, handles, theme)
    return figure


def _evaluation(results: list[dict], theme: dict[str, str]) -> Figure | None:
    """Accuracy of both turns with intervals, a row for each method and a panel for each temperature."""
    results = [row for row in results if math.isfinite(number(row, 't1')) or math.isfinite(number(row, 't2'))]
    groups: dict[str, list[dict]] = {}
    for row in results:
        groups.setdefault(temperature_label(row), []).append(row)
    if not groups:
        return None
    heights = [len(rows) for rows in groups.values()]
    figure = Figure(figsize=(WIDTH, min(0.9 + 0.55 * len(groups) + 0.42 * len(results), 30)),
                    facecolor=theme['face'], layout='constrained')
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (temperature, rows) in zip(panels, groups.items()):
        _style(panel, theme, grid='x')
        panel.set_title(temperature, fontsize=9.5, color=theme['muted'], loc='left')
        labels = [_shorten(row_label(row, rows), LABEL) for row in rows]
        panel.set_yticks(range(len(rows)), labels, parse_math=False)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        for key, colour, marker, shift in (('t1', 'turn1', 'o', -0.13), ('t2', 'turn2', 'D', 0.13)):
            for place, row in enumerate(rows):
                low, value, high = (100 * number(row, name) for name in (f'{key}_low', key, f'{key}_high'))
                panel.plot([low, high], [place + shift] * 2, color=theme[colour], linewidth=2.2, alpha=0.45)
                panel.plot(value, place + shift, marker, color=theme[colour], markersize=6)
    panels[-1].set_xlabel('accuracy (%) with 95 % interval', fontsize=9.5, color=theme['ink'])
    _legend(figure, [Line2D([], [], color=theme['turn1'], marker='o', linewidth=2, label='turn 1'),
                     Line2D([], [], color=theme['turn2'], marker='D', linewidth=2, label='turn 2')], theme)
    return figure


def temperature_label(row: dict) -> str:
    temperature = number(row, 'temperature')
    if not math.isfinite(temperature):
        return 'temperature not given'
    return 'greedy' if temperature == 0 else f'temperature {temperature:g}'


def row_label(row: dict, rows: list[dict]) -> str:
    """The method, and its seed where `rows` has the method more than once."""
    method = str(row.get('method', '?'))
    repeated = sum(other.get('method') == row.get('method') for other in rows) > 1
    return plain(f"{method} · seed {row.get('seed', '?')}" if repeated else method)


def _shorten(label: str, longest: int) -> str:
    return label if len(label) <= longest else label[: longest - 1] + '…'


def _visible(columns: dict[str, np.ndarray], key: str) -> bool:
    return key in columns and bool(np.isfinite(columns[key]).any())


def _curve(panel: Axes, columns: dict[str, np.ndarray], line: Line, scale: float, theme: dict[str, str]) -> None:
    if not _visible(columns, line.key):
        return
    seen = np.isfinite(columns[line.key])
    steps, values = columns['step'][seen], columns[line.key][seen] * scale
    colour = theme[line.colour]
    if len(values) > POINTS_RAW:
        panel.plot(steps, values, '.', color=colour, markersize=3.2, alpha=0.3, markeredgewidth=0)
        panel.plot(steps, smooth(values), color=colour, linewidth=1.9)
    else:
        panel.plot(steps, values, color=colour, linewidth=1.9, marker='o', markersize=3)


def _style(panel: Axes, theme: dict[str, str], grid: str = 'y') -> None:
    panel.set_facecolor(theme['face'])
    panel.grid(axis=grid, color=theme['grid'], linewidth=0.8)
    panel.set_axisbelow(True)
    for side in panel.spines:
        panel.spines[side].set_visible(side == 'bottom')
        panel.spines[side].set_color(theme['muted'])
    panel.tick_params(colors=theme['muted'], labelcolor=theme['ink'], labelsize=9, length=3, left=False)


def _legend(figure: Figure, handles: list[Line2D], theme: dict[str, str]) -> None:
    figure.legend(handles=handles, loc='outside upper left', ncols=len(handles), frameon=False, fontsize=9,
                  labelcolor=theme['ink'], handlelength=1.8, columnspacing=1.4, borderaxespad=0.2)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=190, facecolor=figure.get_facecolor())
    return buffer.getvalue()
