"""Folders of embeddings whose files are not what their description says."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from support.process import environment
from support.sources import CAPTIONS, make_embeddings

from clip_jax.data import embedding_store
from clip_jax.data.embedding_store import DESCRIPTION, Embeddings


@pytest.fixture
def folder(tmp_path):
    make_embeddings(tmp_path, [caption.encode() for caption in CAPTIONS])
    return epath.Path(tmp_path)


def used(folder) -> tuple:
    """All that can be read of a folder."""
    source = Embeddings(str(folder))
    examples = [source[i] for i in range(len(source))]
    return source.embeddings().tolist(), source.texts(), source.records(), examples


@pytest.mark.parametrize(
    'changes',
    [
        {'shards': [[5, 4], [2, 2]]},
        {'shards': [[4, 4], [3, 2]], 'images': 7},
        {'shards': [[4, 4], [1, 2]], 'images': 5},
        {'shards': [[4, 5], [2, 2]], 'texts': 7},
        {'shards': [[4, 4], [2, 1]], 'texts': 5},
        {'shards': [[4, 4]], 'images': 4, 'texts': 4},
        {'shards': [[4, 4], [2, 2], [0, 0]]},
        {'shards': [[7, 4], [-1, 2]]},
        {'shards': []},
        {'images': 7},
        {'texts': 0},
        {'shape': [7]},
        {'text_shape': [7]},
        {'text_shape': []},
        {'shape': [-8]},
        {'shape': []},
        {'shard_size': 0},
        {'save_dtype': 'float16'},
        {'save_dtype': 'int8'},
    ],
)
def test_a_description_that_disagrees_with_the_files(folder, changes):
    assert len(used(folder)[0]) == 6
    content = json.loads((folder / DESCRIPTION).read_text()) | changes
    (folder / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=str(folder)) as raised:
        used(folder)
    assert '\n' not in str(raised.value)


def test_a_description_of_brackets(folder):
    (folder / DESCRIPTION).write_text('[' * 100_000)
    with pytest.raises(ValueError, match='nested too deeply'):
        Embeddings(str(folder))


def test_no_flipped_bit_of_a_description_changes_a_number(folder):
    content, expected = (folder / DESCRIPTION).read_bytes(), used(folder)[0]
    start = content.index(b'"images"')
    for i in range(start, len(content)):
        for bit in range(0, 8, 2):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            (folder / DESCRIPTION).write_bytes(bytes(changed))
            try:
                found = used(folder)[0]
            except ValueError as error:
                found = str(error)
            assert found == expected or str(folder) in found, changed[start:]


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + bytes(128)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGED = {
    'other rows': saved(np.zeros((5, 8), np.float32)),
    'another width': saved(np.zeros((4, 9), np.float32)),
    'another dtype': saved(np.zeros((4, 8), np.float16)),
    'cut': saved(np.zeros((4, 8), np.float32))[:-4],
    'objects': npy("{'descr': '|O', 'fortran_order': False, 'shape': (4, 8)}"),
    'brackets': npy('[' * 100),
    'a bad character': npy("{'descr': '<f4', 'fortran_order': Fal$e, 'shape': (4, 8)}"),
    'empty': b'',
}


@pytest.mark.parametrize('kind', DAMAGED)
@pytest.mark.parametrize('file', [embedding_store.image_file, embedding_store.text_file])
def test_a_damaged_file_is_named(folder, kind, file):
    path = file(folder, 0)
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=f'{path}: damaged .*clip-jax embed') as raised:
        used(folder)
    assert '\n' not in str(raised.value)


def test_numbers_of_no_size_do_not_end_the_process(folder):
    header = npy("{'descr': '|S0', 'fortran_order': False, 'shape': (-1,)}")
    embedding_store.image_file(folder, 0).write_bytes(header)
    program = (
        f'from clip_jax.data.embedding_store import Embeddings; Embeddings({str(folder)!r})[0]'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 1
    assert 'images-00000.npy: damaged' in done.stderr.splitlines()[-1]


def test_records_of_another_number_are_named(folder):
    other = embedding_store.record_file(folder, 1).read_bytes()
    embedding_store.record_file(folder, 0).write_bytes(other)
    with pytest.raises(ValueError, match=r'records-00000\.parquet: cannot be read \(it has 2 rows'):
        Embeddings(str(folder)).record(0)


def test_records_without_their_columns_are_named(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({'record': [0, 1, 2, 3]}), file)
    embedding_store.record_file(folder, 0).write_bytes(file.getvalue())
    with pytest.raises(ValueError, match='has 4 rows of record; expected 4 of label'):
        Embeddings(str(folder)).record(0)
