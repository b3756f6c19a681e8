"""Tables in CSV, TSV, JSONL and Parquet files, by paths or with images: `table:FILE`."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _captions, _files, _table_images, _table_labels, _table_readers
from clip_jax.data.sources._skipped import Ledger
from clip_jax.data.sources._table_csv import Dialect
from clip_jax.data.sources._table_readers import Cache, StoredImages
from clip_jax.data.sources._table_rows import Columns, Rows
from clip_jax.runtime.messages import brief

_LARGE_GROUP = 32 << 20  # bytes of a Parquet row group above which there is a warning


def source(
    address: str,
    *,
    image_key: str = 'image',
    text_key: str | Sequence[str] = 'caption',
    label_key: str = 'label',
    label_separator: str = '',
    root: str = '',
    delimiter: str = '',
    quoting: str = '',
    column_names: Sequence[str] = (),
    encoding: str = '',
) -> 'TableSource':
    """Opens tables; each image is an example.

    Rows with the same path are one image with several captions; its label is that of its first row
    that has one, and several labels are joined. Parquet decodes images by row group: write
    groups of about 100 rows for shuffled reading.

    Args:
        address: a path, a glob or braces; all files have the same format.
        image_key: the column of images: paths or, in Parquet, encoded images or {'bytes', 'path'}.
        text_key: the column of captions or of lists of captions, or several columns.
        label_key: the column of labels, integers or class names; lists of these give 'labels'.
        label_separator: splits a label into several, which gives 'labels'; '' does not split.
        root: the folder of relative image paths; '': the folder of the table.
        delimiter: the character between values in .csv, .tsv and .txt; '': a comma (.tsv: a tab),
            or the one of tab, ';' and '|' that makes the first line name the image column.
        quoting: 'double' (quotes in quotes are doubled), 'backslash' or 'none'; '': 'none' if the
            delimiter is a tab, 'double' otherwise.
        column_names: the names of the columns of .csv, .tsv and .txt files without a header.
        encoding: the encoding of .csv, .tsv and .txt; '': UTF-16 by its byte order mark, or UTF-8.

    Raises:
        DataNotFound: if no file matches.
        ValueError: if there are no rows, or a column is missing that has no default name.
    """
    columns = Columns(image_key, _captions.keys(text_key, 'table: text_key'), label_key)
    paths = _files.matches(address, 'table')
    names = column_names.split(',') if isinstance(column_names, str) else column_names
    dialect = Dialect(delimiter, quoting, tuple(filter(None, names)), encoding)
    dialect.check()
    root = os.path.expanduser(root)
    return TableSource(address, paths, columns, root, label_separator, dialect)


class TableSource:
    """Rows of tables by index, in Arrow's buffers; thread-safe, and can be pickled."""

    def __init__(
        self,
        address: str,
        paths: list[str],
        columns: Columns,
        root: str,
        separator: str,
        dialect: Dialect,
    ):
        """Reads the requested columns, except images that are stored in Parquet."""
        self.skipped = Ledger()
        self._address, self._paths, self._columns, self._root = address, paths, columns, root
        self._separator, self._dialect = separator, dialect
        if dialect != Dialect() and _ending(paths, address) not in _table_readers.DELIMITED:
            raise ValueError(
                f'{self}: delimiter, quoting, column_names and encoding are options of .csv, '
                '.tsv and .txt files only. Leave them out.'
            )
        read = _table_readers.READERS[_ending(paths, address)]
        images = Cache(_table_readers.CACHE_BYTES)
        self._parts: list[Rows] = []
        for path in paths:
            try:
                self._parts += read(path, columns, self.skipped, images, dialect)
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                if getattr(error, 'errno', None):
                    raise  # of the disk; pyarrow's have none
                reason = brief(error)
                raise ValueError(
                    f'{path}: cannot be read ({reason}). Copy or write it again.'
                ) from error
        self._ends = np.cumsum([part.count for part in self._parts], dtype=np.int64)
        if not self._ends.size or not self._ends[-1]:
            raise ValueError(self._no_rows())
        self._images = _table_images.images(self._parts, columns.image, columns.texts, root)
        _warn_of_large_groups(self, self._parts, columns.image)
        found = [key for key in columns.texts if any(key in part.columns for part in self._parts)]
        self.text_fields = tuple(map(_captions.field, found))
        self._labels, self._label_ends, self.label_names = _table_labels.labels(
            self._parts, columns.label, separator, str(self)
        )
        self._count_repeated()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._images is None else len(self._images.ends) - 1

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts' and 'fields', 'label' or 'labels' if the tables
        have them.
        """
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} rows, none with the index {i}.')
        rows = [int(i)] if self._images is None else self._images.rows_of(i).tolist()
        example: dict[str, Any] = {'image': self._image(*self._place(rows[0]))}
        if self.text_fields:
            texts = [_texts(*self._place(row), self._columns.texts) for row in rows]
            pairs = [pair for own in texts for pair in own]
            example |= _captions.of_example(pairs, several=len(self.text_fields) > 1)
        if self._images is not None:  # labels count, whether or not captions repeat
            rows = self._images.rows[self._images.ends[i] : self._images.ends[i + 1]].tolist()
        if self._label_ends is not None:
            assert self._labels is not None  # they come with their ends
            own = [self._labels[self._label_ends[r] : self._label_ends[r + 1]] for r in rows]
            found = np.concatenate(own)
            found = found[found >= 0].tolist()
            example['labels'] = found if len(rows) == 1 else list(dict.fromkeys(found))
        elif self._labels is not None:
            example['label'] = next((int(x) for x in self._labels[rows] if x >= 0), -1)
        return example

    def _count_repeated(self) -> None:
        """Counts rows that add no caption to their image, or have another label than its first."""
        if self._images is None:
            return
        for row in self._images.duplicates.tolist():
            self.skipped.add('duplicate_row', self._row(row))
        for row in self._images.empty.tolist():
            self.skipped.add('empty_caption', self._row(row))
        if self._labels is None or self._label_ends is not None:
            return
        labels = self._labels[self._images.rows]
        known = labels >= 0
        image = np.repeat(np.arange(len(self)), np.diff(self._images.ends))[known]
        _, first, own = np.unique(image, return_index=True, return_inverse=True)
        for row in self._images.rows[known][labels[known] != labels[known][first][own]].tolist():
            self.skipped.add('other_label', self._row(row))

    def where(self, i: int) -> str:
        """Returns the file and the first row of example `i`, from 1 without the header."""
        return self._row(i if self._images is None else int(self._images.rows_of(i)[0]))

    def _row(self, row: int) -> str:
        part, k = self._place(row)
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
        return _files.read_named(path)

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
        files = self._address, self._paths, self._columns, self._root
        return _reopened, (len(self), *files, self._separator, self._dialect)


def _reopened(count: int, *given: Any) -> TableSource:
    source = TableSource(*given)
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


def _texts(part: Rows, k: int, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The captions of a row by column."""
    found = []
    for name in names:
        if name in part.columns:
            value = part.columns[name][k].as_py()
            several = value if isinstance(value, list) else [value]
            found.append((name, _captions.texts(several)))
    return found
