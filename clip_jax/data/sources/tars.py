"""Uncompressed tar shards, as of WebDataset and img2dataset, with random access: `tars:GLOB`."""

import contextlib
import functools
import glob
import json
import os
import re
import stat
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_jax.data.errors import BadRecord, DataNotFound, Skipped
from clip_jax.data.sources import _captions, _files, _tar_format, _tar_index
from clip_jax.data.sources._tar_format import BLOCK, Read
from clip_jax.data.sources._tar_index import Index, Shard
from clip_jax.runtime import environment

# Below the usual limit of 1,024 open files per process.
_OPEN_SHARDS = 512
_LOOK_UPS = 32  # concurrent look-ups of remote shards
_AHEAD = 8 << 20  # bytes per request while a remote shard is indexed


def source(
    address: str,
    *,
    image_exts: Sequence[str] = ('jpg', 'jpeg', 'png', 'webp'),
    text_exts: Sequence[str] = ('txt',),
    label_ext: str = 'cls',
    json_key: str = 'caption',
    index_dir: str = '',
) -> 'TarSource':
    """Indexes tar shards.

    A sample is the members of one shard with the same key, the path up to the first dot of the file
    name. Samples are in the order of the shards; those without an image are left out. The lines of
    the text member are the texts. The label member holds an integer, or several separated by space,
    which become 'labels'. Damage in shards is counted in `skipped`.

    Args:
        address: a path, a glob or a brace range such as `x-{00000..00041}.tar`; with `://`, it is
            read through fsspec.
        image_exts: extensions of images.
        text_exts: extensions of captions, one caption per line, or json.
        label_ext: the extension of labels.
        json_key: the field of .json members with the caption, a string or a list.
        index_dir: the folder of cached indices; '': `clip_jax/tars` in the user's cache folder.

    Raises:
        DataNotFound: if no file matches.
        ValueError: if no sample has an image, or a shard is compressed, empty or not a tar.
    """
    roles = _roles({'image': image_exts, 'text': text_exts, 'label': [label_ext]})
    if _files.is_remote(index_dir):
        raise ValueError(f'tars: index_dir is {index_dir!r}; expected a local folder')
    # Absolute, because other processes open the index as well.
    folder = os.path.abspath(os.path.expanduser(index_dir) or environment.cache_folder('tars'))
    index = _tar_index.open_index(address, _matches(address), roles, folder, _front_to_back)
    return TarSource(address, index, json_key)


