"""Reader of delimited text: CSV and TSV files, and what is like them."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from clip_jax import lookup
from clip_jax.data.sources import _files
from clip_jax.data.sources._skipped import Ledger
from clip_jax.data.sources._table_rows import Columns, Rows

_MARK = codecs.BOM_UTF8
_WIDE = {codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}
_DELIMITERS = ',', '\t', ';', '|'
_BLOCK = 1 << 22  # bytes
QUOTING = ('double', 'backslash', 'none')
# The columns of open_clip's tables.
_OPEN_CLIP = {'filepath': 'image', 'title': 'caption'}


class Dialect(NamedTuple):
    """How delimited text is written; '' and () are found out."""

    delimiter: str = ''
    quoting: str = ''
    column_names: tuple[str, ...] = ()
    encoding: str = ''

    def check(self) -> None:
        """Raises ValueError if an option has a value that nothing can be read with."""
        if self.quoting:
            lookup.check(self.quoting, QUOTING, what='table: quoting')
        if self.delimiter and (len(self.delimiter) != 1 or self.delimiter in '"\\\r\n'):
            raise ValueError(
                f'table: delimiter is {self.delimiter!r}; expected one character, such as a comma.'
            )
        try:
            codecs.lookup(self.encoding or 'utf-8')
        except LookupError:
            raise ValueError(
                f'table: encoding {self.encoding!r} is unknown; expected a name such as latin-1.'
            ) from None


def read_csv(path: str, columns: Columns, ledger: Ledger, dialect: Dialect) -> list[Rows]:
    """Reads the wanted columns of a file; rows that cannot be parsed go to the ledger."""
    with _files.open_file(path) as opened:
        file = _as_utf8(opened, dialect.encoding)
        dialect, names = _complete(file, path, columns, dialect)
        wanted = _found(columns, names, path)
        if dialect.quoting != 'none':
            _check_quotes(file, path, dialect)
        skipped = []
        try:
            table = _parse_csv(file, wanted, names, dialect, 'utf-8')
        except (UnicodeDecodeError, pa.ArrowException):  # there may be rows to skip
            # pyarrow fails on a row to skip that is not UTF-8. In Latin-1 every byte is valid.
            encoding = 'utf-8' if _is_utf8(file) else 'latin-1'
            table = _parse_csv(file, wanted, names, dialect, encoding, skipped)
            if encoding == 'latin-1':
                table = {name: _as_stored(column) for name, column in table.items()}
    for row in skipped:
        ledger.add('unparsable_row', f'{path}: row {row + 1}')
    count = len(next(iter(table.values())))
    return [Rows(path, count, table, 0, np.array(skipped, np.int64))]


def _as_utf8(file: BinaryIO, encoding: str) -> BinaryIO:
    """Returns the file, or its text in UTF-8 if it has another encoding."""
    encoding = encoding or _WIDE.get(file.read(2), 'utf-8')
    file.seek(0)
    if codecs.lookup(encoding).name in ('utf-8', 'utf-8-sig'):
        return file
    return io.BytesIO(file.read().decode(encoding).encode())


def _complete(
    file: BinaryIO, path: str, columns: Columns, dialect: Dialect
) -> tuple[Dialect, list[str]]:
    """Returns the dialect without gaps, and the names of all columns."""
    own = '\t' if path.lower().endswith('.tsv') else ','
    candidates = [own, *(other for other in _DELIMITERS if other != own)]
    candidates = [dialect.delimiter] if dialect.delimiter else candidates
    found = [(_header(file, path, each), each) for each in candidates]
    named = [(_named(names, columns), each) for names, each in found]
    fitting = [pair for pair in named if columns.image in pair[0]]
    names, delimiter = (fitting or [max(named, key=lambda pair: len(pair[0]))])[0]
    quoting = dialect.quoting or ('none' if delimiter == '\t' else 'double')
    complete = dialect._replace(delimiter=delimiter, quoting=quoting)
    return complete, list(dialect.column_names) or names


def _named(names: list[str], columns: Columns) -> list[str]:
    """Strips names of columns that are not wanted as they are; knows those of open_clip."""
    wanted = {columns.image, *columns.texts, columns.label}
    names = [name if name in wanted else name.strip() for name in names]
    if 'image' in wanted and 'image' not in names and _OPEN_CLIP.keys() <= set(names):
        names = [_OPEN_CLIP.get(name, name) if name not in wanted else name for name in names]
    return names


def _found(columns: Columns, names: list[str], path: str) -> list[str]:
    try:
        wanted = columns.found_in(names, path)
    except ValueError as error:
        raise ValueError(
            f'{error} If the first line is a row, give the names of the columns as column_names.'
        ) from None
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f'{path}: has several columns {name!r}. Rename all but one.')
    return wanted


def _check_quotes(file: BinaryIO, path: str, dialect: Dialect) -> None:
    """Raises ValueError if a quote is not closed, which would swallow the rows after it."""
    escape = '\\' if dialect.quoting == 'backslash' else None
    lines = _text(file, 'latin-1')
    reader = csv.reader(lines, strict=True, delimiter=dialect.delimiter, escapechar=escape)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise ValueError(
            f'{path}: line {reader.line_num}: a quote is not closed, or text follows it ({error}). '
            'Mend it, or set quoting to one of: ' + ', '.join(QUOTING) + '.'
        ) from None


def _text(file: BinaryIO, encoding: str) -> Iterator[str]:
    """Yields the lines from the start, without a byte order mark."""
    file.seek(0)
    for block in _files.blocks(file, _BLOCK):
        for line in block.splitlines(keepends=True):
            yield line.decode(encoding, 'replace')


def _parse_csv(
    file: BinaryIO,
    wanted: Sequence[str],
    names: Sequence[str],
    dialect: Dialect,
    encoding: str,
    skipped: list[int] | None = None,
) -> dict[str, pa.ChunkedArray]:
    """Parses the wanted columns as bytes.

    Rows that cannot be parsed go to `skipped`, counted from 0; without it they are an error.
    """
    header = 0 if dialect.column_names else 1

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        assert skipped is not None  # without it there is no handler
        skipped.append(row.number - 1 - header)  # counted from 1
        return 'skip'

    file.seek(0)
    file.seek(len(_MARK) if file.read(len(_MARK)) == _MARK else 0)
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.binary())
    )
    # With several threads rows have no numbers. One thread reads a gigabyte in seconds.
    read = pyarrow.csv.ReadOptions(
        use_threads=False,
        encoding=encoding,
        column_names=list(names),
        skip_rows_after_names=header,
    )
    quoted = dialect.quoting != 'none'
    parse = pyarrow.csv.ParseOptions(
        delimiter=dialect.delimiter,
        quote_char='"' if quoted else False,
        escape_char='\\' if dialect.quoting == 'backslash' else False,
        newlines_in_values=quoted,
        invalid_row_handler=None if skipped is None else skip,
    )
    table = pyarrow.csv.read_csv(file, read, parse, convert)
    return {name: table[name] for name in wanted}


def _header(file: BinaryIO, path: str, delimiter: str) -> list[str]:
    """Returns the values of the first line."""
    try:
        lines = csv.reader(_text(file, 'utf-8'), delimiter=delimiter)
        names = next(filter(None, lines), None)
    except csv.Error as error:
        raise ValueError(f'{path}: cannot be read ({error}). Write it again.') from error
    if names is None:
        raise ValueError(f'{path}: is empty; expected the names of columns in its first line.')
    return names


def _is_utf8(file: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder('utf-8')()
    file.seek(0)
    try:
        while block := file.read(1 << 20):
            decoder.decode(block)
        decoder.decode(b'', final=True)
    except UnicodeDecodeError:
        return False
    return True


def _as_stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the original bytes of a column that was read as Latin-1."""
    chunks = [
        [data.decode().encode('latin-1') for data in chunk.to_pylist()] for chunk in column.chunks
    ]
    return pa.chunked_array([pa.array(chunk, pa.binary()) for chunk in chunks], pa.binary())
