"""Uncompressed tar shards as WebDataset and img2dataset write them, read in place: `tars:GLOB`."""

import functools
import glob
import os
import re
import tarfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

_ROLES = ('image', 'text', 'label')
# Where the members of one sample lie; an offset counts bytes from the start of the shard and an
# absent member has size -1. `header` is where the image's tar header begins: its name is read from
# there when a message needs it, so that millions of names need not be kept.
_SAMPLE = np.dtype(
    [('shard', 'i4'), ('header', 'i8')]
    + [(f'{role}_{number}', 'i8') for role in _ROLES for number in ('offset', 'size')]
)
_MAGIC = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
_DAMAGED = 'truncated, damaged or not a tar; fetch or write the shard again'
# Below the usual limit of 1,024 open files per process.
_OPEN_SHARDS = 512


def source(
    address: str,
    *,
    image_exts: Sequence[str] = ('jpg', 'jpeg', 'png', 'webp'),
    text_exts: Sequence[str] = ('txt',),
    label_ext: str = 'cls',
) -> 'TarSource':
    """Indexes the shards that a path, a glob or a brace range such as `x-{00000..00041}.tar` names.

    A sample is the members of one shard that share a key, the path up to the first dot of the base
    name; samples come in order of appearance, those without an image are left out. The lines of the
    text member are the texts. ValueError: nothing matches, or a tar is compressed, damaged, empty.
    """
    roles = dict.fromkeys(image_exts, 'image') | dict.fromkeys(text_exts, 'text')
    return TarSource(address, {**roles, label_ext: 'label'})


class TarSource:
    """Samples of tar shards by number; safe to share between threads and to pickle."""

    label_names: list[str] = []

    def __init__(self, address: str, roles: dict[str, str]):
        """Scans the tar headers of all shards; `roles` maps extensions to image, text or label."""
        self._address = address
        self._shards = _matches(address)
        extensions = Counter()
        indices = []
        for number, shard in enumerate(self._shards):
            indices.append(_index(number, shard, roles, extensions))
            if (number + 1) % 100 == 0:
                logging.info('Indexed %d of %d tar shards.', number + 1, len(self._shards))
        self._samples = np.concatenate(indices)
        if not len(self):
            wanted = ', '.join(f'.{ext}' for ext, role in roles.items() if role == 'image')
            found = ', '.join(f'.{ext} ({n})' for ext, n in extensions.most_common(12))
            raise ValueError(
                f'{self}: no sample has an image ({wanted}). Extensions found: {found}. '
                'Other ones can be given with image_exts.'
            )
        self._open = functools.lru_cache(_OPEN_SHARDS)(_Descriptor)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict:
        """Returns the encoded 'image', and 'texts' and 'label' where the sample has them."""
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} samples, none with the number {i}.')
        shard, _, *places = self._samples[i].item()
        image, text, label = (
            self._read(shard, offset, size)
            for offset, size in zip(places[::2], places[1::2], strict=True)
        )
        example = {'image': image}
        if text is not None:
            lines = text.decode('utf-8-sig', errors='replace').splitlines()
            example['texts'] = [line.strip() for line in lines if line.strip()]
        if label is not None:
            example['label'] = self._label(label, i)
        return example

    def where(self, i: int) -> str:
        """Says in which shard and under which name image `i` is stored."""
        shard = self._shards[self._samples[i]['shard']]
        with open(shard, 'rb') as file:
            file.seek(int(self._samples[i]['header']))
            return f'{shard}: {_tar(file).next().name}'

    def __str__(self) -> str:
        return f'tars:{self._address}'

    def _read(self, shard: int, offset: int, size: int) -> bytes | None:
        if size < 0:
            return None
        # The name keeps the descriptor open until the read is done, even if the cache drops it.
        descriptor = self._open(self._shards[shard])
        data = os.pread(descriptor.number, size, offset)
        if len(data) < size:
            raise ValueError(
                f'{self._shards[shard]}: has become shorter since it was indexed: expected {size} '
                f'bytes at {offset}, found {len(data)}. Start again when the shard is complete.'
            )
        return data

    def _label(self, data: bytes, i: int) -> int:
        try:
            return int(data)
        except ValueError:
            raise ValueError(
                f'{self.where(i)}: its label should be a whole number, it is {data[:40]!r}.'
            ) from None

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open = functools.lru_cache(_OPEN_SHARDS)(_Descriptor)


