"""The workdirs that are watched, and the thread that follows them."""

from __future__ import annotations

import collections
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from score_jax import plot_style, report, report_html
from score_jax.errors import UserError
from score_jax.jsonl import number, plain
from score_jax.watch.curves import MetricsFile
from score_jax.watch.samples import Labels, SampleFile

DEPTH = 3  # folders below a named one in which workdirs are looked for
FOLDERS_MAX = 20_000  # that are looked into
JSON_MAX = 4 << 20  # bytes of a results.json or config.json that is read
LOOK_EVERY = 3.0  # seconds between two searches for new runs and stages
POLL_EVERY = 0.7  # seconds between two looks at all files when nothing is left to read
SLICE = 1 << 18  # bytes of samples that are read at once, a few milliseconds
PATIENCE = 0.05  # seconds that reading waits for questions
TURN = 0.3  # seconds that samples are read before the metrics are looked at again
_LOGS = ('metrics.jsonl', 'samples.jsonl')  # of a stage
_IN_A_RUN = ('evaluation', 'checkpoints', 'report')  # folders that are no stage and hold no run


class Stage(NamedTuple):
    """The files of a stage that are followed."""

    folder: Path
    metrics: MetricsFile
    samples: SampleFile


class Run:
    """One workdir and its stages, in the order they are trained, `evaluation` last.

    One thread calls `look`, any thread the other methods: `stages` is never changed, only replaced.
    """

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.stages: dict[str, Stage] = {}

    def look(self, labels: Labels) -> None:
        """Takes up stages that are new and drops those that are gone."""
        try:
            folders = report.find_stages(self.path)
            if (self.path / 'evaluation').is_dir():
                folders.append('evaluation')
        except OSError:
            folders = []
        found = {plain(folder): self.path / folder for folder in folders}
        if {name: stage.folder for name, stage in self.stages.items()} != found:
            self.stages = {
                name: self.stages.get(name) or Stage(
                    folder, MetricsFile(folder / 'metrics.jsonl'), SampleFile(folder / 'samples.jsonl', name, labels))
                for name, folder in found.items()}

    def files(self) -> list[tuple[str, str, SampleFile]]:
        """(run, stage, file) for every stage, the last one first."""
        return [(self.name, name, stage.samples) for name, stage in reversed(self.stages.items())]

    def summary(self) -> dict:
        """As a row in the list of runs."""
        stages, unreadable = [], 0
        for name, (_, metrics, samples) in self.stages.items():
            written = max(metrics.tail.changed, samples.tail.changed)
            stages.append({'name': name, 'written': written or None, 'version': metrics.version,
                           'samples': len(samples.index)} | metrics.summary)
            unreadable += samples.unreadable + samples.tail.too_long
        return {'name': self.name, 'path': plain(self.path), 'stages': stages, 'unreadable': unreadable}

    def details(self) -> dict:
        """Results and configs, read anew."""
        configs = {name: flat(config) for name, stage in self.stages.items()
                   if (config := _read(stage.folder / 'config.json')) is not None}
        results = self.path / 'results.json'
        rows = report.read_results(results) if _readable(results) else []
        return {'name': self.name, 'results': [result(row, rows) for row in rows], 'configs': configs}


