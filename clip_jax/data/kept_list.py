"""A list of the records of a data set that are kept: a Parquet file, which `kept:FILE` reads.

Its column `record` holds their indices, ascending; `score` holds their scores, if they have some.
The metadata of the file say which data set it is: SPEC, options, number of records, fingerprint.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax.data.errors import DataNotFound
from clip_jax.data.fingerprint import fingerprint
from clip_jax.data.sources import Source, option_key, split
from clip_jax.runtime import atomic
from clip_jax.runtime.messages import brief

_METADATA = b'clip_jax.kept'
WRITERS = 'clip-jax data filter and clip-jax data duplicates write such lists'


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Which data set a list is of.

    Attributes:
        data: its SPEC.
        data_options: the options of its source.
        source_records: how many records it has.
        fingerprint: see `data.fingerprint`.
    """

    data: str
    data_options: Mapping[str, Any]
    source_records: int
    fingerprint: str

    @classmethod
    def of(cls, source: Source, spec: str, options: Mapping[str, Mapping[str, Any]]) -> 'DataSet':
        """Describes an open data set, given its SPEC and options as `build.source` takes them."""
        check_spec(spec)
        own = {k: v for k, v in options.get(option_key(spec), {}).items() if v is not None}
        return cls(spec, own, len(source), fingerprint(source))

    def check(self, source: Source, what: str) -> None:
        """Raises ValueError, which begins with `what`, if a source has other records."""
        if len(source) != self.source_records:
            found = f'{source} has {len(source):,} records, and the list is of '
            found += f'{self.source_records:,}'
        elif fingerprint(source) != self.fingerprint:
            found = f'{source} has other records, or in another order, than when the list was made'
        else:
            return
        raise ValueError(f'{what}: {found} ({self.data}); give that data, or make the list again')


@dataclasses.dataclass(frozen=True)
class KeptList:
    """The records of a data set that are kept.

    Attributes:
        of: the data set.
        records: their indices, int64 [N], ascending.
        scores: their scores, float64 [N]; None without scores.
    """

    of: DataSet
    records: np.ndarray
    scores: np.ndarray | None = None

    def write(self, path: epath.Path) -> None:
        """Writes the file, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {'record': pa.array(self.records, pa.int64())}
        if self.scores is not None:
            columns['score'] = pa.array(self.scores, pa.float64())
        metadata = {_METADATA: json.dumps(dataclasses.asdict(self.of))}
        file = io.BytesIO()
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, file, compression='zstd', write_page_checksum=True)
        atomic.write(path, file.getvalue())


def check_spec(spec: str) -> None:
    """Raises ValueError if a SPEC is a mixture, of which no list can be made."""
    if [weight for weight, _ in split(spec)] != [1.0]:
        raise ValueError(
            f'{spec}: a list is of one data set, not of a mixture; make one of each, and mix the '
            "lists: '3 * kept:A + 1 * kept:B'"
        )


def read(path: str) -> KeptList:
    """Reads a list.

    Args:
        path: the file.

    Raises:
        DataNotFound: there is no such file.
        ValueError: it is damaged, or another file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = epath.Path(path).expanduser()
    if not file.exists() or file.is_dir():
        raise DataNotFound(f'kept: {path}: there is no such file; {WRITERS}')
    try:
        table = pq.read_table(io.BytesIO(file.read_bytes()), page_checksum_verification=True)
        of = DataSet(**json.loads((table.schema.metadata or {})[_METADATA]))
        records = table['record'].to_numpy()
        scores = table['score'].to_numpy() if 'score' in table.column_names else None
    except KeyError as error:
        raise ValueError(f'kept: {path}: is no list of kept records; {WRITERS}') from error
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise ValueError(
            f'kept: {path}: cannot be read ({brief(error)}); make the list again'
        ) from error
    inside = len(records) == 0 or 0 <= records[0] <= records[-1] < of.source_records
    if not inside or (np.diff(records) <= 0).any():
        raise ValueError(f'kept: {path}: its records are not ascending, or not in the data')
    return KeptList(of, records, scores)


def common(lists: Sequence[KeptList], names: Sequence[str]) -> np.ndarray:
    """Returns the records, int64 [N], that all of several lists keep.

    Args:
        lists: at least one list.
        names: what messages call them.

    Raises:
        ValueError: the lists are of different data sets.
    """
    first = lists[0].of
    for one, name in zip(lists, names, strict=True):
        if (one.of.source_records, one.of.fingerprint) != (first.source_records, first.fingerprint):
            raise ValueError(
                f'{names[0]} and {name} are lists of different data: {first.data} '
                f'({first.source_records:,} records, {first.fingerprint[:8]}) and {one.of.data} '
                f'({one.of.source_records:,} records, {one.of.fingerprint[:8]})'
            )
    return functools.reduce(np.intersect1d, [one.records for one in lists])