class TarSource:
    """Samples of tar shards by number; safe to share between threads and to pickle."""

    label_names: list[str] = []

    def __init__(self, address: str, index: Index, json_key: str):
        self._address, self._index, self._json_key = address, index, json_key
        self._open = functools.lru_cache(_OPEN_SHARDS)(_open)

    @property
    def skipped(self) -> dict[str, Skipped]:
        """What the shards hold besides samples, by kind."""
        return self._index.skipped

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts', 'label' or 'labels' if the sample has them.

        BadRecord if its text is not UTF-8, or not JSON with the field.
        """
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} samples, none with the index {i}.')
        shard, (image, image_size, text, text_size, label, label_size, _, is_json) = self._index[i]
        example: dict[str, Any] = {'image': self._read(shard, image, image_size)}
        if text:
            data = self._read(shard, text, text_size)
            texts = _json_texts(data, self._json_key) if is_json else _captions.lines(data)
            if texts is not None:
                example['texts'] = texts
        if label:
            numbers = self._labels(self._read(shard, label, label_size), i)
            example |= {'label': numbers[0]} if len(numbers) == 1 else {'labels': numbers}
        return example

    def where(self, i: int) -> str:
        """Returns the shard and the name of image `i`."""
        shard, (image, *_, head, _) = self._index[i]
        name = _tar_format.name_in(self._read(shard, image - head, head * BLOCK))
        return f'{shard}: {name or f"image at byte {image * BLOCK}"}'

    def __str__(self) -> str:
        return f'tars:{self._address}'

    def _read(self, shard: str, block: int, size: int) -> bytes:
        if not size:
            return b''
        # This reference keeps the shard open during the read, even if the cache drops it.
        file = self._open(shard)
        data = file.read(block * BLOCK, size)
        if len(data) < size:
            raise ValueError(
                f'{shard}: was truncated since it was indexed: expected {size} bytes at '
                f'{block * BLOCK}, found {len(data)}. Start again when the shard is complete.'
            )
        return data

    def _labels(self, data: bytes, i: int) -> list[int]:
        try:
            # An empty file is not an empty list of labels: it was not written.
            return [int(number) for number in data.split() or [data]]
        except ValueError:
            raise ValueError(
                f'{self.where(i)}: expected an integer label, found {data[:40]!r}.'
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._open = functools.lru_cache(_OPEN_SHARDS)(_open)


def _roles(extensions: dict[str, Sequence[str]]) -> dict[str, str]:
    """Maps extensions to image, text or label."""
    roles: dict[str, str] = {}
    for role, exts in extensions.items():
        if isinstance(exts, str):
            raise ValueError(f'tars: {role}_exts is {exts!r}; expected a list such as [{exts!r}]')
        for ext in (ext.lower().removeprefix('.') for ext in exts):
            if roles.setdefault(ext, role) != role:
                raise ValueError(
                    f'tars: extension .{ext} is given for {roles[ext]} and for {role}. Choose one '
                    'with image_exts, text_exts and label_ext.'
                )
    return roles


def _json_texts(data: bytes, key: str) -> list[str] | None:
    """Returns the texts in a field of a JSON object, None if it is null."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord('not_utf8', f'its .json member is not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise BadRecord('not_utf8', f'its .json member is not an object: {data[:60]!r}')
    if key not in fields:
        found = ', '.join(map(repr, list(fields)[:12])) or 'nothing'
        raise BadRecord('no_caption', f'its .json member has no {key!r} (json_key); it has {found}')
    if fields[key] is None:
        return None
    texts = fields[key] if isinstance(fields[key], list) else [fields[key]]
    try:
        # JSON can hold unpaired surrogates, which no tokenizer can encode.
        return [text.strip() for text in texts if text.strip() and text.encode()]
    except (AttributeError, UnicodeEncodeError):
        found = repr(fields[key])[:60]
        raise BadRecord('not_utf8', f'{key!r} of its .json member is not text: {found}') from None


class _LocalShard:
    """An open file, closed when the last reference to it is dropped."""

    def __init__(self, path: str):
        self._number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._number)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._number, size, offset)


class _RemoteShard:
    """A remote file; every read is a request."""

    def __init__(self, url: str):
        self._fs, self._path = _files.filesystem(url)

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = self._fs.cat_file(self._path, start=offset, end=offset + size)
        except Exception:
            # Servers reject a range beyond the end, each with another error.
            self._fs.invalidate_cache()
            if self._fs.size(self._path) <= offset:
                return b''
            raise
        if len(data) > size:
            raise ValueError(
                f'{self._path}: its server does not support range requests. Copy the shards.'
            )
        return data


def _open(path: str) -> _LocalShard | _RemoteShard:
    return _RemoteShard(path) if _files.is_remote(path) else _LocalShard(path)


@contextlib.contextmanager
def _front_to_back(path: str) -> Iterator[Read]:
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


def _matches(address: str) -> list[Shard]:
    """Returns the files that a path, a glob or braces match, sorted; each part must match some."""
    remote = _files.is_remote(address)
    address = address if remote else os.path.expanduser(address)
    # A local file may have braces in its name.
    is_file = not remote and os.path.isfile(address)
    patterns = [address] if is_file else _files.expand(address)
    with ThreadPoolExecutor(_LOOK_UPS) as pool:
        found = list(pool.map(_remote_shards if remote else _local_shards, patterns))
    for pattern, shards in zip(patterns, found, strict=True):
        if not shards:
            raise DataNotFound(_no_match(pattern))
    return sorted({shard for shards in found for shard in shards})


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
    marks = ('ETag', 'etag', 'md5Hash', 'mtime', 'LastModified', 'Last-Modified', 'updated')
    changed = next((str(info[mark]) for mark in (*marks, 'created') if info.get(mark)), '')
    return Shard(url, int(info['size']), changed)


def _no_match(pattern: str) -> str:
    try:
        there = _files.nearest(pattern)
    except Exception:
        there = ''  # Not every server lists its files, and each has its own error.
    return (
        f'tars: no file matches {pattern!r}. {there} '
        "Expected a path, a glob or a range of tar files: 'x-*.tar', 'x-{00000..00041}.tar'."
    )
