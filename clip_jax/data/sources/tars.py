"""Uncompressed tar shards, as of WebDataset and img2dataset, with random access: `tars:GLOB`."""

import contextlib
import glob
import json
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from clip_jax.data.errors import BadRecord, DataNotFound, Skipped
from clip_jax.data.sources import (
    _captions,
    _files,
    _tar_files,
    _tar_format,
    _tar_index,
    _tar_labels,
    _tar_samples,
)
from clip_jax.data.sources._tar_format import BLOCK
from clip_jax.data.sources._tar_index import Index, Shard
from clip_jax.runtime import environment

_LOOK_UPS = 32  # concurrent look-ups of remote shards


def source(
    address: str,
    *,
    image_exts: Sequence[str] = ('jpg', 'jpeg', 'png', 'webp', 'avif'),
    text_exts: Sequence[str] = ('txt',),
    text_lines: bool = True,
    label_ext: str = 'cls',
    other_exts: Sequence[str] = (),
    json_key: str | Sequence[str] = 'caption',
    class_names: str = 'classnames.txt',
    index_dir: str = '',
) -> 'TarSource':
    """Indexes tar shards.

    A sample is the members of one shard with the same key, the path up to the extension: the
    longest one that an option names, else what follows the first dot of the file name. Samples are
    in the order of the shards. What is in no sample, and damage, is counted in `skipped`.

    Args:
        address: a path, a glob or a brace range such as `x-{00000..00041}.tar`; with `://`, it is
            read through fsspec.
        image_exts: extensions of images; the first member of a sample with one of them is used.
        text_exts: extensions of captions, such as txt, syn.txt or json; a sample has those of all
            its members, in the order of the extensions, each caption once.
        text_lines: whether each line of a member is a caption; otherwise the whole text is one.
        label_ext: the extension of labels. The member holds an integer, or several separated by
            space, which become 'labels'; with npy, an array, which always becomes 'labels'.
        other_exts: extensions of members that are left out on purpose, such as seg.png.
        json_key: the field of .json members with the caption, a string or a list; or several
            fields.
        class_names: a file with the names of the classes, one per line, in the folder of the shards
            or in the one above; '': labels have no names.
        index_dir: the folder of cached indices; '': `clip_jax/tars` in the user's cache folder.

    Raises:
        DataNotFound: if no file matches.
        ValueError: if no sample has an image, or a shard is compressed, empty or not a tar.
    """
    roles = _tar_samples.roles(image_exts, text_exts, label_ext, other_exts)
    if _files.is_remote(index_dir):
        raise ValueError(f'tars: index_dir is {index_dir!r}; expected a local folder')
    # Absolute, because other processes open the index as well.
    folder = os.path.abspath(os.path.expanduser(index_dir) or environment.cache_folder('tars'))
    matches = _matches(address)
    index = _tar_index.open_index(address, matches, roles, folder, _tar_files.front_to_back)
    texts = _Texts(
        [ext for ext, role in roles.items() if role[:4] == 'text'],
        _captions.keys(json_key, 'tars: json_key'),
        text_lines,
    )
    labels = _tar_labels.Labels(label_ext.lower().rpartition('.')[2] == 'npy', [], '')
    if index.has_labels:
        labels = labels.named(index.paths, class_names)
    return TarSource(address, index, texts, labels)


