import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clip_jax.data import sources
from clip_jax.data.datasets import shapes_captions as shapes
from clip_jax.data.errors import BadRecord
from clip_jax.data.shapes import PAIRS

FEW = {'train': 40, 'test': 3, 'test_seen': 3, 'test_heldout': 3}
JPEG = shapes.example('train', 0)['image']


class NestedCaptions(tfds.core.GeneratorBasedBuilder):
    """Features that are named and nested as in other caption sets."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        captions = {'id': np.int64, 'text': tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    'picture': tfds.features.Image(),
                    'title': tfds.features.Text(),
                    'captions': tfds.features.Sequence(captions),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        captions = [{'id': 1, 'text': 'ein Stern'}, {'id': 2, 'text': 'une étoile'}]
        # Zeros at the end of an image are part of it.
        yield 0, {'picture': JPEG + b'\0\0', 'title': 'étoile', 'captions': captions}


class SeveralLabels(tfds.core.GeneratorBasedBuilder):
    """Images with lists of labels, as in sets of scenes with many things."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        thing = tfds.features.ClassLabel(names=['cat', 'dog', 'cow'])
        objects = {'label': thing, 'area': np.int64, 'box': tfds.features.BBoxFeature()}
        features = {
            'image': tfds.features.Image(),
            'labels': tfds.features.Sequence(thing),
            'numbers': tfds.features.Sequence(np.int64),
            'objects': tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        for i, own in enumerate(([2, 0], [], [1])):
            objects = [{'label': k, 'area': 9, 'box': box} for k in own[::-1]]
            yield i, {'image': JPEG, 'labels': own, 'numbers': own * 2, 'objects': objects}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('tfds')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, 'SPLITS', FEW)
        sources.open_source('tfds:shapes_captions/train', data_dir=str(folder))
    NestedCaptions(data_dir=folder, file_format='array_record').download_and_prepare()
    SeveralLabels(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


@pytest.fixture
def train(folder):
    return sources.open_source('tfds:shapes_captions/train', data_dir=str(folder))


def test_records_are_the_examples_of_the_set(train):
    assert len(train) == 40
    for i in range(40):
        stored, example = train[i], shapes.example('train', i)
        assert stored['image'] == example['image']
        assert stored['texts'] == example['captions']
        assert stored['label'] == example['label']
    assert train.label_names == PAIRS


def test_what_is_read_has_plain_types(train):
    example = train[np.int64(0)]
    assert set(example) == {'image', 'texts', 'label'}
    assert type(example['image']) is bytes
    assert {type(text) for text in example['texts']} == {str}
    assert type(example['label']) is int


def test_lists_are_several_labels(folder):
    def read(**options):
        source = sources.open_source('tfds:several_labels/train', data_dir=str(folder), **options)
        return sorted(example['labels'] for example in source), source.label_names

    names = ['cat', 'dog', 'cow']
    assert read() == read(label_key='labels') == ([[], [1], [2, 0]], names)
    assert read(label_key='objects/label') == ([[], [0, 2], [1]], names)
    assert read(label_key='numbers') == ([[], [1, 1], [2, 0, 2, 0]], [])
    with pytest.raises(ValueError, match="no feature 'objects/box' that holds label"):
        read(label_key='objects/box')


def test_messages_can_name_the_record(train):
    assert str(train) == 'tfds:shapes_captions/train'
    assert train.where(7) == 'record 7 of tfds:shapes_captions/train'


def test_slices_of_splits(folder, train):
    part = sources.open_source('tfds:shapes_captions/train[50%:]', data_dir=str(folder))
    assert len(part) == 20
    assert part[0] == train[20]


def test_iteration_ends_and_negative_numbers_are_refused(train):
    assert len(list(train)) == 40
    with pytest.raises(IndexError, match='40 records'):
        train[-1]


def test_pickling_and_threads_give_the_same_records(train):
    expected = [train[i] for i in range(40)]
    copy = pickle.loads(pickle.dumps(train))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, range(40))) == expected
    assert copy.where(1) == train.where(1)


def test_a_prepared_set_is_not_built_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(shapes, 'example', None)
    assert len(sources.open_source('tfds:shapes_captions/test', data_dir=str(folder))) == 3
    assert capsys.readouterr() == ('', '')


def test_building_says_what_and_where_and_shows_progress(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shapes, 'SPLITS', FEW)
    sources.open_source('tfds:shapes_captions/train', data_dir=str(tmp_path))
    out, err = capfd.readouterr()
    assert not out
    assert f'Building shapes_captions in {tmp_path}/shapes_captions/1.0.0' in err
    assert 'Generating train examples' in err


def test_an_interrupted_build_does_not_count_as_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, 'SPLITS', FEW)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, 'example', interrupt)
        with pytest.raises(KeyboardInterrupt):
            sources.open_source('tfds:shapes_captions/train', data_dir=str(tmp_path))
    assert not list(tmp_path.glob('**/dataset_info.json'))
    # What a killed build leaves behind.
    (tmp_path / 'shapes_captions/incomplete.ABCDEF_1.0.0').mkdir(parents=True)
    assert len(sources.open_source('tfds:shapes_captions/train', data_dir=str(tmp_path))) == 40


