"""Labels of tar shards: numbers in text or in .npy members, and the names of classes."""

import io
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _captions, _files
from clip_jax.data.sources._tar_index import LARGEST_LABEL


class Labels(NamedTuple):
    """How labels are stored."""

    is_npy: bool
    names: list[str]  # of the classes, [] if they have none
    names_file: str
    remedy: str = "Give class_names='' to read no names."

    def named(self, shards: list[str], file: str) -> 'Labels':
        """Returns these with the names of the classes, from a file beside the shards."""
        names, path = _class_names(shards, file) if file else ([], '')
        return self._replace(names=names, names_file=path)

    def read(self, data: bytes) -> dict[str, Any]:
        """Returns the 'label' or the 'labels' of a member; ValueError if it holds anything else."""
        if len(data) == LARGEST_LABEL:
            raise ValueError(f'expected a label of less than {LARGEST_LABEL} bytes, found more.')
        found = _from_npy(data, len(self.names)) if self.is_npy else _numbers(data)
        if self.names and max(found, default=0) >= len(self.names):
            raise ValueError(
                f'expected a label below {len(self.names)}, the number of names in '
                f'{self.names_file}, found {max(found)}. {self.remedy}'
            )
        several = self.is_npy or len(found) != 1
        return {'labels': found} if several else {'label': found[0]}


def _numbers(data: bytes) -> list[int]:
    """Parses integers separated by white space; ValueError if there are none or anything else."""
    try:
        # An empty file is not an empty list of labels: it was not written.
        return [int(number) for number in data.split() or [data]]
    except ValueError:
        raise ValueError(f'expected an integer label, found {data[:40]!r}.') from None


def _from_npy(data: bytes, classes: int) -> list[int]:
    """Reads the classes of an image from a .npy file.

    Its array lists classes, or has an element per class that is 1 (or true) if the image is of that
    class. Only the second kind has a number twice, is boolean, or has as many zeros and ones as
    there are class names.

    Args:
        data: the file.
        classes: the number of class names, 0 if there are none.

    Returns:
        The classes, in the order of a list, else in ascending order.

    Raises:
        ValueError: if the file is damaged or holds anything else.
    """
    found, is_bool = integers(data)
    distinct = set(found)
    marks = is_bool or len(distinct) < len(found) or len(found) == classes
    return np.flatnonzero(found).tolist() if marks and distinct <= {0, 1} else found


def integers(data: bytes) -> tuple[list[int], bool]:
    """Returns the numbers of a .npy file, and whether they are true and false; ValueError if it
    holds anything but whole numbers on at most one axis.
    """
    wanted = 'expected a .npy array of integers with one axis'
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # headers of damaged files raise errors of many types
        raise ValueError(f'{wanted}, found {data[:20]!r} ({type(error).__name__}).') from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biuf' or array.ndim > 1:
        found = f'{array.dtype} {array.shape}' if isinstance(array, np.ndarray) else 'several'
        raise ValueError(f'{wanted}, found {found}.')
    array = np.atleast_1d(array)
    if not np.isfinite(array).all() or (array != np.trunc(array)).any():
        raise ValueError(f'{wanted}, found {array[:5].tolist()}.')
    return [int(number) for number in array], array.dtype.kind == 'b'


def _class_names(shards: list[str], file: str) -> tuple[list[str], str]:
    """Reads the names of classes, one per line, from a file beside the shards.

    Args:
        shards: the shards; the file is in the folder of the first one, or in the one above.
        file: its name.

    Returns:
        The names and the path of the file; [] and '' if there is no such file.

    Raises:
        ValueError: if the file is not UTF-8, or a line between others is empty.
    """
    folder = shards[0].rpartition('/')[0] if '/' in shards[0] else '.'
    above = folder.rpartition('/')[0] if _files.is_remote(folder) else f'{folder}/..'
    # Above a server or a bucket there is nothing.
    places = [folder] if above.endswith(':/') else [folder, above]
    for path in (f'{place}/{file}' for place in places):
        if names := read_names(path, "give class_names='' to read no names"):
            return names, path
    return [], ''


def read_names(path: str, remedy: str) -> list[str]:
    """Reads the names of classes, one per line.

    Args:
        path: the file.
        remedy: what a message says can be done besides writing the file again.

    Returns:
        The names, [] if there is no such file.

    Raises:
        ValueError: the file is not UTF-8, or a line between others is empty.
    """
    try:
        text = _captions.decode(_files.read(path))
    except BadRecord as error:
        if error.kind == 'not_utf8':
            raise ValueError(f'{path}: {error}. Write it again.') from None
        return []
    names = [line.strip() for line in text.strip().split('\n')]
    if '' in names:
        raise ValueError(
            f'{path}: line {names.index("") + 1} is empty; expected the name of a class in '
            f'each line. Write it again, or {remedy}.'
        )
    return names
