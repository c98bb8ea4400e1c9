"""Eight virtual CPU devices for every test, and one folder for what is compiled; must run before jax is imported."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
_DEVICES = '--xla_force_host_platform_device_count'
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
    # Half the time to compile. An XLA that does not know a flag ends the process.
    flags = f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false"
    if not subprocess.run([sys.executable, '-c', 'import jax; jax.devices()'], capture_output=True,
                          env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}).returncode:
        os.environ['XLA_FLAGS'] = flags
# Tests run two at a time, and threads of torch that are more than there are cores wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Most of the time that a test takes is compiling: little is optimised here, and what one process compiles serves all.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='score_jax-compiled-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture(autouse=True, scope='module')
def programs():
    """Of one file at a time: each holds mappings of memory, and a process that has too many dies (vm.max_map_count)."""
    yield
    if jax := sys.modules.get('jax'):
        jax.clear_caches()
