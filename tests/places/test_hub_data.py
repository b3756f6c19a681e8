"""Data sets of the hub: tars, tables and folders are read where they are."""

import pathlib
import pickle

import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import HfFileSystem, constants
from support.hub import hub  # noqa: F401
from support.sources import png

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import open_source

NAME = 'datasets/me/pictures'
TRAIN = f'tars:hf://{NAME}/train/*.tar'


@pytest.fixture(autouse=True)
def no_listings_of_others():
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def files(tiny_tars, tmp_path):
    """Files of a data set: a tar shard, and a table and a folder of two images."""
    table = pa.table({'image': [{'bytes': png(0)}, {'bytes': png(9)}], 'caption': ['a', 'b']})
    pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
    return {
        'train/x-00000.tar': pathlib.Path(tiny_tars.removeprefix('tars:')).read_bytes(),
        'data/x.parquet': (tmp_path / 'x.parquet').read_bytes(),
        'images/cat/0.png': png(0),
        'images/dog/1.png': png(9),
    }


def test_tars_a_table_and_a_folder(files, hub, tiny_tars):  # noqa: F811
    hub.add(NAME, files)
    there, here = open_source(TRAIN), open_source(tiny_tars)
    assert len(there) == len(here) == 64
    again = pickle.loads(pickle.dumps(there))
    assert all(there[i] == here[i] == again[i] for i in (0, 5, 63))
    assert there.where(5) == f'hf://{NAME}/train/x-00000.tar: 00005.jpg'
    table = open_source(f'table:hf://{NAME}/data/*.parquet')
    assert [table[i]['image'] for i in range(2)] == [png(0), png(9)]
    folder = open_source(f'folder:hf://{NAME}/images')
    assert [folder[i]['image'] for i in range(2)] == [png(0), png(9)]
    assert folder.label_names == ['cat', 'dog']


def test_only_the_bytes_of_a_record_come(files, hub):  # noqa: F811
    hub.add(NAME, files)
    source = open_source(TRAIN)
    source[0]
    hub.sent = 0
    example = source[7]
    texts = ''.join(f'{text}\n' for text in example['texts'])
    assert hub.sent == len(example['image']) + len(texts) + len(str(example['label']))


def test_a_revision_stays_what_it_was(files, hub):  # noqa: F811
    first = hub.add(NAME, files)
    hub.add(
        NAME, {**files, 'train/x-00000.tar': files['train/x-00000.tar'][: 512 * 9] + bytes(1024)}
    )
    assert len(open_source(f'tars:hf://{NAME}@{first}/train/*.tar')) == 64
    assert len(open_source(TRAIN)) < 64


def test_a_private_data_set_needs_a_token(files, hub, monkeypatch):  # noqa: F811
    hub.add(NAME, files, token='secret')
    with pytest.raises(ValueError, match=r'hf://datasets/me/pictures/train.*private.*HF_TOKEN'):
        open_source(TRAIN)
    monkeypatch.setenv('HF_TOKEN', 'secret')
    HfFileSystem.clear_instance_cache()
    assert len(open_source(TRAIN)) == 64


def test_a_busy_hub_is_asked_again_and_one_that_is_gone_is_an_oserror(files, hub, monkeypatch):  # noqa: F811
    hub.add(NAME, files)
    source = open_source(TRAIN)
    hub.busy['x-00000.tar'] = 2
    assert source[3]['texts']
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://localhost:1')
    HfFileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r'train.*: the hub cannot be reached \(.*onnect'):
        open_source(TRAIN)


@pytest.mark.parametrize(
    ('spec', 'line'),
    [
        (f'tars:hf://{NAME}/train/y-*.tar', r'no file matches .*holds: x-00000\.tar'),
        (f'table:hf://{NAME}/*.csv', 'no file matches .*holds: .gitattributes, data, images'),
        ('tars:hf://datasets/me/none/*.tar', 'there is no such repository'),
        (f'tars:hf://{NAME}@v9/*.tar', 'no revision v9'),
        ('folder:hf://datasets/me', r'expected hf://datasets/OWNER/NAME\[@REVISION\]/PATH'),
    ],
)
def test_wrong_addresses_are_one_line(spec, line, files, hub):  # noqa: F811
    hub.add(NAME, files)
    with pytest.raises(ValueError, match=line) as error:
        open_source(spec)
    assert '\n' not in str(error.value)


def test_offline_is_said(files, hub, monkeypatch):  # noqa: F811
    hub.add(NAME, files)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='HF_HUB_OFFLINE is set'):
        open_source(TRAIN)


def test_an_image_that_is_not_there_is_a_bad_record(files, hub, tmp_path):  # noqa: F811
    hub.add(NAME, files)
    places = [f'hf://{NAME}/images/cat/0.png', f'hf://{NAME}/no.png', 'hf://datasets/me/no/a.png']
    rows = ''.join(f'{x},a\n' for x in places)
    (tmp_path / 'a.csv').write_text(f'image,caption\n{rows}')
    source = open_source(f'table:{tmp_path}/a.csv')
    assert source[0]['image'] == png(0)
    for i in (1, 2):
        with pytest.raises(BadRecord) as error:
            source[i]
        assert error.value.kind == 'no_image'
