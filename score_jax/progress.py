"""What a run prints: one line every few steps, and the closing table."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

_COLUMNS = (('delta', 'delta'), ('i_to_c', 'i->c'), ('c_to_i', 'c->i'), ('changed', 'changed'))


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


class StepLines:
    """Prints a line every `every` steps: means since the last line, speed, and the time that is left."""

    def __init__(self, stage: str, steps: int, every: int, first: int):
        self._stage, self._steps, self._every = stage, steps, every
        self._sums: dict[str, float] = {}
        self._since, self._last = time.monotonic(), first

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of step `step` (1 for the first)."""
        for name, value in metrics.items():
            if not isinstance(value, (int, float)):
                continue
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self._every and step != self._steps:
            return
        now, count = time.monotonic(), step - self._last
        rate = count / max(now - self._since, 1e-9)
        left = round((self._steps - step) / rate)
        means = {name: value / count for name, value in self._sums.items()}
        say(f'{self._stage:<8} {step:>5}/{self._steps}  {rate:5.2f} steps/s  {left // 60:>3}:{left % 60:02} left  '
            f'{_figures(means)}')
        self._sums, self._since, self._last = {}, now, step


def _figures(means: Mapping[str, float]) -> str:
    if 't1' not in means:
        return f'loss {means["loss"]:.4f}'
    kl = ' '.join(f'{value:.3f}' for name, value in sorted(means.items()) if name.startswith('kl_turn'))
    return (f'{turns(means)}  delta {100 * means["delta"]:+5.1f}  changed {100 * means["changed"]:4.1f}  KL {kl}')


def _turn_names(row: Mapping[str, float]) -> list[str]:
    return sorted((name for name in row if re.fullmatch(r't\d+', name)), key=lambda name: int(name[1:]))


def turns(row: Mapping[str, float]) -> str:
    """The accuracy of every turn in percent."""
    return '  '.join(f'{name} {100 * row[name]:4.1f}' for name in _turn_names(row))


def results_table(rows: list[dict]) -> None:
    """The final table: a row for each method and temperature, percent with 95 % intervals."""
    table = Table(title=f'{rows[0]["n"]} problems never seen in training; percent, 95 % intervals', title_justify='left',
                  show_lines=True)
    table.add_column('T')
    table.add_column('method')
    columns = (*((name, f'accuracy@{name}') for name in _turn_names(rows[0])), *_COLUMNS)
    for _, title in columns:
        table.add_column(title, justify='right')
    for row in rows:
        cells = []
        for name, _ in columns:
            sign = '+' if name == 'delta' else ''
            low, value, high = (100 * row[key] for key in (f'{name}_low', name, f'{name}_high'))
            cells.append(f'{value:{sign}.1f}\n[{low:{sign}.1f}, {high:{sign}.1f}]')
        temperature = f'{row["temperature"]:g}' if row['temperature'] else 'greedy'
        table.add_row(temperature, row['method'], *cells)
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)
