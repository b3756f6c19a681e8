"""Tables in CSV, TSV, JSONL and Parquet files, one image per row: `table:FILE`."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
from absl import logging

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _captions, _files, _table_labels, _table_readers
from clip_jax.data.sources._skipped import Ledger
from clip_jax.data.sources._table_readers import Cache, Columns, Rows, StoredImages

_LARGE_GROUP = 32 << 20  # bytes of a Parquet row group above which there is a warning


def source(
    address: str,
    *,
    image_key: str = 'image',
    text_key: str | Sequence[str] = 'caption',
    label_key: str = 'label',
    label_separator: str = '',
    root: str = '',
) -> 'TableSource':
    """Opens tables; each row is an example.

    Rows with the same image are separate examples. Parquet decodes images by row group: write
    groups of about 100 rows for shuffled reading.

    Args:
        address: a path, a glob or braces; all files have the same format.
        image_key: the column of images: paths or, in Parquet, encoded images or {'bytes', 'path'}.
        text_key: the column of captions or of lists of captions, or several columns.
        label_key: the column of labels, integers or class names; lists of these give 'labels'.
        label_separator: splits a label into several, which gives 'labels'; '' does not split.
        root: the folder of relative image paths; '': the folder of the table.

    Raises:
        DataNotFound: if no file matches.
        ValueError: if there are no rows, or a column is missing that has no default name.
    """
    texts = (text_key,) if isinstance(text_key, str) else tuple(text_key)
    columns = Columns(image_key, texts, label_key)
    paths = _files.matches(address, 'table')
    return TableSource(address, paths, columns, os.path.expanduser(root), label_separator)


class TableSource:
    """Rows of tables by index, in Arrow's buffers; thread-safe, and can be pickled."""

    def __init__(self, address: str, paths: list[str], columns: Columns, root: str, separator: str):
        """Reads the requested columns, except images that are stored in Parquet."""
        self.skipped = Ledger()
        self._address, self._paths, self._columns, self._root = address, paths, columns, root
        self._separator = separator
        read = _table_readers.READERS[_ending(paths, address)]
        images = Cache(_table_readers.CACHE_BYTES)
        self._parts: list[Rows] = []
        for path in paths:
            try:
                self._parts += read(path, columns, self.skipped, images)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                reason = str(error).splitlines()[0][:200]
                raise ValueError(f'{path}: cannot be read ({reason}). Write it again.') from error
        self._ends = np.cumsum([part.count for part in self._parts], dtype=np.int64)
        if not len(self):
            raise ValueError(self._no_rows())
        _warn_of_large_groups(self, self._parts, columns.image)
        self._has_texts = any(key in part.columns for part in self._parts for key in columns.texts)
        self._labels, self._label_ends, self.label_names = _table_labels.labels(
            self._parts, columns.label, separator, str(self)
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts', 'label' or 'labels' if the tables have them."""
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} rows, none with the index {i}.')
        part, k = self._place(i)
        example: dict[str, Any] = {'image': self._image(part, k)}
        if self._has_texts:
            example['texts'] = _texts(part, k, self._columns.texts)
        if self._label_ends is not None:
            assert self._labels is not None  # they come with their ends
            own = self._labels[self._label_ends[i] : self._label_ends[i + 1]]
            example['labels'] = own[own >= 0].tolist()
        elif self._labels is not None:
            example['label'] = int(self._labels[i])
        return example

    def where(self, i: int) -> str:
        """Returns the file and the row of example `i`, from 1 without the header."""
        part, k = self._place(i)
        return f'{part.path}: row {part.number(k)}'

    def __str__(self) -> str:
        return f'table:{self._address}'

    def _place(self, i: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._ends, i, side='right'))
        part = self._parts[number]
        return part, int(i - self._ends[number]) + part.count

    def _image(self, part: Rows, k: int) -> bytes:
        value = part.columns[self._columns.image][k].as_py()
        if isinstance(value, dict):
            if value.get('bytes') is not None:
                return value['bytes']
            value = value.get('path')
        elif isinstance(part.columns[self._columns.image], StoredImages) and value is not None:
            return value
        path = os.fsdecode(value or b'').strip()
        if not path or '\0' in path:
            raise BadRecord('no_image', 'the row names no image')
        if not _files.is_remote(path) and not path.startswith('/'):
            path = _files.join(self._root or part.path.rpartition('/')[0], path)
        return _files.read(path)

    def _no_rows(self) -> str:
        found = self.skipped.get('unparsable_row')
        if not found:
            return f'{self}: has no rows. Give a table that has at least one.'
        return (
            f'{self}: no row can be parsed; {found.count} are left out, the first is '
            f'{found.examples[0]}. Expected an object per line in .jsonl, and in .csv and .tsv as '
            'many values per row as there are names in the first line.'
        )

    def __reduce__(self) -> tuple:
        # The copy reads the files again, which is faster than pickling the columns.
        state = (self._address, self._paths, self._columns, self._root, self._separator)
        return _reopened, (*state, len(self))


def _reopened(
    address: str, paths: list[str], columns: Columns, root: str, separator: str, count: int
) -> TableSource:
    source = TableSource(address, paths, columns, root, separator)
    if len(source) != count:
        raise ValueError(
            f'{source}: had {count} rows when it was opened, now it has {len(source)}. Start again '
            'when the files are complete.'
        )
    return source


def _ending(paths: list[str], address: str) -> str:
    """The common extension of the files, such as '.csv'; ValueError if unknown or not the same."""
    endings = {os.path.splitext(path)[1].lower() for path in paths}
    if len(endings) > 1:
        raise ValueError(
            f'table:{address}: matches files of several formats, {", ".join(sorted(endings))}. '
            "Give those of one format, such as 'x-*.csv'."
        )
    (ending,) = endings
    return lookup.check(ending, _table_readers.READERS, what=f'table:{address}: extension')


def _warn_of_large_groups(source: TableSource, parts: list[Rows], image: str) -> None:
    stored = [part.columns[image] for part in parts]
    largest = max((s.largest for s in stored if isinstance(s, StoredImages)), default=0)
    if largest > _LARGE_GROUP:
        logging.warning(
            '%s: has row groups of %d MB; in random order, one is decoded for each image. For '
            'training, write groups of about 100 rows, or use `clip-jax data import`.',
            source,
            largest >> 20,
        )


def _texts(part: Rows, k: int, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        if name in part.columns:
            value = part.columns[name][k].as_py()
            found += value if isinstance(value, list) else [value]
    return _captions.texts(found)