class _Descriptor:
    """An open shard, closed when nobody refers to it any more."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


def _index(number: int, shard: str, roles: dict[str, str], extensions: Counter) -> np.ndarray:
    """Returns the samples of one shard that have an image, and counts all its extensions."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    members = 0
    for member in _members(shard):
        members += 1
        folder, slash, base = member.name.rpartition('/')
        stem, _, extension = base.partition('.')
        extension = extension.lower()
        extensions[extension] += 1
        role = roles.get(extension)
        if role is None or not stem:
            continue
        sample = samples.setdefault(folder + slash + stem, {})
        if role in sample:
            raise ValueError(
                f'{shard}: one sample has two members that are its {role}, {sample[role].name} '
                f'and {member.name}. Remove one, or choose with image_exts, text_exts, label_ext.'
            )
        sample[role] = member
    if not members:
        raise ValueError(f'{shard}: the tar is empty. Remove the shard or write it again.')
    rows = [(number, *_row(sample)) for sample in samples.values() if 'image' in sample]
    return np.array(rows, _SAMPLE)


def _row(sample: dict[str, tarfile.TarInfo]) -> list[int]:
    row = [sample['image'].offset]
    for role in _ROLES:
        member = sample.get(role)
        row += [member.offset_data, member.size] if member else [0, -1]
    return row


def _members(shard: str) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of a tar; reads headers only and seeks over the data."""
    with open(shard, 'rb', buffering=0) as file:
        start = file.read(6)
        for magic, name in _MAGIC.items():
            if start.startswith(magic):
                raise ValueError(
                    f'{shard}: is compressed ({name}). Samples are read in place, so it must be '
                    'uncompressed: unpack it to a .tar first.'
                )
        file.seek(0)
        try:
            tar = _tar(file)
            while (member := tar.next()) is not None:
                if member.isreg():
                    yield member
        except tarfile.TarError as error:
            raise ValueError(f'{shard}: {_DAMAGED} ({error}).') from error
        # tarfile takes a damaged header for the end of the archive; the true end is zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b'\0'):
            raise ValueError(f'{shard}: {_DAMAGED} (no tar header at byte {tar.offset}).')


def _tar(file) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode='r:', encoding='utf-8', errors='replace')


def _matches(address: str) -> list[str]:
    """Returns the files that a path, a glob or braces name, sorted; every part must match some."""
    address = os.path.expanduser(address)
    if os.path.isfile(address):
        return [address]
    shards = set()
    for pattern in _expand(address):
        files = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        if not files:
            raise ValueError(_no_match(pattern))
        shards.update(files)
    return sorted(shards)


def _expand(pattern: str) -> list[str]:
    """Expands the braces of `{00000..00005}` and `{train,val}`."""
    braces = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
    if not braces:
        return [pattern]
    first, last, words = braces.groups()
    if words is None:
        low, high = sorted((int(first), int(last)))
        words = [str(number).zfill(len(first)) for number in range(low, high + 1)]
    else:
        words = words.split(',')
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [path for word in words for path in _expand(head + word + tail)]


def _no_match(pattern: str) -> str:
    folder = pattern
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or '.'
    names = sorted(os.listdir(folder))
    shown = ', '.join(names[:8]) + (f', … ({len(names)} in all)' if len(names) > 8 else '')
    return (
        f'tars: no file matches {pattern!r}. The folder {folder!r} holds: {shown or "nothing"}. '
        "Expected is a path, a glob or a range of tar files: 'x-*.tar', 'x-{00000..00041}.tar'."
    )
