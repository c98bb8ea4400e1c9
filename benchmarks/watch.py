"""How fast and how large `launch/watch.py` is: synthetic workdirs, then latencies and memory of a real server.

    python benchmarks/watch.py --folder=/tmp/watch                  # 100 runs, 1,000,000 samples, about 0.9 GB
    python benchmarks/watch.py --folder=/tmp/watch --only_make      # the workdirs alone, to look at

Prints the time to index everything, latency percentiles of each kind of answer (also while the index is being built)
and the peak memory of the server process. Ends with status 1 where one in a hundred of any kind takes longer than
200 ms, or the server more than 300 MiB.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
from absl import app, flags

SLOWEST, LARGEST = 200, 300  # milliseconds at the 99th percentile, MiB at the peak
ROOT = Path(__file__).resolve().parents[1]
FOLDER = flags.DEFINE_string('folder', None, 'Where the workdirs are made; kept, and used again.', required=True)
RUNS = flags.DEFINE_integer('runs', 100, 'Workdirs.')
SAMPLES = flags.DEFINE_integer('samples', 1_000_000, 'Transcripts in all of them together.')
STEPS = flags.DEFINE_integer('steps', 1000, 'Logged steps of each of the two stages.')
ONLY_MAKE = flags.DEFINE_bool('only_make', False, 'Do not measure.')
ROUNDS = flags.DEFINE_integer('rounds', 60, 'Requests of each kind.')
WORDS = 'we know that the sum of all parts is half of what was left so let x be one then the rest follows'.split()


def metrics(stage: str, quality: float) -> list[dict]:
    random_state = np.random.default_rng(int(1e6 * quality))
    rows = []
    for step in range(1, STEPS.value + 1):
        done = step / STEPS.value
        t1 = 0.25 + (0.3 * quality * done if stage == 'stage2' else 0.02 * done)
        delta = 0.25 * done * quality if stage == 'stage1' else 0.25 * quality * (1 - 0.6 * done)
        t1, i_to_c, c_to_i = (float(np.clip(value + random_state.normal(0, 0.03), 0, 1))
                              for value in (t1, delta + 0.05, 0.06 - 0.03 * done))
        rows.append({'stage': stage, 'step': step, 'steps': STEPS.value, 't1': t1, 't2': t1 + i_to_c - c_to_i,
                     'delta': i_to_c - c_to_i, 'i_to_c': i_to_c, 'c_to_i': c_to_i, 'changed': 0.3 + 0.4 * delta,
                     'kl_turn1': 0.3 * done, 'kl_turn2': 2 * done, 'entropy_turn1': 0.3,
                     'entropy_turn2': 0.2 - 0.1 * done, 'length_turn1': 120 - 20 * done,
                     'length_turn2': 130 + 10 * done, 'truncated_turn1': 0.01, 'truncated_turn2': 0.02,
                     'loss': float(random_state.normal()), 'grad_norm': 1.0, 'reward': t1,
                     'learning_rate': 1e-4 * (1 - done), 'steps_per_second': 2.5, 'seconds_sample': 0.2,
                     'seconds_grade': 0.02, 'seconds_update': 0.18, 'log_prob_gap': 1e-6})
    return rows


def sample(source: random.Random, where: dict) -> dict:
    a, b = source.randint(2, 99), source.randint(2, 99)
    turns = []
    for place in range(2):
        right = source.random() < 0.4 + 0.15 * place
        if place and source.random() < 0.4:
            turns.append(dict(turns[0]))
            continue
        value = a * b if right else a * b + source.randint(1, 9)
        steps = ' '.join(source.choices(WORDS, k=source.randint(15, 45)))
        bad = source.choices(('wrong', 'no_answer', 'truncated', 'timeout'), (40, 4, 3, 1))[0]
        outcome = 'correct' if right else bad
        turns.append({'response': f'{steps}, so {a} times {b} is {value}.\nThe answer is \\boxed{{{value}}}',
                      'tokens': 60, 'outcome': outcome, 'reward': float(right),
                      'read': None if outcome == 'no_answer' else str(value), 'truncated': outcome == 'truncated'})
    return where | {'problem': f'A box holds {a} rows of {b} apples. How many apples are in the box?',
                    'instruction': 'Look at the solution above once more, find what is wrong in it if anything is, and '
                                   'write the whole solution again.', 'turns': turns}


def make(folder: Path) -> None:
    """Workdirs of two stages and an evaluation; the samples are spread evenly over them."""
    each = SAMPLES.value // RUNS.value // 2
    for place in range(RUNS.value):
        source, quality = random.Random(place), 0.3 + 0.7 * place / max(RUNS.value - 1, 1)
        run = folder / f'gsm8k-alpha{place % 10}-seed{place // 10}'
        for stage in ('stage1', 'stage2'):
            (run / stage).mkdir(parents=True)
            (run / stage / 'config.json').write_text(json.dumps({'stage': stage, 'objective': {'alpha': place % 10}}))
            with (run / stage / 'metrics.jsonl').open('w') as file:
                file.writelines(json.dumps(row) + '\n' for row in metrics(stage, quality))
            with (run / stage / 'samples.jsonl').open('w') as file:
                for line in range(each):
                    where = {'stage': stage, 'step': 1 + line * STEPS.value // each}
                    file.write(json.dumps(sample(source, where)) + '\n')
        rows = [{'method': method, 'seed': place // 10, 'temperature': 0.0, 'n': 1319}
                | {f'{key}{end}': value + shift for key, value in values.items()
                   for end, shift in (('', 0), ('_low', -0.02), ('_high', 0.02))}
                for method, values in (
                    ('base', dict(t1=0.3, t2=0.28, delta=-0.02, i_to_c=0.03, c_to_i=0.05, changed=0.4)),
                    ('stage2', dict(t1=0.5, t2=0.5 + quality / 10, delta=quality / 10, i_to_c=0.1, c_to_i=0.02,
                                    changed=0.3)))]
        (run / 'results.json').write_text(json.dumps(rows))
    (folder / 'made').touch()


class Server:
    """`launch/watch.py` in a process of its own."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen([sys.executable, 'launch/watch.py', f'--workdir={folder}', '--port=0'],
                                        cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[0]

    def ask(self, what: str) -> tuple[dict, float]:
        """An answer and how long it took, seconds; only a sample that is not in the index yet may be refused."""
        began = time.perf_counter()
        try:
            with urlopen(f'{self.url}api/{what}') as response:
                body = response.read()
        except HTTPError as error:
            if error.code != 404 or not what.startswith('sample?'):
                raise
            body = error.read()
        return json.loads(body), time.perf_counter() - began

    def peak(self) -> float:
        """Peak resident memory, MiB."""
        status = Path(f'/proc/{self.process.pid}/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) / 1024


def questions(source: random.Random, runs: list[str]) -> dict[str, str]:
    """One question of each kind that the page asks."""
    run, kind = quote(source.choice(runs)), quote(source.choice(('i->c', 'c->i', 'c->c', 'i->i')))
    word, rare = source.choice(WORDS), quote(f'{source.randint(2, 99)} rows of {source.randint(2, 99)} apples')
    return {
        'the list of runs': 'runs',
        'curves of a stage': f'curves?run={run}&stage=stage2',
        'results and configs': f'details?run={run}',
        'counts, all samples': 'counts',
        'counts, filtered': f'counts?label={kind}&label=copied',
        'a page, one run': f'samples?run={run}&label={kind}&limit=50',
        'a page, all runs': f'samples?label={kind}&label=truncated&limit=50',
        'a page from the middle': f'samples?limit=50&run-from={run}&stage-from=stage1&row-from=2000',
        'search, many hits': f'samples?text={word}&limit=50',
        'search, rare': f'samples?text={rare}&limit=50',
        'search, no hit': f'samples?text=zebra{source.random()}&limit=50',
        'one transcript': f'sample?run={run}&stage=stage1&row={source.randint(0, 1000)}'}


def report(title: str, times: dict[str, list[float]]) -> float:
    """Prints the times of each kind of answer; returns the longest 99th percentile, milliseconds."""
    print(f'{title:32}{"p50":>8}{"p95":>8}{"p99":>8}{"max":>8}  ms')
    for name, values in times.items():
        values = 1000 * np.array(values)
        print(f'{name:32}' + ''.join(f'{np.percentile(values, at):8.1f}' for at in (50, 95, 99, 100)))
    return max(float(np.percentile(values, 99)) * 1000 for values in times.values())


def measure(server: Server) -> list[str]:
    """Prints everything; returns what is beyond the bounds."""
    source, began, beyond = random.Random(0), time.monotonic(), []
    runs = [run['name'] for run in server.ask('runs')[0]['runs']]
    for title in ('while it is indexed', 'when it is indexed'):
        times, indexed = {}, title == 'when it is indexed'
        for _ in range(ROUNDS.value if indexed else 10**9):
            for name, what in questions(source, runs).items():
                times.setdefault(name, []).append(server.ask(what)[1])
            progress = server.ask('runs')[0]['progress']
            if not indexed and progress['read'] == progress['size']:
                break
        if not indexed:
            seconds = time.monotonic() - began
            print(f"{progress['size'] / 1e9:.2f} GB indexed after {seconds:.0f} s, questions in between")
        longest = report(title, times)
        if longest > SLOWEST:
            beyond.append(f'{title}: a 99th percentile of {longest:.0f} ms is above {SLOWEST} ms')
        print(f'peak memory {server.peak():.0f} MiB\n')
    began, start, pages = time.monotonic(), '', 0
    while True:  # to the end of everything, as the page goes on by itself
        answer, _ = server.ask(f'samples?text=zebra&limit=50{start}')
        pages += 1
        if answer['next'] is None:
            break
        start = ''.join(f'&{key}-from={quote(str(value))}'
                        for key, value in zip(('run', 'stage', 'row'), answer['next']))
    seconds = time.monotonic() - began
    print(f'searched everything in {seconds:.1f} s, {pages} answers; peak memory {server.peak():.0f} MiB')
    if server.peak() > LARGEST:
        beyond.append(f'peak memory of {server.peak():.0f} MiB is above {LARGEST} MiB')
    return beyond


def main(argv: list[str]) -> None:
    del argv
    folder = Path(FOLDER.value)
    if not (folder / 'made').exists():
        make(folder)
    if ONLY_MAKE.value:
        return
    server = Server(folder)
    try:
        beyond = measure(server)
    finally:
        server.process.terminate()
    if beyond:
        sys.exit('\n'.join(beyond))


if __name__ == '__main__':
    app.run(main)
