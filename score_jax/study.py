"""Several methods over several seeds: the paper's tables 2 and 4 in miniature, beside the paper's own figures.

Reads WORKDIR/seedN/results.json of every seed that has one; writes

    WORKDIR/study.json    the rows of all seeds as they stand in results.json, without their tables by group and their
                          histograms; Stage II is named `score`
    WORKDIR/study.md      the tables
    WORKDIR/study.html    the tables and the figures in one page
    WORKDIR/study.pdf     the figures, for print

Intervals are over seeds: Student's t, 95 %, of the mean; for a difference from SCoRe, of the mean over seeds of the
difference at the same seed, which shares its base and its problems.
"""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from score_jax.errors import UserError
from score_jax.metrics import CONFIDENCE
from score_jax.workdir import write_json

SCORE = 'score'
_LEFT_OUT = ('by', 'edit_histogram')
_NOTHING = 1.0  # points of delta that count as none
FIGURES = ('t1', 't2', 'delta', 'i_to_c', 'c_to_i', 'changed')
_HEADS = ('accuracy@t1', 'accuracy@t2', 'delta', 'i->c', 'c->i', 'changed')


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the tables: its name for people; the paper's t1, t2, delta, i->c, c->i (MATH500, percent; ICLR 2025).

    NaN is what the paper shows in a figure only.
    """

    label: str
    paper: tuple[float, ...] = ()


METHODS = {
    'base': Method('base', (52.6, 41.4, -11.2, 4.6, 15.8)),
    'self_refine': Method('Self-Refine', (52.8, 51.8, -1.0, 3.2, 4.2)),
    'star': Method('STaR', (55.4, 41.2, -14.2, 5.4, 19.6)),
    'star_correct': Method('STaR, correct->correct pairs too', (53.6, 54.0, 0.4, 2.6, 2.2)),
    'pair_sft': Method('Pair-SFT', (52.4, 54.2, 1.8, 5.4, 3.6)),
    'pair_sft_correct': Method('Pair-SFT, correct->correct pairs too', (55.0, 55.0, 0.0, 0.0, 0.0)),
    'single_turn': Method('single-turn RL', (61.8, 59.4, -2.4)),
    'multi_turn': Method('multi-turn RL', (math.nan, math.nan, 0.0)),
    'stage1': Method('Stage I'),
    SCORE: Method('SCoRe', (60.0, 64.4, 4.4, 5.8, 1.4)),
    'without_stage1': Method('SCoRe without Stage I', (59.2, 61.4, 2.2)),
    'without_bonus': Method('SCoRe without the bonus', (60.0, 62.6, 2.6)),
    'star_stage2': Method('STaR in place of RL in Stage II', (56.2, 58.4, 2.2)),
    'offline': Method('SCoRe, only offline first attempts', (60.4, 60.6, 0.2)),
}


def folder(workdir: Path, seed: int) -> Path:
    """The workdir of one seed."""
    return workdir / f'seed{seed}'


def collect(workdir: Path) -> list[dict]:
    """The rows of all seeds, those of Stage II under the name `score`.

    Raises:
      UserError: no seed has results.
    """
    paths = sorted(workdir.glob('seed*/results.json'), key=lambda path: int(re.sub(r'\D', '', path.parent.name) or 0))
    rows = [row for path in paths for row in json.loads(path.read_text())]
    if not rows:
        raise UserError(f'{workdir} has no seedN/results.json; run configs/study.py first.')
    rows = [{key: value for key, value in row.items() if key not in _LEFT_OUT} for row in rows]
    return [row | {'method': SCORE if row['method'] == 'stage2' else row['method']} for row in rows]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over so many seeds with its interval; the interval is NaN for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval of `values [seeds]`."""
    values = np.asarray(values, float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(mean, float('nan'), float('nan'), n)
    reach = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - reach, mean + reach, n)


