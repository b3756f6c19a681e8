"""Every file of data/sources keeps what the folder promises: tested the moment it exists."""

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.sources import CAPTIONS, MAKERS, WITHOUT_LABELS, png, row

from clip_jax import build, lookup
from clip_jax.data.errors import BadRecord, DataNotFound, Skipped
from clip_jax.data.sources import open_source


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


def test_examples_have_the_keys_and_types_of_the_contract(source, made):
    labeled = made[1].partition(':')[0] not in WITHOUT_LABELS
    assert len(source) == 6
    found = sorted((source[i] for i in range(6)), key=lambda example: example['texts'])
    for i, example in enumerate(found):
        if 'embedding' in example:
            np.testing.assert_array_equal(example.pop('embedding'), row(i))
        else:
            image = example.pop('image')
            assert type(image) is bytes and image == png(i)
        assert example.pop('texts') == [CAPTIONS[i]]
        assert example == ({'label': i % 2} if labeled else {})
        assert not labeled or type(example['label']) is int


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
    assert isinstance(source.skipped, dict) and not source.skipped
    assert all(isinstance(found, Skipped) for found in source.skipped.values())


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
    assert copy.skipped == source.skipped
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
        assert source.skipped == {'not_utf8': Skipped(1, ['p/4'])}
        return
    assert len(source) == 6 and not source.skipped
    read, errors = [], []
    for i in range(6):
        try:
            read += source[i]['texts']
        except BadRecord as error:
            errors.append(error)
    assert sorted(read) == CAPTIONS[:4] + CAPTIONS[5:]
    assert [error.kind for error in errors] == ['not_utf8']
    assert '\n' not in str(errors[0])


PLUGIN = """
class Numbers:
    label_names, skipped = [], {}

    def __init__(self, count, scale):
        self.count, self.scale = count, scale

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {'image': b'', 'texts': [str(i * self.scale)]}

    def where(self, i):
        return f'number {i}'


def source(address, *, scale: int = 1):
    return Numbers(int(address), scale) if address != 'broken' else object()
"""


def test_a_module_outside_the_package_is_a_source_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / 'their_package').mkdir()
    (tmp_path / 'their_package' / 'numbers.py').write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    spec = 'their_package.numbers:3'
    options = {'numbers': {'scale': 10}, 'tars': {'json_key': 'x'}}
    assert build.source(spec, options)[2]['texts'] == ['20']
    mixture = build.source(f'{spec} + 2 * their_package.numbers:4', options)
    assert [mixture.where(i) for i in (2, 3)] == ['number 2', 'number 0']
    with pytest.raises(ValueError, match=r"their_package.numbers: there is no 'size'.*scale"):
        open_source(spec, size=1)
    with pytest.raises(ValueError, match=r'object is not a data source; .*label_names'):
        open_source('their_package.numbers:broken')
    with pytest.raises(ValueError, match=r'their_package\.letters.*PYTHONPATH'):
        open_source('their_package.letters:3')
