"""Rows of Parquet files with several columns, of which some hold encoded images."""

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _files
from clip_jax.data.sources._table_readers import Cache, StoredImages
from clip_jax.runtime.messages import brief


class Cell(NamedTuple):
    """An image in a row of a Parquet file."""

    where: str
    name: str
    images: StoredImages
    row: int

    def read(self) -> bytes:
        """Returns the encoded image."""
        value = self.images[self.row].as_py()
        value = value.get('bytes') if isinstance(value, dict) else value
        if not value:
            raise BadRecord('no_image', f'{self}: has no image')
        return value

    def __str__(self) -> str:
        return f'{self.where}: {self.name}'


def rows(path: str, cache: Cache) -> list[tuple[str, dict[str, Any]]]:
    """Reads the rows of a Parquet file.

    Args:
        path: the file.
        cache: holds images that were read.

    Returns:
        Where each row is, and the row; images are a `Cell` each, which is read later.

    Raises:
        ValueError: the file cannot be read, or has no row.
    """
    try:
        with _files.open_file(path) as file, pq.ParquetFile(file) as table:
            schema, metadata = table.schema_arrow, table.metadata
            stored = [field.name for field in schema if _holds_images(field.type)]
            others = [name for name in schema.names if name not in stored]
            found = table.read(others).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(
            f'{path}: cannot be read ({brief(error)}). Copy or write it again.'
        ) from error
    if not metadata.num_rows:
        raise ValueError(f'{path}: has no rows. Give a file that has at least one.')
    columns = {name: StoredImages(path, metadata, name, cache) for name in stored}
    numbered = [(f'{path}: row {k + 1}', row) for k, row in enumerate(found)]
    return [
        (where, row | {name: Cell(where, name, images, k) for name, images in columns.items()})
        for k, (where, row) in enumerate(numbered)
    ]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == 'bytes' for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
