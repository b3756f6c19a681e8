"""Programs that compile for TPUs without having one, by libtpu."""

import importlib.util
import subprocess
import sys

import pytest

from support.process import environment

VARIABLES = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
needed = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'clipax[tpu]'"
)


def output(program: str, *arguments: str) -> str:
    """Runs a Python program that uses libtpu, and returns the last line that it prints."""
    done = subprocess.run(
        [sys.executable, '-c', program, *arguments],
        capture_output=True,
        text=True,
        env={**environment(), **VARIABLES},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
