"""The description of a folder of embeddings, its notes, and what is wrong with damaged ones."""

import dataclasses
import json
import os

import numpy as np
import pytest
from etils import epath
from support.sources import CAPTIONS, make_embeddings

from clip_jax.data import embedding_store


@pytest.fixture
def folder(tmp_path):
    make_embeddings(tmp_path, [caption.encode() for caption in CAPTIONS])
    return epath.Path(tmp_path)


def spoil(folder, text: str) -> str:
    (folder / embedding_store.DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match='clip-jax embed') as error:
        embedding_store.read_description(folder)
    with pytest.raises(ValueError) as same:
        embedding_store.Embeddings(str(folder))
    assert str(same.value) == str(error.value)
    path, _, message = str(error.value).partition(': ')
    assert path == str(folder / embedding_store.DESCRIPTION)
    return message


def test_a_description_is_read(folder):
    assert embedding_store.read_description(folder).shape == [8]


def test_a_damaged_description_is_named(folder):
    text = (folder / embedding_store.DESCRIPTION).read_text()
    assert 'not valid JSON' in spoil(folder, text[: len(text) // 2])
    assert 'its content is a list of 0; expected an object' in spoil(folder, '[]')
    assert "it has no 'complete'" in spoil(folder, '{}')


def test_a_folder_that_is_not_complete_has_no_results_yet(folder):
    description = embedding_store.read_description(folder)
    started = dataclasses.replace(description, complete=False).to_json()
    assert 'shape' not in started
    file = folder / embedding_store.DESCRIPTION
    file.write_text(json.dumps(started))
    assert not embedding_store.read_description(folder).complete
    with pytest.raises(ValueError, match='2 of 2 shards are written'):
        embedding_store.describe(folder)
    file.write_text(json.dumps({**started, 'complete': True}))
    with pytest.raises(ValueError, match='has no'):
        embedding_store.read_description(folder)


@pytest.mark.parametrize('name', ['card', 'compute_dtype', 'data_options', 'shape', 'bad'])
def test_what_is_missing_is_named(folder, name):
    description = embedding_store.read_description(folder).to_json()
    del description[name]
    assert f'it has no {name!r}' in spoil(folder, json.dumps(description))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('shards', 3),
        ('shards', [[4, 4], 2]),
        ('shards', [['4', 4]]),
        ('bad', {'empty': 3}),
        ('bad', {'empty': {'count': 3}}),
        ('shape', 8),
        ('shape', [8, '8']),
        ('complete', 'yes'),
    ],
)
def test_a_value_of_another_kind_is_named(folder, name, value):
    description = embedding_store.read_description(folder).to_json() | {name: value}
    assert f'{name!r} is {value!r}' in spoil(folder, json.dumps(description))


@pytest.mark.parametrize('text', ['{"images": 4, "te', '[]', '{}', '{"bytes": 3}'])
def test_a_shard_whose_note_is_damaged_is_not_complete(folder, text):
    assert embedding_store.read_note(folder, 0)['images'] == 4
    embedding_store.note_file(folder, 0).write_text(text)
    assert embedding_store.read_note(folder, 0) is None


def test_places_may_be_names_in_any_bytes(folder):
    place = os.fsdecode(b'/set/caf\xe9/1.jpg')
    about = {'image_hash': 0, 'texts': ['x']}
    records = [{'record': k, 'where': f'{place}{k}', **about} for k in range(4)]
    rows = np.zeros((4, 8), np.float32)
    embedding_store.write_shard(
        folder, 0, images=rows, texts=rows, records=records, bad=[], span=range(4)
    )
    assert embedding_store.Embeddings(str(folder)).where(3) == f'{place}3'
