"""Every file of data/sources keeps what the folder promises: tested the moment it exists."""

import inspect
import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from clip_jax import lookup
from clip_jax.data import embedding_store
from clip_jax.data.errors import BadRecord, DataNotFound, Skipped
from clip_jax.data.sources import open_source
from clip_jax.runtime import atomic

CAPTIONS = [f'picture {i}' for i in range(6)]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def make_tars(path, captions) -> str:
    with tarfile.open(path / 'a.tar', 'w') as tar:
        for i, caption in enumerate(captions):
            for ext, data in ('png', png(i)), ('txt', caption), ('cls', b'%d' % (i % 2)):
                member = tarfile.TarInfo(f'{i}.{ext}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f'tars:{path}/a.tar'


def make_table(path, captions) -> str:
    lines = [b'image,caption,label']
    for i, caption in enumerate(captions):
        (path / f'{i}.png').write_bytes(png(i))
        lines.append(b'%d.png,%b,%d' % (i, caption, i % 2))
    (path / 'a.csv').write_bytes(b'\n'.join(lines))
    return f'table:{path}/a.csv'


def make_folder(path, captions) -> str:
    for i, caption in enumerate(captions):
        folder = path / ('odd' if i % 2 else 'even')
        folder.mkdir(exist_ok=True)
        (folder / f'{i}.png').write_bytes(png(i))
        (folder / f'{i}.txt').write_bytes(caption)
    return f'folder:{path}'


class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    captions: list[bytes]

    def _info(self):
        features = {
            'image': tfds.features.Image(),
            'captions': tfds.features.Text(),
            'label': tfds.features.ClassLabel(names=['even', 'odd']),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i, caption in enumerate(self.captions):
            yield i, {'image': png(i), 'captions': caption, 'label': i % 2}


def make_tfds(path, captions) -> str:
    Pictures.captions = captions
    Pictures(data_dir=path, file_format='array_record').download_and_prepare()
    return 'tfds:pictures/train'


def row(shade: int) -> np.ndarray:
    """What stands for picture `shade` in a folder of embeddings."""
    return np.eye(8, dtype=np.float32)[shade]


def make_embeddings(path, captions) -> str:
    """Two shards; what is no UTF-8 was left out when it was embedded."""
    usable = [i for i, caption in enumerate(captions) if caption.isascii()]
    for shard, own in enumerate((usable[:4], usable[4:])):
        embedding_store.write_shard(
            epath.Path(path),
            shard,
            images=np.stack([row(i) for i in own]),
            texts=np.stack([row(i) for i in own]),
            records=[
                {'record': i, 'where': f'p/{i}', 'label': i % 2, 'texts': [captions[i].decode()]}
                for i in own
            ],
            bad=[],
        )
    description = {
        'complete': True,
        'model': '/no/model',
        'card': {},
        'arithmetic': 'float32',
        'fingerprint': 'f',
        'data': 'folder:p',
        'data_options': {},
        'features': 'embedding',
        'dtype': 'float32',
        'width': 8,
        'label_names': ['even', 'odd'],
        'bad': {'not_utf8': {'count': 1, 'examples': ['p/4']}} if len(usable) < 6 else {},
        'shards': [[4, 4], [len(usable) - 4] * 2],
    }
    atomic.write_json(epath.Path(path) / embedding_store.DESCRIPTION, description)
    return f'embeddings:{path}'


MAKERS = {
    'tars': make_tars,
    'table': make_table,
    'folder': make_folder,
    'tfds': make_tfds,
    'embeddings': make_embeddings,
}


def make(kind: str, path, captions: list[bytes]) -> tuple[str, dict]:
    """Writes pictures 0 to 5 with these captions, labels odd and even; returns SPEC and options."""
    spec = MAKERS[kind](path, captions)
    return spec, {'data_dir': str(path)} if kind == 'tfds' else {}


@pytest.fixture(scope='module', params=lookup.names('data.sources'))
def made(request, tmp_path_factory):
    """The folder, the SPEC and the options of a sound set."""
    path = tmp_path_factory.mktemp(request.param)
    return path, *make(request.param, path, [caption.encode() for caption in CAPTIONS])


@pytest.fixture
def source(made):
    _, spec, options = made
    return open_source(spec, **options)


def test_the_address_comes_first_and_options_by_keyword_with_defaults(made):
    kind = made[1].partition(':')[0]
    make = lookup.module('data.sources', kind).source
    address, *options = inspect.signature(make).parameters.values()
    assert address.name == 'address'
    for option in options:
        assert option.kind is option.KEYWORD_ONLY
        assert option.default not in (option.empty, None)
    assert make.__doc__


def test_examples_have_the_keys_and_types_of_the_contract(source):
    assert len(source) == 6
    found = sorted((source[i] for i in range(6)), key=lambda example: example['texts'])
    for i, example in enumerate(found):
        if 'embedding' in example:
            np.testing.assert_array_equal(example.pop('embedding'), row(i))
        else:
            image = example.pop('image')
            assert type(image) is bytes and image == png(i)
        assert set(example) == {'texts', 'label'}
        assert example['texts'] == [CAPTIONS[i]]
        assert type(example['label']) is int and example['label'] == i % 2


def test_classes_have_names_or_none(source):
    assert source.label_names in ([], ['even', 'odd'])


def test_numbers_out_of_range_are_index_errors(source):
    for i in (6, -1, 10**9):
        with pytest.raises(IndexError, match='6') as error:
            source[i]
        assert str(source) in str(error.value)
    np.testing.assert_equal(source[np.int64(3)], source[3])
    assert len(list(source)) == 6


def test_every_example_has_a_place_of_its_own(source, made):
    places = [source.where(i) for i in range(6)]
    assert all(isinstance(place, str) and '\n' not in place for place in places)
    assert len(set(places)) == 6
    assert str(source) == made[1]


def test_nothing_of_a_sound_set_is_left_out(source):
    assert isinstance(source.left_out, dict) and not source.left_out
    assert all(isinstance(found, Skipped) for found in source.left_out.values())


def test_reading_is_the_same_in_threads_and_in_pickled_copies(source):
    want = [source[i] for i in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(6, size=200).tolist()
    for reader in (source, copy):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(reader.__getitem__, order))
        np.testing.assert_equal(found, [want[i] for i in order])
    assert [copy.where(i) for i in range(6)] == [source.where(i) for i in range(6)]
    assert copy.label_names == source.label_names
    assert copy.left_out == source.left_out
    assert (len(copy), str(copy)) == (len(source), str(source))


def test_unknown_options_are_refused(made):
    _, spec, options = made
    with pytest.raises(ValueError, match=r"option of data/sources/.*: there is no 'images'"):
        open_source(spec, images='x', **options)


def test_an_address_without_anything_is_a_value_error_of_one_line(made):
    path, spec, options = made
    kind = spec.partition(':')[0]
    address = 'none/train' if kind == 'tfds' else f'{path}/none'
    with pytest.raises(DataNotFound, match='none') as error:
        open_source(f'{kind}:{address}', **options)
    assert '\n' not in str(error.value)


def test_a_caption_that_is_not_utf8_is_a_bad_record_and_the_others_are_read(made, tmp_path):
    kind = made[1].partition(':')[0]
    captions = [caption.encode() for caption in CAPTIONS]
    captions[4] = b'caf\xe9'
    spec, options = make(kind, tmp_path, captions)
    source = open_source(spec, **options)
    if kind == 'embeddings':
        assert [source[i]['texts'][0] for i in range(len(source))] == CAPTIONS[:4] + CAPTIONS[5:]
        assert source.left_out == {'not_utf8': Skipped(1, ['p/4'])}
        return
    assert len(source) == 6 and not source.left_out
    read, errors = [], []
    for i in range(6):
        try:
            read += source[i]['texts']
        except BadRecord as error:
            errors.append(error)
    assert sorted(read) == CAPTIONS[:4] + CAPTIONS[5:]
    assert [error.kind for error in errors] == ['not_utf8']
    assert '\n' not in str(errors[0])
