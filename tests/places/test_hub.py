"""Checkpoints of a hub: by name and revision, private ones, cut and damaged transfers, offline."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import constants
from support import orbax_trees
from support.hub import hub  # noqa: F401
from support.layouts import equal, exported
from support.process import ROOT
from support.small_models import made

import clip_jax
from clip_jax import pretrained
from clip_jax.places import resolve

WEIGHTS = {'open_clip': 'open_clip_model.safetensors', 'huggingface': 'model.safetensors'}
pytestmark = pytest.mark.usefixtures('hub')


@pytest.fixture
def offline(monkeypatch):
    """A call after which huggingface_hub is offline."""
    return lambda: monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)


def transfers(hub):  # noqa: F811
    return [path for method, path in hub.asked if method == 'GET' and '/api/' not in path]


def same(address, name='clip'):
    return equal(pretrained.read(address)[1], made(name)[1])


@pytest.mark.parametrize('layout', WEIGHTS)
def test_only_the_needed_files_come_and_once(layout, hub):  # noqa: F811
    unneeded = {'pytorch_model.bin': b'x' * 9000, 'images/a.png': b'x', 'README.md': b'# x'}
    sha = hub.add('me/model', {**exported(layout, 'clip'), **unneeded})
    place = resolve.local('hf://me/model')
    assert place.address == f'hf://me/model@{sha}'
    assert {p.name for p in place.path.iterdir()} == {'.gitattributes', *exported(layout, 'clip')}
    assert same('hf://me/model')
    count = len(transfers(hub))
    assert same('hf://me/model') and len(transfers(hub)) == count


def test_a_repository_of_both_layouts_is_read_as_its_folder_would_be(hub, tmp_path):  # noqa: F811
    files = {**exported('open_clip', 'clip'), **exported('huggingface', 'clip')}
    hub.add('me/model', files)
    folder = tmp_path / 'folder'
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (one, layout), (_, other) = pretrained.find('hf://me/model'), pretrained.find(folder)
    assert layout == other
    assert not ({*WEIGHTS.values()} <= {p.name for p in one.iterdir()})


def test_a_revision_is_a_branch_or_a_commit(hub):  # noqa: F811
    first = hub.add('me/model', exported('huggingface', 'clip'))
    second = hub.add('me/model', exported('huggingface', 'eot'))
    hub.repositories['me/model'].names['v1'] = first
    for revision, expected, name in (('v1', first, 'clip'), (second, second, 'eot')):
        assert resolve.local(f'hf://me/model@{revision}').address.endswith(expected)
        assert same(f'hf://me/model@{revision}', name)
    with pytest.raises(ValueError, match='hf://me/model@v9: the repository has no revision v9'):
        pretrained.read('hf://me/model@v9')


def test_a_file_of_another_name_and_a_folder_are_named_by_their_path(hub):  # noqa: F811
    files = {k: v for k, v in exported('open_clip', 'clip').items() if k.endswith('.json')}
    weights = exported('open_clip', 'clip')[WEIGHTS['open_clip']]
    hub.add('me/model', {f'b32/{k}': v for k, v in {**files, 'mine.safetensors': weights}.items()})
    assert same('hf://me/model/b32/mine.safetensors')
    with pytest.raises(ValueError, match='name one of its files: b32/mine'):
        pretrained.read('hf://me/model/b32')
    with pytest.raises(ValueError, match='there is no b16 there; there is b32/open_clip_config'):
        pretrained.read('hf://me/model/b16')
    hub.add('me/other', {f'b32/{k}': v for k, v in exported('open_clip', 'clip').items()})
    assert same('hf://me/other/b32')


def test_a_moved_repository_is_found(hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    hub.moved['old/name'] = 'me/model'
    assert same('hf://old/name')


def sharded(layout='huggingface'):
    """The files of a model whose weights lie in two files."""
    from safetensors.numpy import load, save

    files = dict(exported(layout, 'clip'))
    arrays = load(files.pop('model.safetensors'))
    names = sorted(arrays)
    parts = {'model-1.safetensors': names[::2], 'model-2.safetensors': names[1::2]}
    for file, inside in parts.items():
        files[file] = save({name: arrays[name] for name in inside})
    index = {'weight_map': {name: file for file, inside in parts.items() for name in inside}}
    files['model.safetensors.index.json'] = json.dumps(index).encode()
    return files


def test_weights_in_several_files(hub):  # noqa: F811
    files = sharded()
    hub.add('me/model', files)
    assert same('hf://me/model')
    hub.add('me/partial', {k: v for k, v in files.items() if k != 'model-2.safetensors'})
    with pytest.raises(ValueError, match=r'index\.json names model-2'):
        pretrained.read('hf://me/partial')


def test_a_private_repository_needs_a_token(hub, monkeypatch):  # noqa: F811
    hub.add('me/secret', exported('huggingface', 'clip'), token='hf_right')
    line = 'hf://me/secret: there is no such repository, or it is private; for a private one, log'
    for token in '', 'hf_wrong':
        monkeypatch.setenv('HF_TOKEN', token)
        with pytest.raises(ValueError, match=line):
            pretrained.read('hf://me/secret')
    monkeypatch.setenv('HF_TOKEN', 'hf_right')
    assert same('hf://me/secret')


def test_a_cut_transfer_continues(hub):  # noqa: F811
    weights = WEIGHTS['huggingface']
    hub.add('me/model', exported('huggingface', 'clip'))
    hub.cut[weights] = 1
    assert same('hf://me/model')
    assert sum(path.endswith(weights) for path in transfers(hub)) == 2


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json'])
def test_a_damaged_file_is_refused_and_not_kept(file, hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    hub.damaged.append(file)
    for _ in range(2):
        with pytest.raises(ValueError, match=f'{file} came with a wrong checksum and was deleted'):
            pretrained.read('hf://me/model')
    hub.damaged.clear()
    assert same('hf://me/model')


def test_a_file_damaged_in_the_cache_is_noticed(hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    path = resolve.local('hf://me/model').path / WEIGHTS['huggingface']
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match='wrong checksum'):
        pretrained.read('hf://me/model')
    assert same('hf://me/model')


def test_a_busy_hub_is_asked_again(hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    hub.busy['model.safetensors'] = 1
    assert same('hf://me/model')


def test_offline_loads_what_is_cached_with_all_that_it_needs(hub, offline):  # noqa: F811
    sha = hub.add('me/model', exported('huggingface', 'clip'))
    hub.add('me/absent', exported('huggingface', 'clip'))
    path = resolve.local('hf://me/model').path
    count = len(hub.asked)
    offline()
    assert same('hf://me/model') and same(f'hf://me/model@{sha}') and len(hub.asked) == count
    with pytest.raises(
        ValueError, match=r'hf://me/absent: not all of it is cached, .*HF_HUB_OFFLINE'
    ):
        pretrained.read('hf://me/absent')
    # Without its own preprocessing it does not load at all.
    (path / 'preprocessor_config.json').unlink()
    with pytest.raises(ValueError, match=r'not all of it is cached, .*HF_HUB_OFFLINE is set'):
        pretrained.read('hf://me/model')


def reading(hub, before: str = '') -> subprocess.Popen:  # noqa: F811
    """A process that downloads hf://me/model and prints the address, or why it failed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from clip_jax.places import resolve
{before}
try:
    print(resolve.local('hf://me/model').address)
