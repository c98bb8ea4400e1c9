"""What is compiled: it is counted, and kept on disk so that the next process need not compile it again.

A step in steady state compiles nothing. Where one does, a shape is new, and `compiled` in metrics.jsonl says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import tempfile
import warnings
from pathlib import Path

import jax

from score_jax import cache

_EVENT = '/jax/core/compile/backend_compile_duration'  # a program is made ready: compiled, or read from the cache
_MOST_BYTES = 4 << 30  # that are kept for a user
# Whether XLA makes kernels for matrix products too and times them, which takes longer than to compile all the rest. On
# an H200 sampling was as fast without.
_FLAG = '--xla_gpu_enable_triton_gemm'


@dataclasses.dataclass
class _Total:
    programs: int = 0
    seconds: float = 0.0


_total = _Total()


def _hear(event: str, seconds: float, **_) -> None:
    if event == _EVENT:
        _total.programs += 1
        _total.seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_hear)


class Counter:
    """Counts the programs that this process compiles, or reads from the cache, from one `take` to the next."""

    def __init__(self):
        self._before = dataclasses.replace(_total)

    def take(self) -> tuple[int, float]:
        """Programs since the last call, and the seconds that they took."""
        before, self._before = self._before, dataclasses.replace(_total)
        return self._before.programs - before.programs, self._before.seconds - before.seconds


def use_cublas() -> None:
    """Has products on GPUs be those of cuBLAS, unless XLA_FLAGS says otherwise; to be called before anything runs."""
    if _FLAG not in (flags := os.environ.get('XLA_FLAGS', '')):
        os.environ['XLA_FLAGS'] = f'{flags} {_FLAG}=false'.strip()


def keep() -> Path | None:
    """Has jax keep what it compiles on disk; to be called before anything is compiled.

    The folder is that of the environment variable JAX_COMPILATION_CACHE_DIR, else one of at most 4 GiB in the user's
    cache that belongs to this kind of machine: programs for the CPU fit its instructions and its number of cores.
    Whoever can write there can run code here, so it is the user's alone. `JAX_ENABLE_COMPILATION_CACHE=false` keeps
    nothing.

    Returns:
      the folder; None where it cannot be written, and nothing is kept.
    """
    given = jax.config.jax_compilation_cache_dir
    folder = Path(given) if given else _user_folder()
    if folder is None or not _writable(folder):
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    if not given:
        _prune(folder, _MOST_BYTES)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:  # jax's own is a second: no program of the demo
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    # A file that a killed process left half written is no loss: what it held is compiled.
    warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation cache')
    return folder


def _user_folder() -> Path | None:
    place = cache.folder()
    return place and place / _machine()


def _prune(folder: Path, most: int) -> None:
    """Removes the oldest files beyond `most` bytes; another process may do so too."""
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            stat = file.stat()
            files.append((stat.st_mtime, stat.st_size, file))
    for _, size, file in sorted(files, reverse=True):
        most -= size
        if most < 0:
            with contextlib.suppress(OSError):
                file.unlink()


def _machine() -> str:
    """A name for machines on which a program for the CPU is the same."""
    # macOS does not say which cores are a process's own.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    facts = [platform.machine(), str(cores)]
    info = Path('/proc/cpuinfo')
    if info.exists():
        facts += sorted({line for line in info.read_text().splitlines() if line.startswith(('model name', 'flags'))})
    return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:12]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
