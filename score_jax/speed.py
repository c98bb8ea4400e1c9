"""How fast a step is: where its time goes, and how much of the machine's arithmetic it uses.

Letters: P problems, L layers, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from score_jax import model as lm
from score_jax import plan
from score_jax.compilation import Counter


class Meter:
    """What the loop itself measures: of a step what it compiled, and what the loop did since the step before."""

    def __init__(self):
        self._compiled, self._ended, self._waited = Counter(), time.monotonic(), 0.0
        self._figures: dict[str, float] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For a save under way to be complete."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step."""
        began = time.monotonic()
        between, waited, self._waited = began - self._ended, self._waited, 0.0
        yield
        self._ended = time.monotonic()
        programs, seconds = self._compiled.take()
        self._figures = {
            'steps_per_second': 1 / (self._ended - began), 'compiled': programs, 'seconds_compile': seconds,
            'seconds_save': between - waited, 'seconds_wait': waited}

    def figures(self) -> dict[str, float]:
        """Those of the last step that every stage has, by their names in metrics.jsonl."""
        return self._figures


def _by_token(c: lm.ModelConfig, start: float, count: float) -> float:
    """FLOPs of the layers for one of `count` tokens behind `start` others, on the mean."""
    context = start + count / 2
    local = c.layers - c.layers // c.global_every if c.window else 0
    seen = (c.layers - local) * context + local * min(context, c.window)
    return 2 * plan.matrix_weights(c) + 4 * c.heads * c.head_dim * seen


def reinforce_flops(work: plan.Work, prompt: float, lengths: Sequence[float]) -> dict[str, float]:
    """FLOPs that the mathematics of a step asks for, by part; `scoring` is that of the reference.

    Every token of the tree is read once in each of them, and a backward pass costs two forward ones. What padding and
    computing again cost is no work done, so it does not count.

    Args:
      prompt: tokens of a prompt, on the mean.
      lengths: by turn, tokens of a response, on the mean.
    """
    c = work.learner.model
    layers, sampled, start = work.batch * prompt * _by_token(c, 0, prompt), 0.0, prompt
    for turn, length in enumerate(lengths):
        rows, added = work.batch * math.prod(work.forks[:turn + 1]), length + work.instruction * (turn > 0)
        layers += rows * added * _by_token(c, start, added)
        sampled += rows * length
        start += added
    forward = layers + 2 * sampled * c.width * c.vocab_size
    backward = forward * (1 if work.learner.lora else 2)  # frozen weights have no gradient
    return {'sampling': forward, 'scoring': forward, 'update': forward + backward}


def imitate_flops(c: lm.ModelConfig, rows: int, length: float) -> float:
    """FLOPs of a supervised step on `rows` rows of `length` tokens, on the mean."""
    return 3 * rows * length * (_by_token(c, 0, length) + 2 * c.width * c.vocab_size)


def rates(tokens: float, flops: float, seconds: float, c: lm.ModelConfig, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Tokens a second, and the share of the machine's arithmetic that a step of `flops` in `seconds` uses."""
    devices = jax.process_count() if mesh.devices.flat[0].platform == 'cpu' else mesh.size
    return {
        'tokens_per_second': tokens / seconds, 'utilisation': flops / (seconds * devices * matrix_rate(c.dtype))}


@functools.cache
def matrix_rate(dtype: str) -> float:
    """FLOP/s of one device here in a product of two large matrices of `dtype`, measured once; the best of a few.

    The devices of a CPU are virtual and share what it has.
    """
    size = 1024 if jax.default_backend() == 'cpu' else 8192
    matrix, product = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()

    def seconds() -> float:
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        return time.perf_counter() - began
    return 2 * size**3 / min(seconds() for _ in range(4))
