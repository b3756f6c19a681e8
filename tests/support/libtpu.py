"""Programs that compile for TPUs without having one, by libtpu."""

import importlib.util
import subprocess
import sys

import pytest

from clip_jax.planning import libtpu
from support.process import environment

needed = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'clipax[tpu]'"
)


def output(program: str, *arguments: str) -> str:
    """Runs a Python program that uses libtpu, and returns the last line that it prints."""
    done = subprocess.run(
        [sys.executable, '-c', program, *arguments],
        capture_output=True,
        text=True,
        env={**environment(), **libtpu.VARIABLES},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
