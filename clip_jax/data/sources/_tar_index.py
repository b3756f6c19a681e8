"""An index of the samples of tar shards: 23 bytes per sample, built once and cached on disk."""

import bisect
import hashlib
import io
import itertools
import json
import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from clip_jax.data.errors import Skipped
from clip_jax.data.sources import _files, _tar_files, _tar_format
from clip_jax.data.sources._skipped import EXAMPLES, Ledger
from clip_jax.data.sources._tar_format import BLOCK, Member, Read, Unreadable
from clip_jax.data.sources._tar_samples import Sorter
from clip_jax.runtime.progress import track

_VERSION = 2  # of the cache; raise it when rows or what counts as a sample changes
_LARGEST_SHARD = BLOCK << 32  # bytes that 32-bit block numbers can address
LARGEST_LABEL = 0xFFFF  # bytes; longer labels are cut, and refused when they are read
_SCANS = 16  # concurrent scans, which mostly wait for the disk or the network
_SAVE = 300  # seconds between saves, and so of work that an interruption can cost

_MAGIC = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}


class Shard(NamedTuple):
    """A tar file as it was found; `changed` is its modification time or another version mark."""

    path: str
    size: int
    changed: str


class Part(NamedTuple):
    """The content of one shard."""

    rows: np.ndarray  # row_type [samples]
    skipped: dict[str, Skipped]
    extensions: dict[str, int]


def row_type(roles: dict[str, str]) -> np.dtype:
    """Returns what is stored of a sample.

    For each member it is the block in which its data starts, 0 if there is none (block 0 is always
    a header), and its size in bytes. `head` is the number of blocks from the image's header to its
    data, 0 if that does not fit: names are read from there when a message needs one, so that
    millions of them need not be stored.
    """
    fields = [('image', '<u4'), ('image_size', '<u4'), ('label', '<u4'), ('label_size', '<u2')]
    for role in _texts(roles):
        fields += [(role, '<u4'), (f'{role}_size', '<u4')]
    return np.dtype([*fields, ('head', 'u1')])


def _texts(roles: dict[str, str]) -> list[str]:
    return [role for role in roles.values() if role.startswith('text')]


class Index:
    """The samples of all shards by index; the rows of a cache file are memory-mapped."""

    def __init__(self, parts: dict[Shard, Part], file: str):
        """`file` is the .npy that holds the rows of all parts, '' if they are in memory only."""
        self.paths = [shard.path for shard in parts]
        self.skipped = _merged(part.skipped for part in parts.values())
        self._ends = list(itertools.accumulate(len(part.rows) for part in parts.values()))
        self._file = file
        arrays = [part.rows for part in parts.values()]
        self._type = arrays[0].dtype
        try:
            self._rows = _map(file, self._type)
        except OSError:  # none was written, or another process has replaced it already
            self._file = ''
            self._rows = np.concatenate(arrays)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> tuple[str, tuple[int, ...]]:
        """Returns the path of sample i's shard and the sample's row."""
        return self.paths[bisect.bisect_right(self._ends, i)], self._rows[i].item()

    @property
    def has_labels(self) -> bool:
        """Whether any sample has a label."""
        return bool(self._rows['label'].any())

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._rows.nbytes

    def __getstate__(self) -> dict[str, Any]:
        # Other processes open the file instead of receiving gigabytes.
        return {**vars(self), '_rows': None} if self._file else vars(self)

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        if not self._file:
            return
        try:
            self._rows = _map(self._file, self._type)
        except (OSError, ValueError):
            self._rows = np.empty(0, self._type)
        if len(self._rows) != len(self):
            raise ValueError(
                f'{self._file}: this index of {len(self)} samples was removed or replaced while in '
                'use, perhaps because shards have changed. Start again.'
            )


def open_index(
    address: str,
    shards: list[Shard],
    roles: dict[str, str],
    folder: str,
    reader: Callable[[str], AbstractContextManager[Read]],
) -> Index:
    """Returns the index of shards; only shards that are new or have changed are scanned.

    Args:
        address: the address of the shards.
        shards: the shards.
        roles: maps extensions to what they mean, as _tar_samples.roles does.
        folder: the folder of the cache.
        reader: opens a shard for one sequential scan.

    Raises:
        ValueError: if a shard is not an uncompressed tar or is empty, or no sample has an image.
    """
    cache = _Cache(folder, address, roles)
    parts = cache.load()
    if list(parts) == shards:
        return Index(parts, cache.file)
    new = [shard for shard in shards if shard not in parts]
    if len(new) < len(shards):
        logging.info('%d of %d tar shards are new or have changed.', len(new), len(shards))
    saved = time.monotonic()
    for shard, part in zip(new, _scan_all(new, roles, reader), strict=True):
        parts[shard] = part
        if time.monotonic() - saved > _SAVE:
            cache.save(parts)
            saved = time.monotonic()
    parts = {shard: parts[shard] for shard in shards}
    if not any(len(part.rows) for part in parts.values()):
        raise ValueError(f'tars:{address}: {_no_image(parts.values(), roles)}')
    cache.save(parts)
    return Index(parts, cache.file)


