"""Image files in folders, one sub-folder per class, with captions in .txt files: `folder:DIR`."""

import bisect
import itertools
import os
from array import array
from collections.abc import Sequence
from typing import Any

from absl import logging

from clip_jax.data.errors import DataNotFound
from clip_jax.data.image import opening
from clip_jax.data.sources import _captions, _files
from clip_jax.data.sources._skipped import Ledger

_IMAGE_EXTS = ('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff', 'avif', 'heic', 'heif')
# Extensions of formats whose decoder may be missing.
_FORMATS = {'avif': 'AVIF', 'heic': 'HEIF', 'heif': 'HEIF'}
# .txt in any case. An image stores which of them its captions have, from 1; 0 for none.
_CAPTIONS = [''.join(letters) for letters in itertools.product('.', 'tT', 'xX', 'tT')]


def source(
    address: str, *, image_exts: Sequence[str] = _IMAGE_EXTS, text_lines: bool = True
) -> 'FolderSource':
    """Lists the images in each sub-folder of a folder; each sub-folder is a class.

    Classes are the sub-folders in sorted order, including those without images, so that all splits
    of a data set have the same labels. Images are sorted by class and path. If no sub-folder has
    images, those of the folder itself are used, without labels. `NAME.txt` next to `NAME.jpg` holds
    its captions. Links are followed, and a class has the images of each folder once.

    Args:
        address: the folder, local or remote.
        image_exts: extensions of image files.
        text_lines: whether each line of a .txt file is a caption; otherwise the whole text is one.

    Raises:
        DataNotFound: if the folder does not exist.
        ValueError: if it has no images.
    """
    return FolderSource(address, {ext.lower().lstrip('.') for ext in image_exts}, text_lines)


class FolderSource:
    """Image files by number; safe to share between threads and to pickle."""

    def __init__(self, address: str, image_exts: set[str], text_lines: bool):
        """Lists all folders; only names are kept."""
        self._address, self._text_lines = address, text_lines
        self.text_fields = ('txt',)
        self._root = os.path.expanduser(address).rstrip('/') or '/'
        self._exts = image_exts
        self.skipped, self._undecodable = Ledger(), Ledger()
        # Millions of names are stored in one buffer; name i ends at _ends[i].
        self._names, self._ends = bytearray(), array('q')
        self._captioned = bytearray()
        self._class_ends: list[int] = []
        seen: set[object] = set()
        top, folders = self._list('', seen)
        self.label_names = [_text(name) for name in folders]
        for name in folders:
            self._append(self._below(name, set(seen)))
            self._class_ends.append(len(self))
        if len(self):
            for name, _ in top:
                self.skipped.add('no_class', self._path(name))
        else:
            self.label_names = []
            self._append(top)
        self._warn_of_decoders()
        if not len(self):
            raise ValueError(self._no_image())

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts' and 'label' if there are any."""
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} images, none with the index {i}.')
        path = self.where(i)
        example: dict[str, Any] = {'image': _files.read(path)}
        if self._captioned[i]:
            stem, ending = os.path.splitext(path)[0], _CAPTIONS[self._captioned[i] - 1]
            data = _files.read(stem + ending, missing='no_caption')
            example['texts'] = _captions.of_file(data, lines=self._text_lines)
        if self.label_names:
            example['label'] = bisect.bisect_right(self._class_ends, i)
        return example

    def where(self, i: int) -> str:
        """Returns the path of image `i`."""
        start = self._ends[i - 1] if i else 0
        return self._path(os.fsdecode(bytes(self._names[start : self._ends[i]])))

    def __str__(self) -> str:
        return f'folder:{self._address}'

    def _path(self, name: str) -> str:
        return f'{self._root.rstrip("/")}/{name}'

    def _append(self, images: list[tuple[str, int]]) -> None:
        for name, captioned in sorted(images):
            self._names += os.fsencode(name)
            self._ends.append(len(self._names))
            self._captioned.append(captioned)

    def _below(self, name: str, seen: set[object]) -> list[tuple[str, int]]:
        """All images of one class, at any depth, and which captions they have.

        Folders that were `seen` are not listed again, so that links cannot lead in circles.
        """
        found, left = [], [name]
        while left:
            folder = left.pop()
            images, folders = self._list(f'{folder}/', seen)
            found += images
            left += [f'{folder}/{inner}' for inner in reversed(folders)]
        return found

    def _list(self, prefix: str, seen: set[object]) -> tuple[list[tuple[str, int]], list[str]]:
        """The images of a folder, which captions they have, and the sub-folders; all sorted."""
        images, folders, others = [], [], []
        for name, kind in self._entries(prefix, seen):
            format = _FORMATS.get(ending := os.path.splitext(name)[1].lower().lstrip('.'))
            if name.startswith('.'):
                self.skipped.add('hidden', self._path(prefix + name))
            elif kind == 'folder':
                folders.append(name)
            elif kind != 'file':
                self.skipped.add(kind, self._path(prefix + name))
            elif ending not in self._exts:
                others.append(name)
            elif format and not opening.is_known(format):
                self._undecodable.add(format, self._path(prefix + name))
                self.skipped.add('no_decoder', self._path(prefix + name))
            else:
                images.append(name)
        captions = _captions_of(images, others)
        used = {stem + _CAPTIONS[number - 1] for stem, number in captions.items()}
        for name in others:
            if name not in used:
                self.skipped.add('other_file', self._path(prefix + name))
        stems = ((name, os.path.splitext(name)[0]) for name in images)
        return [(prefix + name, captions.get(stem, 0)) for name, stem in stems], folders

    def _entries(self, prefix: str, seen: set[object]) -> list[tuple[str, str]]:
        """The sorted entries of a folder, none if it was seen; DataNotFound if there is none."""
        folder = self._path(prefix).rstrip('/') or '/'
        try:
            if (identity := _files.identity(folder)) in seen:
                self.skipped.add('repeated_folder', folder)
                return []
            seen.add(identity)
            return sorted(_files.listing(folder))
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise (DataNotFound if gone else ValueError)(
                f'{self}: cannot list {folder} ({error.strerror or type(error).__name__}). '
                f'{_files.nearest(folder)} Give a folder of images, or one of sub-folders.'
            ) from error

    def _warn_of_decoders(self) -> None:
        for format, (count, examples) in self._undecodable.items():
            logging.warning(
                '%s: %s %s images are skipped, for example %s; %s',
                *(self, f'{count:,}', format, examples[0], opening.how_to_install(format)),
            )

    def _no_image(self) -> str:
        found = self.skipped.get('other_file')
        others = (
            f' There are {found.count} other files, first {found.examples[0]}.' if found else ''
        )
        for format in self._undecodable:
            others += f' To read {format} images, {opening.how_to_install(format)}.'
        return (
            f'{self}: no images ({", ".join(sorted(self._exts))}) in it or its sub-folders. '
            f'{_files.contents(self._root)}{others} Give other extensions with image_exts.'
        )


def _captions_of(images: list[str], others: list[str]) -> dict[str, int]:
    """Which file of captions each stem of an image has, as an index of _CAPTIONS from 1."""
    stems, found = {os.path.splitext(name)[0] for name in images}, {}
    for name in others:
        stem, ending = os.path.splitext(name)
        if stem in stems and ending in _CAPTIONS:
            number = _CAPTIONS.index(ending) + 1
            found[stem] = min(number, found.get(stem, number))
    return found


def _text(name: str) -> str:
    """Returns the name of a folder as text; names that are not UTF-8 are taken as Latin-1."""
    data = os.fsencode(name)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode('latin-1')
