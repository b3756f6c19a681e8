"""Eight simulated devices in this process, and the environment of processes that tests start."""

import os
import socket
import sys
import tempfile
from pathlib import Path

# Before any test imports JAX: one CPU passes for eight devices, in this process only.
SIMULATED = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {SIMULATED}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling takes most of the tests' time. Programs that tests start are compiled as users' are, and
# so is what asks for the fixture `optimized`.
UNOPTIMIZED = 'JAX_DISABLE_MOST_OPTIMIZATIONS'
os.environ.setdefault(UNOPTIMIZED, '1')
# Indices of tars of these tests are of no use to anybody afterwards.
os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='clip_jax-tests-')
# Programs that tests start find what an earlier one compiled: many train the same small model.
CACHE = {
    'JAX_COMPILATION_CACHE_DIR': os.path.join(os.environ['XDG_CACHE_HOME'], 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}

ROOT = Path(__file__).parents[2]
COLORS = {'red': (210, 30, 30), 'green': (30, 160, 40), 'blue': (40, 50, 200), 'white': (240,) * 3}


def clip_jax_command(*arguments: str) -> list[str]:
    """The command line of a fresh `clip-jax` process."""
    return [sys.executable, '-c', 'from clip_jax.cli.main import main; main()', *arguments]


def environment(devices: int = 1, *, alone: bool = True) -> dict[str, str]:
    """The environment for programs that tests start: this checkout first, so many CPU devices; one
    that trains `alone` finds what others have compiled.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    flags = os.environ['XLA_FLAGS'].replace(SIMULATED, '').strip()
    if devices > 1:
        flags = f'{flags} --xla_force_host_platform_device_count={devices}'
    # Programs from the cache for several devices wait for each other for ever (jax 0.10.2).
    cache = CACHE if alone and devices == 1 else {}
    return {**os.environ, **cache, 'PYTHONPATH': path, 'XLA_FLAGS': flags, UNOPTIMIZED: '0'}


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(('localhost', 0)) as server:
        return server.getsockname()[1]
