"""Launchers for pods, GKE and SLURM: what they ask of gcloud and srun, by programs of these names that take notes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
RUN = ['--config=configs/stage1.py:smoke', '--workdir=/bucket/runs/a b']

# Notes each call in a line; its state and what the workers answer are files beside it, of a line for each time.
_GCLOUD = r'''#!/usr/bin/env bash
cd "$(dirname "$0")"
printf '%s' "$1 $2 $3 $4" >> calls; printf ' %s' "${@:5}" >> calls; echo >> calls
next() { head -1 "$1"; sed -i '1{$!d}' "$1"; }
case "$3 $4 $*" in
  "queued-resources describe "*) line=$(next states); [ "$line" = MISSING ] && exit 1; echo "$line" ;;
  *cat\ score_jax/exit_code*) line=$(next codes); [ "$line" = gone ] && exit 255; echo "$line" ;;
  "tpu-vm scp "*) line=$(next copies); exit "$line" ;;
esac
exit 0
'''


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def launch(command: list[str], folder: Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', **variables})


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """A repository with the launcher in it: what is committed is what runs."""
    folder = tmp_path_factory.mktemp('clone')
    (folder / 'launch').mkdir()
    shutil.copy(ROOT / 'launch' / 'tpu_pod.sh', folder / 'launch')
    for command in (['init', '-q'], ['add', '.'], ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'a']):
        subprocess.run(['git', *command], cwd=folder, check=True)
    return folder


def pod(folder: Path, clone: Path, states, codes=('0',), copies=('0',), flags=('--spot',)):
    """The launcher's calls of gcloud, and how it ended; the last state and code stay."""
    program(folder, 'gcloud', _GCLOUD)
    for name, lines in (('states', states), ('codes', codes), ('copies', copies)):
        (folder / name).write_text('\n'.join(lines) + '\n')
    done = launch(
        ['bash', str(clone / 'launch' / 'tpu_pod.sh'), 'mine', '--type=v5litepod-64', '--zone=z', '--bucket=b', *flags,
         '--', *RUN], folder, cwd=clone, POLL_SECONDS='0')
    calls = (folder / 'calls').read_text()
    return [line.removeprefix('compute tpus ') for line in calls.splitlines() if line.startswith('compute tpus')], done


def heads(calls: list[str]) -> list[str]:
    """The calls but those that only ask."""
    return [' '.join(call.split()[:2]) for call in calls if 'describe' not in call]


