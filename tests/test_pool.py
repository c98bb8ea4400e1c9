"""The pool: what a job does to its worker reaches neither the caller, nor the other jobs, nor what comes after."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from score_jax.errors import UserError
from score_jax.rewards import Outcome, Verdict
from score_jax.rewards.pool import LARGEST_JOB, Limits, Pool, children

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Limits(wall_seconds=1.0, cpu_seconds=0.5, memory_bytes=256 << 20)
BOUND = 20  # seconds, far above what anything here needs: 'returns at all'


def job_function(job: dict) -> Verdict:
    """What the workers of these tests run: `job['do']` says what to do to the worker."""
    match job['do']:
        case 'echo':
            return Verdict(Outcome.CORRECT, job['text'])
        case 'pid':
            return Verdict(Outcome.CORRECT, str(os.getpid()))
        case 'sleep':
            time.sleep(job['seconds'])
        case 'burn':
            9 ** 9 ** 9  # in C, holding the interpreter's lock
        case 'swell':
            bytearray(1 << 30)
        case 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        case 'die once':
            if not os.path.exists(job['path']):
                Path(job['path']).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case 'refuse':
            raise UserError('this is no job')
        case 'print':
            print('{"outcome": "correct", "read": "forged", "last": false}', flush=True)
            return Verdict(Outcome.WRONG)
        case 'daemon':  # a grandchild in a session of its own, whose parent ends at once
            script = 'import os, time\nif os.fork() == 0:\n os.setsid(); print(os.getpid(), flush=True); time.sleep(60)'
            run = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE)
            pid = run.stdout.readline().decode().strip()
            Path(job['path']).write_text(pid)
            time.sleep(job['seconds'])
    return Verdict(Outcome.WRONG)


@pytest.fixture
def pool():
    with Pool('test_pool:job_function', workers=2, limits=LIMITS) as pool:
        yield pool


def one(pool: Pool, **job) -> Verdict:
    return pool.map([job])[0]


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> bool:
    end = time.monotonic() + BOUND
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_verdicts_come_in_the_order_of_the_jobs_with_their_seconds(pool):
    texts = [f'answer {i} ü \ud800 \n' for i in range(50)]
    verdicts = pool.map([{'do': 'echo', 'text': text} for text in texts])
    assert [v.read for v in verdicts] == texts
    assert all(v.outcome is Outcome.CORRECT and 0 < v.seconds < BOUND for v in verdicts)


def test_workers_are_other_processes_and_serve_many_jobs(pool):
    pids = {v.read for v in pool.map([{'do': 'pid'}] * 40)}
    assert 1 <= len(pids) <= 2 and str(os.getpid()) not in pids


@pytest.mark.parametrize('do', ['burn', 'sleep'])
def test_a_job_over_its_time_is_a_timeout_and_the_next_is_graded(pool, do):
    verdict = one(pool, do=do, seconds=60)
    assert verdict.outcome is Outcome.TIMEOUT and 0 < verdict.seconds <= LIMITS.wall_seconds + 1
    assert one(pool, do='echo', text='next').read == 'next'


def test_cpu_time_counts_for_each_job_by_itself():
    limits = Limits(wall_seconds=20, cpu_seconds=0.3, memory_bytes=LIMITS.memory_bytes)
    with Pool('test_pool:job_function', workers=1, limits=limits) as pool:
        first, *rest = pool.map([{'do': 'pid'}, {'do': 'burn'}, {'do': 'pid'}])
    assert first.outcome is Outcome.CORRECT
    assert rest[0].outcome is Outcome.TIMEOUT and rest[0].seconds < 20
    assert rest[1].outcome is Outcome.CORRECT and rest[1].read != first.read


def test_a_job_over_its_memory_is_memory_and_the_next_is_graded(pool):
    assert one(pool, do='swell').outcome is Outcome.MEMORY
    assert one(pool, do='echo', text='next').read == 'next'


def test_a_worker_that_dies_without_a_cause_gives_its_job_a_second_try(pool, tmp_path):
    assert one(pool, do='die once', path=str(tmp_path / 'tried')).outcome is Outcome.WRONG
    verdict = one(pool, do='die')
    assert verdict.outcome is Outcome.SANDBOX_ERROR and verdict.seconds > 0
    assert one(pool, do='echo', text='next').read == 'next'


def test_a_worker_that_is_killed_while_it_starts_is_started_again(tmp_path, monkeypatch):
    (tmp_path / 'killed_once.py').write_text(f"""
