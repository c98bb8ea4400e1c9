"""A device for each core, where a small model runs on CPUs.

A program on one device divides every operation over threads that then wait for each other, which in a small model takes
longer than the operation: the default's step on two cores is no faster than on one. Devices of a core each have rows of
their own, and meet once a token and once an update.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from score_jax import allocation

_WIDEST = 256  # width of a small model; operations of wider ones are worth dividing, and their weights one copy
_GIVEN = '--xla_force_host_platform_device_count'
_FLAGS = {
    '--xla_cpu_multi_thread_eigen': 'false',  # an operation is its device's own core's
    # A device may wait for the others as long as a laptop sleeps, or a process is stopped, in place of 40 seconds.
    '--xla_cpu_collective_call_terminate_timeout_seconds': '1000000',
}


def count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def devices(config: ConfigDict, cores: int) -> int:
    """How many devices `config`, a stage or a pipeline, is best run on: as many as every batch can be divided among.

    One where a mesh is given or looked at without running, and where the model is given or not a small one.
    """
    sections = list(_sections(config))
    fits = all(
        not section.pretrained and section.model.width <= _WIDEST and not section.get('dry_run')
        and (section.mesh.name, section.mesh.data, section.mesh.fsdp, section.mesh.model) == ('', -1, -1, -1)
        for section in sections)
    common = math.gcd(*(section.batch for section in sections))
    return max(n for n in range(1, cores + 1) if common % n == 0) if fits and common > 0 else 1


def _sections(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config itself, where it is of a stage, and those in it."""
    if 'batch' in config:
        yield config
    for value in config.values():
        if isinstance(value, ConfigDict):
            yield from _sections(value)


def use(config: ConfigDict) -> int:
    """Has jax make the `devices` of `config`, if it computes on CPUs; to be called before it has looked for any.

    What the environment says of devices, by XLA_FLAGS or JAX_NUM_CPU_DEVICES, stays as it is.

    Returns:
      the number of devices made; 1 where all is left as it is.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if not allocation.of_cpu() or _GIVEN in flags or jax.config.jax_num_cpu_devices > 0:
        return 1
    if (found := devices(config, count())) > 1:
        jax.config.update('jax_num_cpu_devices', found)
        more = (f'{name}={value}' for name, value in _FLAGS.items() if name not in flags)
        os.environ['XLA_FLAGS'] = ' '.join([flags, *more]).strip()
    return found