except ValueError as error:
    print(error)
"""
    env = os.environ | {'HF_ENDPOINT': hub.url, 'HF_HUB_CACHE': constants.HF_HUB_CACHE}
    return subprocess.Popen(
        [sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_at_once(hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    processes = [reading(hub) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert said[0] == said[1] and 'hf://me/model@' in said[0]
    assert sum(path.endswith('model.safetensors') for path in transfers(hub)) == 1


def test_a_file_system_that_takes_no_more_is_one_line_and_the_next_call_continues(hub):  # noqa: F811
    hub.add('me/model', exported('huggingface', 'clip'))
    size = len(exported('huggingface', 'clip')[WEIGHTS['huggingface']])
    # Files may grow to half of the weights: the system refuses the rest, as a full disk does.
    limit = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))
"""
    (line,) = reading(hub, limit).communicate()[0].splitlines()
    assert 'hf://me/model' in line and 'File too large' in line
    assert same('hf://me/model')


@pytest.mark.parametrize(
    ('address', 'line'),
    [
        ('hf://me', 'expected hf://OWNER/NAME'),
        ('hf://datasets/me/pictures', 'is a dataset; expected a model'),
        ('hf://me/nothing', 'there is no such repository'),
        ('hf://me/empty', 'no checkpoint of a layout that is found by its names'),
    ],
)
def test_wrong_addresses_are_one_line(address, line, hub):  # noqa: F811
    hub.add('me/empty', {'README.md': b'# x'})
    with pytest.raises(ValueError, match=line) as error:
        clip_jax.load(address)
    assert str(error.value).startswith(address) and '\n' not in str(error.value)


def test_our_own_layout_comes_from_the_hub_too(hub, tiny_run):  # noqa: F811
    files = {
        str(path.relative_to(tiny_run)): path.read_bytes()
        for path in sorted((tiny_run / 'checkpoints').rglob('*'))
        if path.is_file()
    }
    hub.add('me/run', files)
    assert equal(
        *({'params': clip_jax.load(x).variables['params']} for x in ('hf://me/run', tiny_run))
    )
    assert any('checkpoints/12/variables/' in path for path in transfers(hub))
    assert not any('/training/' in x or 'checkpoints/8/' in x for x in transfers(hub))


def test_the_folder_of_orbax_comes_whole_with_the_config_above(hub, tmp_path):  # noqa: F811
    step = 'jax_orbax_weight/checkpoint.npz'
    files = dict(orbax_trees.openvision_files())
    tree = orbax_trees.state(orbax_trees.openvision())
    of_orbax = orbax_trees.files(orbax_trees.save(tmp_path / 'x', tree))
    for number in (8, 12):
        files |= {f'{step}/{number}/default/{k}': v for k, v in of_orbax.items()}
    hub.add('me/openvision', files)
    place = resolve.local('hf://me/openvision/jax_orbax_weight')
    assert {p.name for p in (place.path / 'checkpoint.npz').iterdir()} == {'12'}
    assert not (place.path.parent / WEIGHTS['open_clip']).exists()
    clip = clip_jax.load('hf://me/openvision/jax_orbax_weight')
    assert clip.model.image.image_size == 48
    assert equal(clip.variables, pretrained.read(place.path)[1])
    assert pretrained.find('hf://me/openvision')[1] == 'open_clip'
    with pytest.raises(ValueError, match='the weights have 16, 32 and 24; give the name'):
        pretrained.read('hf://me/openvision/jax_orbax_weight#model=openvision-vit-huge-patch14-84')
    hub.add(
        'me/partial', {k: v for k, v in files.items() if '12/default/ocdbt.process_0/d' not in k}
    )
    with pytest.raises(ValueError, match=r'12/default: \S+ damaged or incomplete'):
        pretrained.read('hf://me/partial/jax_orbax_weight')
