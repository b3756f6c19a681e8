"""The allocator keeps freed memory."""

import platform
import subprocess
import sys

import pytest
from support.process import environment

FAULTS = """
import resource, sys
import numpy as np
from clip_jax.runtime.environment import keep_freed_memory

if sys.argv[1] == 'keep':
    keep_freed_memory()
np.ones(2**24, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**24, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
def test_freed_memory_is_kept_instead_of_fetched_from_the_kernel_again():
    def faults(how: str) -> int:
        command = [sys.executable, '-c', FAULTS, how]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults('keep') * 10 < faults('default')
