"""Imports hold what was there, however often they were interrupted and whoever wrote them."""

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.files import hashes
from support.listed import Listed
from support.process import environment

from clip_jax import build
from clip_jax.data import pipeline
from clip_jax.data.errors import BadRecord, Skipped
from clip_jax.data.tools import importer
from clip_jax.data.tools.importer import ImportJob
from clip_jax.runtime import lock

FLICKR = pathlib.Path(__file__).parents[4] / 'shared' / 'flickr8k'


def encoded(width: int, height: int, format: str = 'JPEG', seed: int = 0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image.save(file, format, **options)
    return file.getvalue()


def captioned(count: int) -> list[dict]:
    return [
        {'image': encoded(20 + i, 30, seed=i), 'texts': [f'picture {i}', 'søt'][: 1 + i % 2]}
        for i in range(count)
    ]


@pytest.fixture
def write(tmp_path):
    """Imports a source or a list of examples; returns the summary."""

    def run(source, *, threads=2, beam=None, **options) -> dict:
        source = Listed(source) if isinstance(source, list) else source
        options = {
            'spec': 'x:y',
            'options': {},
            'directory': str(tmp_path),
            'name': 'set',
        } | options
        return importer.run(ImportJob(lambda: source, **options), threads=threads, beam=beam)

    return run


@pytest.fixture
def read(tmp_path):
    """Opens what was imported."""

    def run(split: str = 'train', name: str = 'set'):
        return build.source(f'tfds:{name}/{split}', {'tfds': {'data_dir': str(tmp_path)}})

    return run


def everything(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize('shard_size', [1, 7, 10_000])
def test_every_record_comes_back_as_it_was(write, read, tiny_tars, shard_size):
    source = build.source(tiny_tars, {})
    summary = write(source, shard_size=shard_size)
    assert everything(read()) == everything(source)
    assert summary['records'] == summary['with_captions'] == summary['with_label'] == 64
    assert summary['shards'] == summary['shards_written'] == -(-64 // shard_size)


def test_training_sees_the_same_batches(write, read, tiny_tars):
    def batches(source) -> list[dict[str, np.ndarray]]:
        def tokenize(texts):
            return np.array([[len(text), ord(text[-1])] for text in texts], np.int32)

        options = {'batch_size': 16, 'seed': 3, 'image_size': 16, 'num_threads': 0}
        iterator = pipeline.train_iterator(source, tokenize, **options)
        found = [next(iterator) for _ in range(6)]
        iterator.close()
        return found

    source = build.source(tiny_tars, {})
    write(source, shard_size=20)
    for ours, theirs in zip(batches(read()), batches(source), strict=True):
        assert {*ours} == {*theirs}
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])


def test_files_do_not_depend_on_threads(write, tmp_path):
    examples = [*captioned(40), BadRecord('damaged', 'no')]
    for threads in (1, 2, 5):
        folder = tmp_path / str(threads)
        write(examples, threads=threads, directory=str(folder), shard_size=15)
    assert hashes(tmp_path / '1') == hashes(tmp_path / '2') == hashes(tmp_path / '5')


def test_fields_have_one_order():
    # Left to themselves, they have another in every process.
    data = importer._serialized({'image': b'i', 'captions': ['a'], 'label': 3, 'labels': [3]})
    places = [data.index(name) for name in (b'captions', b'image', b'label', b'labels')]
    assert places == sorted(places)


def test_a_set_says_what_it_has(write, read):
    pictures = captioned(3)
    write(pictures, name='texts')
    labeled = [{'image': x['image'], 'label': i} for i, x in enumerate(pictures)]
    write(Listed(labeled, ['cat', 'dog', 'cow']), name='classes')
    write(labeled, name='numbers')
    mixed = [pictures[0], labeled[1], {**pictures[2], 'label': 1}]
    write(mixed, name='mixed')
    assert everything(read(name='texts')) == pictures
    assert everything(read(name='classes')) == everything(read(name='numbers')) == labeled
    assert read(name='classes').label_names == ['cat', 'dog', 'cow']
    assert read(name='texts').label_names == read(name='numbers').label_names == []
    assert everything(read(name='mixed')) == [
        {**pictures[0], 'label': -1},
        {**labeled[1], 'texts': []},
        mixed[2],
    ]


def test_where_some_images_have_several_labels_all_have_a_list(write, read):
    pictures = [{'image': x['image']} for x in captioned(3)]
    several = [{**x, 'labels': own} for x, own in zip(pictures, ([2, 0], [], [1]), strict=True)]
    with_texts = [{**x, 'texts': ['a']} for x in several]
    summary = write(Listed(with_texts, ['cat', 'dog', 'cow']), name='several')
    assert (summary['with_label'], summary['with_labels']) == (0, 2)
    assert everything(read(name='several')) == with_texts
    assert read(name='several').label_names == ['cat', 'dog', 'cow']
    write([several[0], {**pictures[1], 'label': 1}, several[2]], name='mixed')
    assert everything(read(name='mixed')) == [
        several[0],
        {**pictures[1], 'labels': [1]},
        several[2],
    ]


def test_an_array_comes_back_pixel_by_pixel(write, read):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    write([{'image': pixels, 'texts': ['a']}])
    np.testing.assert_array_equal(Image.open(io.BytesIO(read()[0]['image'])), pixels)


def test_what_cannot_be_used_is_left_out_and_listed(write, read, tmp_path):
    good = captioned(6)
    broken = {**good[0], 'image': good[0]['image'][:-40]}
    bad = [
        {'image': b'', 'texts': ['a']},
        {'image': b'nothing at all', 'texts': ['a']},
        {'image': good[0]['image'], 'texts': []},
        {'image': good[0]['image'], 'label': -1},
        BadRecord('not_utf8', 'its caption'),
    ]
    # The second shard has no record that can be used.
    examples = [*good[:3], bad[0], bad[1], *bad[2:], bad[0], *good[3:], broken]
    found = Skipped(2, ['a.tar: x'])
    source = Listed(examples, skipped={'truncated_tar': found})
    summary = write(source, shard_size=4, decode=True)
    assert everything(read()) == good
    kinds = {'empty': 2, 'not_an_image': 1, 'no_caption': 2, 'not_utf8': 1, 'truncated': 1}
    assert summary['skipped'] == kinds
    assert summary['skipped_by_source'] == {'truncated_tar': found._asdict()}
    lines = (tmp_path / 'set/1.0.0/skipped-train.jsonl').read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [x['record'] for x in listed] == [3, 4, 5, 6, 7, 8, 12]
    assert listed[4] == {
        'record': 7,
        'kind': 'not_utf8',
        'where': 'place 7',
        'message': 'its caption',
    }
    # Not decoded, it looks well.
    assert write(source, name='headers', shard_size=4)['records'] == 7


def test_what_ends_a_run_ends_an_import(write):
    for error in ValueError('a label is no number'), RuntimeError('hash mismatch'):
        with pytest.raises(ValueError, match=f'place 2: {error}'):
            write([*captioned(2), error])


def test_modules_are_imported_before_threads_start(write, monkeypatch):
    """While TFDS imports lazily, imports in other threads fail."""
    threads = []
    features = importer._features

    def recording(**options):
        threads.append(threading.current_thread())
        return features(**options)

    importer._serializer.cache_clear()
    monkeypatch.setattr(importer, '_features', recording)
    write(captioned(3))
    assert set(threads) == {threading.main_thread()}


@pytest.mark.parametrize('records', [1, 300])
def test_a_full_disk_is_one_line(write, tmp_path, records):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    examples = [{'image': encoded(60, 60, seed=0), 'texts': ['a' * 3000]}] * records
    write(examples, name='sound')
    sound = tmp_path / 'sound/1.0.0/sound-train.array_record-00000-of-00001'
    resource.setrlimit(resource.RLIMIT_FSIZE, (sound.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r'00000\.partial: .*too large.*continues') as error:
            write(examples)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert '\n' not in str(error.value)
    assert not list(tmp_path.rglob('*.partial'))
    assert write(examples)['records'] == records


def test_nothing_that_can_be_used(write, tmp_path):
    with pytest.raises(ValueError, match=r"none of its 2 records can be used: \{'empty': 2\}"):
        write([{'image': b'', 'texts': ['a']}] * 2)
    assert not (tmp_path / 'set/1.0.0/dataset_info.json').exists()
    assert len((tmp_path / 'set/1.0.0/skipped-train.jsonl').read_text().splitlines()) == 2


# sizes


def opened(example: dict) -> Image.Image:
    return Image.open(io.BytesIO(example['image']))


def test_larger_images_are_made_smaller_and_others_copied(write, read):
    shapes = [(96, 64), (33, 200), (32, 32), (31, 90), (500, 33)]
    examples = [{'image': encoded(*shape), 'texts': ['a']} for shape in shapes]
    examples += [{'image': encoded(64, 128, 'PNG'), 'texts': ['a']}]
    write(examples, size=32)
    assert [opened(x).size for x in everything(read())] == [
        (48, 32),
        (32, 194),
        (32, 32),
        (31, 90),
        (485, 32),
        (32, 64),
    ]
    assert [read()[i] for i in (2, 3)] == examples[2:4]
    assert {opened(x).format for x in everything(read())} == {'JPEG'}
    for i in (0, 1, 4, 5):
        made, original = opened(read()[i]), opened(examples[i])
        expected = original.convert('RGB').resize(made.size, Image.Resampling.BICUBIC)
        # In gray: JPEG keeps a quarter of the colors.
        difference = np.float32(made.convert('L')) - np.float32(expected.convert('L'))
        assert np.abs(difference).mean() < 2


def test_made_smaller_images_stand_upright(write, read):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    write([{'image': encoded(96, 64, exif=exif), 'texts': ['a']}], size=32)
    made = opened(read()[0])
    assert made.size == (32, 48)
    assert not made.getexif()


def test_quality_is_that_of_the_new_files(write, read):
    example = {'image': encoded(300, 300), 'texts': ['a']}
    sizes = []
    for quality in (50, 95):
        write([example], size=200, quality=quality, name=f'q{quality}')
        sizes.append(len(read(name=f'q{quality}')[0]['image']))
    assert 1.5 * sizes[0] < sizes[1]


def test_damage_is_found_where_an_image_is_made_smaller(write):
    examples = captioned(3)
    examples[1] = {'image': encoded(100, 100)[:-300], 'texts': ['a']}
    assert write(examples, size=19)['skipped'] == {'truncated': 1}


# interruptions

# Forks processes that import and are killed, each at another moment: before each time that a file
# is synced or renamed, and before some records. What one leaves the next completes.
KILLED = """
import itertools, os, pathlib, signal, sys
import tensorflow_datasets
from array_record.python import array_record_module
from clip_jax.data import sources
from clip_jax.data.tools import importer
from support.files import hashes

importer._serializer()  # what takes long is done once
spec, folder = sys.argv[1:]

def counted(function, left):
    def call(*arguments):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

def run(directory, files=-1, records=-1):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = itertools.count(files, -1)
    os.fsync, os.replace = counted(os.fsync, left), counted(os.replace, left)
    class Writer(array_record_module.ArrayRecordWriter):
        write = counted(array_record_module.ArrayRecordWriter.write, itertools.count(records, -1))
    array_record_module.ArrayRecordWriter = Writer
    job = importer.ImportJob(
        lambda: sources.open_source(spec), spec, {}, directory, 'set', size=24, shard_size=32
    )
    importer.run(job, threads=2)
    os._exit(0)

assert run(f'{folder}/clean') == 0
expected = hashes(pathlib.Path(folder, 'clean'))
assert len(expected) == 2 * 2 + 5, expected  # shards and notes; info and lists
for number in itertools.count():
    directory = f'{folder}/files{number}'
    if run(directory, files=number) == 0:
        moments = number
        break
    assert run(directory) == 0
    assert hashes(pathlib.Path(directory)) == expected, number
for number in (0, 1, 31, 32, 63):
    directory = f'{folder}/records{number}'
    assert run(directory, records=number) == signal.SIGKILL
    assert run(directory, files=4) == signal.SIGKILL
    assert run(directory) == 0
    assert hashes(pathlib.Path(directory)) == expected, number
print(moments, {'tensorflow', 'torch'} & {*sys.modules})
"""


def test_a_killed_import_goes_on_and_ends_as_one_that_was_not(tiny_tars, tmp_path):
    tests = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (environment()['PYTHONPATH'], tests)))
    done = subprocess.run(
        [sys.executable, '-c', KILLED, tiny_tars, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**environment(), 'PYTHONPATH': path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    moments, modules = done.stdout.split(maxsplit=1)
    assert int(moments) > 25
    assert modules == 'set()\n'


def test_finished_shards_are_not_written_again(write, tmp_path):
    class Counted(Listed):
        def __getitem__(self, i: int) -> dict:
            seen.append(i)
            return super().__getitem__(i)

    seen, examples = [], captioned(20)
    with pytest.raises(ValueError, match='stop'):
        write(Counted([*examples[:12], ValueError('stop'), *examples[13:]]), shard_size=5)
    seen.clear()
    summary = write(Counted(examples), shard_size=5)
    assert (summary['shards'], summary['shards_written']) == (4, 2)
    assert sorted(seen) == [*range(10, 20)]
    assert write(examples, shard_size=5)['shards_written'] == 0


@pytest.mark.parametrize('harm', ['shorten', 'extend', 'delete', 'note'])
def test_a_shard_that_came_to_harm_is_written_again(write, tmp_path, harm):
    write(captioned(9), shard_size=3)
    before = hashes(tmp_path)
    path = tmp_path / 'set/1.0.0/set-train.array_record-00001-of-00003'
    data = path.read_bytes()
    if harm == 'shorten':
        path.write_bytes(data[:-1])
    elif harm == 'extend':
        path.write_bytes(data + b'0')
    elif harm == 'delete':
        path.unlink()
    else:
        (tmp_path / 'set/1.0.0/import-train/00001.json').unlink()
    assert write(captioned(9), shard_size=3)['shards_written'] == 1
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'size': 25}, 'size was 24, is 25'),
        ({'quality': 90}, 'quality was 95, is 90'),
        ({'shard_size': 4}, 'shard_size was 3, is 4'),
        ({'decode': True}, 'decode was False, is True'),
        ({'spec': 'x:z'}, 'spec was x:y, is x:z'),
        ({'options': {'a': 1}}, "options was {}, is {'a': 1}"),
        ({'source': 8}, 'records was 9, is 8'),
    ],
)
@pytest.mark.parametrize('complete', [True, False])
def test_other_options_than_before_are_refused(write, tmp_path, complete, change, message):
    examples = captioned(9)
    if complete:
        write(examples, size=24, shard_size=3)
    else:
        with pytest.raises(ValueError, match='stop'):
            write([*examples[:5], ValueError('stop'), *examples[6:]], size=24, shard_size=3)
    before = hashes(tmp_path)
    options = {'size': 24, 'shard_size': 3, **change}
    with pytest.raises(ValueError, match='was started with other settings') as error:
        write(examples[: options.pop('source', 9)], **options)
    assert message in str(error.value)
    assert hashes(tmp_path) == before


