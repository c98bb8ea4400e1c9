"""What a name such as 'v5p-128' stands for: so many devices, with so much memory and arithmetic each.

Google's names of v2, v3, v4, v5p and tpu7x count TensorCores, of which a chip has two; those of v5e and v6e count
chips, which have one. JAX sees each core of v2, v3 and tpu7x as a device, and a chip of the others. GPUs are counted.
"""

from __future__ import annotations

import dataclasses
import re

from score_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """Accelerators of one kind.

    Attributes:
      cores: TensorCores of a chip that a name counts; 1 where it counts chips.
      devices: that JAX sees of a chip.
      memory: bytes of a chip's HBM.
      flops: of a chip a second at its peak, products of bfloat16 with sums in float32, not sparse.
    """

    cores: int
    devices: int
    memory: int
    flops: float


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and its pages on each generation; NVIDIA's data sheets.
GENERATIONS = {
    'v2': Generation(2, 2, 16 * GIB, 45e12),
    'v3': Generation(2, 2, 32 * GIB, 123e12),
    'v4': Generation(2, 1, 32 * GIB, 275e12),
    'v5e': Generation(1, 1, 16 * GIB, 197e12),
    'v5litepod': Generation(1, 1, 16 * GIB, 197e12),  # what gcloud calls v5e
    'v5p': Generation(2, 1, 95 * GIB, 459e12),
    'v6e': Generation(1, 1, 32 * GIB, 918e12),
    'tpu7x': Generation(2, 2, 192 * GIB, 2307e12),
    'l4': Generation(1, 1, 24 * GIB, 121e12),
    'a100': Generation(1, 1, 40 * GIB, 312e12),
    'a100-80g': Generation(1, 1, 80 * GIB, 312e12),
    'h100': Generation(1, 1, 80 * GIB, 989e12),
    'h200': Generation(1, 1, 141 * GIB, 989e12),
    'b200': Generation(1, 1, 180 * GIB, 2250e12),
}


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """A slice, or a machine's GPUs: `devices` that JAX sees, each with `memory` bytes and `flops` a second."""

    name: str
    chips: int
    devices: int
    memory: int
    flops: float


def named(name: str) -> Accelerators:
    """What `name`, such as 'v5p-128', 'v5e-8' or 'h100-8', stands for.

    Raises:
      UserError: it is none, or of half a chip.
    """
    match = re.fullmatch(r'(.+)-(\d+)', name)
    if not match or match[1] not in GENERATIONS:
        raise UserError(
            f'config.mesh.name is {name!r}; it must be a kind and a count, such as v5p-128, v5e-8 or h100-8, where the '
            f'kind is one of {", ".join(GENERATIONS)}.')
    kind, count = GENERATIONS[match[1]], int(match[2])
    if count < kind.cores or count % kind.cores:
        raise UserError(
            f'config.mesh.name is {name!r}, which counts TensorCores, of which a chip has {kind.cores}; '
            f'{match[1]}-{kind.cores * max(1, -(-count // kind.cores))} would do.' if kind.cores > 1 else
            f'config.mesh.name is {name!r}; there must be at least one.')
    chips = count // kind.cores
    return Accelerators(
        name, chips, chips * kind.devices, kind.memory // kind.devices, kind.flops / kind.devices)
