"""Several processes that run the same program: how they find each other, what they tell each other, how they end.

It is `jax.distributed`: every process has devices of its own, and all of them are one mesh. All processes do the same
calls in the same order, and each of them knows what the others found out; the first one alone writes files and speaks.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # of it the client alone: jax has no public barrier with a time limit
from jax.experimental import multihost_utils

from score_jax import progress
from score_jax.errors import UserError

AUTO = 'auto'
_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as gone, and the others end
_CONNECT = 300  # seconds in which all processes must have started
_TOGETHER = 5  # seconds in which processes that end for the same reason wait for each other
# What gloo, gRPC and the coordination service say of another process that does not answer.
_GONE = re.compile('gloo|unavailable|deadline_exceeded|aborted|cancelled|coordination service|heartbeat', re.IGNORECASE)

Value = TypeVar('Value')


class Lost(Exception):
    """Another process is gone, and with it the step in hand: all are to be started again."""


def start(processes: str, process: int | None, coordinator: str) -> None:
    """Finds the other processes; to be called before any device work, and once.

    Args:
      processes: how many there are; 'auto': as the machine says (TPU pods, GKE, SLURM, Open MPI), and the rest with it.
      process: which of them this one is, from 0 on.
      coordinator: HOST:PORT of process 0, where the others find it.

    Raises:
      UserError: what is given is not all, or cannot be; or 'auto' finds nothing.
      Lost: the first process cannot be reached by the others.
    """
    known = _read(processes, process, coordinator)
    if known.get('num_processes') == 1:
        return
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM, which `health` hears
    try:
        jax.distributed.initialize(
            **known, initialization_timeout=_CONNECT, heartbeat_timeout_seconds=_HEARTBEAT)
    except ValueError:
        raise UserError(
            "--processes='auto' finds no TPU pod, GKE, SLURM or Open MPI here; give --processes, --process and "
            '--coordinator.') from None
    except jax.errors.JaxRuntimeError as error:  # where the others do not come in time, it aborts and says so itself
        raise Lost(
            f'the processes cannot be connected ({str(error).splitlines()[0]}); is the port of --coordinator free?'
        ) from error
    progress.of(jax.process_index())
    progress.say(
        f'{jax.process_count()} processes with {jax.local_device_count()} of the {jax.device_count()} devices each')


def _read(processes: str, process: int | None, coordinator: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`."""
    if processes == AUTO:
        if process is not None or coordinator:
            raise UserError(
                "--processes='auto' finds out which process this is and where the first one is; leave --process and "
                '--coordinator out, or give the number of processes.')
        return {}
    if not processes.isdecimal() or not int(processes):
        raise UserError(f"--processes is {processes!r}; it must be a number from 1 on, or 'auto'.")
    count = int(processes)
    if count == 1:
        if process or coordinator:
            raise UserError('--process and --coordinator are of several processes; give --processes too.')
        return {'num_processes': 1}
    if process is None or not 0 <= process < count:
        raise UserError(
            f'--process is {process}; of --processes={count} it must say which one this is, from 0 to {count - 1}.')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal():
        raise UserError(
            f'--coordinator is {coordinator!r}; it must be HOST:PORT of process 0, such as 127.0.0.1:12345, the same '
            'for all processes.')
    return {
        'coordinator_address': coordinator, 'num_processes': count, 'process_id': process,
        'cluster_detection_method': 'deactivate'}


def several() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the one that writes files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(value: Value) -> list[Value]:
    """What every process has, by their number; each of them must call it."""
    if not several():
        return [value]
    data = np.frombuffer(pickle.dumps((jax.process_index(), value)), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size])).ravel()
    room = 1 << (int(sizes.max()) - 1).bit_length()  # a power of two, as each size is compiled for
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
    found = dict(pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes))
    return [found[process] for process in sorted(found)]


def agree(value: Value) -> Value:
    """What the first process has; each of them must call it, and none returns before the first has."""
    return gather(value if first() else None)[0]


def largest(number: int) -> int:
    """The largest of what every process has, each of which must call it."""
    if not several():
        return number
    return int(multihost_utils.process_allgather(np.array([number])).max())


def check(error: BaseException | None) -> None:
    """Raises `Lost` if `error`, or what it came from, is that another process is gone."""
    while error is not None and several():
        if isinstance(error, Lost) or _GONE.search(str(error)) and isinstance(error, (RuntimeError, ValueError)):
            raise Lost(f'another process is gone ({str(error).splitlines()[0][:200]})') from error
        error = error.__cause__ or error.__context__


def end(code: int) -> None:
    """Ends this process with an exit code.

    Of several, those that end for the same reason do so together, and the others as they find out. The interpreter's
    own way out would wait for the others, which may be waiting for this one.
    """
    if not code:
        jax.distributed.shutdown()  # waits until all have done their work
    if not jax.distributed.is_initialized():
        sys.exit(code)
    try:
        distributed.global_state.client.wait_at_barrier('the end', _TOGETHER * 1000)
        jax.distributed.shutdown()  # the first one takes the coordinator with it, without which the others would abort
    except Exception:  # they do not come, or are gone
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
