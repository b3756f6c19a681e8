"""Stored embeddings in the input pipeline: every example has the rows of its own record."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from support.listed import Listed
from support.sources import CAPTIONS, make_embeddings, png

from clip_jax.data import embedding_store, examples, pipeline
from clip_jax.data.captions import Captions
from clip_jax.data.embedding_index import hash_of
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import Mixture
from clip_jax.data.stored_embeddings import StoredEmbeddings

LIST = [{'image': png(i)} for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    make_embeddings(tmp_path, [caption.encode() for caption in CAPTIONS])
    return tmp_path


def tokenize(texts):
    return np.array([[int(text.split()[1])] for text in texts], np.int32)


def take(source, folder, count=6, **options):
    options = {'batch_size': 4, 'seed': 3, 'image_size': 4, 'num_threads': 2, **options}
    stored = {'one': StoredEmbeddings(str(folder), 'teacher one')}
    with contextlib.closing(
        pipeline.train_iterator(source, tokenize, stored=stored, **options)
    ) as iterator:
        return [next(iterator) for _ in range(count)]


def rows(batches):
    """The records of images and of texts, by their embeddings, and those of the tokens."""
    stored = [batch['stored']['one'] for batch in batches]
    image, text = (
        np.concatenate([one[side].argmax(axis=1) for one in stored]).tolist()
        for side in ('image', 'text')
    )
    return image, text, np.concatenate([batch['tokens'][..., 0] for batch in batches]).tolist()


def listed():
    return Listed([{**x, 'texts': [f'picture {i}']} for i, x in enumerate(LIST)])


@pytest.mark.parametrize(
    'options',
    [
        {'num_threads': 0},
        {'num_threads': 4},
        pytest.param({'num_workers': 1}, marks=pytest.mark.slow),
    ],
)
def test_rows_are_those_of_the_record(folder, options):
    image, text, tokens = rows(take(listed(), folder, **options))
    assert image == text == tokens and {*tokens} == {*range(6)}


def test_of_several_texts_the_first_counts(folder):
    source = Listed([{**x, 'texts': [*x['texts'], f'another {i}']} for i, x in enumerate(listed())])
    image, text, tokens = rows(take(source, folder, captions=Captions(rule='first', count=2)))
    assert image == text == [first for first, _ in tokens]


def test_hosts_have_their_parts(folder):
    whole = take(listed(), folder)
    parts = [take(listed(), folder, shard_index=i, shard_count=2) for i in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        joined = np.concatenate([half['stored']['one']['text'] for half in halves])
        np.testing.assert_array_equal(joined, one['stored']['one']['text'])


def test_a_mixture_was_embedded_as_its_sources_one_after_the_other(folder):
    whole = listed()
    parts = [Listed(whole.examples[:2]), Listed(whole.examples[2:])]
    image, text, tokens = rows(take(Mixture(parts, [1, 1]), folder, batch_size=2))
    assert image == text == tokens


def test_a_record_that_was_bad_there_gives_way_and_is_counted(tmp_path):
    captions = [caption.encode() for caption in CAPTIONS]
    captions[4] = b'caf\xe9'
    make_embeddings(tmp_path, captions)
    batches = take(listed(), tmp_path)
    image, text, tokens = rows(batches)
    assert image == text == tokens and 4 not in tokens
    found = [pair for batch in batches for pair in examples.bad_records(batch['bad'])]
    assert {*found} == {(4, 'no_embedding')}
    again = take(listed(), tmp_path, num_threads=0)
    assert rows(again) == (image, text, tokens)


def test_a_record_that_is_bad_in_training_has_the_rows_of_the_one_in_its_place(folder):
    source = listed()
    source.examples[2] = BadRecord('truncated', 'it ends early')
    batches = take(source, folder)
    image, text, tokens = rows(batches)
    assert image == text == tokens and 2 not in tokens
    found = [pair for batch in batches for pair in examples.bad_records(batch['bad'])]
    assert {*found} == {(2, 'truncated')}


def test_half_precision_is_normalized_again(folder):
    row = np.full(8, 8**-0.5, np.float16)
    for path in (*folder.glob('images-*'), *folder.glob('texts-*')):
        np.save(path, np.tile(row, (len(np.load(path)), 1)))
    change(folder, save_dtype='float16')
    found = StoredEmbeddings(str(folder), 'one').find(5, png(5), CAPTIONS[5])
    for x in found.values():
        assert x.dtype == np.float32 and abs(np.linalg.norm(x) - 1) < 1e-6


def change(folder, **values):
    path = folder / embedding_store.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(source, folder):
    with pytest.raises(ValueError) as error:
        take(source, folder, 1)
    (line,) = str(error.value).splitlines()
    return line


def test_other_data_is_one_line(folder):
    whole = listed().examples
    assert 'has embeddings of 6 records (folder:p), and the training data has 5' in refused(
        Listed(whole[:5]), folder
    )
    line = refused(Listed(whole[::-1]), folder)
    assert line.startswith(f'teacher one: {folder}: the image of record 0 is not the one that was')
    assert line.endswith(
        'expected a folder that clip-jax embed wrote over the training data, or over a copy of it'
    )
    other = [{**x, 'texts': ['picture 9']} for x in whole]
    assert "record 0 has the caption 'picture 9', which is not among the 1 that" in refused(
        Listed(other), folder
    )


def test_a_folder_that_cannot_teach_is_one_line(folder):
    change(folder, features='pre_projection')
    assert "has the features 'pre_projection', which no loss compares" in refused(listed(), folder)
    change(folder, features='embedding', captions='none')
    assert 'has no embeddings of captions, which the losses compare too' in refused(
        listed(), folder
    )
    change(folder, captions='embedding', scale=float('inf'))
    assert 'says scale inf; expected a number above 0' in refused(listed(), folder)
    change(folder, complete=False)
    assert 'is not complete, 2 of 2 shards are written' in refused(listed(), folder)
    shutil.rmtree(folder)
    assert 'not a folder of embeddings (there is no such folder)' in refused(listed(), folder)


def test_damaged_files_are_one_line(folder):
    images, index = folder / 'images-00001.npy', folder / 'index-00001.npy'
    kept = images.read_bytes(), index.read_bytes()
    images.write_bytes(kept[0][:-4])
    assert (
        'images-00001.npy: damaged (its header says float32 (2, 8), which does not fit'
        in refused(listed(), folder)
    )
    spoilt = np.load(folder / 'images-00000.npy')[:2]
    np.save(images, spoilt * np.nan)
    assert 'row 0 of images-00001.npy has length nan, not 1; write the folder again' in refused(
        listed(), folder
    )
    images.write_bytes(kept[0])
    np.save(index, np.load(index)[:-1])
    assert 'index-00001.npy: damaged (it holds int64 (9,); expected int64 (10,))' in refused(
        listed(), folder
    )
    index.write_bytes(kept[1])
    wrong = np.load(index)
    wrong[0] = 7
    np.save(index, wrong)
    assert 'the index of shard 1 is damaged; write the folder again' in refused(listed(), folder)
    index.unlink()
    assert (
        'index-00001.npy' in (line := refused(listed(), folder)) and 'writes missing files' in line
    )


def test_a_file_that_shrinks_during_a_run_is_one_line(folder):
    one = StoredEmbeddings(str(folder), 'one')
    one.find(5, png(5), CAPTIONS[5])
    path = folder / 'texts-00001.npy'
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r'texts-00001\.npy: ends early; clip-jax embed'):
        one.find(5, png(5), CAPTIONS[5])


def test_hashes_tell_arrays_and_texts_apart():
    one = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert len({hash_of(x) for x in (one, one.reshape(1, 4, 3), one.tobytes(), 'a', 'b')}) == 5
    assert hash_of('a') == hash_of(b'a') and -(2**63) <= hash_of('a') < 2**63
    assert hash_of('\udce9') != hash_of('é')