def test_one_process_at_a_time(write, tmp_path):
    write(captioned(2))
    held = lock.Lock(epath.Path(tmp_path / 'set/1.0.0/import-train'), what='import')
    with contextlib.closing(held):
        held.open()
        with pytest.raises(ValueError, match='another import writes to it'):
            write(captioned(2))
        write(captioned(2), split='val')


# sets


def test_a_split_can_be_added_later(write, read, tmp_path):
    examples = captioned(10)
    write(Listed([{**x, 'label': 0} for x in examples[:6]], ['cat']), shard_size=4)
    before = hashes(tmp_path)
    write(examples[6:], split='val')
    assert {k: v for k, v in hashes(tmp_path).items() if 'train' in k} == {
        k: v for k, v in before.items() if 'train' in k
    }
    assert everything(read('train')) == [{**x, 'label': 0} for x in examples[:6]]
    assert everything(read('val')) == [{**x, 'label': -1} for x in examples[6:]]
    assert len(read('train+val')) == 10


def test_other_classes_are_refused(write):
    labeled = [{**captioned(1)[0], 'label': 0}]
    write(Listed(labeled, ['cat', 'dog']))
    with pytest.raises(ValueError, match=r'train are 2 \(cat, dog\), those of x:y are 1 \(cow\)'):
        write(Listed(labeled, ['cow']), split='val')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'name': 'Pets'}, "name is 'Pets'; expected lowercase letters"),
        ({'name': 'a/b'}, "name is 'a/b'"),
        ({'split': 'all'}, "split is 'all'"),
        ({'split': 'train[:10%]'}, 'split is'),
        ({'name': 'shapes_captions'}, 'which is a built-in data set'),
        ({'size': -1}, 'size is -1; expected 0 to'),
        ({'quality': 0}, 'quality is 0; expected 1 to 100'),
        ({'shard_size': 0}, 'shard_size is 0; expected 1'),
        ({'threads': 0}, 'threads is 0; expected at least 1'),
        ({'directory': 'gs://bucket/sets'}, 'local disks and mounted folders'),
    ],
)
def test_wrong_options(write, tmp_path, options, message):
    with pytest.raises(ValueError, match=r'expected|which is|local') as error:
        write(captioned(1), **options)
    assert message in str(error.value)
    assert not hashes(tmp_path)


