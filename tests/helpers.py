"""A tiny decoder for the tests, and the same formulas a second time: plain numpy, float64, one row, no padding."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from score_jax import model as lm
from score_jax.learner import MemoryConfig

AXES = ('data', 'fsdp', 'model')


def tiny(**changes) -> lm.ModelConfig:
    values = dict(
        vocab_size=8, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, tied=True, rope_base=100.0,
        norm_eps=1e-5, dtype='float32')
    return lm.ModelConfig(**{**values, **changes})


def random_params(config: lm.ModelConfig, seed: int = 0) -> dict:
    """Weights large enough for peaked laws that depend on the context; no norm is 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(0.0 if p.stddev else 1.0, 0.45, p.shape).astype(np.float32),
        lm.declare(config), is_leaf=lambda x: hasattr(x, 'stddev'))


def memory(**changes) -> MemoryConfig:
    return MemoryConfig(**{**dict(params='float32', moments='float32', remat='products', accumulate=1), **changes})


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
        y, attended = norm(x, p['attention_norm']), np.zeros_like(x)
        for head in range(c.heads):
            group = head // (c.heads // c.kv_heads)
            q, k = rotate(y @ p['query'][:, head]), rotate(y @ p['key'][:, group])
            scores = np.where(np.tri(t, dtype=bool), q @ k.T / np.sqrt(c.head_dim), -np.inf)
            attended += np.exp(log_softmax(scores)) @ (y @ p['value'][:, group]) @ p['out'][head]
        x = x + attended
        y = norm(x, p['mlp_norm'])
        gate = y @ p['gate']
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p['up'])) @ p['down']
    head = params['embedding'] if c.tied else params['head']
    return norm(x, params['final_norm']) @ head.T
