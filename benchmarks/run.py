"""The speed of a two-turn step beside its peers, and how far it is from what the machine can do.

    python benchmarks/run.py                        # all of it, and benchmarks/RESULTS.md
    python benchmarks/run.py --only=W1,W3 --repeats=5
    python benchmarks/run.py --quick --peers= --out=/tmp/quick.md   # tiny shapes, no peers: to see that it runs
    python benchmarks/run.py --render               # the page anew from the figures of the last run

docs/speed.md says what is measured and how to read the table.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import measure, report, sides


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help='workloads, such as W1,W3; all of them without')
    parser.add_argument('--peers', default=','.join(sides.PEERS), help='environments of peers that take part')
    parser.add_argument('--here', action='store_true', help="peers run with what is installed here, instead")
    parser.add_argument('--repeats', type=int, default=3, help='repetitions of every side, one side after another')
    parser.add_argument('--baseline', default='', help='a revision whose step of the demo is measured beside this one')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='cores for every side')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall',
                        help="'cpu', with --threads=1, is for a machine that others use at the same time")
    parser.add_argument('--quick', action='store_true', help='tiny shapes: to see that it runs')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'RESULTS.md')
    parser.add_argument('--weights', type=Path, default=ROOT / 'runs' / 'speed', help='where weights are kept')
    parser.add_argument('--render', action='store_true', help='write the page anew from the figures of the last run')
    found = parser.parse_args()
    wanted = [name for name in found.only.split(',') if name]
    for key, names, known in (
        ('only', wanted, measure.WORKLOADS), ('peers', found.peers.split(','), ('', *sides.PEERS))):
        if unknown := set(names) - set(known):
            parser.error(f'--{key}: {", ".join(sorted(unknown))} is none of {", ".join(filter(None, known))}.')
    if found.repeats < 1 or not 1 <= found.threads <= len(os.sched_getaffinity(0)):
        parser.error('--repeats must be at least 1, --threads from 1 to the number of cores.')
    found.only = wanted or list(measure.DEFAULT)
    return found


def main() -> None:
    found = arguments()
    figures = found.weights / ('quick.json' if found.quick else 'figures.json')
    if found.render:
        results = json.loads(figures.read_text())
    else:
        found.weights.mkdir(parents=True, exist_ok=True)  # before anything is measured
        results = measure.everything(found, lambda line: print(line, file=sys.stderr, flush=True))
        results['settings'] = {
            'command': 'python ' + ' '.join(['benchmarks/run.py', *sys.argv[1:]]), 'threads': found.threads,
            'clock': found.clock, 'repeats': found.repeats, 'quick': found.quick}
        figures.write_text(json.dumps(results))
    text = report.markdown(results)
    print(text)
    found.out.write_text(text)


if __name__ == '__main__':
    main()
