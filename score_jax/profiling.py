"""A look at a few steps: jax's trace of them, and where their time went."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from score_jax import progress
from score_jax.jsonl import number
from score_jax.workdir import write_json

_SKIPPED = 2  # first steps of a process, which compile
_STEPS = 3
_PARTS = {
    'sample': 'every turn',
    'grade': 'waiting for verdicts; grading runs beside the sampling',
    'update': 'scoring by the reference and the update, one program',
    'save': 'files, and handing a checkpoint over',
    'wait': 'for the checkpoint before to be on disk',
}


class Profile:
    """Traces the third to the fifth step of this process: `with Profile(...) as profile:`.

    Args:
      folder: where the trace goes, for TensorBoard, Perfetto or XProf, with `split.json` beside it.
      on: whether anything is done at all.
    """

    def __init__(self, stage: str, folder: Path, on: bool):
        self._stage, self._folder, self._on = stage, folder, on
        self._steps, self._seen, self._tracing = [], 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exc) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step."""
        if self._on and self._seen == _SKIPPED:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(self._stage, step_num=step):
            yield

    def add(self, metrics: Mapping) -> None:
        """Takes the metrics of the step; after the last one of the trace, writes and says where their time went."""
        self._seen += 1
        if self._tracing:
            self._steps.append(metrics)
            if len(self._steps) == _STEPS:
                self._stop()

    def _stop(self) -> None:
        if not self._tracing:
            return
        jax.profiler.stop_trace()
        self._tracing = False
        if self._steps:
            found = split(self._steps)
            write_json(self._folder / 'split.json', found)
            progress.say(f'{self._stage}: {describe(found)}\n  the trace is in {self._folder}')


def split(steps: list[Mapping]) -> dict[str, float]:
    """Seconds of a step by part, `rest` what no part has, and its rates: the means over steps of metrics.jsonl."""
    def mean(name: str) -> float:
        return sum(number(line, name) for line in steps) / len(steps)
    parts = {part: mean(f'seconds_{part}') for part in _PARTS if f'seconds_{part}' in steps[0]}
    step = sum(1 / number(line, 'steps_per_second') for line in steps) / len(steps) + parts['save'] + parts['wait']
    rates = {name: mean(name) for name in ('tokens_per_second', 'utilisation', 'score_share') if name in steps[0]}
    return {'step': step, **parts, 'rest': step - sum(parts.values()), **rates}


def describe(found: Mapping[str, float]) -> str:
    """`split` for a terminal."""
    lines = [f'a step takes {found["step"]:.3g} s, of which']
    for part in (*_PARTS, 'rest'):
        if part in found:
            lines.append(
                f'  {part:<8}{found[part]:9.3f} s {100 * found[part] / found["step"]:5.1f} %  {_PARTS.get(part, "")}')
    if 'score_share' in found:
        lines.append(f'  by its arithmetic, scoring is {100 * found["score_share"]:.0f} % of scoring and update')
    if 'utilisation' in found:
        lines.append(
            f'  {found["tokens_per_second"]:,.0f} tokens/s; its arithmetic is {100 * found["utilisation"]:.1f} % of '
            'what matrix products reach here')
    return '\n'.join(lines)