def summary(rows: Sequence[Mapping], temperature: float) -> dict[str, dict[str, Estimate]]:
    """By method and figure the estimate over seeds; `t2_below` and `delta_below` are how far it is below SCoRe."""
    found: dict[str, dict[int, Mapping]] = {}
    for row in rows:
        if row['temperature'] == temperature:
            found.setdefault(row['method'], {})[row['seed']] = row
    table = {}
    for method in sorted(found, key=lambda name: list(METHODS).index(name) if name in METHODS else len(METHODS)):
        seeds = found[method]
        table[method] = {key: estimate([row[key] for row in seeds.values()]) for key in FIGURES}
        both = seeds.keys() & found.get(SCORE, {}).keys()
        if method != SCORE and both:
            for key in ('t2', 'delta'):
                table[method][f'{key}_below'] = estimate([found[SCORE][seed][key] - seeds[seed][key] for seed in both])
    return table


def write(workdir: Path) -> list[Path]:
    """Writes study.json, study.md, study.html and study.pdf from the seeds that have results; returns their paths."""
    rows = collect(workdir)
    paths = [workdir / f'study.{ending}' for ending in ('json', 'md', 'html', 'pdf')]
    write_json(paths[0], rows)
    text = tables(rows)
    paths[1].write_text(text)
    paths[2].write_text(_page(text, _svg(draw(rows))))
    draw(rows).savefig(paths[3], format='pdf', metadata={'CreationDate': None})
    return paths


# --- tables


def tables(rows: Sequence[Mapping]) -> str:
    """A table for each temperature, in Markdown."""
    seeds = sorted({row['seed'] for row in rows})
    parts = [f'Percent; mean over seeds {", ".join(map(str, seeds))} with 95 % intervals over seeds; `seeds` says how '
             'many of them have the method. "below SCoRe" is the paired difference at the same seed. "as in the '
             'paper": whether the intervals of delta and of t2 below SCoRe lie on the paper\'s side of 0. Paper: '
             'MATH500, greedy (arXiv 2409.12917).\n']
    for temperature in sorted({row['temperature'] for row in rows}, reverse=True):
        these = [row for row in rows if row['temperature'] == temperature]
        name = f'temperature {temperature:g}' if temperature else 'greedy'
        size, each = (
            '/'.join(map(str, sorted({row.get(key, 1) for row in these}))) for key in ('n', 'samples_per_problem'))
        size += ' held-out problems a seed' + ('' if each == '1' else f', {each} samples of each')
        parts += [f'## {name[0].upper() + name[1:]}, {size}\n',
                  _table(summary(rows, temperature)), '']
    return '\n'.join(parts)


def _table(table: Mapping[str, Mapping[str, Estimate]]) -> str:
    heads = ['method', 'seeds', *_HEADS, 't2 below SCoRe', 'delta below SCoRe', 'as in the paper',
             'paper: t1 / t2 / delta', 'i->c / c->i']
    lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
    for name, row in table.items():
        paper = METHODS[name].paper if name in METHODS else ()
        cells = [METHODS[name].label if name in METHODS else name, str(row['t2'].seeds)]
        cells += [_cell(row[key], signed=key == 'delta') for key in FIGURES]
        cells += [_cell(row.get(f'{key}_below'), signed=True) for key in ('t2', 'delta')]
        cells.append(agreement(row, paper))
        cells += [' / '.join('-' if math.isnan(value) else f'{value:g}' for value in part)
                  for part in (paper[:3], paper[3:])]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def agreement(row: Mapping[str, Estimate], paper: Sequence[float]) -> str:
    """Whether delta, and t2 beside SCoRe's, go the way they go in the paper; '' where it has no such method.

    'open' is an interval over seeds that holds 0, or none. A delta of the paper within a point of 0 is no gain, and so
    is ours then if its mean is.
    """
    if not paper:
        return ''
    own, delta = row['delta'], paper[2]
    if abs(delta) < _NOTHING:
        found = ['delta ' + ('yes' if 100 * abs(own.mean) < _NOTHING else 'no')]
    else:
        found = ['delta ' + _side(own, delta)]
    if (below := row.get('t2_below')) and not math.isnan(paper[1]):
        found.append('t2 ' + _side(below, METHODS[SCORE].paper[1] - paper[1]))
    return ', '.join(found)


