"""Countdown graded in worker processes, as the tasks in words are: what `faults.py` kills while it works."""

import functools
import time

from score_jax.rewards import Verdict, countdown
from score_jax.rewards.pool import Limits, Pool
from score_jax.tasks.countdown import Countdown, CountdownConfig

WORKERS = 2


def grade(job: dict) -> Verdict:
    """The verdict on a job; slow enough that a fault finds it at work."""
    time.sleep(0.002)
    return countdown.verify(tuple(job['numbers']), job['target'], job['response'])


class PooledCountdown(Countdown):
    """Countdown, whose verdicts come from a pool."""

    Config = CountdownConfig

    def verify(self, problems, responses):
        """The verdicts on responses to these problems."""
        return self._pool.map([
            {'numbers': problem.numbers, 'target': problem.target, 'response': response}
            for problem, response in zip(problems, responses, strict=True)])

    @functools.cached_property
    def _pool(self) -> Pool:
        limits = Limits(wall_seconds=20, cpu_seconds=20, memory_bytes=1 << 30)
        return Pool('benchmarks.faults_task:grade', workers=WORKERS, limits=limits)
