"""Everything that is measured, one workload after another."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.speed import sides
from benchmarks.speed.sides import OURS, ROOT, SIDES, Process, Settings, Side

LIBRARIES = {'numpy': '', 'jax': '', 'torch': 'transformers'}  # and the environment that each is in
LIMITS = ('W1', 'W3')  # whose rows decode together
WORKLOADS = ('limits', *dict.fromkeys(side.workload for side in SIDES))
DEFAULT = tuple(name for name in WORKLOADS if name != 'demo')


def everything(found, say) -> dict:
    """Figures by workload and side, `limits` by workload and library, and how long it all took."""
    began = time.monotonic()
    peers = set(filter(None, found.peers.split(',')))
    settings = Settings(
        threads=found.threads, clock=found.clock, device='gpu' if found.only == ['G1'] else 'cpu', quick=found.quick,
        weights=found.weights.resolve())
    results = {'limits': {}, 'workloads': {}}
    with _tree(found.baseline) as tree:
        results['limits'] = {name: _limits(name, peers, settings, say) for name in _limits_needed(found.only)}
        for name in [name for name in found.only if name not in ('limits', 'G1')]:
            sides.write_weights(name, settings)
            those = [side for side in SIDES if side.workload == name and side.environment in peers | {''}]
            if name in ('W4', 'demo') and tree:
                those.append(dataclasses.replace(those[0], name=f'at {found.baseline}', tree=tree))
            few = 1 if those[0].once else found.repeats
            results['workloads'][name] = sides.alternate(those, few, settings, say)
    return results | {'minutes': (time.monotonic() - began) / 60, 'peers': sorted(peers)}


def _limits_needed(only) -> list[str]:
    wanted = {name if name == 'W3' else 'W1' for name in only}
    return [name for name in LIMITS if 'limits' in only or name in wanted]


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
