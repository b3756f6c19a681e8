"""Which files an address of tar shards names."""

import contextlib
import glob
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_jax.data.errors import DataNotFound
from clip_jax.data.sources import _files
from clip_jax.data.sources._tar_index import Shard

_LOOK_UPS = 32  # concurrent look-ups of remote shards


def matches(address: str) -> list[Shard]:
    """Returns the files that a path, a glob or braces match, sorted; each part must match some."""
    remote = _files.is_remote(address)
    address = address if remote else os.path.expanduser(address)
    # A local file may have braces in its name.
    is_file = not remote and os.path.isfile(address)
    patterns = [address] if is_file else _files.expand(address)
    found = look_up(patterns)
    for pattern, shards in zip(patterns, found, strict=True):
        if not shards:
            raise DataNotFound(
                f'tars: no file matches {pattern!r}. {nearest(pattern)} Expected a path, a glob or '
                "a range of tar files: 'x-*.tar', 'x-{00000..00041}.tar'."
            )
    return sorted({shard for shards in found for shard in shards})


def look_up(patterns: Sequence[str]) -> list[list[Shard]]:
    """Returns the files that each path or glob matches; all are local or all are remote."""
    remote = any(map(_files.is_remote, patterns))
    with ThreadPoolExecutor(_LOOK_UPS) as pool:
        return list(pool.map(_remote_shards if remote else _local_shards, patterns))


def _local_shards(pattern: str) -> list[Shard]:
    shards = []
    for path in [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                shards.append(Shard(path, status.st_size, str(status.st_mtime_ns)))
    return shards


def _remote_shards(pattern: str) -> list[Shard]:
    fs, path = _files.filesystem(pattern)
    # In http a question mark starts a query.
    magic = re.search('[*[]' if pattern.startswith('http') else '[*?[]', path)
    try:
        found = fs.glob(path, detail=True) if magic else {path: fs.info(path)}
    except OSError as error:
        # fsspec reports every failure of a web request as a missing file.
        cause = error.__cause__ or error
        if isinstance(cause, FileNotFoundError) or getattr(cause, 'status', 0) == 404:
            return []
        raise ValueError(f'tars:{pattern}: cannot be looked up ({cause!r})') from error
    return [
        _remote_shard(fs.unstrip_protocol(path), info)
        for path, info in found.items()
        if info['type'] == 'file'
    ]


def _remote_shard(url: str, info: dict[str, Any]) -> Shard:
    if info.get('size') is None:
        raise ValueError(f'{url}: its server does not send its size. Copy the shards.')
    # Each kind of server has its own name for the version of a file.
    marks = ('ETag', 'etag', 'md5Hash', 'blob_id', 'mtime', 'LastModified', 'Last-Modified')
    marks += ('updated', 'created')
    changed = next((str(info[mark]) for mark in marks if info.get(mark)), '')
    return Shard(url, int(info['size']), changed)


def nearest(pattern: str) -> str:
    """Says what the innermost existing folder of a pattern contains, '' if that cannot be read."""
    try:
        return _files.nearest(pattern)
    except Exception:
        return ''  # Not every server lists its files, and each has its own error.
