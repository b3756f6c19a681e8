"""Image files in folders, one sub-folder per class, with captions in .txt files: `folder:DIR`."""

import bisect
import os
from array import array
from collections.abc import Sequence
from typing import Any

from clip_jax.data.errors import DataNotFound
from clip_jax.data.sources import _captions, _files
from clip_jax.data.sources._skipped import Ledger

_IMAGE_EXTS = ('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff')
_CAPTIONS = '.txt'


def source(
    address: str, *, image_exts: Sequence[str] = _IMAGE_EXTS, text_lines: bool = True
) -> 'FolderSource':
    """Lists the images in each sub-folder of a folder; each sub-folder is a class.

    Classes are the sub-folders in sorted order, including those without images, so that all splits
    of a data set have the same labels. Images are sorted by class and path. If no sub-folder has
    images, those of the folder itself are used, without labels. `NAME.txt` next to `NAME.jpg` holds
    its captions. Hidden files and folders and links to folders are ignored.

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
        self._root = os.path.expanduser(address).rstrip('/') or '/'
        self._exts = image_exts
        self.skipped = Ledger()
        # Millions of names are stored in one buffer; name i ends at _ends[i].
        self._names, self._ends = bytearray(), array('q')
        self._captioned = bytearray()
        self._class_ends: list[int] = []
        top, folders = self._list('')
        self.label_names = folders
        for name in folders:
            self._append(self._below(name))
            self._class_ends.append(len(self))
        if len(self):
            for name, _ in top:
                self.skipped.add('no_class', self._path(name))
        else:
            self.label_names = []
            self._append(top)
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
            data = _files.read(os.path.splitext(path)[0] + _CAPTIONS, missing='no_caption')
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

    def _append(self, images: list[tuple[str, bool]]) -> None:
        for name, captioned in sorted(images):
            self._names += os.fsencode(name)
            self._ends.append(len(self._names))
            self._captioned.append(captioned)

    def _below(self, name: str) -> list[tuple[str, bool]]:
        """All images of one class, at any depth, and whether they have captions."""
        found, left = [], [name]
        while left:
            folder = left.pop()
            images, folders = self._list(f'{folder}/')
            found += images
            left += [f'{folder}/{inner}' for inner in reversed(folders)]
        return found

    def _list(self, prefix: str) -> tuple[list[tuple[str, bool]], list[str]]:
        """The images of a folder, whether they have captions, and the sub-folders; all sorted."""
        images, folders, others = [], [], []
        folder = self._path(prefix).rstrip('/') or '/'
        try:
            for name, kind in sorted(_files.listing(folder)):
                if name.startswith('.'):
                    continue
                if kind == 'folder':
                    folders.append(name)
                elif kind != 'file':
                    self.skipped.add(kind, self._path(prefix + name))
                elif os.path.splitext(name)[1].lower().lstrip('.') in self._exts:
                    images.append(name)
                else:
                    others.append(name)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise (DataNotFound if gone else ValueError)(
                f'{self}: cannot list {folder} ({error.strerror or type(error).__name__}). '
                f'{_files.nearest(folder)} Give a folder of images, or one of sub-folders.'
            ) from error
        stems = {os.path.splitext(name)[0] for name in images}
        captions = {stem + _CAPTIONS for stem in stems}.intersection(others)
        for name in sorted(set(others) - captions):
            self.skipped.add('other_file', self._path(prefix + name))
        return [
            (prefix + name, os.path.splitext(name)[0] + _CAPTIONS in captions) for name in images
        ], folders

    def _no_image(self) -> str:
        found = self.skipped.get('other_file')
        others = (
            f' There are {found.count} other files, first {found.examples[0]}.' if found else ''
        )
        return (
            f'{self}: no images ({", ".join(sorted(self._exts))}) in it or its sub-folders. '
            f'{_files.contents(self._root)}{others} Give other extensions with image_exts.'
        )
