"""Weights as people have them: prefixes, training checkpoints, pointers, odd dtypes, no config."""

import json
import os
import pathlib
import stat
import subprocess

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import torch_writer as torch
from support.layouts import edit, equal, written
from support.small_models import made

import clip_jax
from clip_jax import convert
from clip_jax.convert import _files, _torch_file, big_vision, huggingface, open_clip

BIN = 'open_clip_pytorch_model.bin'


def weights(tmp_path, name='clip', layout='open_clip') -> tuple[pathlib.Path, dict]:
    """A folder of a small model, and its arrays by name."""
    path = written(tmp_path, layout, name)
    (file,) = path.glob('*.safetensors')
    return path, load_file(file)


def as_torch(path: pathlib.Path, make) -> pathlib.Path:
    """Replaces the weights of a folder by a torch file of what `make` returns of storages."""
    (path / open_clip.SAFETENSORS).unlink()
    storages = torch.Storages('cuda:0')
    return torch.write_zip(path / BIN, make(storages), storages)


# Prefixes and wrappers.

PREFIXES = ['module.', '_orig_mod.', 'model.', 'module._orig_mod.', '_orig_mod.module.model.']


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('container', ['safetensors', 'torch', 'index'])
def test_prefixes_of_wrappers_are_left_out(tmp_path, prefix, container):
    path, arrays = weights(tmp_path)
    arrays = {prefix + name: x for name, x in arrays.items()}
    if container == 'torch':
        as_torch(path, lambda s: torch.state_dict(arrays, s))
    else:
        save_file(arrays, path / open_clip.SAFETENSORS)
    if container == 'index':
        (path / open_clip.SAFETENSORS).rename(path / 'part.safetensors')
        index = {'weight_map': dict.fromkeys(arrays, 'part.safetensors')}
        (path / 'open_clip_model.safetensors.index.json').write_text(json.dumps(index))
    assert convert.layout_of(path) == 'open_clip'
    assert equal(convert.read(path)[1], made('clip')[1])


def test_a_prefix_of_some_names_stays(tmp_path):
    path, arrays = weights(tmp_path)
    save_file({**arrays, 'module.more': np.zeros(3)}, path / open_clip.SAFETENSORS)
    with pytest.raises(ValueError, match=r'1 unknown: module\.more'):
        convert.read(path)


