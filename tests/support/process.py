"""Eight simulated devices in this process, and the environment of processes that tests start."""

import os
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# Before any test imports JAX: one CPU passes for eight devices, in this process only.
SIMULATED = '--xla_force_host_platform_device_count=8'
# Compiling takes most of the tests' time: what asks for the fixture `optimized` is compiled as it
# is for users. The older code generator is faster at it, and JAX 0.11 no longer has it.
FAST_COMPILE = '--xla_cpu_use_fusion_emitters=false' if version('jaxlib') < '0.11' else ''
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FAST_COMPILE} {SIMULATED}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Caches of these tests are removed afterwards; the workers of pytest-xdist share them.
SCRATCH = os.environ.get('CLIP_JAX_TESTS') or tempfile.mkdtemp(prefix='clip_jax-tests-')
os.environ['CLIP_JAX_TESTS'] = os.environ['XDG_CACHE_HOME'] = SCRATCH
# A program is compiled once by all processes of the tests: many train the same small model.
CACHE = {
    'JAX_COMPILATION_CACHE_DIR': os.path.join(SCRATCH, 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
os.environ.update(CACHE)

ROOT = Path(__file__).parents[2]
COLORS = {'red': (210, 30, 30), 'green': (30, 160, 40), 'blue': (40, 50, 200), 'white': (240,) * 3}


def clip_jax_command(*arguments: str) -> list[str]:
    """The command line of a fresh `clip-jax` process."""
    return [sys.executable, '-c', 'from clip_jax.cli.main import console; console()', *arguments]


def environment(devices: int = 1, *, alone: bool = True) -> dict[str, str]:
    """The environment for programs that tests start: this checkout first, this many CPU devices;
    one that trains `alone` finds what others have compiled.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    flags = os.environ['XLA_FLAGS'].replace(SIMULATED, '').strip()
    if devices > 1:
        flags = f'{flags} --xla_force_host_platform_device_count={devices}'
    env = {**os.environ, 'PYTHONPATH': path, 'XLA_FLAGS': flags}
    # See cache_only_programs_of_one_device.
    return env if alone and devices == 1 else {k: v for k, v in env.items() if k not in CACHE}


LOCK = """
import sys, time
from etils import epath
from clip_jax.runtime import lock
held = lock.Lock(epath.Path(sys.argv[1]))
held.open()
print('held', flush=True)
time.sleep(100)
"""


def lock_holder(folder: os.PathLike) -> subprocess.Popen:
    """Starts a process that holds the lock of a run directory, as one that trains does."""
    process = subprocess.Popen(
        [sys.executable, '-c', LOCK, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout.readline() == 'held\n'
    return process


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(('localhost', 0)) as server:
        return server.getsockname()[1]


def cache_only_programs_of_one_device() -> None:
    """Keeps programs of several devices out of the compilation cache of this process: read from
    it, they wait for each other without end (jax 0.10.2).
    """
    from jax._src import compiler

    key_of = compiler._get_cache_key

    def key_of_one(options: Any, backend: Any, computation: Any, devices: Any, *rest: Any) -> Any:
        several = np.size(devices) > 1
        return None if several else key_of(options, backend, computation, devices, *rest)

    compiler._get_cache_key = key_of_one
