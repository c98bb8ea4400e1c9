"""A device for each core: how many a config gets, and what a process makes of that."""

import subprocess
import sys

import jax
import pytest

from configs import evaluate, score, stage1, study
from score_jax import cores
from tests.helpers import environment

WHAT = ('import sys, os; sys.path.insert(0, "."); from configs import stage1; from score_jax import cores; import jax; '
        'cores.count = lambda: 3; print(cores.use(stage1.get_config()), jax.device_count(), os.environ["XLA_FLAGS"])')


@pytest.mark.parametrize('config, found', [
    (stage1.get_config(), [1, 2, 2, 4, 4, 8, 16]),  # 16 problems, and 128 dialogues of the base that is made before
    (evaluate.get_config(), [1, 2, 2, 4, 5, 5, 50]),  # 500 problems
    (score.get_config(), [1, 2, 2, 4, 4, 4, 4]),
    (study.get_config(), [1, 2, 2, 4, 4, 4, 4])])
def test_every_batch_can_be_divided(config, found):
    assert [cores.devices(config, n) for n in (1, 2, 3, 4, 6, 8, 64)] == found


@pytest.mark.parametrize('change', [
    {'pretrained': 'models/some'}, {'model.width': 512}, {'dry_run': True}, {'mesh.name': 'v5e-8'}, {'mesh.data': 1},
    {'mesh.fsdp': 2}, {'batch': 3}])
def test_one_device_for_what_is_given_or_large(change):
    config = stage1.get_config()
    config.update_from_flattened_dict(change)
    assert cores.devices(config, 2) == 1


def run(**more):
    done = subprocess.run([sys.executable, '-c', WHAT], capture_output=True, text=True, env=environment() | more)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_a_process_makes_them():
    used, made, *flags = run(JAX_NUM_CPU_DEVICES='-1', XLA_FLAGS='--xla_cpu_enable_fast_math=false')
    assert (used, made) == ('2', '2')
    assert {'--xla_cpu_enable_fast_math=false', '--xla_cpu_multi_thread_eigen=false'} < set(flags)


@pytest.mark.parametrize('given, made', [
    ({'JAX_NUM_CPU_DEVICES': '5'}, '5'),
    ({'JAX_NUM_CPU_DEVICES': '-1', 'XLA_FLAGS': '--xla_force_host_platform_device_count=5'}, '5'),
    ({'JAX_NUM_CPU_DEVICES': '-1', 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cuda,cpu'}, None)])
def test_what_the_environment_says_stays(given, made):
    if made is None:  # a GPU is asked for, which is not here: what is looked at is that nothing is made of its cores
        code = WHAT.replace('jax.device_count()', 'jax.config.jax_num_cpu_devices')
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment() | given)
        assert done.stdout.split() == ['1', '-1']
        return
    used, count, *flags = run(**given)
    assert (used, count) == ('1', made) and '--xla_cpu_multi_thread_eigen=false' not in flags


def test_count_is_of_this_process(monkeypatch):
    assert 1 <= cores.count()
    monkeypatch.delattr('os.sched_getaffinity', raising=False)  # macOS
    assert cores.count() >= 1
    assert jax.device_count() == 8  # and nothing was made here