WRAPPERS = {
    'state_dict': lambda x: {'epoch': 3, 'state_dict': x},
    'model': lambda x: {'model': x, 'args': None},
    'model_state_dict': lambda x: {'model_state_dict': x, 'loss': 0.5},
    'module': lambda x: {'module': x},
    'one in another': lambda x: {'model': {'state_dict': x, 'name': 'ViT'}, 'step': 7},
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers_of_state_dicts(tmp_path, wrapper):
    path, arrays = weights(tmp_path)
    as_torch(path, lambda s: WRAPPERS[wrapper](torch.state_dict(arrays, s)))
    assert equal(convert.read(path)[1], made('clip')[1])


# What training scripts save beside the weights: nothing of it is imported, called or run.


def new(module: str, name: str, state) -> torch.Raw:
    """An object as Python pickles it: made without its constructor, then given its attributes."""
    return torch.Raw(torch.name(module, name) + b')\x81' + torch.value(state) + b'b')


def numpy_scalar(module='numpy.core.multiarray') -> torch.Raw:
    dtype = torch.call(torch.name('numpy', 'dtype'), 'f8', False, True)
    state = torch.value((3, '<', None, None, None, -1, -1, 0))
    text = torch.call(torch.name('_codecs', 'encode'), '\0\0\0\0\0\0\0@', 'latin1')
    return torch.call(torch.name(module, 'scalar'), torch.Raw(dtype + state + b'b'), text)


BESIDE = {
    'a NumPy scalar': numpy_scalar(),
    'a scalar of NumPy 2': numpy_scalar('numpy._core.multiarray'),
    'arguments': new('argparse', 'Namespace', {'lr': 1e-3, 'model': 'ViT-B-32'}),
    'a defaultdict': torch.Raw(
        torch.call(torch.name('collections', 'defaultdict'), torch.name('__builtin__', 'list'))
        + b'('
        + torch.value('loss')
        + torch.value([0.5, 0.25])
        + b'u'
    ),
    'an OrderedDict with attributes': torch.Raw(
        torch.ORDERED_DICT + torch.value({'_metadata': {}, 'more': 1}) + b'b'
    ),
    'None': None,
    'a number': 0.5,
    'a set': torch.call(torch.name('__builtin__', 'set'), [1, 2]),
    'a path': torch.call(torch.name('pathlib', 'PosixPath'), '/', 'data'),
    'a method': torch.call(torch.name('__builtin__', 'getattr'), {}, 'get'),
    'a class of the script': new('__main__', 'Trainer', {'step': 3}),
    'a list of its own class': torch.Raw(
        torch.name('omegaconf', 'ListConfig') + b')\x81(' + torch.value(1) + b'e'
    ),
    'a dict of its own class': torch.Raw(
        torch.name('omegaconf', 'DictConfig') + b')\x81(' + torch.value('a') + torch.value(1) + b'u'
    ),
    'a number type': torch.name('torch', 'float16'),
    'numbers as keys': {0.5: 1, None: 2, (1, 2): 3},
    'bytes': torch.Raw(b'C\x03abc'),
    'an empty set of protocol 4': torch.Raw(b'\x8f(' + torch.value(1) + b'\x90'),
    'a large number': torch.Raw(b'\x8b\x09\0\0\0' + bytes(8) + b'\x01'),
}


@pytest.mark.parametrize('kind', BESIDE)
def test_what_lies_beside_the_weights_is_skipped(tmp_path, kind):
    path, arrays = weights(tmp_path)

    def make(s):
        moments = {0: {'step': numpy_scalar(), 'exp_avg': s.tensor(np.zeros(3, np.float32))}}
        optimizer = {'state': moments, 'param_groups': [{'lr': 1e-3, 'params': [0]}]}
        return {'x': BESIDE[kind], 'state_dict': torch.state_dict(arrays, s), 'opt': optimizer}

    as_torch(path, make)
    assert equal(convert.read(path)[1], made('clip')[1])


@pytest.mark.parametrize('kind', ['a NumPy scalar', 'arguments', 'a defaultdict', 'None'])
def test_harmless_values_may_lie_between_the_weights(tmp_path, kind):
    path, arrays = weights(tmp_path)
    as_torch(path, lambda s: {'epoch': BESIDE[kind], **torch.state_dict(arrays, s)})
    assert equal(convert.read(path)[1], made('clip')[1])


FUNCTIONS = [('os', 'system'), ('posix', 'system'), ('subprocess', 'Popen'), ('builtins', 'eval')]


@pytest.mark.parametrize('place', ['beside', 'between', 'attributes'])
@pytest.mark.parametrize(('module', 'name'), FUNCTIONS)
def test_nothing_is_ever_called(tmp_path, monkeypatch, module, name, place):
    def called(*_, **__):
        raise AssertionError('it was called')

    for target, attribute in ((os, 'system'), (subprocess, 'Popen'), (subprocess, 'run')):
        monkeypatch.setattr(target, attribute, called)
    path, arrays = weights(tmp_path)
    proof = tmp_path / 'proof'
    command = f'open({str(proof)!r}, "w")' if name == 'eval' else f'touch {proof}'
    evil = torch.call(torch.name(module, name), command)
    if place == 'attributes':  # as __setstate__ and __reduce__ of a class would get them
        evil = torch.Raw(evil + torch.value({'shell': True}) + b'b')
    if place == 'between':
        file = as_torch(path, lambda s: {'x': evil, **torch.state_dict(arrays, s)})
        with pytest.raises(ValueError, match=rf'names {module}\.{name}, which files of tensors'):
            _torch_file.state_dict(file)
    else:
        as_torch(path, lambda s: {'x': evil, 'state_dict': torch.state_dict(arrays, s)})
        assert equal(convert.read(path)[1], made('clip')[1])
    assert not proof.exists()


def test_a_module_that_was_saved_as_a_whole(tmp_path):
    path, _ = weights(tmp_path)
    as_torch(path, lambda s: {'model': new('open_clip.model', 'CLIP', {'training': False})})
    with pytest.raises(ValueError, match=r'names open_clip\.model\.CLIP.*state_dict\(\), FILE'):
        convert.read(path)


# Weights that do not fit their config, or have none.


def test_a_plain_model_of_open_clip_may_have_siglips_bias(tmp_path):
    path, arrays = weights(tmp_path)
    save_file({**arrays, 'logit_bias': np.array(-9.5, np.float32)}, path / open_clip.SAFETENSORS)
    card, variables = convert.read(path)
    assert card['model']['init_logit_bias'] == -10
    assert variables['params']['logit_bias'] == np.float32(-9.5)
    clip = clip_jax.load(path)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert np.asarray(clip.encode_image(images)).shape == (2, 20)


@pytest.mark.parametrize(
    ('layout', 'name', 'config', 'section', 'key'),
    [
        ('open_clip', 'clip', open_clip.CONFIG, 'vision_cfg', 'vision_cfg.image_size'),
        ('open_clip', 'resnet', open_clip.CONFIG, 'vision_cfg', 'vision_cfg.image_size'),
        ('open_clip', 'clipa', open_clip.CONFIG, 'vision_cfg', 'vision_cfg.image_size'),
        ('huggingface', 'clip', huggingface.CONFIG, 'vision_config', 'vision_config.image_size'),
        ('huggingface', 'siglip', huggingface.CONFIG, 'vision_config', 'vision_config.image_size'),
    ],
)
def test_weights_of_another_image_size_name_both(tmp_path, layout, name, config, section, key):
    path = written(tmp_path, layout, name)
    size = made(name)[0]['model']['image']['image_size']
    edit(path / config, lambda c: c.get('model_cfg', c)[section].update(image_size=2 * size))
    message = rf'for images of {size} pixels .*, but {key} is {2 * size}; set it to {size}'
    with pytest.raises(ValueError, match=message):
        clip_jax.load(path)


POINTER = (
    'version https://git-lfs.github.com/spec/v1\n'
    'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n'
)


@pytest.mark.parametrize(
    ('layout', 'name', 'file'),
    [
        ('open_clip', 'clip', open_clip.SAFETENSORS),
        ('open_clip', 'clip', open_clip.CONFIG),
        ('huggingface', 'clip', huggingface.SAFETENSORS),
        ('huggingface', 'clip', huggingface.CONFIG),
        ('big_vision', 'siglip', big_vision.FILE),
    ],
)
def test_pointers_of_git_lfs_are_named(tmp_path, layout, name, file):
    path = written(tmp_path, layout, name)
    (path / file).write_text(POINTER)
    for given in (path, path / file):
        with pytest.raises(ValueError, match=rf'{file}: only a pointer of Git LFS.*git lfs pull'):
            clip_jax.load(given)


def test_a_pointer_alone_is_named(tmp_path):
    (tmp_path / 'ViT-B-32.pt').write_text(POINTER)
    with pytest.raises(ValueError, match='only a pointer of Git LFS'):
        clip_jax.load(tmp_path / 'ViT-B-32.pt')


@pytest.mark.parametrize(
    ('dtype', 'shown'),
    [
        (ml_dtypes.float8_e4m3fn, 'float8_e4m3fn'),
        (ml_dtypes.float8_e5m2, 'float8_e5m2'),
        (np.int8, 'int8'),
    ],
)
def test_quantized_weights_say_what_to_do(tmp_path, dtype, shown):
    path, arrays = weights(tmp_path)
    save_file({n: x.astype(dtype) for n, x in arrays.items()}, path / open_clip.SAFETENSORS)
    message = rf'of a dtype other than float32, .*: .* is {shown}.*Quantized weights are not read'
    with pytest.raises(ValueError, match=message):
        convert.read(path)


def test_a_dtype_that_numpy_does_not_have_is_named(tmp_path):
    path, arrays = weights(tmp_path)
    header, data = {}, b''
    for name, x in arrays.items():
        header[name] = {
            'dtype': 'F8_E8M0' if name == 'ln_final.bias' else 'F32',
            'shape': list(x.shape),
            'data_offsets': [len(data), len(data) + x.nbytes],
        }
        data += x.tobytes()
    x = arrays['ln_final.bias']
    header['ln_final.bias']['shape'] = [x.nbytes]
    text = json.dumps(header).encode()
    file = path / open_clip.SAFETENSORS
    file.write_bytes(len(text).to_bytes(8, 'little') + text + data)
    with pytest.raises(ValueError, match=r'ln_final\.bias is F8_E8M0'):
        convert.read(path)


def test_eight_bits_of_torch_are_named(tmp_path):
    path, arrays = weights(tmp_path)

    def make(s):
        storage = s.storage(np.zeros(24, np.float32), type=UNTYPED, count=96)
        kind = torch.name('torch', 'float8_e4m3fn')
        rebuild = torch.name('torch._utils', '_rebuild_tensor_v3')
        none = torch.ORDERED_DICT
        tensor = torch.call(rebuild, storage, 0, (24,), (1,), False, none, kind)
        return {**torch.state_dict(arrays, s), 'ln_final.bias': tensor}

    as_torch(path, make)
    with pytest.raises(ValueError, match=r'ln_final\.bias is float8_e4m3fn'):
        convert.read(path)


UNTYPED = torch.name('torch.storage', 'UntypedStorage')


@pytest.mark.parametrize(
    ('layout', 'config'),
    [('open_clip', open_clip.CONFIG), ('huggingface', huggingface.CONFIG)],
)
@pytest.mark.parametrize('container', ['safetensors', 'torch'])
def test_weights_without_their_config_say_which(tmp_path, layout, config, container):
    path, arrays = weights(tmp_path, layout=layout)
    (path / config).unlink()
    (file,) = path.glob('*.safetensors')
    if container == 'torch':
        file.unlink()
        file, storages = path / 'epoch_5.pt', torch.Storages()
        root = {'epoch': 5, 'state_dict': torch.state_dict(arrays, storages)}
        torch.write_zip(file, root, storages)
    for given in (path, file):
        message = rf'{file.name} holds weights .*which need its {config}: put it into the same'
        with pytest.raises(ValueError, match=message):
            clip_jax.load(given)


def test_weights_of_another_name_beside_their_config_are_pointed_at(tmp_path):
    path, _ = weights(tmp_path)
    (path / open_clip.SAFETENSORS).rename(path / 'epoch_5.safetensors')
    message = r'open_clip_config\.json is there; give the path of the weights, .*epoch_5'
    with pytest.raises(ValueError, match=message):
        clip_jax.load(path)
    assert equal(convert.read(path / 'epoch_5.safetensors')[1], made('clip')[1])


def test_a_damaged_file_of_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'\x08\0\0\0\0\0\0\0{')
    with pytest.raises(ValueError, match=r'x\.safetensors: damaged, or no safetensors file'):
        clip_jax.load(tmp_path / 'x.safetensors')


# Exported files.


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface', 'big_vision'])
@pytest.mark.parametrize('mask', [0o022, 0o027, 0o077])
def test_exported_files_have_the_mode_that_the_umask_gives(tmp_path, layout, mask):
    before = os.umask(mask)
    try:
        name = 'siglip' if layout == 'big_vision' else 'clip'
        convert.write(tmp_path / 'x', layout, *made(name))
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / 'x').iterdir()}
    assert modes == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / 'x').stat().st_mode) == 0o777 & ~mask


def test_names_are_not_shortened_to_nothing():
    assert _files.unprefixed({}) == {}
    array = object()
    assert _files.unprefixed({'module.': array}) == {'': array}
