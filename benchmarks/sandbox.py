"""References of MBPP and HumanEval, and mutants of them, through the code grader: verdicts and throughput.

    python -m benchmarks.sandbox --data=DIR [--workers=2] [--every=1]

DIR holds `mbpp/mbpp.jsonl` and `humaneval/HumanEval.jsonl.gz`, as their authors publish them. A mutant is right if the
tests, run as plain Python beside it, say so (it then counts as equivalent); the grader must say the same.
"""

from __future__ import annotations

import argparse
import ast
import collections
import gzip
import json
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from score_jax.rewards import Outcome
from score_jax.rewards.pool import Limits, Pool
from score_jax.rewards.sandbox import Failure, SandboxError, Session, active

_LIMITS = Limits(wall_seconds=60, cpu_seconds=30, memory_bytes=1 << 30)  # of the trusted side
_SWAPS = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
          ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


def reference_jobs(data: Path) -> dict[str, dict]:
    """By id: the job of `rewards.code.grade_job` that grades the reference solution."""
    jobs = {}
    for line in (data / 'mbpp/mbpp.jsonl').open():
        record = json.loads(line)
        jobs[f'MBPP/{record["task_id"]}'] = {
            'tests': record['test_list'] + record['challenge_test_list'], 'setup': record['test_setup_code'],
            'response': fenced(record['code'])}
    for line in gzip.open(data / 'humaneval/HumanEval.jsonl.gz', 'rt'):
        record = json.loads(line)
        jobs[record['task_id']] = {
            'check': record['test'], 'entry_point': record['entry_point'], 'prompt': record['prompt'],
            'response': fenced(record['prompt'] + record['canonical_solution'])}
    return jobs


def fenced(program: str) -> str:
    return f'```python\n{program}\n```'


def mutants(job: dict, rng: random.Random) -> list[dict]:
    """One that returns None everywhere, and one with a single operator, comparison or number changed, if it has any."""
    program = job['response'].removeprefix('```python\n').removesuffix('\n```')
    without = ast.parse(program)
    for node in ast.walk(without):
        if isinstance(node, ast.Return):
            node.value = ast.Constant(None)
    changed = ast.parse(program)
    places = [node for node in ast.walk(changed) if _can_change(node)]
    if places:
        _change(rng.choice(places))
    return [{**job, 'response': fenced(ast.unparse(tree))} for tree in [without] + [changed] * bool(places)]


def _can_change(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and type(node.value) is int
            or isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _SWAPS
            or isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS)


def _change(node: ast.AST) -> None:
    if isinstance(node, ast.Constant):
        node.value += 1
    elif isinstance(node, ast.Compare):
        node.ops[0] = _SWAPS[type(node.ops[0])]()
    else:
        node.op = _SWAPS[type(node.op)]()


def passes_in_plain_python(job: dict) -> bool:
    """The data sets' own way: program and tests in one namespace. The sandbox is here only to survive the mutants."""
    program = job['response'].removeprefix('```python\n').removesuffix('\n```')
    tests = [job.get('setup', ''), *job['tests']] if 'tests' in job else [job['check'], f'check({job["entry_point"]})']
    source = '\n'.join([job.get('prompt', ''), program, 'import sys, random; random.seed(0)', *tests])
    try:
        with Session(active()) as session:
            session.load(source)
        return True
    except (Failure, SandboxError):
        return False


def grade(jobs: list[dict], workers: int) -> list[Outcome]:
    with Pool('score_jax.rewards.code:grade_job', workers=workers, limits=_LIMITS) as pool:
        pool.map(jobs[:workers])  # starts them
        start = time.monotonic()
        outcomes = [verdict.outcome for verdict in pool.map(jobs)]
        print(f'{len(jobs) / (time.monotonic() - start):.1f} programs/s', end=', ')
    return outcomes


def grade_references(jobs: dict[str, dict], workers: int) -> None:
    outcomes = grade(list(jobs.values()), workers)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the workers and all below them, now that they have ended
    print(f'{1000 * (used.ru_utime + used.ru_stime) / len(jobs):.0f} ms of CPU each')
    print(f'references: {outcomes.count(Outcome.CORRECT)} of {len(jobs)} pass')
    for name, outcome in zip(jobs, outcomes):
        if outcome is not Outcome.CORRECT:
            print(f'  {name}: {outcome}')


def grade_mutants(jobs: dict[str, dict], workers: int) -> None:
    rng = random.Random(0)
    pairs = [(name, mutant) for name, job in jobs.items() for mutant in mutants(job, rng)]
    outcomes = grade([mutant for _, mutant in pairs], workers)
    with ThreadPoolExecutor(workers) as executor:
        equivalent = list(executor.map(passes_in_plain_python, [mutant for _, mutant in pairs]))
    wrong = [outcome for outcome, same in zip(outcomes, equivalent) if not same]
    print(f'\nmutants: {len(pairs)}, of which {sum(equivalent)} pass their tests in plain Python too; '
          f'of the other {len(wrong)}, {len(wrong) - wrong.count(Outcome.CORRECT)} fail; '
          f'{dict(collections.Counter(map(str, outcomes)))}')
    for (name, mutant), outcome, same in zip(pairs, outcomes, equivalent):
        if (outcome is Outcome.CORRECT) != same:
            print(f'  {name}: {outcome} here, {"right" if same else "wrong"} in plain Python\n{mutant["response"]}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--every', type=int, default=1, help='take every n-th problem')
    flags = parser.parse_args()
    print(f'layers: {", ".join(active())}; {flags.workers} workers')
    jobs = dict(list(reference_jobs(flags.data).items())[::flags.every])
    grade_references(jobs, flags.workers)
    grade_mutants(jobs, flags.workers)


if __name__ == '__main__':
    main()
