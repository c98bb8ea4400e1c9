"""A run whose workdir is an address ends as one in a folder does, whenever it is cut off and wherever it goes on.

`Bucket` is a store in memory that notes what it and the machine's folder look like after every single operation: each
is what a machine leaves that is gone at that moment.
"""

import errno
import json
import os
import shutil
import signal
import sys
import threading
import types
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from helpers import untimed
from test_health import Counting, kill

from configs import base, stage2
from score_jax import converse, evaluate, health, mirror, processes, store
from score_jax import run as running
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.jsonl import read_jsonl
from score_jax.mirror import Mirror
from score_jax.watch.runs import Watcher
from score_jax.workdir import StageDirectory

THERE = 'bucket://b/run'
# Two copies, the second of which removes a checkpoint.
SHORT = {'steps': 2, 'save_every': 1, 'keep': 1, 'allow_changes': ('steps',)}


class Bucket(MemoryFileSystem):
    """A store; `after` is called after every operation, and `errors` has what the next ones of a name raise."""

    protocol, cachable = 'bucket', False
    store, pseudo_dirs = {}, ['']
    lock, done = threading.Lock(), []
    after, errors = None, {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix('bucket://'))


def counted(name: str):
    def operation(self, *args, **kwargs):
        with Bucket.lock:  # one after the other, so that what is noted is what there was
            if error := Bucket.errors[name].pop(0) if Bucket.errors.get(name) else None:
                raise error
            given = getattr(MemoryFileSystem, name)(self, *args, **kwargs)
            Bucket.done.append(name)
            if Bucket.after:
                Bucket.after()
            return given
    return operation


for operation in ('find', 'cat_file', 'pipe_file', 'put_file', 'get_file', 'rm_file'):
    setattr(Bucket, operation, counted(operation))
fsspec.register_implementation('bucket', Bucket, clobber=True)


def contents() -> dict[str, bytes]:
    return {name: bytes(file.getbuffer()) for name, file in list(Bucket.store.items())}


def fill(files: dict[str, bytes]) -> None:
    """Has the bucket be what it was; of each file that differs the store tells another version."""
    for name in [name for name in Bucket.store if name not in files]:
        del Bucket.store[name]
    for name, data in files.items():
        if name not in Bucket.store or bytes(Bucket.store[name].getbuffer()) != data:
            MemoryFileSystem.pipe_file(Bucket(), name, data)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Gives a machine: the folder of its cache, empty for a new one."""
    def start(name: str) -> Path:
        monkeypatch.setenv('SCORE_JAX_CACHE', str(tmp_path / name))
        return tmp_path / name

    Bucket.store.clear()
    Bucket.done.clear()
    Bucket.after, Bucket.errors = None, {}
    monkeypatch.setattr(store, '_WAITS', (0.0, 0.0))
    start('a')
    return start


def train(there, at=None, **changes) -> None:
    """What launch/main.py does, with a stage that counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(running.KINDS, 'supervised', lambda section, workdir: Counting(workdir, at, **SHORT | changes))
        running.run(base.get_config(), there)


def outcome(workdir: Path) -> list:
    """What a run must have in common with one that was left alone: the last state, to the bit, and all lines."""
    checkpoints = Checkpoints(workdir / 'base' / 'checkpoints')
    lines = [json.loads(line) for line in (workdir / 'base' / 'metrics.jsonl').read_text().splitlines()]
    return [checkpoints.latest(), checkpoints.checksum(), list(map(untimed, lines)),
            (workdir / 'base' / 'samples.jsonl').read_bytes()]


