"""From figures to the tables of RESULTS.md."""

from __future__ import annotations

import statistics

from benchmarks.speed import workloads
from benchmarks.speed.sides import OURS

GIB = 2**30
_HEAD = ('workload', 'side', 'median', 'lowest to highest', 'score_jax is faster by', 'share of the limit',
         'peak memory', 'compiled in')


def best_limits(limits: dict[str, dict[str, float]]) -> dict[str, float]:
    """The highest rate of any library, by name."""
    return {key: max(rates[key] for rates in limits.values()) for key in next(iter(limits.values()))}


def limit_seconds(part: str, limits: dict[str, float], work: workloads.Workload) -> float:
    """The least time in which the machine can do the arithmetic of a workload, or read what it must."""
    update = sum(count / limits[key] for key, count in workloads.update_flops(work).items())
    if part == 'update':
        return update
    flops = workloads.rollout_flops(work)
    compute = sum(count / limits[{'prefill': 'forward'}.get(key, key)] for key, count in flops.items())
    rollout = max(compute, workloads.rollout_bytes(work) / limits['bandwidth'])
    return rollout + update if part == 'step' else rollout


def repeats(found: list[dict]) -> list[dict]:
    """The figures of the repetitions that count, the warm-up not among them."""
    return [figures for figures in found[1:] if 'failed' not in figures]


def seconds(found: list[dict]) -> float | None:
    """The median of the repetitions; None where there is none."""
    each = [figures['seconds'] for figures in repeats(found)]
    return statistics.median(each) if each else None


def compile_seconds(found: list[dict]) -> float | None:
    """What jax says, or how much longer the first call took than the others where it was a whole one."""
    if 'compile' in found[0]:
        return found[0]['compile']
    middle = seconds(found)
    return max(found[0]['seconds'] - middle, 0) if middle and found[0].get('whole') else None


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _share(value: float | None) -> str:
    return f'{100 * value:.0f} %' if value is not None else ''


def rows(
    workload: str, part: str, found: dict[str, list[dict]], limits, work: workloads.Workload | None) -> list[tuple]:
    """One of each side; rollouts as tokens a second, all else as seconds."""
    made = []
    least = limit_seconds(part, limits, work) if work else None
    for name, figures in found.items():
        middle = seconds(figures)
        if middle is None:
            made.append((workload, name, 'failed: ' + figures[-1].get('failed', 'no repetition'), *[''] * 5))
            continue
        kept = repeats(figures)
        values = [x['seconds'] / x.get('steps', 1) for x in kept]
        unit = 's'
        if part == 'rollout':
            values, unit = [x['tokens'] / x['seconds'] for x in kept], 'tokens/s'
        compiled = compile_seconds(figures)
        made.append((
            workload, name, f'{_number(statistics.median(values))} {unit}',
            f'{_number(min(values))} to {_number(max(values))}',
            *(('',) if name == OURS else ratio(middle, found)),
            _share(least / middle if least else None),
            f'{max(x["peak"] for x in kept) / GIB:.2f} GiB',
            f'{compiled:.1f} s' if compiled else ''))
    if least and part == 'rollout':
        made.append((workload, 'the limit', f'{_number(work.sampled / least)} tokens/s', *[''] * 5))
    elif least:
        made.append((workload, 'the limit', f'{_number(least)} s', *[''] * 5))
    return made


def ratio(value: float, found: dict[str, list[dict]]) -> tuple[str, ...]:
    """The cell that says how much longer it takes than score_jax."""
    ours = seconds(found.get(OURS, [{}]))
    return (f'{value / ours:.2f} x' if ours else '',)


def summed(figures: dict[str, dict[str, list[dict]]]) -> list[tuple[str, float]]:
    """Whole steps of those that have none of their own: their best rollout in W1 and their best update in W2."""
    made = []
    for label, rollout, update in (
        ('transformers and PyTorch', 'transformers', 'PyTorch'), ('Tunix', 'Tunix', 'Tunix')):
        best = [min((seconds(found) for name, found in figures.get(workload, {}).items()
                     if name.startswith(start) and seconds(found)), default=None)
                for workload, start in (('W1', rollout), ('W2', update))]
        if all(best):
            made.append((f'{label}, W1 + W2', sum(best)))
    return made


def markdown(head: tuple[str, ...], lines: list[tuple]) -> str:
    """A table."""
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in (head, ['---'] * len(head), *lines))


def sides_table(lines: list[tuple]) -> str:
    """Of `rows`."""
    return markdown(_HEAD, lines)


def limits_table(limits: dict[str, dict[str, float]], scale: dict[str, str]) -> str:
    """Rates by library, the best one last."""
    best = best_limits(limits)
    return markdown(('', *limits, 'best'), [
        (label, *(f'{rates[key] / 1e9:.1f}' for rates in limits.values()), f'**{best[key] / 1e9:.1f}**')
        for key, label in scale.items()])