def scan(shard: Shard, read: Read, roles: dict[str, str]) -> Part:
    """Finds the samples of one shard, in its order, and counts what belongs to none.

    ValueError if the shard is compressed, not a tar, empty or larger than 2 TiB.
    """
    _check(shard, read)
    skipped = Ledger()

    def skip(kind: str, name: str) -> None:
        skipped.add(kind, name and _place(shard, name))

    sorter = Sorter(roles, skip)
    try:
        for member in _tar_format.members(read, shard.size):
            sorter.add(member)
    except Unreadable as stop:
        skip(stop.kind, str(stop))
    samples, extensions = sorter.samples(), dict(sorter.extensions.most_common(12))
    if not extensions and not skipped:
        raise ValueError(f'{shard.path}: the tar is empty. Remove the shard or write it again.')
    rows = [_row(sample, _texts(roles)) for sample in samples]
    return Part(np.array(rows, row_type(roles)), skipped, extensions)


def _check(shard: Shard, read: Read) -> None:
    """Raises ValueError for a file that is not an uncompressed tar, or too large."""
    block = read(0, min(BLOCK, shard.size)) if shard.size else b''
    for magic, name in _MAGIC.items():
        if block.startswith(magic):
            raise ValueError(
                f'{shard.path}: is compressed ({name}). Random access needs an uncompressed tar: '
                'decompress it to a .tar first.'
            )
    if shard.size > _LARGEST_SHARD:
        raise ValueError(
            f'{shard.path}: has {shard.size} bytes, expected at most {_LARGEST_SHARD} (2 TiB). '
            'Split it into several shards.'
        )
    try:
        if len(block) == BLOCK and block.strip(b'\0'):
            _tar_format.check_header(block)
        elif block.strip(b'\0'):
            raise Unreadable('damaged_shard', f'it has only {len(block)} bytes')
    except Unreadable as error:
        raise ValueError(
            f'{shard.path}: is not a tar ({error}). Download or write it again, or leave it out.'
        ) from error


