"""benchmarks/RESULTS.md: hardware, versions, the tables, and how to read them."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from benchmarks.speed import measure, table, workloads
from benchmarks.speed.sides import OURS, SIDES

_RATES = {
    'decode body': 'layers, a token of each row', 'decode head': 'head, a token of each row',
    'forward': 'layers, many tokens', 'weights': 'gradient of weights', 'bandwidth': 'reading memory (GB/s)'}
_READ = '''The sides are processes of their own. Each gets warm, then they take turns, A B C A B C,
one at work at a time; medians are over repetitions. Tokens/s are sampled tokens that are of use: none after a row's
end. "Faster by" is a side's seconds over score_jax's. The limit is the arithmetic that the method needs (no padding,
nothing twice) at the highest rate at which a library runs the very products of the workload here, or the bytes that
must be read at the highest rate of reading, whichever takes longer. Peak memory is that of the whole process in a
repetition, weights and libraries included. "Compiled in" is empty for a side that compiles nothing. The figures of W4
are those of one step; what `docs/speed.md` says of each workload and peer belongs to the table.'''


def markdown(results: dict) -> str:
    """The page."""
    settings = results['settings']
    parts = ['# The speed of a two-turn step', f'`{settings["command"]}`', _machine(results, settings), '## The sides']
    lines, limits = [], results['limits']
    for name, sides in results['workloads'].items():
        work = workloads.WORKLOADS.get(name)
        if work and settings['quick']:
            work = workloads.quick(work)
        rates = limits.get(measure.limits_of(name)) if name != 'devices' else None
        part = next(side.part for side in SIDES if side.workload == name)
        lines += table.rows(name, part, sides, table.best_limits(rates) if rates else None, work if rates else None)
        if name == 'step':
            lines += [(name, label, f'{value:.3g} s', '', *table.ratio(value, sides), '', '', '')
                      for label, value in table.summed(results['workloads'])]
    if lines:
        parts += [table.sides_table(lines), '## Ratios', '\n'.join(f'- {line}' for line in ratios(results)), _READ]
    for name, rates in limits.items():
        parts += [f'## What the machine does at most, in the shapes of {name} (GFLOP/s)',
                  table.limits_table(rates, _RATES)]
    return '\n\n'.join([*parts, *results['notes']]) + '\n'


def _machine(results: dict, settings: dict) -> str:
    info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    model = re.search(r'model name\s*: (.*)', info)
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    versions = [
        f'{name or "score_jax " + results["revision"]}: '
        + ', '.join(f'{package} {version}' for package, version in each.items())
        for name, each in results['versions'].items()]
    return (
        f'{results["date"]}; {model[1] if model else platform.processor()}, {settings["threads"]} threads, '
        f'{memory:.0f} GiB; {"wall" if settings["clock"] == "wall" else "processor"} time; {settings["repeats"]} '
        f'repetitions; {results["minutes"]:.0f} minutes in all.\n\n' + '\n'.join(f'- {line}' for line in versions))


def ratios(results: dict) -> list[str]:
    """One line for each comparison that there are figures for."""
    lines = []
    for name, sides in results['workloads'].items():
        ours, peers = sides[OURS], {key: value for key, value in sides.items() if key != OURS}
        middle, kept = table.seconds(ours), table.repeats(ours)
        known = {key: table.seconds(value) for key, value in peers.items() if table.seconds(value)}
        if name == 'devices':
            lines += devices(sides)
        elif middle and known:
            best = min(known, key=known.get)
            lines.append(f'{name}: {known[best] / middle:.2f} x as fast as the best other ({best})')
        if kept and len(kept[0].get('turns', ())) == 2:
            turns = sorted(figures['turns'][1] / figures['turns'][0] for figures in kept)
            lines.append(f'{name}: turn 2 takes {turns[len(turns) // 2]:.3f} of the time of turn 1')
        if name == 'W2' and kept:
            memory = {key: max(x['peak'] for x in table.repeats(value)) for key, value in peers.items()
                      if table.repeats(value)}
            own = max(x['peak'] for x in kept)
            lines += [f'{name}: {own / value:.2f} of the peak memory of {key}' for key, value in memory.items()]
            norms = {key: next((x['grad_norm'] for x in value if 'grad_norm' in x), None)
                     for key, value in sides.items()}
            lines.append(f'{name}: norm of the gradient on the first weights: '
                         + ', '.join(f'{key} {norm:.5g}' for key, norm in norms.items() if norm))
        again = sum(figures.get('programs', 0) for figures in kept)
        if kept and 'programs' in kept[0]:
            lines.append(f'{name}: {again} programs compiled after the first repetition')
        lines += [f'{name}: {key} samples in {x[len(x) // 2]:.3g} s of its step' for key, value in peers.items()
                  if (x := sorted(figures['rollout'] for figures in table.repeats(value) if 'rollout' in figures))]
        for key, value in peers.items():
            if kept and 'first' in kept[0] and table.repeats(value):
                apart = max(abs(kept[0]['first'][k] - table.repeats(value)[0]['first'][k]) for k in kept[0]['first'])
                lines.append(f'{name}: the figures of the first step differ by {apart:.1g} at most from those {key}')
    return lines


def devices(sides: dict[str, list[dict]]) -> list[str]:
    """What 8 virtual devices, which share this machine's cores, take longer than one, and what collectives explain."""
    one, eight, alone = map(table.seconds, sides.values())
    if not (one and eight and alone):
        return []
    return [f'devices: 8 virtual devices take {eight:.3g} s where one takes {one:.3g} s ({eight / one:.2f} x); what '
            f'they tell each other takes {alone:.3g} s by itself']
