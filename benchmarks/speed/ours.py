"""score_jax's own side: the rollout, the update, and the weights that all sides are given."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import compiling, worker
from benchmarks.speed.workloads import Shape, Workload
from score_jax import allocation, compilation, hf, layout, model, objective, plan, rollout, sharding
from score_jax.learner import Learner, MemoryConfig
from score_jax.optimizer import OptimizerConfig
from score_jax.trajectory import Trajectory

CHUNK = 32  # of the rollout
OBJECTIVES = {estimator: objective.resolve(
    'stage2', turns=2, gamma=0.0, kl_estimator=estimator, baseline='batch_mean', adaptive_beta2=0.0,
    allow_gamma_hack=False, alpha=10.0, beta1=0.1) for estimator in objective.KL_ESTIMATORS}
OPTIMIZER = OptimizerConfig(
    steps=1000, learning_rate=1e-5, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-8,
    clip_norm=1.0)


def model_config(shape: Shape) -> model.ModelConfig:
    """The decoder of a workload."""
    return model.ModelConfig(
        vocab_size=shape.vocab_size, width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
        head_dim=shape.head_dim, mlp=shape.mlp, tied=True, rope_base=1e6, norm_eps=1e-6, dtype=shape.dtype,
        qkv_bias=True)


def write_weights(shape: Shape, directory: Path) -> None:
    """Random weights that every side loads, in the files that transformers reads."""
    config = model_config(shape)
    if not directory.exists():
        hf.save(directory, config, model.initialise(config, jax.random.key(0), jnp.dtype(shape.dtype)))


def mesh_of(found):
    """One device, or as many virtual ones on the axis `data`."""
    return sharding.make_mesh(sharding.MeshConfig(data=found.devices, fsdp=1, model=1))


def sampler_config(work: Workload) -> rollout.RolloutConfig:
    """Of a workload; no token ends a response."""
    return rollout.RolloutConfig(
        turns=work.turns, max_tokens=work.longest, max_length=-(-work.length // CHUNK) * CHUNK, temperature=1.0,
        chunk=CHUNK, end_tokens=(-1,), pad_token=0)


def device_peak() -> dict[str, int]:
    """The most bytes that the device had in use, in place of the host's; nothing where it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {'peak': stats['peak_bytes_in_use']} if 'peak_bytes_in_use' in stats else {}


def sampling(found, work: Workload):
    """A repetition of the rollout; seconds and tokens by turn."""
    mesh = mesh_of(found)
    config, params = hf.load(found.folder, mesh)
    sampler = sampler_config(work)
    ends, clock = {'stop_at': work.stop_at} if work.stops else {}, worker.CLOCKS[found.clock]
    steps = iter(range(10**9))

    def once() -> dict:
        times = [clock()]
        trajectory = rollout.sample(
            params, config, sampler, mesh, work.prompts(), work.instructions(), forks=(1,) * work.turns, seed=0,
            step=next(steps), on_turn=lambda *_: times.append(clock()), **ends)
        sampled = int((np.asarray(trajectory.turn) > 0).sum())
        assert sampled == work.sampled, (sampled, work.sampled)
        return {'tokens': sampled, 'turns': np.diff(times).tolist()} | device_peak()
    return once


def updating(found, work: Workload):
    """A repetition of scoring and update."""
    mesh = mesh_of(found)
    config, params = hf.load(found.folder, mesh, 'float32')
    reference = hf.load(found.folder, mesh, 'bfloat16')[1]
    memory = MemoryConfig(
        params='float32', moments='float32', remat='nothing' if found.workload == 'memory' else 'products',
        accumulate=work.parts)
    # In parts the sampled KL, which is in the reward, would take a pass over all of them first.
    kind = OBJECTIVES['sampled' if work.parts == 1 else 'exact']
    learner = Learner(config, OPTIMIZER, mesh, work.head_chunk, memory)
    if work.parts > 1:  # as many as this device needs
        learner = plan.fitted(plan.Work(
            learner=learner, sampler=sampler_config(work), objective=kind, forks=(1,) * work.turns, batch=work.rows,
            prompt=work.prompt, instruction=work.instruction, reference_on_host=False),
            dataclasses.replace(memory, remat='auto', accumulate=0))
    parts = learner.memory.accumulate
    state = [learner.new_state(params)]
    turn = np.zeros((work.rows, work.length), np.int32)
    for number, (start, end) in enumerate(work.own()):
        turn[:, start:end] = number + 1
    trajectory = sharding.put_batch(mesh, Trajectory(
        tokens=np.array(work.trajectories(), np.int32), turn=turn, log_probs=np.zeros(turn.shape, np.float32),
        length=np.full(work.rows, work.length, np.int32), truncated=np.ones((work.rows, work.turns), bool)))
    correct = sharding.put_batch(mesh, np.array(work.correct(), np.float32))

    chosen = layout.choose(trajectory, (1,) * work.turns, CHUNK // 4, mesh=mesh, parts=parts)

    @functools.cache
    def program():
        return Learner.reinforce.lower(
            learner, state[0], reference, trajectory, correct, objective=kind, forks=(1,) * work.turns,
            temperature=1.0, layout=chosen).compile()

    def warm() -> dict:
        return {'temporary': program().memory_analysis().temp_size_in_bytes}

    def once() -> dict:
        state[0], figures = program()(state[0], reference, trajectory, correct, layout=chosen)
        return {'grad_norm': float(figures['grad_norm']), 'loss': float(figures['loss'])} | warm() | device_peak()
    return once, warm


def stepping(found, work: Workload):
    """A repetition of both. The update is that of given tokens, which cost what sampled ones would."""
    sample, (update, _) = sampling(found, work), updating(found, work)

    def once() -> dict:
        sampled = sample()
        return sampled | update()
    return once


def collectives(found, work: Workload):
    """What devices tell each other in a step on the axis `data`, and nothing else: the sum of the gradients over
    devices, and after every token whether all rows are done."""
    mesh = mesh_of(found)
    spec = sharding.batch_sharding(mesh).spec
    rows = jax.sharding.NamedSharding(mesh, spec)
    gradients = jax.tree.map(
        lambda p: jax.device_put(np.zeros((found.devices, *p.shape), np.float32), rows),
        model.abstract(model_config(work.shape), mesh))
    done = jax.device_put(np.zeros(work.rows, bool), rows)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def total(tree):
        return jax.tree.map(lambda x: jax.lax.psum(x, spec[0]), tree)

    @jax.jit
    def all_done(done):
        return jax.lax.fori_loop(0, work.turns * work.longest, lambda _, done: done ^ done.all(), done)

    def once() -> dict:
        jax.block_until_ready((total(gradients), all_done(done)))
        return {}
    return once


if __name__ == '__main__':
    FOUND = worker.job()
    allocation.keep()
    compilation.use_cublas()
    if FOUND.devices > 1:
        jax.config.update('jax_num_cpu_devices', FOUND.devices)
    WORK = worker.workload(FOUND)
    if FOUND.variant == 'weights':
        write_weights(WORK.shape, FOUND.folder)
    elif 'update' in FOUND.variant:
        ONCE, WARM = map(compiling.counted, updating(FOUND, WORK))
        worker.serve(FOUND, ONCE, WARM if 'once' in FOUND.variant else None)
    else:
        MAKE = {'sample': sampling, 'step': stepping, 'collectives': collectives}
        worker.serve(FOUND, compiling.counted(MAKE[FOUND.variant](FOUND, WORK)))
