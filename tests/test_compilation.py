"""Steps of ragged lengths compile nothing once their buckets are warm; what is compiled is kept on disk."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import mesh_of

from configs import stage1
from score_jax import compilation, rollout, sharding, tasks
from score_jax.reinforce import Reinforce
from score_jax.trajectory import turn_ends

ROOT = Path(__file__).resolve().parents[1]
# Prompts have from 5 to 16 tokens, responses from 1 to 16: few buckets, since each takes seconds to compile.
RAGGED = {
    'model.width': 8, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 8,
    'task.largest': 9, 'task.limit': 40, 'rollout.max_tokens': 16, 'rollout.max_length': 96, 'rollout.chunk': 48,
    'start_from': 'random', 'reference': 'random', 'group.first': 2, 'group.second': 2, 'batch': 2,
    'learning_rate': 1e-30, 'sample_every': 1000}
STEADY, MOST = 50, 150


def test_a_counter_counts_programs_once():
    counter, double = compilation.Counter(), jax.jit(lambda x: 2 * x)
    double(np.zeros(7))
    programs, seconds = counter.take()
    assert programs >= 1 and seconds > 0
    double(np.ones(7))
    assert counter.take() == (0, 0)
    double(np.zeros(8))
    assert counter.take()[0] >= 1


def test_there_come_fifty_ragged_steps_that_compile_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
    config = stage1.get_config()
    config.update_from_flattened_dict(RAGGED)
    stage = Reinforce(config, tmp_path)
    prompt_tokens, sample, longest = tasks.prompt_tokens, rollout.sample, []

    def ragged_prompt(task, problem):
        tokens = prompt_tokens(task, problem)
        return tokens + tokens[-1:] * (sum(problem.numbers) % 12)

    def noted(*args, **options):
        trajectory = sample(*args, **options)
        longest.append((int(trajectory.length.max()), *(int(end.max()) for end in turn_ends(trajectory))))
        return trajectory

    monkeypatch.setattr(tasks, 'prompt_tokens', ragged_prompt)
    monkeypatch.setattr(rollout, 'sample', noted)
    stage.sampler = dataclasses.replace(stage.sampler, end_tokens=tuple(range(0, stage.model.vocab_size, 6)))
    params = jax.tree.map(jnp.zeros_like, stage.start())  # every token is as likely as any other, and stays so
    state, compiled, counter = stage.learner.new_state(params), [], compilation.Counter()
    while compiled[-STEADY:] != [0] * STEADY:
        assert len(compiled) < MOST, f'programs compiled by step: {compiled}'
        state, _, _ = stage.step(state, len(compiled))
        compiled.append(counter.take()[0])
    assert sum(compiled) > 5
    assert len(set(longest[-STEADY:])) > STEADY / 2, 'lengths hardly differ'


def test_the_oldest_files_go_first(tmp_path):
    for age in range(5):
        (tmp_path / f'{age}').write_bytes(bytes(10))
        os.utime(tmp_path / f'{age}', (1000 - age, 1000 - age))
    compilation._prune(tmp_path, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '1', '2']


@pytest.mark.parametrize('given, expected', [
    ('', '--xla_gpu_enable_triton_gemm=false'), ('--one=1', '--one=1 --xla_gpu_enable_triton_gemm=false'),
    ('--xla_gpu_enable_triton_gemm=true', '--xla_gpu_enable_triton_gemm=true')])
def test_products_on_gpus_are_those_of_cublas_unless_it_is_said_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv('XLA_FLAGS', given)
    compilation.use_cublas()
    assert os.environ['XLA_FLAGS'] == expected


@pytest.mark.parametrize('place', ['given', 'of the user', 'none that can be written'])
def test_what_is_compiled_is_kept(tmp_path, place):
    """In a process of its own, as these are settings of the process; a file that is cut short is compiled again."""
    script = """
import sys, warnings
import jax, jax.numpy as jnp
from score_jax import compilation
warnings.simplefilter('error')
folder, hits = compilation.keep(), []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith('cache_hits')))

@jax.jit
def double(x):
    return 2 * jnp.cumsum(x)

for cut in (False, False, True):
    for file in folder.glob('*double*') if cut else ():
        file.write_bytes(file.read_bytes()[:20])
    jax.clear_caches()
    assert double(jnp.ones(5))[-1] == 10
    print(folder, sum(hits) > 0)
    hits.clear()
"""
    environment = {key: value for key, value in os.environ.items() if 'COMPILATION' not in key}
    environment |= {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    if place == 'given':
        environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / 'own')
    elif place != 'of the user':
        (tmp_path / 'cache').write_text('a file')
        script = script.replace("folder.glob('*double*') if cut else ()", '()')
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, _ = (line.rsplit(' ', 1) for line in done.stdout.splitlines())
    if place == 'none that can be written':
        assert first == second == ['None', 'False']
        return
    assert [first[1], second[1]] == ['False', 'True']
    assert first[0].startswith(str(tmp_path / ('own' if place == 'given' else 'cache/score_jax')))
    assert any(Path(first[0]).glob('*double*'))


def test_machine_is_named_where_the_system_does_not_list_cores(monkeypatch):
    monkeypatch.delattr('os.sched_getaffinity', raising=False)  # macOS
    assert len(compilation._machine()) == 12
