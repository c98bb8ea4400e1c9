"""A tiny decoder for the tests, and the same formulas a second time: plain numpy, float64, one row, no padding."""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from score_jax import model as lm
from score_jax.learner import MemoryConfig
from score_jax.trajectory import Trajectory

AXES = ('data', 'fsdp', 'model')


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """For a process of its own, with so many devices; it compiles as the tests do."""
    flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
    flags += [f'--xla_force_host_platform_device_count={devices}'] * (devices > 1)
    return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)} | more


def tiny(**changes) -> lm.ModelConfig:
    values = dict(
        vocab_size=8, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, tied=True, rope_base=100.0,
        norm_eps=1e-5, dtype='float32')
    return lm.ModelConfig(**{**values, **changes})


def random_params(config: lm.ModelConfig, seed: int = 0) -> dict:
    """Weights large enough for peaked distributions that depend on the context; no norm is 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(0.0 if p.stddev else 1.0, 0.45, p.shape).astype(np.float32),
        lm.declare(config), is_leaf=lambda x: hasattr(x, 'stddev'))


def memory(**changes) -> MemoryConfig:
    return MemoryConfig(**{**dict(params='float32', moments='float32', remat='products', accumulate=1), **changes})


def untimed(line: dict) -> dict:
    """A line of metrics.jsonl without what differs between two runs of the same step."""
    return {key: x for key, x in line.items() if 'second' not in key and key not in ('compiled', 'utilisation')}


def mesh_of(*shape: int) -> Mesh:
    """The mesh `(data, fsdp, model)` over the first devices."""
    devices = jax.devices()[:int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def decoder_logits(params, config: lm.ModelConfig, tokens) -> np.ndarray:
    """Logits `[T, V]` after each of the tokens `[T]`, straight from the formulas."""
    c, t = config, len(tokens)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    def rotate(x):  # [T, h]: pair i is the numbers i and i + h / 2 as one complex number
        half = c.head_dim // 2
        angles = np.outer(np.arange(t), [c.rope_base ** (-2 * i / c.head_dim) for i in range(half)])
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = params['embedding'][np.asarray(tokens)]
    for layer in range(c.layers):
        p = {name: w[layer] for name, w in params['layers'].items()}
        y, attended, seen = norm(x, p['attention_norm']), np.zeros_like(x), np.tri(t, dtype=bool)
        if c.window and c.local[layer]:
            seen &= ~np.tri(t, k=-c.window, dtype=bool)
        for head in range(c.heads):
            group = head // (c.heads // c.kv_heads)
            q, k = rotate(y @ p['query'][:, head]), rotate(y @ p['key'][:, group])
            scores = np.where(seen, q @ k.T / np.sqrt(c.head_dim), -np.inf)
            attended += np.exp(log_softmax(scores)) @ (y @ p['value'][:, group]) @ p['out'][head]
        x = x + attended
        y = norm(x, p['mlp_norm'])
        gate = y @ p['gate']
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p['up'])) @ p['down']
    head = params['embedding'] if c.tied else params['head']
    return norm(x, params['final_norm']) @ head.T


def random_tree(forks, instruction=2, longest=4, given=False, prompts=(3, 5)):
    """A trajectory of problems whose rows share turns; every response has a length of its own."""
    rng, rows = np.random.default_rng(6), []

    def grow(tokens, turn, depth):
        if depth > len(forks):
            rows.append((tokens, turn))
            return
        between = rng.integers(0, 8, instruction).tolist() if depth > 1 else []
        for _ in range(forks[depth - 1]):
            own = rng.integers(0, 8, rng.integers(1, longest + 1)).tolist()
            mark = -1 if given and depth == 1 and rng.integers(2) else depth
            grow(tokens + between + own, turn + [0] * len(between) + [mark] * len(own), depth + 1)

    for prompt in prompts:
        grow(rng.integers(0, 8, prompt).tolist(), [0] * prompt, 1)
    width = 1 + max(len(tokens) for tokens, _ in rows)
    pad = [(tokens + [7] * (width - len(tokens)), turn + [0] * (width - len(turn))) for tokens, turn in rows]
    tokens, turn = (np.array(part, np.int32) for part in zip(*pad))
    return Trajectory(
        tokens=tokens, turn=turn, log_probs=np.zeros(tokens.shape, np.float32),
        length=np.array([len(tokens) for tokens, _ in rows], np.int32),
        truncated=np.zeros((len(rows), len(forks)), bool))
