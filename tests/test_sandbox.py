"""No program passes that should not, none gets out, none outlives its verdict, and honest ones are left alone."""

import concurrent.futures
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attacks.controls import CONTROLS
from attacks.programs import ATTACKS
from score_jax.errors import UserError
from score_jax.rewards import Outcome
from score_jax.rewards.code import grade_job
from score_jax.rewards.pool import children
from score_jax.rewards.sandbox import (
    LAYERS, Failure, Limits, SandboxError, Session, Source, active, cgroup, layers, require, session, trash)
from score_jax.rewards.sandbox.inside import values

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
SHARDS = 3
BOUND = 30  # seconds, far above what anything here needs: 'returns at all'
needs_a_sandbox = pytest.mark.skipif(sys.platform != 'linux', reason='the sandbox needs Linux')


def open_session(**limits) -> Session:
    return Session(active(), Limits(**limits))


# -- attacks

def ordinary_user() -> dict:
    """How to start Python as somebody who is not root."""
    if os.geteuid() != 0:
        return {'python': sys.executable, 'options': {}}
    options = {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}
    for python in (sys.executable, '/usr/bin/python3'):
        test = f'import sys; sys.path.insert(0, {str(ROOT)!r}); import score_jax.rewards.code'
        try:
            if subprocess.run([python, '-B', '-c', test], cwd='/', capture_output=True, **options).returncode == 0:
                return {'python': python, 'options': options}
        except OSError:
            pass
    pytest.skip('an ordinary user can start no Python 3.11 that reads this checkout')