def test_a_set_of_others_is_left_alone(write, tmp_path):
    (tmp_path / 'set/1.0.0').mkdir(parents=True)
    (tmp_path / 'set/1.0.0/dataset_info.json').write_text('{}')
    with pytest.raises(ValueError, match='did not write; choose another name'):
        write(captioned(1))


# Beam


def test_an_import_travels_without_its_source():
    job = ImportJob(functools.partial(Listed, captioned(1)), 'x:y', {}, 'there', 'set')
    assert job.shards == 1
    assert 'source' not in vars(pickle.loads(pickle.dumps(job)))


def test_beam_writes_the_same_files(write, tmp_path):
    pytest.importorskip('apache_beam', reason='the extra `beam` is not installed')
    examples = [*captioned(11), BadRecord('damaged', 'no')]
    summaries = [
        write(examples, shard_size=3, directory=str(tmp_path / name), beam=beam)
        for name, beam in (('a', None), ('b', ('DirectRunner', {'direct_num_workers': 1})))
    ]
    assert [x['shards_written'] for x in summaries] == [4, 4]
    assert hashes(tmp_path / 'a') == hashes(tmp_path / 'b')
    with pytest.raises(ValueError, match=r'Apache Beam: .*place 1: stop'):
        write([*captioned(1), ValueError('stop')], name='other', beam=('DirectRunner', {}))
    with pytest.raises(ValueError, match='Valid values are'):
        write(captioned(1), name='none', beam=('DirectRuner', {}))


def test_beam_that_is_not_installed(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    with pytest.raises(ValueError, match=r"pip install 'clipax\[beam\]'"):
        write(captioned(1), beam=('DirectRunner', {}))
    assert not hashes(tmp_path)


@pytest.mark.skipif(not FLICKR.exists(), reason='the Flickr8k photographs are not here')
def test_photographs_come_back_as_they_were(write, read):
    source = build.source(f'tars:{FLICKR}/val-*.tar', {})
    write(source, shard_size=300)
    assert len(read()) == len(source) == 1000
    assert all(read_one == source[i] for i, read_one in enumerate(everything(read())))