class _Texts(NamedTuple):
    """How captions are stored."""

    extensions: list[str]  # of the caption members of a sample
    json_keys: tuple[str, ...]
    lines: bool  # whether each line is a caption

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that captions come from: members by extension, and those of .json."""
        each = ((self.json_keys if _is_json(ext) else (ext,)) for ext in self.extensions)
        return tuple(dict.fromkeys(_captions.field(key) for keys in each for key in keys))

    def read(self, members: list[bytes | None]) -> dict[str, Any]:
        """Returns the 'texts', each once, and 'fields' of a sample; {} without captions."""
        found, lacking = [], None
        for extension, data in zip(self.extensions, members, strict=True):
            if data is None:
                continue
            if not _is_json(extension):
                found.append((extension, _captions.of_file(data, lines=self.lines)))
                continue
            content = _json_object(data)
            for key in self.json_keys:
                if key not in content:
                    lacking = content  # Another field may have a caption.
                elif content[key] is not None:
                    found.append((key, _json_texts(content[key], key)))
        if lacking is not None and not any(texts for _, texts in found):
            names = ', '.join(map(repr, list(lacking)[:12])) or 'nothing'
            wanted = ' or '.join(map(repr, self.json_keys))
            raise BadRecord(
                'no_caption', f'its .json member has no {wanted} (json_key); it has {names}'
            )
        if not found:
            return {}
        several = len(self.extensions) > 1 or len(self.json_keys) > 1
        example = _captions.of_example(found, several=several)
        if len(found) > 1:  # img2dataset stores a caption twice, as .txt and in .json.
            example['texts'] = list(dict.fromkeys(example['texts']))
        return example


class TarSource:
    """Samples of tar shards by number; safe to share between threads and to pickle."""

    def __init__(self, address: str, index: Index, texts: _Texts, labels: _tar_labels.Labels):
        self.label_names = labels.names
        self._address, self._index, self._texts, self._labels = address, index, texts, labels
        self.text_fields = texts.fields
        self._open = _tar_files.Opener()

    @property
    def skipped(self) -> dict[str, Skipped]:
        """What the shards hold besides samples, by kind."""
        return self._index.skipped

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts', 'fields', 'label' or 'labels' if there are any.

        BadRecord if its text is not UTF-8, or not JSON with the field.
        """
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} samples, none with the index {i}.')
        shard, (image, image_size, label, label_size, *texts, _) = self._index[i]
        example: dict[str, Any] = {'image': self._read(shard, image, image_size)}
        places = zip(texts[::2], texts[1::2], strict=True)
        members = [self._read(shard, *place) if place[0] else None for place in places]
        example |= self._texts.read(members)
        if label:
            data = self._read(shard, label, label_size)
            try:
                example |= self._labels.read(data)
            except ValueError as error:
                raise ValueError(f'{self.where(i)}: {error}') from None
        return example

    def where(self, i: int) -> str:
        """Returns the shard and the name of image `i`."""
        shard, (image, *_, head) = self._index[i]
        try:
            name = _tar_format.name_in(self._read(shard, image - head, head * BLOCK))
        except (OSError, ValueError):
            name = ''  # Messages about a shard that cannot be read have to name it too.
        return f'{shard}: {name or f"image at byte {image * BLOCK}"}'

    def __str__(self) -> str:
        return f'tars:{self._address}'

    def _read(self, shard: str, block: int, size: int) -> bytes:
        if not size:
            return b''
        # This reference keeps the shard open during the read, whatever other threads open.
        file = self._open(shard)
        data = file.read(block * BLOCK, size)
        if len(data) < size:
            raise ValueError(
                f'{shard}: was truncated since it was indexed: expected {size} bytes at '
                f'{block * BLOCK}, found {len(data)}. Start again when the shard is complete.'
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._open = _tar_files.Opener()


def _is_json(extension: str) -> bool:
    return extension.rpartition('.')[2] == 'json'


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord('not_utf8', f'its .json member is not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise BadRecord('not_utf8', f'its .json member is not an object: {data[:60]!r}')
    return fields


def _json_texts(value: Any, key: str) -> list[str]:
    """Returns the texts in the value of a field of a JSON object."""
    texts = value if isinstance(value, list) else [value]
    try:
        # JSON can hold unpaired surrogates, which no tokenizer can encode.
        return [text.strip() for text in texts if text.strip() and text.encode()]
    except (AttributeError, UnicodeEncodeError):
        found = repr(value)[:60]
        raise BadRecord('not_utf8', f'{key!r} of its .json member is not text: {found}') from None


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
    marks = ('ETag', 'etag', 'md5Hash', 'blob_id', 'mtime', 'LastModified', 'Last-Modified')
    marks += ('updated', 'created')
    changed = next((str(info[mark]) for mark in marks if info.get(mark)), '')
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
