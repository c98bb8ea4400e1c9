"""Everything that is measured, one workload after another."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.speed import environments, sides, workloads
from benchmarks.speed.sides import ROOT, SIDES, Process, Settings, Side

LIBRARIES = {'numpy': '', 'jax': '', 'torch': 'transformers'}  # and the environment that each is in
PACKAGES = {
    '': ('jax', 'numpy'), 'transformers': ('torch', 'transformers'), 'trl': ('torch', 'transformers', 'trl'),
    'tunix': ('jax', 'google-tunix')}
WORKLOADS = ('limits', *dict.fromkeys(side.workload for side in SIDES))
DEFAULT = tuple(name for name in WORKLOADS if name != 'demo')


def everything(found, say) -> dict:
    """Figures by workload and side, `limits` by workload and library, and how long it all took."""
    began, peers, wanted, notes = time.monotonic(), set(filter(None, found.peers.split(','))), found.only, []
    if 'G1' in wanted:
        wanted = [*dict.fromkeys([*wanted, *workloads.GPU])]
    if not (there := has_gpu()) and set(wanted) & set(workloads.GPU):
        notes.append('G1 (Qwen2.5 1.5B in bfloat16) needs an NVIDIA GPU, and there is none here: it is not measured.')
        say(notes[-1])
    wanted = [name for name in wanted if there or name not in workloads.GPU]
    settings = Settings(
        threads=found.threads, clock=found.clock, quick=found.quick, weights=found.weights.resolve(),
        here=found.here)
    with _tree(found.baseline) as tree:
        bounded = dict.fromkeys(limits_of(name) for name in wanted if name not in ('W4', 'demo', 'devices'))
        limits = {name: _limits(name, peers, settings, say) for name in bounded}
        figures = {}
        for name in [name for name in wanted if name != 'limits']:
            those = [side for side in SIDES if side.workload == name and side.environment in peers | {''}]
            if those[0].part == 'demo':
                those += [dataclasses.replace(those[0], name=f'at {found.baseline}', tree=tree)] if tree else []
            else:
                sides.write_weights(name, settings)
            figures[name] = sides.in_turn(those, found.repeats, settings, say)
    revision = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    return {
        'limits': limits, 'workloads': figures, 'notes': notes, 'minutes': (time.monotonic() - began) / 60,
        'date': str(datetime.date.today()), 'revision': revision.stdout.strip(),
        'versions': {name: environments.versions(name, PACKAGES[name], found.here) for name in ['', *sorted(peers)]}}


def has_gpu() -> bool:
    """Whether there is one by NVIDIA."""
    try:
        return not subprocess.run(['nvidia-smi', '-L'], capture_output=True).returncode
    except OSError:
        return False


def limits_of(workload: str) -> str:
    """The workload whose limits hold for this one: of the same device, and as many rows that decode together."""
    return 'G1' if workload in workloads.GPU else 'W3' if workload == 'W3' else 'W1'


def _limits(workload: str, peers: set[str], settings: Settings, say) -> dict[str, dict[str, float]]:
    """Rates by library, each the highest of two measurements."""
    sides.write_weights(workload, settings)
    found = {}
    for library, environment in LIBRARIES.items():
        if environment in peers | {''}:
            say(f'{workload}: limits by {library}')
            process = Process(Side(
                name=library, workload=workload, part='limits', module='benchmarks.speed.limits', variant=library,
                environment=environment), settings)
            with contextlib.closing(process):
                each = [process.repeat()['rates'] for _ in range(2)]
            found[library] = {key: max(rates[key] for rates in each) for key in each[0]}
    return found


@contextlib.contextmanager
def _tree(revision: str):
    """A folder with the files of a revision; None for ''."""
    if not revision:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        files = subprocess.run(['git', 'archive', revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(['tar', '-x', '-C', folder], input=files, check=True)
        yield Path(folder)
