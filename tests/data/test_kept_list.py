"""Lists of kept records, and the source `kept:` that reads the data through them."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from support.sources import make_tars

from clip_jax import build
from clip_jax.data import kept_list
from clip_jax.data.errors import DataNotFound
from clip_jax.data.sources import open_source

CAPTIONS = [f'picture {i}'.encode() for i in range(9)]


@pytest.fixture
def data(tmp_path) -> str:
    return make_tars(tmp_path, CAPTIONS)


def keep(data: str, records: list[int], path, scores=None) -> str:
    of = kept_list.DataSet.of(open_source(data), data, {})
    kept_list.KeptList(of, np.array(records, np.int64), scores).write(epath.Path(path))
    return f'kept:{path}'


def captions(spec: str, **options) -> list[str]:
    return [example['texts'][0] for example in open_source(spec, **options)]


def test_a_list_and_its_scores_come_back_as_they_were_written(data, tmp_path):
    scores = np.array([0.25, 1 / 3])
    keep(data, [3, 7], tmp_path / 'x.parquet', scores)
    found = kept_list.read(str(tmp_path / 'x.parquet'))
    assert found.records.tolist() == [3, 7] and found.scores.tolist() == scores.tolist()
    assert (found.of.data, found.of.source_records) == (data, 9)


def test_it_is_a_source_also_in_mixtures_and_of_another_list(data, tmp_path):
    first = keep(data, [0, 2, 5, 8], tmp_path / 'a.parquet')
    second = keep(first, [1, 3], tmp_path / 'b.parquet')
    assert captions(second) == ['picture 2', 'picture 8']
    assert open_source(second).where(1) == open_source(data).where(8)
    mixture = build.source(f'{first} + 2 * {second}', {})
    assert [mixture[i]['texts'] for i in (3, 4)] == [['picture 8'], ['picture 2']]


def test_data_that_have_moved_are_named_by_an_option(data, tmp_path):
    kept = keep(data, [4], tmp_path / 'x.parquet')
    (tmp_path / 'moved').mkdir()
    shutil.move(tmp_path / 'a.tar', tmp_path / 'moved/a.tar')
    with pytest.raises(DataNotFound, match=r"no file matches '.*a\.tar'"):
        open_source(kept)
    moved = {'data': f'tars:{tmp_path}/moved/a.tar', 'options': {'text_exts': ['txt']}}
    assert captions(kept, **moved) == ['picture 4']


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (CAPTIONS[:8], 'has 8 records, and the list is of 9'),
        ([CAPTIONS[1], CAPTIONS[0], *CAPTIONS[2:]], 'has other records, or in another order'),
    ],
)
def test_other_data_are_refused(data, tmp_path, changed, message):
    kept = keep(data, [4], tmp_path / 'x.parquet')
    make_tars(tmp_path, changed)
    with pytest.raises(ValueError, match=message) as error:
        open_source(kept)
    assert 'make the list again' in str(error.value) and '\n' not in str(error.value)


def test_files_that_are_no_lists_are_refused(data, tmp_path):
    path = tmp_path / 'x.parquet'
    with pytest.raises(DataNotFound, match='there is no such file; clip-jax data filter'):
        kept_list.read(str(path))
    path.write_bytes(b'PAR1 nothing')
    with pytest.raises(ValueError, match='cannot be read'):
        kept_list.read(str(path))
    pq.write_table(pa.table({'record': [1]}), path)
    with pytest.raises(ValueError, match='is no list of kept records'):
        kept_list.read(str(path))
    for records in ([3, 3], [5, 2], [-1], [9]):
        keep(data, records, path)
        with pytest.raises(ValueError, match='not ascending, or not in the data'):
            kept_list.read(str(path))
    with pytest.raises(ValueError, match='has no examples'):
        open_source(keep(data, [], path))


def test_several_lists_have_the_records_of_all(data, tmp_path):
    names = [str(tmp_path / f'{k}.parquet') for k in range(3)]
    for name, records in zip(names, ([0, 1, 5, 8], [1, 2, 5, 8], [1, 8]), strict=True):
        keep(data, records, name)
    lists = [kept_list.read(name) for name in names]
    assert kept_list.common(lists, names).tolist() == [1, 8]
    other = keep(f'kept:{names[0]}', [0], tmp_path / 'other.parquet').removeprefix('kept:')
    with pytest.raises(ValueError, match=r'2\.parquet and .*other\.parquet are lists of different'):
        kept_list.common([lists[2], kept_list.read(other)], [names[2], other])