def state(workdir: Path) -> list[bytes]:
    """That of the last checkpoint, all of whose files are read."""
    like = Counting(workdir, **SHORT).learner.abstract_state()
    found, _ = Checkpoints(workdir / 'base' / 'checkpoints').restore(like)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def folder() -> Path:
    """The one in which this machine runs."""
    return Mirror(THERE).folder


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A run in a folder."""
    workdir = tmp_path_factory.mktemp('plain')
    train(workdir)
    return workdir


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """(bucket, machine) after each operation of a run, and what operations they were."""
    place, found = tmp_path_factory.mktemp('images'), []

    def note():
        shutil.copytree(place / 'machine', place / str(len(found)))
        found.append((contents(), place / str(len(found))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SCORE_JAX_CACHE', str(place / 'machine'))
        Bucket.store.clear()
        Bucket.done.clear()
        Bucket.after = note
        train(THERE)
        Bucket.after = None
    return found, list(Bucket.done)


def test_a_run_at_an_address_leaves_there_what_one_in_a_folder_leaves(plain, machine, capsys):
    train(THERE)
    assert outcome(folder()) == outcome(plain)
    assert f'{THERE} is copied from and to {folder()}' in capsys.readouterr().out
    at_address = {name.removeprefix('/b/run/'): data for name, data in contents().items()}
    assert at_address.pop('.written_by') and at_address == files(folder())
    machine('b')
    assert outcome(mirror.look(THERE)) == outcome(plain) and state(mirror.look(THERE)) == state(plain)


def test_cut_off_at_any_operation_a_new_machine_goes_on_to_the_same_end(images, plain, machine):
    """Operations after which a new machine finds the same go on in the same way, so of these one does."""
    found, done = images
    assert {'find', 'cat_file', 'pipe_file', 'put_file', 'rm_file'} == set(done) and len(found) > 60
    seen = []
    for number, (bucket, _) in enumerate(found):
        fill(bucket)
        machine(f'new{number}')
        with Mirror(THERE) as copy:
            copy.pull()
        if (start := files(copy.folder)) not in seen:
            seen.append(start)
            for step in (copy.folder / 'base' / 'checkpoints').glob('*'):
                assert (step / '_CHECKPOINT_METADATA').exists()
            train(THERE)
            end = files(copy.folder)
            assert outcome(copy.folder) == outcome(plain), number
            machine(f'after{number}')
            assert files(mirror.look(THERE)) == {name: end[name] for name in end if '/1/' not in name}, number
    assert len(seen) > 6


def test_cut_off_once_more_at_any_operation_it_is_as_sound(images, machine, tmp_path):
    """The second time a checkpoint of the first machine lies half copied at the address."""
    found, done = images
    halves = [number for number, (bucket, _) in enumerate(found) if done[number] == 'put_file' and any(
        'checkpoints/2/' in name for name in bucket) and '/b/run/base/checkpoints/2/_CHECKPOINT_METADATA' not in bucket]
    train(tmp_path / 'plain', keep=9)
    whole = Checkpoints(tmp_path / 'plain' / 'base' / 'checkpoints')
    again = []
    fill(found[halves[len(halves) // 2]][0])
    machine('second')
    Bucket.after = lambda: again.append(contents())
    train(THERE)
    Bucket.after = None
    for number, bucket in enumerate(again):
        fill(bucket)
        machine(f'third{number}')
        with Mirror(THERE) as copy:
            copy.pull()
        checkpoints = Checkpoints(copy.folder / 'base' / 'checkpoints')
        for step in checkpoints.steps():
            assert checkpoints._read_record(step)[1]['arrays'] == whole._read_record(step)[1]['arrays']
            for name in ('metrics.jsonl', 'samples.jsonl'):
                there, here = ([line for line in read_jsonl(place / 'base' / name) if line['step'] <= step]
                               for place in (copy.folder, tmp_path / 'plain'))
                assert [*map(untimed, there)] == [*map(untimed, here)]
        assert checkpoints.latest() >= 1
    assert checkpoints.steps() == [2]


def test_cut_off_at_any_operation_the_same_machine_goes_on_from_all_that_it_has(images, plain, machine, tmp_path):
    found, done = images
    begun = done.index('pipe_file')  # before this machine has written there, it has done nothing
    seen = []
    for number, (bucket, cache) in enumerate(found[begun:]):
        fill(bucket)
        shutil.copytree(cache, machine(f'same{number}'))
        had = files(folder())
        with Mirror(THERE) as copy:
            copy.pull()
            assert files(copy.folder) == had
            copy.push()
        if had not in seen:
            seen.append(had)
            train(THERE)
            assert outcome(folder()) == outcome(plain), number
            had = files(folder())
        machine(f'other{number}')
        assert files(mirror.look(THERE)) == had
    assert len(seen) == 3  # nothing; and at each of the two copies


def test_a_machine_that_is_cut_off_while_it_fetches_fetches_the_rest(machine, monkeypatch):
    monkeypatch.setattr(store, '_AT_ONCE', 1)
    train(THERE)
    whole = files(folder())
    for number in range(1, len(whole), 5):
        machine(f'new{number}')
        Bucket.errors = {'get_file': [None] * number + [PermissionError(errno.EACCES, 'gone')]}
        with pytest.raises(UserError), Mirror(THERE) as copy:
            copy.pull()
        assert number <= len(files(folder())) < len(whole)
        with Mirror(THERE) as copy:
            copy.pull()
        assert files(copy.folder) == whole


# --- which side is newer


def writer() -> str:
    return contents()['/b/run/.written_by'].decode()


def test_another_machine_that_went_on_is_newer_and_the_first_one_stops(machine):
    """The first one may be asleep while it is replaced; what it did since then is not what counts."""
    def replaced():
        machine('b')
        train(THERE, steps=3)
        machine('a')

    with pytest.raises(UserError, match=f'{THERE} is no longer what this run began with .*writes there now.*it stops'):
        train(THERE, {2: replaced}, steps=3)
    assert Checkpoints(folder() / 'base' / 'checkpoints').steps() == [2]
    end = contents()
    train(THERE, steps=3)
    assert contents() == end and Checkpoints(folder() / 'base' / 'checkpoints').steps() == [3]


def test_an_address_that_was_cleared_is_a_new_one_whatever_this_machine_has(capsys):
    train(THERE)
    Bucket.store.clear()
    train(THERE, learning_rate=0.1)  # of another config: what was here would refuse it
    assert capsys.readouterr().out.count('base: done') == 2 and '/b/run/base/metrics.jsonl' in contents()


def test_what_is_cleared_while_a_run_writes_there_is_not_written_again():
    with pytest.raises(UserError, match='it was cleared'):
        train(THERE, {2: Bucket.store.clear})
    assert not contents()


def test_a_later_checkpoint_of_a_run_on_the_mounted_bucket_counts(machine, tmp_path):
    train(THERE)
    mounted = shutil.copytree(folder(), tmp_path / 'mounted')
    train(mounted, steps=3)
    keep = contents()['/b/run/.written_by']
    fill({'/b/run/.written_by': keep} | {f'/b/run/{name}': data for name, data in files(mounted).items()})
    train(THERE, steps=4)
    assert [line['step'] for line in Counting(folder(), steps=4).lines()] == [1, 2, 3, 4]
    assert outcome(folder())[2][:3] == outcome(mounted)[2]  # not made again


def test_a_run_with_nothing_to_do_takes_the_address_from_nobody(machine, capsys):
    train(THERE)
    by = writer()
    machine('b')
    train(THERE)
    assert 'are done already' in capsys.readouterr().out and writer() == by
    machine('a')
    train(THERE, steps=3)
    assert writer() == by


def test_what_others_put_there_stays_and_names_that_lead_elsewhere_are_left_alone(machine, tmp_path):
    train(THERE)
    for name in ('/b/run/notes.txt', '/b/run/../../../escaped'):
        MemoryFileSystem.pipe_file(Bucket(), name, b'mine')
    train(THERE, steps=3)
    assert contents()['/b/run/notes.txt'] == b'mine' and not list(tmp_path.rglob('escaped'))
    machine('b')
    train(THERE, steps=4)
    assert (folder() / 'notes.txt').read_text() == 'mine' and '/b/run/notes.txt' in contents()


def test_only_what_differs_travels(machine):
    train(THERE, keep=9)
    for name in ('a', 'b', 'b'):
        machine(name)
        Bucket.done.clear()
        train(THERE, keep=9)
    assert not {'get_file', 'put_file'} & {*Bucket.done}
    train(THERE, keep=9, steps=3)
    new = [name for name in files(folder()) if 'checkpoints/1/' not in name and 'checkpoints/2/' not in name]
    assert Bucket.done.count('put_file') == len(new)


# --- when it copies


def test_a_signal_ends_the_run_once_its_checkpoint_is_at_the_address(machine):
    with pytest.raises(health.Interrupted, match='stopped after step 3 of 9, which is saved') as stop:
        train(THERE, {3: kill(signal.SIGTERM)}, steps=9, save_every=9)
    assert stop.value.exit_code == health.RESTART
    machine('b')
    train(THERE, steps=9, save_every=9)
    Counting(folder(), steps=9).check_whole()


def test_a_folder_is_copied_nowhere_and_its_saves_are_not_waited_for(tmp_path, monkeypatch):
    stage, waited = Counting(tmp_path, **SHORT), []
    stage.directory.push(lambda: waited.append(True))
    assert not waited
    monkeypatch.setattr(store.Store, '__init__', lambda *_: pytest.fail('no address was given'))
    train(tmp_path)


def test_every_measurement_is_copied_as_soon_as_it_is_made():
    train(THERE)

    class One(evaluate.Evaluation):
        def __init__(self, workdir):
            self.config = types.SimpleNamespace(stage='evaluation', pretrained='', seed=0)
            self.workdir, self.directory = workdir, StageDirectory(workdir, 'evaluation', {})
            self._parameters = {'base': lambda dtype: {}}

    with Mirror(THERE) as copy:
        copy.pull()
        stage = One(copy.folder)
        stage.directory.mirror = copy
        stage.directory.open()
        stage._cached('base-1', 'base', {}, lambda params: ({'t1': 0.5, 't2': 0.5, 'delta': 0.0}, []))
    assert json.loads(contents()['/b/run/evaluation/base-1.json'])['row']['t1'] == 0.5


# --- what fails


def test_an_error_that_passes_is_warned_of_and_changes_nothing(plain, capsys):
    operations = 'find', 'cat_file', 'pipe_file', 'put_file', 'rm_file'
    Bucket.errors = {name: [OSError('the store is tired')] for name in operations}
    train(THERE)
    assert outcome(folder()) == outcome(plain)
    assert capsys.readouterr().out.count(f'{THERE}: warning: OSError: the store is tired; once more in 0 s') == 5


def test_an_error_that_stays_ends_in_one_sentence_and_the_same_command_goes_on(plain):
    Bucket.errors = {'put_file': [None] * 3 + [OSError('no more\nof it')] * 1000}
    with pytest.raises(UserError) as error:
        train(THERE)
    assert str(error.value) == (
        f'{THERE} cannot be read or written (OSError: no more); once that is mended, the same command goes on from '
        'there.')
    Bucket.errors = {}
    train(THERE)
    assert outcome(folder()) == outcome(plain)


def test_an_address_that_cannot_be_written_is_told_before_anything_is_learned():
    Bucket.errors = {'pipe_file': [PermissionError(errno.EACCES, 'Forbidden')]}
    with pytest.raises(UserError, match=r'cannot be read or written \(Forbidden\)'):
        train(THERE, {1: lambda: pytest.fail('a step')})


def test_a_full_disk_here_is_told_in_a_sentence(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/cache/file')

    monkeypatch.setattr(Mirror, '_keep', full)
    with pytest.raises(UserError, match='No space left on device: /cache/file; once that is mended, the same command'):
        train(THERE)


def test_two_runs_on_one_machine_do_not_have_one_address():
    def another():
        with pytest.raises(UserError, match=f'{THERE} is in use by another run on this machine'):
            train(THERE)

    train(THERE, {2: another})


def test_several_processes_are_told_to_mount_the_bucket(monkeypatch):
    monkeypatch.setattr(processes, 'several', lambda: True)
    for workdir in ('gs://bucket/runs', Path('gs://bucket/runs')):
        with pytest.raises(UserError, match='--workdir=gs://bucket/runs is an address, .*one process.*mount'):
            running.run(base.get_config(), workdir)


@pytest.mark.parametrize('there, message', [
    ('gs://bucket/runs', 'gs://bucket/runs needs the package gcsfs: pip install gcsfs'),
    ('s3://bucket/runs', 's3://bucket/runs needs the package s3fs: pip install s3fs'),
    ('sftp://host/runs', 'needs the package paramiko: pip install paramiko'),
    ('nowhere://runs', 'nowhere://runs cannot be opened .*Protocol not known.*such as gs://BUCKET/RUN'),
    ('file:///tmp/runs', 'file:///tmp/runs is a folder of this machine; name it without file://')])
def test_an_address_that_cannot_be_opened_is_told_in_a_sentence(there, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package, scheme in (('gcsfs', 'gs'), ('s3fs', 's3'), ('paramiko', 'sftp')):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(UserError, match=message) as error:
        running.run(base.get_config(), there)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_a_command_in_an_error_has_the_address():
    with pytest.raises(UserError, match=f'python launch/main.py --config=configs/stage1.py --workdir={THERE}$'):
        running.run(stage2.get_config(), THERE)


def test_a_model_at_an_address_is_refused_with_what_to_do(tmp_path):
    config = base.get_config()
    config.pretrained = 'gs://bucket/gemma'
    with pytest.raises(UserError, match=r"'gs://bucket/gemma', which is no directory \(an address: copy it here"):
        running.run(config, tmp_path)


@pytest.mark.parametrize('path, is_address', [
    ('gs://b/r', True), (Path('s3://b/r'), True), ('memory://r', True), ('runs/mine', False), ('/a:/b', False),
    ('runs/a:/b', False), ('c:/x', False)])
def test_what_is_an_address(path, is_address):
    assert bool(store.address(path)) == is_address


# --- to look at it


def test_a_look_fetches_what_is_asked_for_and_is_no_run(machine):
    train(THERE, steps=4, keep=4)
    by = writer()
    machine('b')
    for wanted, steps in (({'checkpoints': False}, []), ({}, ['4']), ({'step': 2}, ['2', '4'])):
        copy = mirror.look(THERE, **wanted)
        assert sorted(path.name for path in copy.glob('base/checkpoints/*')) == steps
        assert len((copy / 'base' / 'metrics.jsonl').read_text().splitlines()) == 4
    assert writer() == by and copy != folder()


def test_a_copy_that_is_fetched_again_is_followed(machine):
    steps, watcher = [], None
    for end in (2, 3):
        machine('a')
        train(THERE, steps=end)
        machine('b')
        copy = mirror.look(THERE, checkpoints=False)
        watcher = watcher or Watcher([copy])
        while watcher.advance():
            pass
        steps.append(watcher.runs['run'].summary()['stages'][0]['step'])
    assert steps == [2, 3]


def test_the_stage_that_was_saved_last_is_known_in_a_copy(machine):
    for stage in ('stage2', 'base'):
        train(THERE, stage=stage)
    machine('b')
    assert converse._saved_last(mirror.look(THERE)) == 'base'


def test_a_look_at_nothing_is_told_in_a_sentence():
    with pytest.raises(UserError, match=f'--workdir={THERE} is empty or not there; name one that'):
        mirror.look(THERE)
    assert mirror.look('runs/mine') == Path('runs/mine')
