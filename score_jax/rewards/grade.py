"""Grades a file: `python -m score_jax.rewards.grade --kind=math < in.jsonl > out.jsonl`.

A line of input is a job, a line of output its verdict, in the same order: {"outcome", "extracted", "seconds"}.

    --kind=math   {"gold": "\\\\frac{1}{2}", "response": "... so \\\\boxed{0.5}"}
    --kind=code   {"tests": [...], "response": ...} or {"check": ..., "entry_point": ..., "response": ...}

`seconds` is null where there was no verdict to take time over: a line that is no job is answered with the outcome
`sandbox_error`, told on stderr by its number, and makes the exit code 2 at the end; the other lines are graded.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import os
import sys
from collections.abc import Iterable, Iterator

from score_jax.errors import UserError
from score_jax.rewards import maths
from score_jax.rewards.outcome import Outcome, Verdict
from score_jax.rewards.pool import Limits, Pool

# What applies to a job, and its limits; a program has limits of its own in the sandbox, below these.
_GRADERS = {
    'math': ('score_jax.rewards.maths:grade_job', maths.LIMITS),
    'code': ('score_jax.rewards.code:grade_job', Limits(wall_seconds=60, cpu_seconds=60, memory_bytes=1 << 30))}
_AHEAD = 64  # jobs read ahead of the oldest open verdict, per worker: bounds memory, not order


def job_of(line: str, kind: str) -> dict:
    """The job that a line holds; raises `UserError` if it holds none."""
    try:
        job = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'no JSON ({error})') from None
    if not isinstance(job, dict):
        raise UserError(f'a JSON object is wanted, not {line.strip()[:40]!r}')
    wanted = ('gold', 'response') if kind == 'math' else ('response',)
    for key in wanted:
        if not isinstance(job.get(key), str):
            raise UserError(f'{key!r} must be a string')
    if kind == 'math' and job.get('form', 'any') not in maths.FORMS:
        raise UserError(f"'form' must be one of {', '.join(maths.FORMS)}, not {job['form']!r}")
    if kind == 'code' and 'tests' not in job and not {'check', 'entry_point'} <= job.keys():
        raise UserError("'tests', or 'check' and 'entry_point', are missing")
    return job


def grade(lines: Iterable[str], kind: str, workers: int, form: str = 'any') -> Iterator[Verdict | UserError]:
    """A verdict for every line, in order; for a line that is no job, the error that says so."""
    function, limits = _GRADERS[kind]
    waiting: collections.deque = collections.deque()
    with Pool(function, workers=workers, limits=limits) as pool:
        for line in lines:
            try:
                job = job_of(line, kind)
                waiting.append(pool.submit({'form': form, **job} if kind == 'math' else job))
            except UserError as error:
                waiting.append(error)
            while waiting and (len(waiting) >= _AHEAD * workers or _is_settled(waiting[0])):
                yield _settled(waiting.popleft())
        while waiting:
            yield _settled(waiting.popleft())


def _is_settled(item: concurrent.futures.Future | UserError) -> bool:
    return isinstance(item, UserError) or item.done()


def _settled(item: concurrent.futures.Future | UserError) -> Verdict | UserError:
    return item if isinstance(item, UserError) else item.result()


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m score_jax.rewards.grade', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kind', choices=tuple(_GRADERS), required=True)
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--form', choices=maths.FORMS, default='any', help='how answers are given (math)')
    args = parser.parse_args()
    sys.stdin.reconfigure(encoding='utf-8', errors='replace')
    malformed = 0
    try:
        for number, verdict in enumerate(grade(sys.stdin, args.kind, args.workers, args.form), 1):
            if isinstance(verdict, UserError):
                malformed += 1
                print(f'line {number}: {verdict}', file=sys.stderr)
                verdict = Verdict(Outcome.SANDBOX_ERROR)
            line = {'outcome': verdict.outcome, 'extracted': verdict.read, 'seconds': verdict.seconds}
            print(json.dumps(line), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the verdicts has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if malformed else 0


if __name__ == '__main__':
    sys.exit(main())