def test_a_slice_is_asked_for_awaited_set_up_and_used_by_all_workers(tmp_path, clone):
    calls, done = pod(tmp_path, clone, ['MISSING', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'])
    assert done.returncode == 0, done.stderr
    assert heads(calls) == ['queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh', 'tpu-vm ssh']
    create = next(call for call in calls if 'create' in call)
    for flag in ('mine --node-id=mine', '--accelerator-type=v5litepod-64', '--runtime-version=v2-alpha-tpuv5-lite',
                 '--spot', '--zone=z'):
        assert flag in create
    assert '--worker=all' in next(call for call in calls if ' scp ' in f' {call} ')
    started = next(call for call in calls if 'launch/main.py' in call)
    assert '--worker=all' in started and '--processes=auto' in started and r'--workdir=/bucket/runs/a\ b' in started


@pytest.mark.parametrize('code', ['75', '134', '137', 'gone'])
def test_a_run_that_was_stopped_is_started_again_on_the_same_slice(tmp_path, clone, code):
    calls, done = pod(tmp_path, clone, ['ACTIVE'], codes=[code, '0'])
    assert done.returncode == 0 and sum('launch/main.py' in call for call in calls) == 2
    assert 'queued-resources create' not in heads(calls) and 'goes on from its last checkpoint' in done.stdout


def test_a_slice_that_was_taken_back_is_asked_for_anew(tmp_path, clone):
    states = ['ACTIVE', 'SUSPENDED', 'SUSPENDED', 'MISSING', 'ACTIVE']  # the first of the two is what is told
    calls, done = pod(tmp_path, clone, states, codes=['gone', '0'])
    again = heads(calls)[heads(calls).index('queued-resources delete'):]
    assert again[:3] == ['queued-resources delete', 'queued-resources create', 'tpu-vm scp'] and done.returncode == 0


def test_workers_that_cannot_be_reached_are_set_up_once_more(tmp_path, clone):
    calls, done = pod(tmp_path, clone, ['ACTIVE'], copies=['1', '0'])
    assert heads(calls)[:2] == ['tpu-vm scp', 'tpu-vm scp'] and done.returncode == 0


@pytest.mark.parametrize('code', [1, 2])
def test_a_run_that_failed_is_not_started_again(tmp_path, clone, code):
    calls, done = pod(tmp_path, clone, ['ACTIVE'], codes=[str(code)])
    assert done.returncode == code and sum('launch/main.py' in call for call in calls) == 1


def test_a_slice_is_given_back(tmp_path, clone):
    program(tmp_path, 'gcloud', _GCLOUD)
    done = launch(['bash', str(clone / 'launch' / 'tpu_pod.sh'), 'mine', '--delete', '--zone=z'], tmp_path, cwd=clone)
    assert done.returncode == 0
    assert (tmp_path / 'calls').read_text().startswith('compute tpus queued-resources delete mine --force --zone=z')


@pytest.mark.parametrize('flags', [
    [], ['mine'], ['mine', '--zone=z', '--type=v5litepod-8'], ['mine', '--zone=z', '--nonsense']])
def test_what_is_not_whole_is_answered_with_how_it_is_used(tmp_path, clone, flags):
    program(tmp_path, 'gcloud', _GCLOUD)
    done = launch(['bash', str(clone / 'launch' / 'tpu_pod.sh'), *flags], tmp_path, cwd=clone)
    assert done.returncode == 2 and not (tmp_path / 'calls').exists()
    assert 'tpu_pod.sh' in done.stderr


def batch(folder: Path) -> subprocess.CompletedProcess:
    return launch(
        ['bash', str(ROOT / 'launch' / 'slurm.sbatch'), *RUN], folder, SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(folder))


@pytest.mark.parametrize('code, again', [
    (0, False), (1, False), (2, False), (75, True), (134, True), (137, True), (143, True)])
def test_slurm_queues_a_run_again_where_it_was_stopped(tmp_path, code, again):
    program(tmp_path, 'srun', f'#!/bin/sh\necho srun "$@" >> {tmp_path}/calls\nexit {code}\n')
    program(tmp_path, 'scontrol', f'#!/bin/sh\necho scontrol "$@" >> {tmp_path}/calls\n')
    done = batch(tmp_path)
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert done.returncode == code and calls[0].endswith(f'launch/main.py --processes=auto {" ".join(RUN)}')
    assert calls[1:] == (['scontrol requeue 7'] if again else [])


def test_slurm_waits_for_what_it_was_told_to_end(tmp_path):
    """The batch shell hears SIGTERM too; the step that saves must not be left alone, and its code counts."""
    program(tmp_path, 'srun', f'#!/bin/sh\nkill -TERM $PPID\nsleep 0.3\ntouch {tmp_path}/saved\nexit 75\n')
    program(tmp_path, 'scontrol', f'#!/bin/sh\ntest -e {tmp_path}/saved && touch {tmp_path}/queued\n')
    done = batch(tmp_path)
    assert done.returncode == 75 and (tmp_path / 'queued').exists()


def test_slurm_asks_for_a_task_for_each_gpu_and_to_be_told_before_the_end():
    lines = (ROOT / 'launch' / 'slurm.sbatch').read_text().splitlines()
    asked = dict(line.removeprefix('#SBATCH --').partition('=')[::2] for line in lines if line.startswith('#SBATCH'))
    assert asked['gpus-per-node'] == asked['ntasks-per-node'] and asked['signal'].startswith('TERM@')
    assert {'requeue', 'time', 'nodes', 'output'} <= asked.keys() and asked['open-mode'] == 'append'


def test_the_jobset_is_a_whole_slice_that_starts_anew():
    text = (ROOT / 'launch' / 'gke' / 'jobset.yaml').read_text()
    command = next(line for line in (ROOT / 'docs' / 'scale.md').read_text().splitlines() if line.startswith('sed '))
    filled = subprocess.run(
        ['bash', '-c', command.partition(' launch/')[0]], input=text, capture_output=True, text=True, check=True).stdout
    (jobset,) = yaml.safe_load_all(filled)
    assert jobset['metadata']['name'] == 'mine' and '--workdir=/bucket/runs/mine' in filled
    assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2' and jobset['kind'] == 'JobSet'
    (job,) = jobset['spec']['replicatedJobs']
    spec, pod = job['template']['spec'], job['template']['spec']['template']['spec']
    (container,) = pod['containers']
    assert container['image'].endswith('/score-jax')
    chips = container['resources']['limits']['google.com/tpu']
    topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
    assert spec['parallelism'] == spec['completions'] == int(topology[0]) * int(topology[1]) // chips
    assert container['resources']['requests'] == container['resources']['limits']
    assert spec['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never' and spec['completionMode'] == 'Indexed'
    assert jobset['spec']['failurePolicy']['maxRestarts'] > 100
    (rule,) = spec['podFailurePolicy']['rules']
    assert rule['onExitCodes'] == {'containerName': container['name'], 'operator': 'In', 'values': [1, 2]}
    assert '--processes=auto' in container['args']
    (mount,), (volume,) = container['volumeMounts'], pod['volumes']
    assert mount['name'] == volume['name']
    assert any(arg.startswith(f'--workdir={mount["mountPath"]}') for arg in container['args'])
    assert volume['csi']['driver'] == 'gcsfuse.csi.storage.gke.io'
    template = job['template']['spec']['template']
    assert template['metadata']['annotations']['gke-gcsfuse/volumes'] == 'true'
    assert pod['terminationGracePeriodSeconds'] >= 30


@pytest.mark.parametrize('name', ['launch/tpu_pod.sh', 'launch/slurm.sbatch'])
def test_scripts_are_bash(name):
    subprocess.run(['bash', '-n', str(ROOT / name)], check=True)
