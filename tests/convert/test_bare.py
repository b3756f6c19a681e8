"""Weights without a settings file, read as a named architecture."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save_file
from support import torch_writer
from support.layouts import equal, exported
from support.small_models import made

from clip_jax import pretrained
from clip_jax.models import presets

NAME = 'ViT-L-14'


@pytest.fixture
def arrays(monkeypatch):
    """The weights of a small model, which has the name of a large one."""
    card, _ = made('clip')
    monkeypatch.setattr(presets, 'architecture', lambda name: json.loads(json.dumps(card['model'])))
    return load(exported('open_clip', 'clip')['open_clip_model.safetensors'])


def wrapped(arrays, prefix):
    return {f'{prefix}{name}': x for name, x in arrays.items()}


TRAINING = {
    'epoch': np.int64(3),
    'n_averaged': np.int64(9),
    'ema.visual.conv1.weight': np.zeros((2, 2), np.float32),
}


@pytest.mark.parametrize('kind', ['safetensors', 'torch'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'model.', 'module._orig_mod.'])
def test_prefixes_averages_and_counts_are_left_out(kind, prefix, arrays, tmp_path):
    content = {**wrapped(arrays, prefix), **{k: np.asarray(v) for k, v in TRAINING.items()}}
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pt')
    if kind == 'safetensors':
        save_file(content, path)
    else:
        storages = torch_writer.Storages()
        torch_writer.write_zip(path, torch_writer.state_dict(content, storages), storages)
    card, variables = pretrained.read(f'{path}#model={NAME}')
    assert equal(variables, made('clip')[1])
    assert card['preprocess']['size'] == card['model']['image']['image_size']
    assert equal(pretrained.load(path, model=NAME).variables, variables)


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