def _row(sample: dict[str, Member], texts: list[str]) -> tuple[int, ...]:
    places = []
    for role in ('image', 'label', *texts):
        member = sample.get(role)
        places += [member.offset // BLOCK, member.size] if member else [0, 0]
    places[3] = min(places[3], LARGEST_LABEL)
    head = (sample['image'].offset - sample['image'].header) // BLOCK
    return (*places, head if head < 256 else 0)


def _place(shard: Shard, what: str) -> str:
    # A name may contain anything, but must stay on one line.
    return f'{shard.path}: {what if what.isprintable() else repr(what)}'


def _merged(all_skipped: Iterable[dict[str, Skipped]]) -> dict[str, Skipped]:
    merged: dict[str, Skipped] = {}
    for skipped in all_skipped:
        for kind, found in skipped.items():
            count, examples = merged.get(kind, Skipped(0, []))
            merged[kind] = Skipped(count + found.count, (examples + found.examples)[:EXAMPLES])
    return merged


def _no_image(parts: Iterable[Part], roles: dict[str, str]) -> str:
    wanted = ', '.join(f'.{extension}' for extension, role in roles.items() if role == 'image')
    extensions = Counter()
    for part in parts:
        extensions.update(part.extensions)
    found = ', '.join(f'.{extension} ({n})' for extension, n in extensions.most_common(12))
    skipped = _merged(part.skipped for part in parts)
    lost = ''.join(f' {kind}: {n}, first {places[0]}.' for kind, (n, places) in skipped.items())
    return (
        f'no sample has an image ({wanted}). Extensions found: {found or "none"}. Give others with '
        f'image_exts.{lost}'
    )


def _scan_all(
    shards: list[Shard],
    roles: dict[str, str],
    reader: Callable[[str], AbstractContextManager[Read]],
) -> Iterator[Part]:
    def scan_one(shard: Shard) -> Part:
        with reader(shard.path) as read:
            return scan(shard, read, roles)

    # An invalid shard is an error, which cancels the other scans.
    with ThreadPoolExecutor(min(_SCANS, _tar_files.most_open())) as pool:
        yield from track(
            pool.map(scan_one, shards), 'Indexing', len(shards), unit='shards', delay=1
        )


class _Cache:
    """An index on disk: a .npy file with the rows of all shards, and a .json file that lists these.

    The names start with a dot, so that a glob for shards in the same folder does not match them.
    """

    def __init__(self, folder: str, address: str, roles: dict[str, str]):
        self.file = ''  # the .npy as last loaded or saved
        self._folder = folder
        place = address if _files.is_remote(address) else os.path.abspath(address)
        self._card = {'version': _VERSION, 'address': [address, place], 'roles': roles}
        self._type = row_type(roles)
        self._prefix = os.path.join(folder, f'.tars-{_digest(self._card)}')

    def load(self) -> dict[Shard, Part]:
        """Returns the cached parts; none if there is no cache or it is damaged."""
        # A second time, in case another process replaced both files between the two reads.
        for _ in range(2):
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                return self._load()
        return {}

    def _load(self) -> dict[Shard, Part]:
        with open(f'{self._prefix}.json', encoding='utf-8') as file:
            known = json.load(file)
        file = self._rows_file(known['shards'])
        if {name: known[name] for name in self._card} != self._card or _crc(file) != known['crc']:
            raise ValueError('of other options, or damaged')
        rows = _map(file, self._type)
        ends = np.cumsum([shard['samples'] for shard in known['shards']])
        parts = {}
        for shard, end in zip(known['shards'], ends, strict=True):
            skipped = {kind: Skipped(*found) for kind, found in shard['skipped'].items()}
            found = Shard(shard['path'], shard['size'], shard['changed'])
            rows_here = rows[end - shard['samples'] : end]
            parts[found] = Part(rows_here, skipped, shard['extensions'])
        self.file = file
        return parts

    def save(self, parts: dict[Shard, Part]) -> None:
        """Replaces the files; a warning, not an error, if that is not possible."""
        shards = [
            {
                **shard._asdict(),
                'samples': len(part.rows),
                'skipped': part.skipped,
                'extensions': part.extensions,
            }
            for shard, part in parts.items()
        ]
        before, self.file = self.file, ''
        if not any(shard['samples'] for shard in shards) or not self._folder:
            return
        file = self._rows_file(shards)
        try:
            os.makedirs(self._folder, exist_ok=True)
            _write(file, _npy([part.rows for part in parts.values()], self._type))
            known = {**self._card, 'crc': _crc(file), 'shards': shards}
            _write(f'{self._prefix}.json', [json.dumps(known).encode()])
        except OSError as error:
            logging.warning(
                'The index of tar shards cannot be saved in %s (%s), so the next run will build it '
                'again; give another folder with index_dir.',
                *(self._folder, error),
            )
            self._folder = ''
            return
        self.file = file
        if before and before != file:
            # Files that other processes have open stay readable, or cannot be removed.
            with suppress(OSError):
                os.remove(before)

    def _rows_file(self, shards: list[dict[str, Any]]) -> str:
        # The name depends on the shards: concurrent processes write identical files, and a .json
        # never refers to the rows of other shards.
        return f'{self._prefix}-{_digest(shards)}.npy'


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _crc(path: str) -> int:
    """Checksum of a file, read in pieces to save memory."""
    crc = 0
    with open(path, 'rb') as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def _map(file: str, dtype: np.dtype) -> np.ndarray:
    """Maps the rows of a file; ValueError if it holds anything else, before NumPy maps it."""
    with open(file, 'rb') as opened:
        np.lib.format.read_magic(opened)
        shape, _, found = np.lib.format.read_array_header_1_0(opened)
        if found != dtype or len(shape) != 1:
            raise ValueError(f'{file}: is not an index of tar shards')
        return np.asarray(np.memmap(opened, dtype, 'r', opened.tell(), shape))


def _npy(arrays: list[np.ndarray], dtype: np.dtype) -> Iterator[bytes]:
    """Yields the bytes of a .npy file with the arrays concatenated."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    header['shape'] = (sum(map(len, arrays)),)
    beginning = io.BytesIO()
    np.lib.format.write_array_header_1_0(beginning, header)
    yield beginning.getvalue()
    for array in arrays:
        yield array.tobytes()


def _write(path: str, pieces: Iterable[bytes]) -> None:
    """Writes a file atomically."""
    partial = f'{path}.{uuid.uuid4().hex}.partial'
    try:
        with open(partial, 'xb') as file:
            for piece in pieces:
                file.write(piece)
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            os.remove(partial)