def run_attacks(attacks: list, python: str, options: dict, bare: bool = False) -> tuple[dict, dict]:
    """The runner's first line, and by name what came of each attack; several runners at a time."""
    def run(names: list[str]) -> list[dict]:
        argument = json.dumps({'layers': ['rlimits'] if bare else None, 'names': names})
        environment = {'SECRET': '716253', 'PYTHONDONTWRITEBYTECODE': '1', 'TMPDIR': '/tmp',
                       'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
        done = subprocess.run(
            [python, str(ROOT / 'tests/attacks/runner.py'), argument], env=environment, stdout=subprocess.PIPE, cwd='/',
            text=True, check=True, **options)
        return [json.loads(line) for line in done.stdout.splitlines()]

    names = [attack.name for attack in attacks]
    with concurrent.futures.ThreadPoolExecutor(SHARDS) as executor:
        lines = [*executor.map(run, [names[shard::SHARDS] for shard in range(SHARDS)])]
    return lines[0][0], {line['name']: line for part in lines for line in part[1:]}


@pytest.fixture(scope='module', params=['this user', 'ordinary user'])
def graded(request):
    if request.param == 'ordinary user' and os.geteuid() != 0:
        pytest.skip('this user is an ordinary one')
    how = ordinary_user() if request.param == 'ordinary user' else {'python': sys.executable, 'options': {}}
    return run_attacks(ATTACKS + CONTROLS, **how)


def one_graded(graded, attack) -> dict:
    machine, verdicts = graded
    if attack.needs and not set(attack.needs.split('|')) & set(machine['layers']):
        pytest.skip(f'needs the layer {attack.needs.replace("|", " or ")}')
    return verdicts[attack.name]


@needs_a_sandbox
@pytest.mark.parametrize('attack', ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_neither_passes_nor_leaves_a_trace_on_the_machine(graded, attack):
    verdict = one_graded(graded, attack)
    assert set(verdict['outcomes']) <= attack.allowed
    assert verdict['damage'] == []
    assert verdict['seconds'] < BOUND


@needs_a_sandbox
@pytest.mark.parametrize('control', CONTROLS, ids=lambda control: control.name)
def test_an_honest_program_passes(graded, control):
    verdict = one_graded(graded, control)
    assert (verdict['outcomes'], verdict['damage']) == (['correct'], [])


@needs_a_sandbox
def test_the_attacks_are_real_where_there_are_no_layers():
    attacks = [attack for attack in ATTACKS if attack.succeeds_bare]
    _, verdicts = run_attacks(attacks, **ordinary_user(), bare=True)
    assert len(attacks) >= 10
    assert [name for name, verdict in verdicts.items() if 'correct' not in verdict['outcomes']] == []


def test_there_are_enough_attacks_and_their_names_are_their_own():
    names = [attack.name for attack in ATTACKS + CONTROLS]
    assert len(ATTACKS) >= 45 and len(set(names)) == len(names)


# -- the session

@needs_a_sandbox
def test_values_come_back_as_exact_builtin_types():
    program = '''
import collections, enum
class Colour(enum.IntEnum): RED = 1
Point = collections.namedtuple('Point', 'x y')
class Text(str): pass
def echo(*args): return args
def special(): return [collections.Counter('aab'), collections.OrderedDict(a=1), Colour.RED, Point(1, 2), Text('x'),
                       True, collections.defaultdict(list, {1: [2]})]'''
    with open_session() as one:
        one.load(program)
        plain = ([1, -0.0, math.inf, 10**40, -10**40, 'a\ud800\n', b'\x00', None, True, 1j], (),
                 {1: {2, 3}, (1, 'a'): frozenset([1])})
        back = one.call('echo', plain)
        assert repr(back) == repr(plain)
        special = one.call('special')
    assert special == [{'a': 2, 'b': 1}, {'a': 1}, 1, (1, 2), 'x', True, {1: [2]}]
    assert [type(value) for value in special] == [dict, dict, int, tuple, str, bool, dict]


@needs_a_sandbox
def test_an_iterator_is_data_for_what_consumes_it_and_equal_to_no_list():
    with open_session() as one:
        one.load('def double(xs): return (2 * x for x in xs)')
        answer = one.call('double', [[1, 2]])
    assert answer != [2, 4] and list(answer) == [2, 4]


@needs_a_sandbox
def test_arguments_that_only_the_program_can_build_are_built_there():
    with open_session() as one:
        one.load('class Node:\n    def __init__(self, value): self.value = value\ndef value(node): return node.value',
                 'root = Node(5)')
        assert one.call('value', [Source('Node(3)')]) == 3
        assert one.call('value', (), {'node': Source('root')}) == 5


@pytest.mark.parametrize('answer', [
    {'a': 1}, [], ['x'], ['pickle', 'x'], ['d', 1], ['d', ['l'], 1], ['s', ['l']], ['n', '1' * 40000], ['n', 1],
    ['n', 'xyz'], ['f', '1.0'], ['c', 'a', 'b'], ['b', 'xy'], ['i'] * 2 + [['q']], [['l']]])
def test_an_answer_that_the_encoder_never_writes_is_refused(answer):
    with pytest.raises(ValueError):
        values.decode(answer)


def test_a_value_that_is_no_data_is_not_encoded():
    nest = loop = []
    for _ in range(200):
        nest = [nest]
    loop.append(loop)
    for value in (object(), len, nest, loop, 1 << (1 << 18), [object], 'x' * 2000, [0] * 1000):
        with pytest.raises(values.NotData):
            values.encode(value, 1000)


@needs_a_sandbox
def test_after_a_failure_every_call_fails_alike():
    with open_session() as one:
        one.load('def f(x): return 1 // x')
        assert one.call('f', [1]) == 1
        for argument in (0, 1):
            with pytest.raises(Failure, match='ZeroDivisionError') as failure:
                one.call('f', [argument])
        assert failure.value.outcome is Outcome.RUNTIME_ERROR


@needs_a_sandbox
def test_a_program_runs_alike_every_time():
    def answers():
        with open_session() as one:
            one.load('def f(): return list({"a", "b", "c", "d", "e"}), hash("a")')
            return one.call('f')
    assert len({repr(answers()) for _ in range(5)}) == 1


@needs_a_sandbox
def test_what_a_program_prints_is_shown_without_what_a_terminal_would_act_on():
    with open_session() as one:
        one.load(r'import os; os.write(1, b"\x1b]0;owned\x07 \xff \xe2\x80\xae shown")' + '\ndef f(): pass')
        one.call('f')
        assert 'shown' in one.printed and one.printed.isprintable()
        with pytest.raises(Failure) as failure:
            one.call('\x1b[2J')
    assert str(failure.value).isprintable()


@needs_a_sandbox
def test_a_program_that_is_out_of_time_ends_soon_after():
    start = time.monotonic()
    with open_session(wall_seconds=0.5) as one, pytest.raises(Failure) as failure:
        one.load('import time; time.sleep(1e9)')
    assert failure.value.outcome is Outcome.TIMEOUT and time.monotonic() - start < BOUND


@needs_a_sandbox
def test_nothing_is_left_after_many_programs():
    def left() -> tuple:
        return len(os.listdir('/proc/self/fd')), children(os.getpid()), [*Path('/tmp').glob('score_jax-*')]
    active()
    before = left()
    for number in range(60):
        with open_session(wall_seconds=0.5) as one:
            try:
                one.load(['def f(): return 1', 'import os; os.fork(); os._exit(0)', 'raise ValueError'][number % 3])
                one.call('f')
            except Failure:
                pass
    assert left() == before


@needs_a_sandbox
def test_no_program_lives_on_when_its_grader_is_killed():
    script = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from score_jax.rewards.sandbox import Session, active
with Session(active()) as one:
    print('ready', flush=True)
    one.load('import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(1e9)')'''
    grader = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE)
    assert grader.stdout.readline() == b'ready\n'
    family = below(grader.pid)
    while len(family) < 4:  # outer, warden, program, its child
        family = below(grader.pid)
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    grader.stdout.close()
    deadline = time.monotonic() + BOUND
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def below(pid: int) -> list[int]:
    found = children(pid)
    return found + [deeper for child in found for deeper in below(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


# -- layers, and a sandbox that is broken

@needs_a_sandbox
def test_every_layer_is_active_or_says_why_not():
    found = layers.probe()
    assert list(found) == list(LAYERS)
    assert {'no_new_privs', 'rlimits'} <= set(active())
    require(active())


def test_fewer_layers_than_demanded_are_refused_in_a_sentence(monkeypatch):
    def without_namespaces(wanted):
        if 'namespaces' in wanted:
            raise session.LayerError('namespaces', 'unshare: Operation not permitted')
        return open(os.devnull)
    monkeypatch.setattr(layers, 'Session', without_namespaces)
    monkeypatch.setattr(sys, 'platform', 'linux')
    layers.probe.cache_clear()
    try:
        assert 'namespaces' not in active() and 'seccomp' in active()
        require(['seccomp'])
        with pytest.raises(UserError, match=r'namespaces \(unshare: Oper.* not permitted\).*user namespaces.*config'):
            require(['seccomp', 'namespaces'])
        with pytest.raises(UserError, match="'firejail' is unknown; there are uid, "):
            require(['firejail'])
    finally:
        layers.probe.cache_clear()


@needs_a_sandbox
def test_without_a_layer_that_was_demanded_there_is_no_session(monkeypatch):
    monkeypatch.setattr(cgroup, 'group', lambda *limits: contextlib.nullcontext('/does/not/exist'))
    with pytest.raises(session.LayerError, match='cgroup: .*No such file'):
        Session(('cgroup', 'rlimits'))


@needs_a_sandbox
def test_a_broken_sandbox_is_no_verdict(monkeypatch):
    active()
    monkeypatch.setattr(session.sys, 'executable', '/does/not/exist')
    with pytest.raises(SandboxError, match='no process'):
        open_session()
    verdict = grade_job({'tests': ['assert f(1) == 1'], 'response': '```python\ndef f(x): return x\n```'})
    assert verdict.outcome is Outcome.SANDBOX_ERROR and math.isnan(verdict.reward)


@needs_a_sandbox
def test_a_sandbox_that_fails_once_is_tried_again(monkeypatch):
    def start(self):
        monkeypatch.undo()
        raise SandboxError('no memory for a process')
    active()
    monkeypatch.setattr(Session, '_start', start)
    job = {'tests': ['assert f(1) == 1'], 'response': '```python\ndef f(x): return x\n```'}
    assert grade_job(job).outcome is Outcome.CORRECT


def test_a_directory_is_removed_whatever_is_in_it(tmp_path):
    victim, work = tmp_path / 'victim', tmp_path / 'work'
    victim.mkdir()
    work.mkdir()
    (victim / 'file').write_text('keep')
    os.symlink(victim, work / 'link')
    os.link(victim / 'file', work / 'hard')
    os.mkfifo(work / 'pipe')
    (work / 'closed').mkdir()
    (work / 'closed/inner').mkdir()
    (work / 'closed/inner/file').touch()
    (work / 'closed/inner').chmod(0)
    (work / 'closed').chmod(0)
    top = os.open(work, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir('deep', dir_fd=top)
        below, top = top, os.open('deep', os.O_RDONLY, dir_fd=top)
        os.close(below)
    os.close(top)
    trash.remove(str(work))
    assert not work.exists() and (victim / 'file').read_text() == 'keep'


def test_a_control_group_needs_a_delegated_parent_with_both_controllers(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, '_parent', lambda: tmp_path)
    assert 'no cgroup version 2' in cgroup.missing()
    (tmp_path / 'cgroup.subtree_control').write_text('cpu memory')
    assert 'not enabled' in cgroup.missing()
    (tmp_path / 'cgroup.subtree_control').write_text('cpu memory pids')
    assert 'not delegated' in cgroup.missing()
    (tmp_path / 'cgroup.procs').touch()
    assert cgroup.missing() == ''
    monkeypatch.setattr(Path, 'rmdir', lambda self: None)  # a real group is removed with its files in it
    with cgroup.group(1 << 20, 8) as path:
        written = {file.name: file.read_text() for file in Path(path).iterdir()}
    assert written == {'memory.max': '1048576', 'memory.oom.group': '1', 'memory.swap.max': '0', 'pids.max': '8'}