class Watcher:
    """Every run below the named directories; `follow` keeps it up to date until `close`."""

    def __init__(self, workdirs: list[Path]):
        """Looks for runs once.

        Raises:
          UserError: one of `workdirs` is no directory.
        """
        for workdir in workdirs:
            if not workdir.is_dir():
                raise UserError(f'workdir: {str(workdir)!r} is not a directory; name one that launch/main.py wrote, or '
                                'a folder that holds some.')
        self.labels = Labels()
        self.runs: dict[str, Run] = {}
        self._workdirs = list(dict.fromkeys(workdir.resolve() for workdir in workdirs))
        self.questions = 0  # that are being answered; reading waits for them
        self._closed = threading.Event()
        self._looked = 0.0
        self._queue: collections.deque[SampleFile] = collections.deque()
        self.look()

    def look(self) -> None:
        """Finds the runs and stages that are there now."""
        found = {}
        for workdir in self._workdirs:
            for path in find_runs(workdir):
                name = str(path.relative_to(workdir)) if path != workdir else workdir.name
                if len(self._workdirs) > 1 and path != workdir:
                    name = f'{workdir.name}/{name}'
                name, place = plain(name), 1
                while name in found and found[name] != path:
                    place += 1
                    name = f'{plain(path.name)} ({place})'
                if path not in found.values():
                    found[name] = path
        self.runs = {name: run if (run := self.runs.get(name)) and run.path == path else Run(name, path)
                     for name, path in found.items()}
        for run in self.runs.values():
            run.look(self.labels)
        files = [stage.samples for run in self.runs.values() for stage in run.stages.values()]
        if set(map(id, files)) != set(map(id, self._queue)):
            self._queue = collections.deque(files)
        self._looked = time.monotonic()

    def follow(self) -> None:
        """Reads what is appended until `close`; meant for a thread of its own."""
        while not self._closed.is_set():
            if time.monotonic() - self._looked > LOOK_EVERY:
                self.look()
            if not self.advance():
                self._closed.wait(POLL_EVERY)

    def advance(self) -> bool:
        """Reads some of what is new, of every file a little; False if nothing was."""
        busy = False
        for run in self.runs.values():
            for stage in run.stages.values():
                while stage.metrics.advance():
                    busy = True
        until = time.monotonic() + TURN
        idle = 0
        while idle < len(self._queue) and time.monotonic() < until and not self._closed.is_set():
            self._give_way()
            if self._queue[0].advance(SLICE):
                busy, idle = True, 0
            else:
                idle += 1
            self._queue.rotate(-1)
        return busy

    def _give_way(self) -> None:
        """Leaves the interpreter to the questions, unless they never end."""
        until = time.monotonic() + PATIENCE
        while self.questions > 0 and time.monotonic() < until:
            time.sleep(0.001)

    def progress(self) -> dict:
        """Bytes of samples in the index, and on disk."""
        files = [stage.samples.tail for run in self.runs.values() for stage in run.stages.values()]
        return {'read': sum(tail.end for tail in files), 'size': sum(max(_size(tail.path), tail.end) for tail in files)}

    def close(self) -> None:
        """Ends `follow`."""
        self._closed.set()


def find_runs(top: Path) -> list[Path]:
    """Workdirs in `top`, itself among them, no deeper than `DEPTH`; by name.

    A workdir holds a stage that has logged something, or a results.json. What else lies in it is searched as well: a
    model that was exported, or results that were written, into a folder of runs hide none of them.
    """
    found, queue, seen = [], collections.deque([(top, 0)]), 0
    while queue and seen < FOLDERS_MAX:
        path, depth = queue.popleft()
        seen += 1
        try:
            with os.scandir(path) as entries:
                below = {Path(entry.path) for entry in entries if not entry.name.startswith('.') and entry.is_dir()}
            inside = {folder for folder in below if folder.name in _IN_A_RUN}
            stages = {folder for folder in below - inside if any((folder / name).is_file() for name in _LOGS)}
            if stages or (path / 'results.json').is_file():
                found.append(path)
        except OSError:
            continue
        if depth < DEPTH:
            queue.extend((folder, depth + 1) for folder in below - stages - inside)
    return sorted(found)


def result(row: dict, rows: list[dict]) -> dict:
    """The numbers of a row of results.json, and what it is called beside the others."""
    keys = [f'{key}{end}' for key, _, _ in report_html.COLUMNS for end in ('', '_low', '_high')]
    numbers = {key: number(row, key) for key in ('n', 'temperature', *keys)}
    beside = [other for other in rows if plot_style.temperature_label(other) == plot_style.temperature_label(row)]
    names = {'method': plain(row['method']), 'label': plot_style.row_label(row, beside),
             'decoding': plot_style.temperature_label(row)}
    return names | {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def flat(config: object, prefix: str = '') -> dict[str, str]:
    """{'a.b': value as JSON} of a nested config."""
    if not isinstance(config, dict) or not config:
        return {plain(prefix[:200] or 'value'): plain(json.dumps(config, ensure_ascii=False))[:2000]}
    out = {}
    for key, value in config.items():
        out |= flat(value, f'{prefix}.{key}' if prefix else str(key)) if prefix.count('.') < 8 else {}
    return out


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _readable(path: Path) -> bool:
    """A file, and no larger than `JSON_MAX`."""
    try:
        return path.is_file() and path.stat().st_size <= JSON_MAX
    except OSError:
        return False


def _read(path: Path) -> object:
    """What a JSON file holds, or None."""
    try:
        return json.loads(path.read_text(encoding='utf-8', errors='replace')) if _readable(path) else None
    except (OSError, ValueError, RecursionError):
        return None
