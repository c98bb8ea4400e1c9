"""What a run prints: how far it is, samples of what the model wrote, and the closing table.

In a terminal a block at the bottom is kept up to date and tables of samples scroll by above it; elsewhere there is a
line every few steps. What a model wrote is shown with its control characters made visible, and never read as markup.
"""

from __future__ import annotations

import collections
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from score_jax.jsonl import number, plain

_COLUMNS = (('delta', 'delta'), ('i_to_c', 'i->c'), ('c_to_i', 'c->i'), ('changed', 'changed'))
_ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth')
_VERDICTS = {'correct': 'green', 'wrong': 'red'}
_SAMPLES = 4  # rows of a table of samples
_LONGEST = 160  # characters of a cell; longer text keeps its start and its end


_process = 0  # which of several processes this is; what all of them would say, the first one says


def of(process: int) -> None:
    """Of several processes, this is number `process`."""
    global _process
    _process = process


def say(text: str) -> None:
    """Prints a line at once, also into a pipe; of several processes the first one does."""
    if not _process:
        print(text, flush=True)


def say_here(text: str) -> None:
    """Prints what concerns this process, whichever it is."""
    print(f'process {_process}: {text}' if _process else text, flush=True)


class Steps:
    """How far a stage is: `with Steps(...) as steps:`, then `steps.add(...)` after every step.

    Shown are means over the last `every` steps; in a terminal also how far they lie from the stage's first `every`.

    Args:
      first: steps that were done before.
      history: lines of metrics.jsonl of these, oldest first.
    """

    def __init__(self, stage: str, steps: int, every: int, first: int, history: Iterable[Mapping] = ()):
        self._stage, self._steps, self._every, self._step = stage, steps, every, first
        # The block is drawn on another thread: what it reads is replaced as a whole, never changed in place.
        self._recent: tuple[Mapping, ...] = ()
        self._opening: tuple[Mapping, ...] = tuple(history)[:every]
        self._times: tuple[float, ...] = (time.monotonic(),)
        self._samples: Sequence[Mapping] = ()
        self._live = None
        if not _process and sys.stdout.isatty() and not (console := Console(highlight=False)).is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._block, vertical_overflow='visible')

    def __enter__(self) -> Steps:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._live:
            self._live.stop()

    def add(self, step: int, metrics: Mapping, samples: Sequence[Mapping] = ()) -> None:
        """Takes the metrics of step `step` (1 for the first), and its lines of samples.jsonl."""
        self._step = step
        self._recent = (*self._recent, metrics)[-self._every:]
        self._opening = (*self._opening, metrics)[:self._every]
        self._times = (*self._times, time.monotonic())[-self._every - 1:]
        self._samples = samples or self._samples
        if step % self._every and step != self._steps:
            return
        if not self._live:
            say(f'{self._head()}  {_figures(means(self._recent))}')
        elif self._samples:
            self._live.console.print(samples_table(self._samples[:_SAMPLES], f'{self._stage}, step {step}'))
            self._samples = ()

    def _rate(self) -> float:
        """Steps a second."""
        times = self._times
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    def _timing(self) -> str:
        rate = self._rate()
        left = round((self._steps - self._step) / rate) if rate else 0
        return f'{rate:5.2f} steps/s  {left // 60:>3}:{left % 60:02} left'

    def _head(self) -> str:
        return f'{self._stage:<8} {self._step:>5}/{self._steps}  {self._timing()}'

    def _block(self) -> RenderableType:
        """What stands at the bottom of a terminal."""
        recent = self._recent
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            Text(self._stage, 'bold'), ProgressBar(self._steps, self._step, width=24), f'{self._step}/{self._steps}',
            self._timing() if recent else 'the first step compiles')
        if not recent:
            return bar
        now = means(recent)
        if not _turn_names(now):
            return Group(bar, Text(f'  {_loss(now)}'))
        ascii_only = self._live.console.options.ascii_only
        opening = self._opening
        before = means(opening)
        since = Text.assemble(*(_moved(now, before, name, ascii_only) for name in (*_turn_names(now), 'delta')),
                              (f'against the first {len(opening)} steps', 'dim'))
        shares = '  '.join((f'KL {_kl(now)}', f'changed {100 * now["changed"]:.1f}', f'truncated {_truncated(now)}'))
        rollouts, tokens = (self._rate() * value for value in _amounts(recent))
        return Group(bar, since, Text(f'  {shares}  {_short(rollouts)} rollouts/s  {_short(tokens)} tokens/s'))


def means(lines: Iterable[Mapping]) -> dict[str, float]:
    """The mean of every figure, over the lines that have it."""
    values = collections.defaultdict(list)
    for line in lines:
        for name in line:
            if (value := number(line, name)) == value:  # not NaN
                values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _amounts(lines: Sequence[Mapping]) -> tuple[float, float]:
    """Rollouts and tokens of a step: how many responses each turn had, and how long they were on average."""
    rollouts = tokens = 0.0
    for line in lines:
        for name, outcomes in line.get('outcomes', {}).items():
            responses = sum(outcomes.values())
            tokens += responses * line.get(f'length_{name}', 0.0)
        rollouts += responses  # those of the last turn
    return rollouts / len(lines), tokens / len(lines)


