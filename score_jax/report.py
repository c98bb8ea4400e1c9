"""The report of a run: one self-contained HTML page, from whatever the workdir holds so far.

Reads WORKDIR/{results,attempts,scaling}.json, WORKDIR/STAGE/{metrics.jsonl,config.json,samples.jsonl} and
WORKDIR/evaluation/samples.jsonl, none of which has to exist or be whole; writes WORKDIR/report.html and
WORKDIR/report/*.png, and as *.pdf the same figures for print, and nothing else.
Does not import jax, so it runs beside a training run and on any machine.
"""

import heapq
import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np

from score_jax import plot_style, plots, plots_evaluation, report_html, report_measures
from score_jax.errors import UserError
from score_jax.jsonl import iter_jsonl, number
from score_jax.plot_style import PAGE, PAPER, Look
from score_jax.plots_evaluation import Measured

TRANSCRIPTS = 20
PER_KIND = 5


def write(workdir: Path) -> Path:
    """Writes the report of `workdir` and returns the path of the page.

    Raises:
      UserError: `workdir` is no directory, holds nothing to report, or cannot be written to.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f'workdir: {str(workdir)!r} is not a directory; name one that launch/main.py wrote.')
    stages = find_stages(workdir)
    curves = {stage: columns for stage in stages if (columns := read_curves(workdir / stage / 'metrics.jsonl'))}
    configs = {stage: config for stage in stages if (config := _read_json(workdir / stage / 'config.json')) is not None}
    measured = Measured(**{name: read_results(workdir / f'{name}.json') for name in ('results', 'attempts', 'scaling')})
    results = measured.results
    transcripts = find_transcripts(workdir, stages)
    if not (curves or configs or results or transcripts):
        raise UserError(f'workdir: {str(workdir)!r} has no readable results.json, STAGE/metrics.jsonl, '
                        'STAGE/config.json or samples.jsonl; train with launch/main.py first, or name its workdir.')
    drawn, paper = (_draw(measured, curves, look) for look in (PAGE, PAPER))
    said = findings(results, curves)
    if results:
        last = last_method([str(row['method']) for row in results])
        said += report_measures.sequential_finding(measured.scaling, last)
    html = report_html.page(
        name=workdir.resolve().name, findings=said, results=results, progress=progress(curves), figures=drawn,
        measures=report_measures.section(measured, drawn), transcripts=transcripts, configs=configs)
    return _save(workdir, html, {'png': drawn, 'pdf': paper})


def _draw(measured: Measured, curves: plots.Curves, look: Look) -> dict[str, bytes]:
    """The files of all figures by name."""
    return plots_evaluation.draw(measured, look) | plots.draw(curves, measured.results, look)


def find_stages(workdir: Path) -> list[str]:
    """Names of the directories that hold a stage, in the order they are trained."""
    files = ('metrics.jsonl', 'config.json', 'samples.jsonl')
    return sorted((path.name for path in workdir.iterdir()
                   if path.name != 'evaluation' and any((path / file).is_file() for file in files)), key=stage_order)


def stage_order(name: str) -> tuple:
    """base, stage1, stage1b, stage2, ..., then everything else by name."""
    numbered = re.fullmatch(r'stage_?(\d{1,9})(.*)', name)
    if numbered:
        return 1, int(numbered[1]), numbered[2]
    return (0 if name == 'base' else 2), 0, name


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """{key: [N]} over the logged steps; where a resumed run logged a step again, the later line counts."""
    rows = {number(row, 'step'): row for row in iter_jsonl(path) if math.isfinite(number(row, 'step'))}
    rows = [rows[step] for step in sorted(rows)]
    keys = sorted(set().union(*rows)) if rows else []
    return {key: np.array([number(row, key) for row in rows]) for key in keys}


def read_results(path: Path) -> list[dict]:
    """Rows by temperature (greedy first), then method as trained, then seed."""
    rows = _read_json(path)
    rows = [row for row in rows if isinstance(row, dict) and 'method' in row] if isinstance(rows, list) else []
    return sorted(rows, key=lambda row: (_or(number(row, 'temperature'), math.inf), stage_order(str(row['method'])),
                                         _or(number(row, 'seed'), math.inf)))


def progress(curves: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """How far each stage has come, e.g. 'stage1: step 80 of 200', from its columns `[N]`."""
    lines = []
    for stage, columns in curves.items():
        total = columns.get('steps', np.array([np.nan]))[-1]
        lines.append(f"{stage}: step {columns['step'][-1]:g}" + (f' of {total:g}' if np.isfinite(total) else ''))
    return lines


# --- transcripts


def find_transcripts(workdir: Path, stages: list[str]) -> list[dict]:
    """At most `TRANSCRIPTS` samples with their `kind`: of the evaluation, else of the last stage that logged some."""
    files = [workdir / 'evaluation' / 'samples.jsonl']
    files += [workdir / stage / 'samples.jsonl' for stage in reversed(stages)]
    for file in files:
        if chosen := choose(reservoir(iter_jsonl(file))):
            return chosen
    return []


def kind_of(sample: dict) -> str | None:
    """'i->c' and the like, from the first and the last turn; None for what is no sample of several turns."""
    turns = sample.get('turns')
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        return None
    first, last = ('c' if turns[end].get('outcome') == 'correct' else 'i' for end in (0, -1))
    return f'{first}->{last}'


def reservoir(samples) -> dict[tuple, list[dict]]:
    """{(method, temperature, kind): at most `TRANSCRIPTS` samples}, holding no more than that in memory.

    Samples of training (they have a `step`) are the latest ones, those of an evaluation are drawn at random, the same
    ones every time.
    """
    source, kept = random.Random(0), {}
    for index, sample in enumerate(samples):
        if (kind := kind_of(sample)) is None:
            continue
        method = str(sample.get('method', sample.get('stage', '?')))
        entry = (_or(number(sample, 'step'), 0.0), source.random(), index, sample | {'kind': kind})
        heap = kept.setdefault((method, _or(number(sample, 'temperature'), math.inf), kind), [])
        (heapq.heappush if len(heap) < TRANSCRIPTS else heapq.heappushpop)(heap, entry)
    return {key: [entry[-1] for entry in sorted(heap, key=lambda entry: entry[:3], reverse=True)]
            for key, heap in kept.items()}


def choose(kept: dict[tuple, list[dict]]) -> list[dict]:
    """The transcripts to show: first the last method at temperature 1, then the others, by kind in the end.

    `PER_KIND` of each kind, one of another method where the preferred one has none of a kind, then as many more as
    make up `TRANSCRIPTS`.
    """
    if not kept:
        return []
    last = last_method([method for method, _, _ in kept])
    order = sorted(kept, key=lambda key: (key[0] != last, abs(key[1] - 1.0)))
    preferred = order[0][:2]
    queues = {kind: [] for kind in report_html.KINDS}
    chosen, spare = [], []
    for key in order:
        queue = queues[key[2]]
        take = PER_KIND if key[:2] == preferred else (0 if queue else 1)
        queue += kept[key][:take]
        spare.append(kept[key][take:])
    chosen = list(itertools.chain(*queues.values()))
    own = sum(key[:2] == preferred for key in order)
    for rest in (spare[:own], spare[own:]):
        # One of each in turn, so that no kind takes all of the places left.
        mixed = (sample for row in itertools.zip_longest(*rest) for sample in row if sample is not None)
        chosen += itertools.islice(mixed, max(TRANSCRIPTS - len(chosen), 0))
    return sorted(chosen, key=lambda sample: list(report_html.KINDS).index(sample['kind']))


def last_method(names: list[str]) -> str:
    """The stage trained last; a method that is no stage only where there is nothing else."""
    return max(names, key=lambda name: (stage_order(name)[0] < 2, stage_order(name)))


# --- what the numbers say


def findings(results: list[dict], curves: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, str]]:
    """(tone, sentence) about the last method; the tone is good, bad or plain. `curves` holds columns `[N]` by stage."""
    said = _findings_evaluation(results) if results else _findings_training(curves)
    for stage, columns in list(curves.items())[-1:]:
        truncated, no_answer = (
            max((_or(_end(columns, key), 0.0) for key in columns if key.startswith(f'{name}_turn')), default=0.0)
            for name in ('truncated', 'no_answer'))
        if truncated > 0.1:
            said.append(('bad', f'{100 * truncated:.0f} % of the responses were cut off at the end of {stage}; they '
                                'count as wrong. Raise the token limit.'))
        if no_answer > 0.1:
            said.append(('bad', f'In {100 * no_answer:.0f} % of the responses at the end of {stage} the verifier found '
                                'no answer. Check that the prompt asks for the form that is read.'))
        dropped = float(np.nansum(columns.get('dropped', np.zeros(1))))
        if dropped:
            said.append(('bad', f'In {stage} {dropped:,.0f} rollouts were dropped since their grader failed; the '
                                'outcomes in its metrics.jsonl say when.'))
    return said


def _findings_evaluation(results: list[dict]) -> list[tuple[str, str]]:
    last = last_method([str(row['method']) for row in results])
    row = next(row for row in results if str(row['method']) == last)
    rows = [other for other in results if number(other, 'temperature') == number(row, 'temperature')]
    end = (plot_style.turn_keys([row]) or ['t2'])[-1]
    t1, last_turn, delta, low, high = (
        100 * number(row, key) for key in ('t1', end, 'delta', 'delta_low', 'delta_high'))
    if not math.isfinite(t1 + last_turn + delta):
        return []
    attempt = 'second' if end == 't2' else 'last'
    tone, verdict = 'plain', 'no clear difference between the attempts'
    if not math.isfinite(low + high):
        verdict = 'there is no interval to judge it by'
    elif low > 0:
        tone, verdict = 'good', f'the {attempt} attempt is better'
    elif high < 0:
        tone, verdict = 'bad', f'the {attempt} attempt is worse'
    said = [(tone, f'{plot_style.row_label(row, rows)} ({plot_style.temperature_label(row)}): {t1:.1f} % right at the '
                   f'first attempt, {last_turn:.1f} % at the {attempt}; delta {report_html.signed(delta)} points: '
                   f'{verdict}.')]
    bases = [other for other in rows if other['method'] == 'base' and other is not row]
    base = min(bases, key=lambda other: other.get('seed') != row.get('seed'), default={})  # of the same seed if any is
    before = 100 * number(base, 't1')
    if math.isfinite(before):
        tone, verdict = 'plain', ''
        if number(row, 't1_high') < number(base, 't1_low'):
            tone, verdict = 'bad', ': check that delta is not bought by failing first'
        elif t1 >= before and low > 0:
            tone, verdict = 'good', ': the gain is not bought by failing first'
        said.append((tone, f'First attempts went from {before:.1f} % of the base to {t1:.1f} %{verdict}.'))
    return said + _finding_changed(number(row, 'changed'))


def _findings_training(curves: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, str]]:
    stages = [stage for stage in curves if not plots.is_supervised(curves[stage])]
    if not stages:
        return []
    columns = curves[stages[-1]]
    accuracy = [100 * _end(columns, f't{turn}') for turn in range(1, 1 + max(len(_turns(columns)), 2))]
    if not math.isfinite(sum(accuracy)):
        return []
    said = [('plain', f"No evaluation yet. Over the last tenth of {stages[-1]}'s training: {accuracy[0]:.1f} % right "
                      f'at the first attempt, {accuracy[-1]:.1f} % at the '
                      f'{"second" if len(accuracy) == 2 else "last"}.')]
    return said + _finding_changed(_end(columns, 'changed'))


def _finding_changed(changed: float) -> list[tuple[str, str]]:
    if not math.isfinite(changed):
        return []
    if changed < 0.02:
        return [('bad', f'Only {100 * changed:.1f} % of the answers change between the turns: near the collapse into '
                        'copying.')]
    return [('plain', f'{100 * changed:.1f} % of the answers change between the turns.')]


def _turns(columns: dict[str, np.ndarray]) -> list[str]:
    """`t1`, `t2` and so on, as far as they were logged."""
    return list(itertools.takewhile(columns.__contains__, (f't{turn}' for turn in itertools.count(1))))


def _end(columns: dict[str, np.ndarray], key: str) -> float:
    """Mean over the last tenth of the logged steps; NaN where nothing was logged."""
    values = columns.get(key, np.zeros(0))
    values = values[-max(len(values) // 10, 1):]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _or(value: float, default: float) -> float:
    return value if math.isfinite(value) else default


# --- files


def _read_json(path: Path):
    """What `path` holds, or None when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8', errors='replace'))
    except (OSError, ValueError, RecursionError):
        return None


def _save(workdir: Path, html: str, figures: dict[str, dict[str, bytes]]) -> Path:
    """Writes the page, and the figures by format and name; those of an earlier report that are no more go."""
    page, folder = workdir / 'report.html', workdir / 'report'
    try:
        folder.mkdir(exist_ok=True)
        for kind, drawn in figures.items():
            for name in (chart.name for chart in (*plots_evaluation.CHARTS, *plots.CHARTS)):
                if name in drawn:
                    (folder / f'{name}.{kind}').write_bytes(drawn[name])
                else:
                    (folder / f'{name}.{kind}').unlink(missing_ok=True)
        page.write_text(html, encoding='utf-8', errors='replace')
    except OSError as error:
        raise UserError(f'workdir: cannot write the report to {str(workdir)!r} ({error.strerror}); copy the run to a '
                        'directory you can write to.') from error
    return page