def interrupt(split: str, i: int, example=shapes.example) -> dict:
    if (split, i) == ('test', 1):
        raise KeyboardInterrupt
    return example(split, i)


def test_another_process_may_finish_the_same_build_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, 'SPLITS', FEW)
    build = shapes.ShapesCaptions.download_and_prepare

    def slower(builder):
        build(shapes.ShapesCaptions(data_dir=tmp_path))
        raise OSError('Directory not empty')

    monkeypatch.setattr(shapes.ShapesCaptions, 'download_and_prepare', slower)
    assert len(sources.open_source('tfds:shapes_captions/train', data_dir=str(tmp_path))) == 40


def test_other_names_and_nested_features(folder):
    def read(**keys):
        spec = 'tfds:nested_captions/train'
        return sources.open_source(spec, data_dir=str(folder), image_key='picture', **keys)[0]

    assert read() == {'image': JPEG + b'\0\0'}
    assert read(text_key='title')['texts'] == ['étoile']
    assert read(text_key='captions/text')['texts'] == ['ein Stern', 'une étoile']
    both = read(text_key=('captions/text', 'title'))
    assert both['texts'] == ['ein Stern', 'une étoile', 'étoile']
    assert both['fields'] == {'captions/text': both['texts'][:2], 'title': ['étoile']}
    with pytest.raises(ValueError, match=r"'picture'.*text.*captions/text"):
        read(text_key='picture')


def test_the_newest_version_is_read_unless_one_is_named(folder, tmp_path):
    for version in ('2.0.0', '10.0.0'):
        shutil.copytree(folder / 'shapes_captions/1.0.0', tmp_path / 'mine' / version)
    info = tmp_path / 'mine/2.0.0/label.labels.txt'
    info.write_text(info.read_text().replace('red star', 'old star'))
    newest = sources.open_source('tfds:mine/train', data_dir=str(tmp_path))
    named = sources.open_source('tfds:mine/2.0.0/train', data_dir=str(tmp_path))
    assert 'red star' in newest.label_names
    assert 'old star' in named.label_names
    assert newest[0] == named[0]


def test_other_file_formats_are_refused(folder, tmp_path):
    shutil.copytree(folder / 'shapes_captions', tmp_path / 'mine')
    info = tmp_path / 'mine/1.0.0/dataset_info.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}))
    with pytest.raises(ValueError, match=r'tfrecord.*--file_format=array_record'):
        sources.open_source('tfds:mine/train', data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ('spec', 'said'),
    [
        ('shapes_captions', 'KIND:ADDRESS'),
        ('tfds:', 'KIND:ADDRESS'),
        ('tfsd:shapes_captions/train', "mean 'tfds'"),
        ('tfds:shapes_captions', 'NAME.*SPLIT'),
        ('tfds:/train', 'NAME.*SPLIT'),
        ('tfds:shapes_captions/', 'NAME.*SPLIT'),
        ('tfds:shapes_captions/validation', r'test_heldout \(3\).*train \(40\)'),
        ('tfds:shapes_captions/train[:', 'no split'),
        ('tfds:shapes_captions/train[:0]', 'no examples'),
        ('tfds:shapes_captions/big/train', "no config 'big'"),
        ('tfds:shape_captions/train', 'holds: .*shapes_captions.*tfds build shape_captions'),
        ('tfds:nested_captions/de/train', 'nested_captions holds: 1.0.0'),
    ],
)
def test_wrong_specs(folder, spec, said):
    with pytest.raises(ValueError, match=said):
        sources.open_source(spec, data_dir=str(folder))


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ({'image_key': 'img'}, r"'img'.*Features that can: image\."),
        ({'image_key': 'captions'}, 'holds image'),
        ({'text_key': 'caption'}, r'Features that can: captions\.'),
        ({'label_key': 'captions'}, r'Features that can: label\.'),
        ({'text_keys': 'captions'}, "mean 'text_key'"),
        ({'address': 'x'}, "no 'address'"),
    ],
)
def test_wrong_options(folder, option, said):
    with pytest.raises(ValueError, match=said):
        sources.open_source('tfds:shapes_captions/train', **{'data_dir': str(folder), **option})


def test_a_damaged_record_is_a_bad_one(folder, tmp_path):
    """ArrayRecord's own checksums find it."""
    copy = tmp_path / 'data'
    shutil.copytree(folder, copy)
    (file,) = copy.rglob('*-test.array_record*')
    data = bytearray(file.read_bytes())
    # The first 64 kB hold the records; one of these is hit.
    data[len(data[: 2**16].rstrip(b'\0')) - 100] ^= 1
    file.write_bytes(data)
    test = sources.open_source('tfds:shapes_captions/test', data_dir=str(copy))
    with pytest.raises(BadRecord) as error:
        _ = [test[i] for i in range(len(test))]
    assert error.value.kind == 'damaged' and '\n' not in str(error.value)


