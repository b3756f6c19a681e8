"""Open tar shards: as many as the process may have open, shared by all sources."""

import contextlib
import errno
import itertools
import os
import resource
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from clip_jax.data.sources import _files
from clip_jax.data.sources._tar_format import Read
from clip_jax.runtime.object_storage import as_oserror, range_of

_MOST = 512  # shards; below the usual limit of 1,024 open files per process
_AHEAD = 8 << 20  # bytes per request while a remote shard is indexed


class OpenShard(Protocol):
    """A shard that can be read anywhere."""

    def read(self, offset: int, size: int) -> bytes: ...


def most_open() -> int:
    """How many shards may be open at once: half of the files that the process may open."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if allowed == resource.RLIM_INFINITY else max(1, min(_MOST, allowed // 2))


class Opener:
    """Opens shards for one source and keeps the last ones that were used open."""

    # Of all sources of the process, since the limit is on them together; the oldest use is first.
    _open: OrderedDict[tuple[int, str], OpenShard] = OrderedDict()
    _numbers = itertools.count()

    def __init__(self):
        self._number = next(self._numbers)
        weakref.finalize(self, _forget, self._number)

    def __call__(self, path: str) -> OpenShard:
        """Returns an open shard, which stays open at least as long as the caller has it."""
        key = self._number, path
        shard = self._open.get(key)
        if shard is None:
            shard = self._open[key] = self._opened(path)
            while len(self._open) > most_open():
                with contextlib.suppress(KeyError):  # Other threads close some too.
                    self._open.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):
                self._open.move_to_end(key)
        return shard

    def _opened(self, path: str) -> OpenShard:
        try:
            return _open(path)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
        # Others have used up the limit.
        self._open.clear()
        return _open(path)


def _forget(number: int) -> None:
    for key in [key for key in list(Opener._open) if key[0] == number]:
        Opener._open.pop(key, None)


def _open(path: str) -> OpenShard:
    return _RemoteShard(path) if _files.is_remote(path) else _LocalShard(path)


class _LocalShard:
    """An open file, closed when the last reference to it is dropped."""

    def __init__(self, path: str):
        self._path = path
        self._number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._number)

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._number, size, offset)
        except OSError as error:
            error.filename = self._path
            raise


class _RemoteShard:
    """A remote file; every read is a request."""

    def __init__(self, url: str):
        self._fs, self._path = _files.filesystem(url)

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = range_of(self._fs, self._path, offset, offset + size)
        except Exception as error:
            # Servers reject a range beyond the end, each with another error.
            self._fs.invalidate_cache()
            if self._fs.size(self._path) <= offset:
                return b''
            raise as_oserror(error, self._path) from error
        if len(data) > size:
            raise ValueError(
                f'{self._path}: its server does not support range requests. Copy the shards.'
            )
        return data


@contextlib.contextmanager
def front_to_back(path: str) -> Iterator[Read]:
    """Opens a shard for reading its headers sequentially, with few requests."""
    if not _files.is_remote(path):
        yield _LocalShard(path).read
        return
    fs, place = _files.filesystem(path)
    with fs.open(place, 'rb', block_size=_AHEAD, cache_type='readahead') as file:

        def read(offset: int, size: int) -> bytes:
            try:
                file.seek(offset)
                return file.read(size)
            except ValueError as error:
                raise ValueError(
                    f'{path}: its server does not support range requests ({error}). Copy the '
                    'shards.'
                ) from error

        yield read