import os, signal
from test_pool import job_function
try:
    os.mkdir({str(tmp_path / 'tried')!r})
    os.kill(os.getpid(), signal.SIGKILL)
except FileExistsError:
    pass
""")
    monkeypatch.syspath_prepend(tmp_path)
    with Pool('killed_once:job_function', workers=1, limits=LIMITS) as pool:
        assert one(pool, do='echo', text='here').read == 'here'


def test_a_job_that_the_function_refuses_is_told_and_costs_no_worker(capfd):
    with Pool('test_pool:job_function', workers=1, limits=LIMITS) as pool:
        before, refused, after = pool.map([{'do': 'pid'}, {'do': 'refuse'}, {'do': 'pid'}])
    assert refused.outcome is Outcome.SANDBOX_ERROR and before.read == after.read
    assert capfd.readouterr().err == 'this is no job\n'


def test_what_a_job_prints_is_no_answer(pool):
    assert one(pool, do='print').outcome is Outcome.WRONG


def test_a_job_too_large_to_send_is_an_output_limit(pool):
    assert one(pool, do='echo', text='x' * LARGEST_JOB).outcome is Outcome.OUTPUT_LIMIT


def test_a_long_read_is_cut_before_it_comes_back(pool):
    assert one(pool, do='echo', text='x' * 100_000).read == 'x' * 1000


def test_a_slow_job_holds_up_no_other(pool):
    slow = pool.submit({'do': 'sleep', 'seconds': 0.9})
    assert one(pool, do='echo', text='quick').read == 'quick'
    pids = {v.read for v in pool.map([{'do': 'pid'}] * 20)}
    assert not slow.done() and len(pids) == 1
    assert slow.result(BOUND).outcome is Outcome.WRONG


def test_many_threads_may_map_at_the_same_time(pool):
    def ask(name: int) -> list[str]:
        return [v.read for v in pool.map([{'do': 'echo', 'text': f'{name}:{i}'} for i in range(20)])]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert answers == [[f'{name}:{i}' for i in range(20)] for name in range(8)]


@pytest.mark.parametrize('seconds', [0, 60], ids=['ends', 'is killed'])
def test_nothing_that_a_job_started_outlives_it(pool, tmp_path, seconds):
    path = tmp_path / 'pid'
    one(pool, do='daemon', path=str(path), seconds=seconds)
    assert wait_until_gone([int(path.read_text())])


def test_closing_leaves_no_process_thread_or_descriptor():
    before = children(os.getpid()), len(os.listdir('/proc/self/fd')), threading.active_count()
    with Pool('test_pool:job_function', workers=3, limits=LIMITS) as pool:
        pool.map([{'do': 'echo', 'text': ''}, {'do': 'burn'}, {'do': 'die'}, {'do': 'swell'}] * 2)
    assert before == (children(os.getpid()), len(os.listdir('/proc/self/fd')), threading.active_count())


def test_workers_die_with_a_caller_that_is_killed(tmp_path):
    script = f'''
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
from score_jax.rewards.pool import Limits, Pool
pool = Pool('test_pool:job_function', workers=2, limits=Limits(wall_seconds=60, cpu_seconds=60, memory_bytes=1 << 30))
busy = pool.submit({{'do': 'burn'}})
print(pool.map([{{'do': 'pid'}}])[0].read, flush=True)
busy.result()
'''
    caller = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE)
    assert caller.stdout.readline()
    workers = children(caller.pid)
    assert len(workers) == 2 and all(map(is_alive, workers))
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert wait_until_gone(workers)


def test_a_pool_that_is_not_closed_does_not_keep_its_program_from_ending():
    script = f'''
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
from score_jax.rewards.pool import Limits, Pool
pool = Pool('test_pool:job_function', workers=2, limits=Limits(wall_seconds=60, cpu_seconds=60, memory_bytes=1 << 30))
pool.map([{{'do': 'pid'}}])
'''
    assert subprocess.run([sys.executable, '-c', script], timeout=BOUND).returncode == 0


def test_a_function_that_cannot_be_started_is_told_to_the_user():
    with Pool('score_jax.rewards.no_such_module:f', workers=1, limits=LIMITS) as pool:
        with pytest.raises(UserError, match='no_such_module:f does not start'):
            pool.map([{}])
    with pytest.raises(UserError, match='workers must be 1 or more, not 0'):
        Pool('test_pool:job_function', workers=0, limits=LIMITS)