def _figures(now: Mapping[str, float]) -> str:
    """A line without a terminal; what is as it should be (nothing truncated, nothing dropped) is left out."""
    if not _turn_names(now):
        return _loss(now)
    truncated = f'  truncated {_truncated(now)}' if re.search('[1-9]', _truncated(now)) else ''
    return (f'{turns(now)}  delta {100 * now["delta"]:+5.1f}  changed {100 * now["changed"]:4.1f}  KL {_kl(now)}'
            f'{truncated}{_dropped(now)}')


def _loss(now: Mapping[str, float]) -> str:
    """Where there is no accuracy: none is measured, or no rollout had a verdict."""
    return f'loss {now.get("loss", math.nan):.4f}{_dropped(now)}'


def _dropped(now: Mapping[str, float]) -> str:
    return f'  dropped {now["dropped"]:.1f} a step' if now.get('dropped') else ''


def _kl(now: Mapping[str, float]) -> str:
    return ' '.join(f'{now[name]:.3f}' for name in sorted(now) if name.startswith('kl_turn'))


def _truncated(now: Mapping[str, float]) -> str:
    return ' '.join(f'{100 * now[name]:.1f}' for name in sorted(now) if name.startswith('truncated_turn'))


def _moved(now: Mapping, before: Mapping, name: str, ascii_only: bool) -> Text:
    """`t2 58.8 ↑35.1`: a share in percent, and how far it has come."""
    change = 100 * (now[name] - before.get(name, now[name]))
    up, down, still = ('+', '-', '=') if ascii_only else ('↑', '↓', '→')
    arrow, style = (still, 'dim') if abs(change) < 0.05 else (up, 'green') if change > 0 else (down, 'red')
    value = f'{100 * now[name]:{"+" if name == "delta" else ""}.1f}'
    return Text.assemble(f'  {name} ', (value, 'bold'), ' ', (f'{arrow}{abs(change):.1f}', style), '  ')


def _short(value: float) -> str:
    return f'{value / 1000:.1f}k' if value >= 10_000 else f'{value:.0f}'


def _cut(text: object) -> str:
    """On one line, at most `_LONGEST` characters: the start and the end, where the answer stands."""
    text = ' '.join(plain(text).split())
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f'{text[:half]} … {text[-half:]}'


def samples_table(samples: Sequence[Mapping], title: str) -> Table:
    """Lines of samples.jsonl: problem, attempts, verdicts, and what the verifier read in each attempt."""
    table = Table(title=Text(title), title_justify='left', show_lines=True)
    count = max(len(sample['turns']) for sample in samples)
    table.add_column('problem', overflow='fold')
    for turn in range(count):
        table.add_column(_ORDINALS[turn] if turn < len(_ORDINALS) else f'attempt {turn + 1}', overflow='fold')
    table.add_column('verdicts', no_wrap=True)
    table.add_column('the verifier read', no_wrap=True, overflow='ellipsis')
    for sample in samples:
        attempts = sample['turns']
        same = [i > 0 and attempt['response'] == attempts[i - 1]['response'] for i, attempt in enumerate(attempts)]
        cells = [Text('the same', 'dim') if copied else Text(_cut(attempt['response']))
                 for attempt, copied in zip(attempts, same)]
        verdicts = Text('\n').join(
            Text(str(attempt['outcome']), _VERDICTS.get(attempt['outcome'], 'yellow')) for attempt in attempts)
        read = Text('\n').join(Text(_cut(attempt['read'] or '-')) for attempt in attempts)
        table.add_row(Text(_cut(sample['problem'])), *cells, *[''] * (count - len(cells)), verdicts, read)
    return table


def _turn_names(row: Mapping[str, float]) -> list[str]:
    return sorted((name for name in row if re.fullmatch(r't\d+', name)), key=lambda name: int(name[1:]))


def turns(row: Mapping[str, float]) -> str:
    """The accuracy of every turn in percent."""
    return '  '.join(f'{name} {100 * row[name]:4.1f}' for name in _turn_names(row))


def results_table(rows: list[dict]) -> None:
    """The final table: a row for each method and temperature, percent with 95 % intervals."""
    table = Table(title=f'{rows[0]["n"]} problems never seen in training; percent, 95 % intervals',
                  title_justify='left', show_lines=True)
    table.add_column('T')
    table.add_column('method')
    names = max((_turn_names(row) for row in rows), key=len)  # not every method has as many
    columns = (*((name, f'accuracy@{name}') for name in names), *_COLUMNS)
    for _, title in columns:
        table.add_column(title, justify='right')
    for row in rows:
        cells = []
        for name, _ in columns:
            sign = '+' if name == 'delta' else ''
            low, value, high = (100 * row.get(key, math.nan) for key in (f'{name}_low', name, f'{name}_high'))
            cells.append('' if math.isnan(value) else f'{value:{sign}.1f}\n[{low:{sign}.1f}, {high:{sign}.1f}]')
        temperature = f'{row["temperature"]:g}' if row['temperature'] else 'greedy'
        table.add_row(temperature, row['method'], *cells)
    if _process:
        return
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)
