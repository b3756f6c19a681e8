"""The environment of a process: versions of the libraries, caches, and the allocator's settings."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import tempfile

from absl import logging

from clip_jax import __version__


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory, in one arena: a third more steps per second on CPU.

    XLA's CPU backend allocates and frees its buffers at every step. By default each comes from the
    kernel, which clears it page by page. Without glibc this does nothing.
    """
    # The parameters of mallopt(3), from malloc.h.
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in (
        (arena_max, 1),
        (mmap_max, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 2**28),
    ):
        mallopt(parameter, value)


def cache_folder(name: str) -> str:
    """Returns the user's cache folder for `name`; a temporary one, with a warning, if the user has
    no home folder.
    """
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    # Without a home the tilde stays, and would become the name of a folder.
    caches = caches if os.path.isabs(caches) else _temporary_caches().name
    return os.path.join(caches, 'clip_jax', name)


@functools.cache
def _temporary_caches() -> tempfile.TemporaryDirectory:
    found = tempfile.TemporaryDirectory(prefix='clip_jax-caches-')
    logging.warning(
        'no home folder: caches are in %s until this process ends; set XDG_CACHE_HOME', found.name
    )
    return found


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that the numbers of a run depend on."""
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    found = {name: importlib.metadata.version(name) for name in names}
    return {'clip_jax': __version__, 'python': platform.python_version(), **found}
