"""Checkpoints and data on object storage, with an emulator of S3 on this machine."""

import os

import boto3
import pytest
from moto.server import ThreadedMotoServer
from support import orbax_trees
from support.layouts import equal, exported
from support.small_models import made, pieces

import clip_jax
from clip_jax import build, pretrained
from clip_jax.places import bucket

BUCKET = 'models'


@pytest.fixture(scope='module')
def storage():
    """The client of an S3 with an empty bucket."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    changes = {
        'AWS_ACCESS_KEY_ID': 'x',
        'AWS_SECRET_ACCESS_KEY': 'x',
        'AWS_DEFAULT_REGION': 'us-east-1',
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    client = boto3.client('s3')
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))


def put(storage, folder, files):
    import s3fs

    for name, content in files.items():
        storage.put_object(Bucket=BUCKET, Key=f'{folder}/{name}', Body=content)
    s3fs.S3FileSystem.clear_instance_cache()


def copied(monkeypatch):
    """The names of the objects that are copied."""
    names, real = [], bucket._copied

    def copy(address, fs, source, target, entry):
        names.append(target.name)
        real(address, fs, source, target, entry)

    monkeypatch.setattr(bucket, '_copied', copy)
    return names


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface'])
def test_a_published_layout_is_copied_once(layout, storage, monkeypatch):
    put(storage, layout, {**exported(layout, 'clip'), 'optimizer.bin': b'x' * 9000})
    names = copied(monkeypatch)
    for _ in range(2):
        assert equal(pretrained.read(f's3://{BUCKET}/{layout}')[1], made('clip')[1])
    assert sorted(names) == sorted(exported(layout, 'clip'))


def test_an_object_that_changed_is_copied_again(storage, monkeypatch):
    put(storage, 'changing', exported('huggingface', 'clip'))
    pretrained.read(f's3://{BUCKET}/changing')
    names = copied(monkeypatch)
    put(storage, 'changing', exported('huggingface', 'quick'))
    assert equal(pretrained.read(f's3://{BUCKET}/changing')[1], made('quick')[1])
    assert 'model.safetensors' in names


def test_one_file_and_a_run_of_ours(storage, tiny_run):
    files = exported('big_vision', 'siglip')
    put(storage, 'npz', files)
    (name,) = (x for x in files if x.endswith('.npz'))
    assert equal(pretrained.read(f's3://{BUCKET}/npz/{name}')[1], made('siglip')[1])
    put(storage, 'npz', {'spiece.model': pieces()})
    card, _ = pretrained.read(f's3://{BUCKET}/npz/{name}')
    assert card['tokenizer']['name'] == 'sentencepiece'
    of_run = {
        str(path.relative_to(tiny_run)): path.read_bytes()
        for path in sorted((tiny_run / 'checkpoints').rglob('*'))
        if path.is_file()
    }
    put(storage, 'run', of_run)
    one, other = clip_jax.load(f's3://{BUCKET}/run'), clip_jax.load(tiny_run)
    assert equal({'params': one.variables['params']}, {'params': other.variables['params']})


def test_without_the_storage_the_cache_is_used(storage, monkeypatch):
    put(storage, 'cached', exported('huggingface', 'clip'))
    pretrained.read(f's3://{BUCKET}/cached')

    def unreachable(*args):
        raise OSError('no route')

    monkeypatch.setattr(bucket, '_listed', unreachable)
    assert equal(pretrained.read(f's3://{BUCKET}/cached')[1], made('clip')[1])
    with pytest.raises(ValueError, match=rf's3://{BUCKET}/other: cannot be reached \(no route\)'):
        pretrained.read(f's3://{BUCKET}/other')


def test_nothing_there_is_one_line(storage):
    with pytest.raises(ValueError, match=f's3://{BUCKET}/nothing: there is nothing at this addre'):
        pretrained.read(f's3://{BUCKET}/nothing')
    put(storage, 'text', {'readme.txt': b'x'})
    with pytest.raises(ValueError, match='no checkpoint of a layout that is found by its names'):
        pretrained.read(f's3://{BUCKET}/text')


def test_tars_are_read_where_they_are(storage, tiny_tars):
    path = tiny_tars.removeprefix('tars:')
    with open(path, 'rb') as file:
        put(storage, 'tars', {'tiny-00000.tar': file.read()})
    there = build.source(f'tars:s3://{BUCKET}/tars/*.tar', {})
    here = build.source(tiny_tars, {})
    assert len(there) == len(here) == 64
    assert there[5]['image'] == here[5]['image'] and there[5]['texts'] == here[5]['texts']


@pytest.mark.parametrize(
    'path', ['whole', pytest.param('item/checkpoint.npz/12/default', marks=pytest.mark.slow)]
)
def test_the_newest_step_of_orbax_is_copied_whole(path, storage, tmp_path, monkeypatch):
    of_orbax = orbax_trees.files(
        orbax_trees.save(tmp_path / 'x', orbax_trees.state(orbax_trees.siglip()))
    )
    for number in (8, 12):
        put(storage, f'{path.partition("/")[0]}/checkpoint.npz/{number}/default', of_orbax)
    names = copied(monkeypatch)
    for _ in range(2):
        assert equal(pretrained.read(f's3://{BUCKET}/{path}')[1], made('siglip')[1])
    assert len(names) == len(of_orbax)


@pytest.mark.slow
def test_a_checkpoint_of_big_vision_s_training_is_copied(storage, tmp_path):
    state = {'params': orbax_trees.siglip()}
    files = orbax_trees.files(orbax_trees.save_as_big_vision(tmp_path / 'x', state))
    put(storage, 'work/checkpoint.bv-000100', files)
    path = f's3://{BUCKET}/work/checkpoint.bv-000100'
    assert equal(pretrained.read(path)[1], made('siglip')[1])