def _side(value: Estimate, paper: float) -> str:
    """Whether the interval lies on the side of 0 that the paper's figure is on."""
    low, high = (value.low, value.high) if paper > 0 else (-value.high, -value.low)
    return 'yes' if low > 0 else 'no' if high < 0 else 'open'


def _cell(value: Estimate | None, signed: bool) -> str:
    if value is None:
        return ''
    def percent(x):
        return f'{100 * x:+.1f}' if signed else f'{100 * x:.1f}'
    return percent(value.mean) + (f' [{percent(value.low)}, {percent(value.high)}]' if np.isfinite(value.low) else '')


# --- figures


def draw(rows: Sequence[Mapping]):
    """One page: both attempts' accuracy, their difference and transitions, by method, with intervals over seeds."""
    from matplotlib.figure import Figure  # here, since a run needs it at its end alone
    temperatures = sorted({row['temperature'] for row in rows}, reverse=True)
    figure = Figure(figsize=(7.2, 3.4 * len(temperatures)), layout='constrained')
    grid = figure.subplots(len(temperatures), 3, squeeze=False, sharey='row')
    for panels, temperature in zip(grid, temperatures):
        table = summary(rows, temperature)
        labels = [METHODS[name].label if name in METHODS else name for name in table]
        places = np.arange(len(table))[::-1]
        title = f'T = {temperature:g}' if temperature else 'greedy'
        series = (
            ('accuracy (%), ' + title, (('t1', '#7f7f7f', 'o'), ('t2', '#0072b2', 's'))),
            ('t2 - t1 (points)', (('delta', '#009e73', 'D'),)),
            ('transitions (%)', (('i_to_c', '#0072b2', '^'), ('c_to_i', '#d55e00', 'v'))))
        for panel, (name, lines) in zip(panels, series):
            for key, colour, marker in lines:
                values = [row[key] for row in table.values()]
                means = 100 * np.array([value.mean for value in values])
                reach = 100 * np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T
                panel.errorbar(means, places, xerr=np.nan_to_num(np.maximum(reach, 0)), fmt=marker, color=colour,
                               markersize=3.5, linewidth=0.8, capsize=1.5, label=key.replace('_to_', '->'))
            panel.set_xlabel(name, fontsize=7)
            panel.set_yticks(places, labels, fontsize=6.5)
            panel.tick_params(axis='x', labelsize=6.5)
            panel.grid(axis='x', linewidth=0.3)
            panel.spines[['top', 'right']].set_visible(False)
            if len(lines) > 1:
                panel.legend(fontsize=6, frameon=False)
        panels[1].axvline(0, color='black', linewidth=0.6)
    return figure


def _svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format='svg', metadata={'Date': None})
    return text.getvalue()[text.getvalue().index('<svg'):]


def _page(text: str, svg: str) -> str:
    body, rows = [], []
    for line in [*text.splitlines(), '']:
        if line.startswith('|'):
            if not line.startswith('|---'):
                rows.append([html.escape(cell.strip()) for cell in line.strip('|').split('|')])
            continue
        if rows:
            body.append('<table>' + ''.join(
                '<tr>' + ''.join(f'<{tag}>{cell}</{tag}>' for cell in row) + '</tr>'
                for tag, row in zip(['th', *['td'] * len(rows)], rows)) + '</table>')
            rows = []
        if line.startswith('## '):
            body.append(f'<h2>{html.escape(line[3:])}</h2>')
        elif line:
            body.append(f'<p>{html.escape(line)}</p>')
    style = ('body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}'
             'table{border-collapse:collapse;font-size:12px}td,th{padding:.2rem .6rem;text-align:left;'
             'border-bottom:1px solid #ccc}svg{width:100%;height:auto}')
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><title>Study</title>'
            f'<style>{style}</style><h1>Methods side by side</h1>{"".join(body)}{svg}</html>\n')
