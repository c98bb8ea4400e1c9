"""What an NVIDIA GPU computes, beside formulas in float32: the kernels that no other device runs, and a step.

    python benchmarks/gpu.py

Ends with 1 where something is further apart than rounding explains. Errors are norms of differences over norms.
"""

import dataclasses
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.ours import OBJECTIVES, OPTIMIZER
from score_jax import compilation, layout, model, rollout, sharding
from score_jax.learner import Learner, MemoryConfig
from score_jax.model import attention, kernels

compilation.use_cublas()
BFLOAT16 = 2e-2  # three bits more than one product rounds away
CONFIG = model.ModelConfig(
    vocab_size=512, width=256, layers=4, heads=12, kv_heads=2, head_dim=128, mlp=512, tied=True, rope_base=1e4,
    norm_eps=1e-6, dtype='bfloat16', qkv_bias=True)
WINDOWED = dataclasses.replace(CONFIG, window=100, global_every=2)
CAPPED = dataclasses.replace(CONFIG, attention_cap=20.0)


CPU = jax.devices('cpu')[0]  # where the formulas are computed


def random(*shape: int):
    """bfloat16 numbers, the same in every run."""
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.bfloat16)


def formula(q, k, v, visible, config: model.ModelConfig):
    """Attention, all scores at once: `q [B, T, H, h]`, `k, v [B, S, K, h]`, `visible [B or 1, T, S]`."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, config.heads // config.kv_heads, axis=2) for x in (k, v))
    scores = jnp.einsum('bthd,bshd->bhts', q, k, precision='highest') * config.head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None], kernels.capped(scores, config.attention_cap), -1e30))
    return jnp.einsum('bhts,bshd->bthd', weights, v, precision='highest')


def apart(got, expected) -> float:
    """The largest error of the arrays of two trees."""
    def of(a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return max(map(of, jax.tree.leaves(got), jax.tree.leaves(expected)))


def themselves(config: model.ModelConfig, tokens: int, packed: bool) -> float:
    """Tokens over themselves, and the gradients of that."""
    q, k, v = random(4, tokens, 12, 128), random(4, tokens, 2, 128), random(4, tokens, 2, 128) / 2
    by, distance = random(4, tokens, 12, 128), np.arange(tokens)[:, None] - np.arange(tokens)
    visible = (distance >= 0)[None] & ((distance < config.window) if config.window else True)
    segments = None
    if packed:
        segments = np.broadcast_to(np.arange(tokens) // (tokens // 3 + 1), (4, tokens))
        visible = visible & (segments[:, :, None] == segments[:, None])

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(run, q, k, v, by):
        out, back = jax.vjp(run, q, k, v)
        return out, back(by.astype(out.dtype))
    got = all_of(functools.partial(attention.attend, config=config, local=True, segments=segments), q, k, v, by)
    with jax.default_device(CPU):
        q, k, v, by = jax.device_put((q, k, v, by), CPU)
        return apart(got, all_of(functools.partial(formula, visible=visible, config=config), q, k, v, by))


def one_token(config: model.ModelConfig, rows: int, slots: int, room: int | None = None) -> float:
    """The token that each row decodes, over the slots that it has filled; with `room` for more positions than those."""
    q, k, v = random(rows, 1, 12, 128), random(rows, slots, 2, 128), random(rows, slots, 2, 128)
    at = np.random.default_rng(0).integers(0, room or slots, (rows, 1))
    held = at - (at - np.arange(slots)) % slots
    visible = (held >= 0) & (held > at - (config.window or slots))
    assert kernels.decodes(config)
    got = jax.jit(lambda *qkv: attention.attend(*qkv, config, True, at, wraps=bool(room)))(q, k, v)
    with jax.default_device(CPU):
        return apart(got, formula(*jax.device_put((q, k, v), CPU), visible[:, None], config))


def step(config: model.ModelConfig) -> tuple[float, dict]:
    """How far the sampler's log-probabilities are from the learner's at most, and what the update says."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, model=1))
    params = jax.jit(lambda: model.initialise(config, jax.random.key(0)))()
    sampler = rollout.RolloutConfig(
        turns=2, max_tokens=48, max_length=256, temperature=1.0, chunk=16, end_tokens=(0, 1, 2, 3), pad_token=0)
    prompts = [[int(x) for x in np.random.default_rng(n).integers(0, 512, 4 + n)] for n in range(16)]
    trajectory = rollout.sample(params, config, sampler, mesh, prompts, [7, 8, 9], forks=(2, 2), seed=0, step=0)
    memory = MemoryConfig(params='float32', moments='float32', remat='products', accumulate=2)
    learner = Learner(config, OPTIMIZER, mesh, 256, memory)
    correct = np.random.default_rng(0).integers(0, 2, (64, 2)).astype(np.float32)
    reference = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, metrics = learner.reinforce(
        learner.new_state(params), reference, trajectory, sharding.put_batch(mesh, correct),
        objective=OBJECTIVES['exact'], forks=(2, 2), temperature=1.0,
        layout=layout.choose(trajectory, (2, 2), 8, mesh=mesh, parts=2))
    return float(metrics['log_prob_gap']), {name: float(metrics[name]) for name in ('loss', 'grad_norm')}


def main() -> None:
    print(jax.devices()[0].device_kind, 'jax', jax.__version__)
    bad = 0
    for name, error, most in [
        ('cuDNN, 1296 tokens', themselves(CONFIG, 1296, False), BFLOAT16),
        ('cuDNN, 100 tokens, packed', themselves(CONFIG, 100, True), BFLOAT16),
        ('cuDNN, 512 tokens, packed', themselves(CONFIG, 512, True), BFLOAT16),
        ('cuDNN, a window', themselves(WINDOWED, 512, False), BFLOAT16),
        ('cuDNN, a window, packed', themselves(WINDOWED, 512, True), BFLOAT16),
        ('in blocks, capped', themselves(CAPPED, 300, True), BFLOAT16),
        ('one token, 256 rows', one_token(CONFIG, 256, 1312), BFLOAT16),
        ('one token, 3 rows', one_token(CONFIG, 3, 1312), BFLOAT16),
        ('one token, a window', one_token(WINDOWED, 40, 500), BFLOAT16),
        ('one token, a window, in slots used again', one_token(WINDOWED, 40, 192, room=1000), BFLOAT16),
        ('one token, capped', one_token(CAPPED, 40, 500), BFLOAT16),
    ]:
        bad += not error <= most
        print(f'{"too far" if not error <= most else "ok":8} {name}: {error:.1e} (at most {most:.0e})', flush=True)
    for dtype, most in (('bfloat16', 0.25), ('float32', 1e-3)):  # as a run demands
        gap, figures = step(dataclasses.replace(CONFIG, dtype=dtype))
        bad += not gap <= most
        print(f'{"too far" if not gap <= most else "ok":8} sampler and learner, {dtype}: {gap:.1e} (at most {most}); '
              f'{figures}', flush=True)
    sys.exit(bad > 0)


if __name__ == '__main__':
    main()
