"""The allocator keeps freed memory, and caches have a place."""

import os
import platform
import pwd
import subprocess
import sys

import pytest
from support import process

from clip_jax.runtime import environment

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
            command, env=process.environment(), capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults('keep') * 10 < faults('default')


def test_without_a_home_caches_are_temporary(monkeypatch, caplog):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
    assert environment.cache_folder('tars') == '/somewhere/clip_jax/tars'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', '/home/x')
    assert environment.cache_folder('tars') == '/home/x/.cache/clip_jax/tars'
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    folder = environment.cache_folder('tars')
    assert folder == environment.cache_folder('tars') and '~' not in folder
    assert os.path.isdir(folder.removesuffix('clip_jax/tars'))
    assert caplog.text.count('no home folder') == 1
