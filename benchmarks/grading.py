"""What maths grading holds on all the data: `python -m benchmarks.grading --data=DIR` (with gsm8k/ and math/ below it).

    golds      every gold of GSM8K and MATH in every answer format: read, and equal to itself
    pairs      random pairs of golds of one subject: called equal only if an independent evaluation agrees
    hostile    1,000 hostile answers among 4,096: time of the batch, slowest answer, largest worker
    leaks      100,000 gradings with hostile ones among them: processes, descriptors and memory before and after
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import threading
import time
from pathlib import Path

from score_jax.rewards import maths
from score_jax.rewards.maths.clean import clean, compact
from score_jax.rewards.pool import Pool, children
from tests import hostile_answers

WRITTEN = {
    'boxed': 'So $\\boxed{%s}$.', 'final_answer': 'The final answer is $%s$. I hope it is correct.', '####': '#### %s'}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding='utf-8')]


def golds(data: Path) -> dict[str, list[tuple[str, str]]]:
    """(subject, gold) of every problem, by data set."""
    gsm8k = [('gsm8k', maths.read(row['answer'], '####')) for split in ('train', 'test')
             for row in lines(data / 'gsm8k' / f'{split}.jsonl')]
    rows = [row for split in ('train', 'test') for row in lines(data / 'math' / f'{split}.jsonl')]
    math500 = lines(data / 'math' / 'math500.jsonl')
    return {
        'gsm8k': gsm8k,
        'math': [(row['subject'], maths.gold(row['solution'])) for row in rows],
        'math500': [(row['subject'], ' '.join(row['answer'].split())) for row in math500]}


def check_golds(sets: dict) -> None:
    for name, rows in sets.items():
        start = time.monotonic()
        bad = [(form, gold) for _, gold in rows for form, text in WRITTEN.items()
               if (answer := maths.read(text % gold, form)) is None or not maths.equal(gold, answer)[0]]
        print(f'golds   {name}: {len(rows)} x {len(WRITTEN)} forms, {len(bad)} fail {bad[:5]}, '
              f'{1e3 * (time.monotonic() - start) / len(rows) / 3:.2f} ms each', flush=True)


def independent_value(text: str) -> complex | None:
    """The value of a gold by math-verify's grammar and sympy's `evalf`; None where these cannot be sure."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex

    if any(sign in text for sign in ('=', '_', 'frac{', '\\begin', ',', '(', '%', 'circ')) and '\\frac{' not in text:
        return None
    try:
        normal = normalize_latex(text, NormalizationConfig(
            basic_latex=True, units=True, malformed_operators=True, nits=True, boxed='none', equations=False))
        return complex(latex2sympy(normal, is_real=True, convert_degrees=False, normalization_config=None).evalf())
    except Exception:
        return None


def check_pairs(sets: dict, count: int) -> None:
    by_subject = collections.defaultdict(list)
    for subject, gold in sets['math']:
        by_subject[subject].append(gold)
    chance, values = random.Random(0), {}
    compared = false_positives = called_equal = 0
    unsure = []
    for _ in range(count):
        gold, answer = chance.sample(by_subject[chance.choice(sorted(by_subject))], 2)
        same = maths.equal(gold, answer)[0]
        for text in (gold, answer):
            if text not in values:
                values[text] = independent_value(text)
        x, y = values[gold], values[answer]
        called_equal += same
        if x is not None and y is not None:
            compared += 1
            if same and abs(x - y) > 1e-9 * max(abs(x), abs(y)):
                false_positives += 1
                print(f'        FALSE POSITIVE {gold}  |  {answer}')
        elif same and compact(clean(gold)) != compact(clean(answer)):
            unsure.append((gold, answer))
    print(f'pairs   {count}: {compared} with independent values, {called_equal} called equal, '
          f'{false_positives} false positives; equal, in other words, without a value: {unsure}', flush=True)


class Peak(threading.Thread):
    """The largest resident memory of any child while it runs, MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.mib, self._done = 0.0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.mib = max([self.mib, *(resident_mib(pid) for pid in children(os.getpid()))])

    def stop(self) -> float:
        self._done.set()
        self.join()
        return self.mib


def resident_mib(pid: int | str) -> float:
    try:
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * resource.getpagesize() / 2 ** 20
    except (OSError, IndexError):
        return 0.0


def batch(sets: dict, size: int, hostile: int, chance: random.Random) -> list[dict]:
    honest = [{'gold': gold, 'response': WRITTEN['boxed'] % chance.choice((gold, other))}
              for (_, gold), (_, other) in zip(chance.choices(sets['math'], k=size - hostile),
                                               chance.choices(sets['math'], k=size - hostile))]
    responses = hostile_answers.responses()
    jobs = honest + [{'gold': chance.choice(hostile_answers.GOLDS), 'response': chance.choice(responses)}
                     for _ in range(hostile)]
    chance.shuffle(jobs)
    return jobs


def check_hostile(sets: dict, workers: int) -> None:
    for name, hostile in (('honest', 0), ('1,000 hostile', 1000)):
        peak = Peak()
        with Pool('score_jax.rewards.maths:grade_job', workers=workers, limits=maths.LIMITS) as pool:
            pool.map([{'gold': '1', 'response': ''}] * workers)
            peak.start()
            start = time.monotonic()
            verdicts = pool.map(batch(sets, 4096, hostile, random.Random(1)))
            seconds = time.monotonic() - start
            mib = peak.stop()
        print(f'hostile 4,096 jobs, {name}: {seconds:.1f} s, slowest {max(v.seconds for v in verdicts):.2f} s, largest '
              f'worker {mib:.0f} MiB, {dict(collections.Counter(str(v.outcome) for v in verdicts))}', flush=True)


def check_leaks(sets: dict, workers: int, count: int) -> None:
    def now() -> str:
        return (f'{len(children(os.getpid()))} children, {len(os.listdir("/proc/self/fd"))} descriptors, '
                f'{len(os.listdir("/proc/self/task"))} threads, {resident_mib("self"):.0f} MiB, workers '
                f'{[round(resident_mib(pid)) for pid in children(os.getpid())]} MiB')

    chance, kinds = random.Random(2), collections.Counter()
    jobs = batch(sets, 4000, 100, chance)
    killed = [{'gold': '\\int \\frac{x}{x^9+x+1} dx', 'response': '\\boxed{\\int \\frac{x+1}{x^9+x+1} dx}'}]
    print(f'leaks   before the pool: {now()}')
    start = time.monotonic()
    with Pool('score_jax.rewards.maths:grade_job', workers=workers, limits=maths.LIMITS) as pool:
        for done in range(0, count, len(jobs)):
            kinds.update(str(v.outcome) for v in pool.map(jobs + killed))
            if done in (0, count // 2 // len(jobs) * len(jobs)) or done + len(jobs) >= count:
                print(f'leaks   {done + len(jobs)} gradings, {time.monotonic() - start:.0f} s: {now()}', flush=True)
    print(f'leaks   after the pool: {now()}; {dict(kinds)}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--pairs', type=int, default=5000)
    parser.add_argument('--gradings', type=int, default=100_000)
    args = parser.parse_args()
    sets = golds(args.data)
    check_golds(sets)
    check_pairs(sets, args.pairs)
    check_hostile(sets, args.workers)
    check_leaks(sets, args.workers, args.gradings)


if __name__ == '__main__':
    main()
