"""Image files that annotation files name: where they are, and examples with their captions."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from clip_jax.data.errors import DataNotFound, Skipped
from clip_jax.data.image import decoders, headers
from clip_jax.data.sources import _captions, _files
from clip_jax.runtime.messages import Failures


class Stored(Protocol):
    """An image in storage; its text says where."""

    def read(self) -> bytes | np.ndarray: ...


class File(NamedTuple):
    """An image file, or a part of it.

    Attributes:
        path: where it is.
        box: left, top, right and bottom in pixels; None for the whole image.
    """

    path: str
    box: tuple[float, float, float, float] | None = None

    def read(self) -> bytes | np.ndarray:
        """Returns the encoded image, or the part that `box` names as uint8 [H, W, 3].

        As Pillow's `crop`, which published evaluations use: borders are rounded, and what is
        outside of the image is black. EXIF orientation is ignored.
        """
        data = _files.read_named(self.path)
        if self.box is None:
            return data
        image, _ = decoders.decode(data, headers.read(data))
        return np.asarray(Image.fromarray(image).crop(self.box))

    def __str__(self) -> str:
        return self.path if self.box is None else f'{self.path}: box {self.box}'


class Pictures:
    """Stored images by index, with captions by field; safe to share between threads."""

    label_names: list[str] = []

    def __init__(
        self,
        spec: str,
        images: Sequence[Stored],
        texts: Sequence[Sequence[tuple[str, Sequence[bytes]]]],
        fields: Sequence[str],
        again: Callable[[], 'Pictures'],
    ):
        """Keeps what was read.

        Args:
            spec: KIND:ADDRESS.
            images: the images.
            texts: the captions of each image, UTF-8: pairs of a field and its captions.
            fields: names of all fields.
            again: opens the same source again, in a pickled copy.
        """
        self.skipped: Mapping[str, Skipped] = {}
        self.text_fields = tuple(map(_captions.field, fields))
        self._spec, self._images, self._texts, self._again = spec, images, texts, again

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the 'image', 'texts', and 'fields' if there are several."""
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} images, none with the index {i}.')
        pairs = [(field, _captions.texts(own)) for field, own in self._texts[i]]
        texts = _captions.of_example(pairs, several=len(self.text_fields) > 1)
        return {'image': self._images[i].read(), **texts}

    def where(self, i: int) -> str:
        """Says where image i is stored."""
        return str(self._images[i])

    def __str__(self) -> str:
        return self._spec

    def __reduce__(self) -> tuple:
        return self._again, ()


def locate(names: Sequence[str], root: str, spec: str) -> list[str]:
    """Finds the image files that annotations name.

    A file is `root/NAME`, else a file of the same name in `root` itself or in one of its folders.
    A name without an extension is that of a file with one.

    Args:
        names: paths of the images as they are stored.
        root: the folder of the images.
        spec: of the source, for messages.

    Returns:
        The path of each image.

    Raises:
        DataNotFound: there is no such folder, or it has none of the images.
        ValueError: some images are missing.
    """
    folders = _Folders(root)
    if folders.listed('') is None:
        raise DataNotFound(
            f'{spec}: cannot list the folder of the images, {root}. {_files.nearest(root)} '
            'Give it as root.'
        )
    found = {name: folders.find(name) for name in dict.fromkeys(names)}
    missing = [name for name, path in found.items() if not path]
    if missing:
        heading = (
            f'{spec}: {len(missing):,} of {len(found):,} images are not in {root}; give their '
            'folder as root'
        )
        raise (
            DataNotFound(f'{heading}: {missing[0]}')
            if len(missing) == len(found)
            else Failures(heading, missing)
        )
    return [found[name] for name in names]


class _Folders:
    """Names of the files in a folder and in those below it, listed when they are needed."""

    def __init__(self, root: str):
        self._root = root
        self._names: dict[str, dict[str, str] | None] = {}
        self._below: list[str] = []  # folders directly in the root

    def listed(self, folder: str) -> dict[str, str] | None:
        """Returns the names of files by themselves and without extension; None if there is no such
        folder.
        """
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        return self._names[folder]

    def _list(self, folder: str) -> dict[str, str] | None:
        try:
            entries = sorted(_files.listing(_files.join(self._root, folder).rstrip('/') or '/'))
        except OSError:
            return None
        if not folder:
            self._below = [name for name, kind in entries if kind == 'folder']
        files = [name for name, kind in entries if kind == 'file']
        return {os.path.splitext(name)[0]: name for name in files} | {name: name for name in files}

    def find(self, name: str) -> str:
        """Returns the path of an image; '' if it is nowhere."""
        folder, _, base = name.rpartition('/')
        for place in dict.fromkeys([folder, '', *self._below]):
            if base in (files := self.listed(place) or {}):
                return _files.join(self._root, f'{place}/{files[base]}'.lstrip('/'))
        return ''
