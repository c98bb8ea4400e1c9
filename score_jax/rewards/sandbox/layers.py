"""Which layers this machine can put between a program and itself; found by making them, never by asking a version."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence

from score_jax.errors import UserError
from score_jax.rewards.sandbox import cgroup
from score_jax.rewards.sandbox.session import LayerError, SandboxError, Session

LAYERS = {
    'uid': 'a user of its own, without rights over anybody\'s files and processes',
    'no_new_privs': 'no capabilities, and nothing that it starts can gain any',
    'namespaces': 'own processes, network, file system, ipc: the rest of the machine is not there',
    'landlock': 'files by path alone; no TCP, no signals to the outside',
    'seccomp': 'no sockets, tracing, mounts, keys and other system calls that programs have no use for',
    'rlimits': 'CPU time, memory, files, processes of one process or user',
    'cgroup': 'memory and processes of all together, by the kernel',
}
_ADVICE = {
    'uid': 'start as root, or leave it out where namespaces are active',
    'namespaces': 'use Linux 5.12 or newer and allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, '
                  'kernel.apparmor_restrict_unprivileged_userns=0), or run the container with --privileged',
    'landlock': 'use Linux 5.13 or newer with landlock in its lsm= list',
    'cgroup': 'use cgroup version 2 with a delegated subtree (systemd-run --user --scope -p Delegate=yes)',
}


@functools.cache
def probe() -> dict[str, str]:
    """For each of `LAYERS`: '' if it is active, else why not. Starts a few empty sandboxes, once a process."""
    missing: dict[str, str] = {}
    if sys.platform != 'linux':
        return dict.fromkeys(LAYERS, f'the sandbox needs Linux, this is {sys.platform}')
    if os.geteuid() != 0:
        missing['uid'] = 'only root can become another user'
    if reason := cgroup.missing():
        missing['cgroup'] = reason
    while True:
        wanted = tuple(layer for layer in LAYERS if layer not in missing)
        try:
            with Session(wanted):
                return {layer: missing.get(layer, '') for layer in LAYERS}
        except LayerError as error:
            if error.layer in missing:
                raise
            missing[error.layer] = error.why


def active() -> tuple[str, ...]:
    """The layers that every program runs behind, in the order of `LAYERS`."""
    return tuple(layer for layer, reason in probe().items() if not reason)


def require(layers: Sequence[str]) -> None:
    """Raises `UserError` unless each of `layers` is active: programs are not run behind fewer."""
    try:
        found = probe()
    except SandboxError as error:
        raise UserError(f'programs cannot be run here: the sandbox does not start ({error})') from error
    for layer in layers:
        if layer not in LAYERS:
            raise UserError(f'sandbox layer {layer!r} is unknown; there are {", ".join(LAYERS)}')
    if missing := [layer for layer in layers if found[layer]]:
        reasons = '; '.join(f'{layer} ({found[layer]})' for layer in missing)
        advice = ' '.join(f'For {layer}: {_ADVICE[layer]}.' for layer in missing if layer in _ADVICE)
        raise UserError(f'programs are not run here without these layers of the sandbox, which are missing: {reasons}. '
                        f'{advice} Or take them out of the layers that the config demands.')
