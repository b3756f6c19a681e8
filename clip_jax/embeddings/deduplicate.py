"""Leaves near-duplicates out of a data set: a list of the records that are kept.

Of each group of near-duplicates the first record is kept that has no near-duplicate in an
evaluation set. Groups are connected components: a and c are in one group if both are near b.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from clip_jax.data import kept_list
from clip_jax.data.embedding_store import Embeddings
from clip_jax.data.kept_list import DataSet, KeptList
from clip_jax.data.sharded_job import check_files
from clip_jax.embeddings import _rows, duplicates, identity
from clip_jax.embeddings._rows import Rows
from clip_jax.embeddings.duplicates import Found, Job, Options
from clip_jax.runtime import atomic, multihost, similarity

KEPT, REPORT, PICTURE, TABLE = 'kept.parquet', 'duplicates.json', 'pairs.png', 'duplicates.parquet'
WORK = 'work'
EXAMPLES = 12  # pairs that the report shows


class Left(NamedTuple):
    """The records that are left out, in the order of the data.

    Attributes:
        rows: their rows, int64 [N].
        sets: 0: it duplicates a record of the data; k: of the k-th evaluation set.
        others: the row of that set that it duplicates: the record that is kept of its group, or the
            nearest of the evaluation sets.
        cosines: the cosine similarity of both, float64 [N]. In a group it may be below the
            threshold.
    """

    rows: np.ndarray
    sets: np.ndarray
    others: np.ndarray
    cosines: np.ndarray


def run(
    source: Embeddings,
    out: str,
    options: Options,
    *,
    against: Sequence[Embeddings] = (),
    within: Sequence[str] = (),
    say: Callable[[Mapping[str, Any]], None] = lambda plan: None,
) -> dict[str, Any]:
    """Searches near-duplicates and writes the list of the records that are kept.

    Every process calls it.

    Args:
        source: the embeddings of the data.
        out: the folder to write.
        options: what near-duplicates are.
        against: embeddings of evaluation sets by the same model.
        within: lists (files); only records that all of them keep are looked at.
        say: is called with the plan of the search before it starts.

    Returns:
        The report: JSON values, with `examples` of pairs for a figure.

    Raises:
        ValueError: an option is wrong, the folder holds something else, or the data are not those
            that were embedded.
    """
    if not options.within_set and not against:
        raise ValueError('--no-within-set: nothing is compared; give --against=embeddings:DIR too')
    identity.check_same_model([source, *against])
    for one in against:
        if one.description.features != source.description.features:
            raise ValueError(
                f'{source} holds the features {source.description.features!r}, and {one} '
                f'{one.description.features!r}; expected the same of both'
            )
    folder = _checked_folder(out)
    _, of = multihost.primary_first(lambda: _rows.data_set(source))
    records = None
    if within:
        lists = [KeptList(of, np.arange(of.source_records)), *map(kept_list.read, within)]
        records = kept_list.common(lists, [of.data, *within])
    rows = Rows(source, records)
    if not len(rows):
        raise ValueError(f'{source}: no record is left to look at')
    job = Job(rows, [Rows(one) for one in against], folder / WORK, options)
    found = duplicates.find(job, say)
    return multihost.run_on_primary(lambda: found and _write(job, of, found, folder))


def _checked_folder(out: str) -> epath.Path:
    folder = epath.Path(out).expanduser()
    atomic.check_place(folder / REPORT, '--out')
    check_files(folder, KEPT, REPORT, PICTURE, TABLE, WORK, what='--out')
    return folder


def decide(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Decides what is kept.

    Args:
        found: the near-duplicates.

    Returns:
        For each row whether it is kept, bool [N]; and the row that is kept of its group, int64
        [N], -1 if none is.
    """
    count = len(found.first)
    clean = np.ones(count, bool)
    clean[found.near['row']] = False
    kept_of = np.full(count, -1)
    rows = np.flatnonzero(clean)[::-1]
    kept_of[found.first[rows]] = rows  # the last that is assigned is the first row
    kept_of = kept_of[found.first]
    return kept_of == np.arange(count), kept_of


def _left_out(job: Job, found: Found, kept: np.ndarray, kept_of: np.ndarray) -> Left:
    rows = np.flatnonzero(~kept)
    sets, others = np.zeros(len(rows), np.int64), kept_of[rows]
    cosines = np.zeros(len(rows))
    place = np.searchsorted(rows, found.near['row'])
    sets[place], others[place] = found.near['set'], found.near['other']
    cosines[place] = found.near['cosine']
    own = np.flatnonzero(sets == 0)
    for start in range(0, len(own), similarity.CHUNK):
        part = own[start : start + similarity.CHUNK]
        pair = job.rows.take(rows[part]), job.rows.take(others[part])
        cosines[part] = similarity.of_pairs(*pair)
    return Left(rows, sets, others, cosines)


def _write(job: Job, of: DataSet, found: Found, folder: epath.Path) -> dict[str, Any]:
    kept, kept_of = decide(found)
    left = _left_out(job, found, kept, kept_of)
    names = ['', *(str(rows.source) for rows in job.against)]
    other_records = np.zeros(len(left.rows), np.int64)
    for k, rows in enumerate(job.sets):
        own = left.sets == k
        other_records[own] = rows.records[left.others[own]]
    records = job.rows.records
    _write_table(folder / TABLE, records[left.rows], left, other_records, names)
    sizes = np.bincount(found.first)
    counts = {
        'records': of.source_records,
        'compared': len(records),
        'groups': int(np.count_nonzero(sizes > 1)),
        'largest_group': int(sizes.max()),
        'left_out_as_duplicates': int(np.count_nonzero(left.sets == 0)),
        'left_out_as_in_evaluation_sets': len(found.near),
        'kept': int(np.count_nonzero(kept)),
    }
    chosen = np.argsort(left.cosines, kind='stable')
    spread = np.linspace(0, max(0, len(chosen) - 1), min(EXAMPLES, len(chosen))).astype(int)
    report = {
        'data': of.data,
        'threshold': job.options.threshold,
        'counts': counts,
        'pairs_compared_exactly': found.compared,
        'examples': [
            {
                'record': int(records[left.rows[k]]),
                'set': int(left.sets[k]),
                'other': int(other_records[k]),
                'cosine': float(left.cosines[k]),
            }
            for k in chosen[spread]
        ],
    }
    if not counts['kept']:
        raise ValueError(f'{job.rows.source}: all records are in the evaluation sets; none is kept')
    KeptList(of, records[kept]).write(folder / KEPT)
    atomic.write_json(folder / REPORT, report)
    return report


def _write_table(
    path: epath.Path, records: np.ndarray, left: Left, others: np.ndarray, names: Sequence[str]
) -> None:
    """Writes a row for each record that is left out: what it duplicates, and where that is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    of = pa.DictionaryArray.from_arrays(pa.array(left.sets, pa.int32()), pa.array(names))
    columns = {'record': records, 'of': of, 'other': others, 'cosine': left.cosines}
    pq.write_table(pa.table(columns), file, compression='zstd')
    atomic.write(path, file.getvalue())