@pytest.mark.skipif(not os.path.exists('/proc/self/mem'), reason='only Linux has a file like it')
def test_an_input_output_error_is_not_damage(folder):
    test = sources.open_source('tfds:shapes_captions/test', data_dir=str(folder))
    want = [test[i] for i in range(3)]
    (path,) = folder.rglob('*-test.array_record*')
    (number,) = (n for n in os.listdir('/proc/self/fd') if _target(n) == str(path))
    with open('/proc/self/mem', 'rb') as broken, open(path, 'rb') as whole:
        os.dup2(broken.fileno(), int(number))  # its first bytes cannot be read
        with pytest.raises(OSError, match=r'pread\(\) failed: Input/output error; ') as error:
            test[1]
        os.dup2(whole.fileno(), int(number))
    assert (error.value.errno, error.value.filename) == (errno.EIO, test.where(1))
    assert [test[i] for i in range(3)] == want
    shutil.move(path, path.with_name('moved'))
    with pytest.raises(OSError, match=r'No such file'):
        sources.open_source('tfds:shapes_captions/test', data_dir=str(folder))[0]
    shutil.move(path.with_name('moved'), path)


def _target(number: str) -> str:
    with contextlib.suppress(OSError):  # the one of the listing itself
        return os.readlink(f'/proc/self/fd/{number}')
    return ''


SPY = """
import pathlib
pathlib.Path(__file__).with_name('imported').touch()
"""


@pytest.mark.parametrize(
    'nested',
    [
        lambda name: {'pythonClassName': name},
        lambda name: {'python_class_name': name},
        lambda name: {'type': name, 'content': {}},
        lambda name: {
            'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict',
            'jsonFeature': {'json': json.dumps({'x': {'type': name, 'content': {}}})},
        },
    ],
)
def test_features_from_elsewhere_are_not_imported(folder, tmp_path, monkeypatch, nested):
    (tmp_path / 'spy_module.py').write_text(SPY)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(folder / 'shapes_captions', tmp_path / 'mine')
    features = tmp_path / 'mine/1.0.0/features.json'
    features.write_text(json.dumps(nested('spy_module.Feature')))
    with pytest.raises(ValueError, match=r"features\.json: .*'spy_module\.Feature'.*import spy"):
        sources.open_source('tfds:mine/train', data_dir=str(tmp_path))
    assert not (tmp_path / 'imported').exists()


def test_features_of_the_users_own_modules_are_read(folder, tmp_path, monkeypatch):
    class Mine(tfds.features.Text):
        pass

    shutil.copytree(folder / 'shapes_captions', tmp_path / 'mine')
    features = tmp_path / 'mine/1.0.0/features.json'
    text = features.read_text()
    own = f'{Mine.__module__}.Mine'
    features.write_text(text.replace('tensorflow_datasets.core.features.text_feature.Text', own))
    assert sources.open_source('tfds:mine/train', data_dir=str(tmp_path))[0]['texts']


@pytest.mark.parametrize(
    ('file', 'damage'),
    [
        ('dataset_info.json', lambda text: text[:40]),
        ('dataset_info.json', lambda text: '[' * 100_000),
        ('dataset_info.json', lambda text: text.replace('"splits"', '"spilts"')),
        ('dataset_info.json', lambda text: '{"splits": 3}'),
        ('features.json', lambda text: text[:40]),
        ('features.json', lambda text: '[]'),
        ('features.json', lambda text: text.replace('"text"', '"tent"')),
        ('features.json', lambda text: text.replace('text_feature.Text', 'text_feature.None')),
        ('features.json', lambda text: text.replace('uint8', 'int4711')),
    ],
)
def test_damaged_descriptions_are_one_line(folder, tmp_path, capfd, file, damage):
    shutil.copytree(folder / 'shapes_captions', tmp_path / 'mine')
    path = tmp_path / 'mine/1.0.0' / file
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf'mine/1\.0\.0/{file}: cannot be read') as error:
        sources.open_source('tfds:mine/train', data_dir=str(tmp_path))
    assert '\n' not in str(error.value)
    path.unlink()
    if file == 'features.json':
        with pytest.raises(ValueError, match=r'features\.json: does not exist'):
            sources.open_source('tfds:mine/train', data_dir=str(tmp_path))
    assert not capfd.readouterr().out


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'folder .*/none does not exist'):
        sources.open_source('tfds:cifar10/train', data_dir=str(tmp_path / 'none'))


def test_neither_tensorflow_nor_torch_is_imported(folder):
    script = f"""if True:
        import sys
        from clip_jax.data.sources import open_source, tfds
        assert 'tensorflow_datasets' not in sys.modules
        assert open_source('tfds:shapes_captions/train', data_dir={str(folder)!r})[0]['texts']
        assert not {{'tensorflow', 'torch', 'jax'}} & set(sys.modules)
    """
    subprocess.run([sys.executable, '-c', script], check=True)
