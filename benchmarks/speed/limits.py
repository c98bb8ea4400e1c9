"""What the machine does at most, by a library: the rate of the workload's own products, and of reading memory.

The weights of every layer are arrays of their own, as in a model, so they come from where they would come from there.
"""

from __future__ import annotations


import numpy as np

from benchmarks.speed import worker
from benchmarks.speed.workloads import Workload

TRIALS, READ, MANY = 3, 2**30, 2048  # bytes; tokens at once


class Numpy:
    """Its BLAS is what numpy was built with."""

    def __init__(self, found):
        del found

    def array(self, shape, dtype):
        return 0.03 * np.random.default_rng(0).standard_normal(shape, np.float32)

    def compiled(self, function):
        return function

    def wait(self, value):
        return value

    def total(self, x):
        return x.sum()


class Jax:
    """XLA, one product after another in one program."""

    def __init__(self, found):
        import jax
        import jax.numpy as jnp
        self.jax, self.jnp = jax, jnp

    def array(self, shape, dtype):
        return 0.03 * self.jax.random.normal(self.jax.random.key(0), shape, self.jnp.dtype(dtype))

    def compiled(self, function):
        return self.jax.jit(function)

    def wait(self, value):
        return self.jax.block_until_ready(value)

    def total(self, x):
        return self.jnp.sum(x, dtype=self.jnp.float32)


class Torch:
    """MKL or oneDNN on a CPU, cuBLAS on a GPU."""

    def __init__(self, found):
        import torch
        torch.set_num_threads(found.threads)
        torch.set_grad_enabled(False)
        self.torch, self.device = torch, 'cuda' if found.device == 'gpu' else 'cpu'

    def array(self, shape, dtype):
        return 0.03 * self.torch.randn(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def compiled(self, function):
        return function

    def wait(self, value):
        if self.device == 'cuda':
            self.torch.cuda.synchronize()
        return value

    def total(self, x):
        return x.sum()


LIBRARIES = {'numpy': Numpy, 'jax': Jax, 'torch': Torch}


def body(x, layers):
    """The products of all layers, each on what the one before gave."""
    for weights in layers:
        for w in weights:
            x = x[:, :w.shape[0]] @ w
    return x


def turned_body(x, layers):
    """The same with the weights on the left, which some are faster at: `x` and `layers` are transposes."""
    for weights in layers:
        for w in weights:
            x = w @ x[:w.shape[1]]
    return x


def turned_head(x, w):
    return w @ x


def from_turned(x, y):
    return x @ y


def head(x, w):
    return x @ w.T


def to_weights(x, y):
    return x.T @ y


def measure(library, work: Workload, clock, least: float) -> dict[str, float]:
    """Operations a second: `decode body` and `decode head` with a token of each row, `forward` and `weights` (the
    product that is the gradient of weights) with many; `bandwidth`, bytes read a second. A trial takes `least`
    seconds or more."""
    shape, dtype = work.shape, work.shape.dtype
    layers = [[library.array(size, dtype) for size in shape.products] for _ in range(shape.layers)]
    embedding = library.array((shape.vocab_size, shape.width), dtype)
    many = min(work.rows * work.length, MANY)
    few, lot = (library.array((n, shape.width), dtype) for n in (work.rows, many))
    gate = library.array((many, 2 * shape.mlp), dtype)
    vast = library.array((READ // shape.item if shape.width > 16 else 2**20,), dtype)

    def rate(count: float, function, *args) -> float:
        function, best = library.compiled(function), float('inf')
        for trial in range(TRIALS + 1):
            began, times = clock(), 0
            while not times or clock() - began < least:
                library.wait(function(*args))
                times += 1
            if trial:
                best = min(best, (clock() - began) / times)
        return count / best
    turned = [[library.array(size[::-1], dtype) for size in shape.products] for _ in range(shape.layers)]
    column = library.array((shape.width, work.rows), dtype)
    turned_lot, weights_work = library.array((shape.width, many), dtype), 4 * many * shape.width * shape.mlp
    body_work, head_work = 2 * work.rows * shape.body, 2 * work.rows * shape.head
    return {
        'decode body': max(rate(body_work, body, few, layers), rate(body_work, turned_body, column, turned)),
        'decode head': max(rate(head_work, head, few, embedding), rate(head_work, turned_head, column, embedding)),
        'forward': rate(2 * many * shape.body, body, lot, layers),
        'weights': max(rate(weights_work, to_weights, lot, gate), rate(weights_work, from_turned, turned_lot, gate)),
        'bandwidth': rate(shape.item * vast.shape[0], library.total, vast)}


if __name__ == '__main__':
    FOUND = worker.job()
    LIBRARY = LIBRARIES[FOUND.variant](FOUND)
    WORK, CLOCK = worker.workload(FOUND), worker.CLOCKS[FOUND.clock]
    worker.serve(FOUND, lambda: {'rates': measure(LIBRARY, WORK, CLOCK, 0.01 if FOUND.quick else 0.1)}, dict)
