"""Weights without a settings file, read as a named architecture."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save_file
from support import torch_writer, wrapped
from support.layouts import equal, exported
from support.small_models import made

from clip_jax import pretrained
from clip_jax.cli import main
from clip_jax.convert import _files, bare
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import presets

NAME = 'ViT-L-14'


@pytest.fixture
def arrays(monkeypatch):
    """The weights of a small model, which has the name of a large one."""
    card, _ = made('clip')
    monkeypatch.setattr(presets, 'architecture', lambda name: json.loads(json.dumps(card['model'])))
    return load(exported('open_clip', 'clip')['open_clip_model.safetensors'])


def same(found, expected):
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name].read(), x) for name, x in expected.items()
    )


@pytest.mark.parametrize('kind', ['safetensors', 'torch'])
@pytest.mark.parametrize('name', wrapped.FLAT)
def test_only_the_weights_are_read(kind, name, arrays, tmp_path):
    content = wrapped.FLAT[name](arrays, np.asarray)
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pt')
    if kind == 'safetensors':
        save_file(content, path)
    else:
        storages = torch_writer.Storages()
        torch_writer.write_zip(path, torch_writer.state_dict(content, storages), storages)
    assert same(_files.arrays(path), arrays)


@pytest.mark.parametrize('name', wrapped.NESTED)
def test_only_the_model_of_a_training_checkpoint_is_read(name, arrays, tmp_path):
    storages = torch_writer.Storages()
    tensors = {key: storages.tensor(x) for key, x in arrays.items()}
    content = wrapped.NESTED[name](tensors, storages.tensor)
    torch_writer.write_zip(tmp_path / 'x.pt', content, storages)
    assert same(_files.arrays(tmp_path / 'x.pt'), arrays)


def test_a_name_given_as_an_argument(arrays, tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file(wrapped.FLAT['counts'](arrays, np.asarray), path)
    card, variables = pretrained.read(f'{path}#model={NAME}')
    assert equal(variables, made('clip')[1])
    assert card['preprocess']['size'] == card['model']['image']['image_size']
    assert equal(pretrained.load(path, model=NAME).variables, variables)


@pytest.mark.parametrize('name', ['timm', 'counts'])
def test_beside_a_config_too(name, tmp_path):
    files = exported('open_clip', 'clip')
    (tmp_path / 'open_clip_config.json').write_bytes(files['open_clip_config.json'])
    weights = load(files['open_clip_model.safetensors'])
    save_file(wrapped.FLAT[name](weights, np.asarray), tmp_path / 'mine.safetensors')
    assert equal(pretrained.read(tmp_path / 'mine.safetensors')[1], made('clip')[1])


def test_weights_of_another_kind_are_one_line(arrays, tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file({'vision_model.a': np.zeros(2, np.float32)}, path)
    with pytest.raises(ValueError, match=r"are named vision_model\.a; .*'visual\.conv1\.weight'"):
        pretrained.read(f'{path}#model={NAME}')
    save_file({k: x for k, x in arrays.items() if k != 'ln_final.weight'}, path)
    with pytest.raises(ValueError, match=rf'as {NAME}: .*ln_final\.weight'):
        pretrained.read(f'{path}#model={NAME}')
    with pytest.raises(ValueError, match='no file; expected one file of weights'):
        pretrained.read(f'{tmp_path}#model={NAME}')


def test_an_unknown_architecture_suggests_the_nearest(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file({'visual.a': np.zeros(2, np.float32)}, path)
    with pytest.raises(ValueError, match="Did you mean 'ViT-L-14'"):
        pretrained.read(f'{path}#model=ViT-L14')


@pytest.mark.parametrize(
    ('name', 'mean', 'resize', 'interpolation'),
    [
        ('ViT-L-14', 0.48145466, 'shortest', 'bicubic'),
        ('ViT-B-16-SigLIP', 0.5, 'squash', 'bicubic'),
        ('PE-Core-B-16', 0.5, 'squash', 'bilinear'),
        ('ViT-L-14-CLIPA-336', 0.485, 'squash', 'bilinear'),
        ('MobileCLIP-B', 0.0, 'shortest', 'bilinear'),
        ('MobileCLIP2-L-14', 0.48145466, 'shortest', 'bicubic'),
    ],
)
def test_the_name_says_how_images_are_prepared(name, mean, resize, interpolation):
    found = Preprocess.from_card({'size': 224, **bare.preprocessing(name)})
    assert (found.mean[0], found.resize, found.interpolation) == (mean, resize, interpolation)


@pytest.mark.reference
def test_open_clip_prepares_images_so():
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    checked, others = 0, set()
    for name in presets.names():
        tags = open_clip.list_pretrained_tags_by_model(name)
        configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        found = Preprocess.from_card({'size': 224, **bare.preprocessing(name)})
        for config in configs:
            how = (found.interpolation, found.resize, *found.mean, *found.std)
            theirs = config['interpolation'], config['resize_mode'], *config['mean'], *config['std']
            if how != theirs:
                others.add((name, config['hf_hub'].split('/')[1]))
            checked += 1
    assert checked > 150
    # These weights were trained with other images than others of their architecture.
    assert others == {
        ('ViT-L-14', 'CLIP-ViT-L-14-laion2B-s32B-b82K'),
        ('ViT-H-14', 'DFN5B-CLIP-ViT-H-14'),
        ('ViT-H-14-quickgelu', 'DFN5B-CLIP-ViT-H-14'),
    }


@pytest.mark.parametrize('flag', [f'#model={NAME}', f' --model-name={NAME}'])
def test_a_name_on_the_command_line(flag, arrays, tmp_path):
    path, folder = tmp_path / 'x.safetensors', tmp_path / 'converted'
    save_file(arrays, path)
    with pytest.raises(SystemExit) as end:
        main.main(['convert', *f'{path}{flag}'.split(), str(folder), '--layout=open_clip'])
    assert end.value.code == 0
    assert equal(pretrained.read(folder)[1], made('clip')[1])
