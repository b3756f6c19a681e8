"""Checkpoints that real training scripts save with PyTorch are read; whole modules are not.

`pip install -e '.[reference]'` installs PyTorch, and `pytest -m reference` runs these tests.
"""

import argparse
import collections
import pathlib
import random

import numpy as np
import pytest
from support.layouts import equal, written
from support.small_models import made

from clip_jax import convert
from clip_jax.convert import open_clip

pytestmark = pytest.mark.reference

BIN = 'open_clip_pytorch_model.bin'


class Config(dict):
    """A class of a training script."""


@pytest.fixture
def torch():
    return pytest.importorskip('torch', reason='PyTorch is not installed')


def trained(torch, parameters: dict) -> tuple:
    """An optimizer and a schedule after a step, as a script has them."""
    parameters = [torch.nn.Parameter(x.clone()) for x in parameters.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    sum(x.sum() for x in parameters).backward()
    optimizer.step()
    schedule.step()
    return optimizer, schedule


def beside(torch, parameters: dict) -> dict:
    optimizer, schedule = trained(torch, parameters)
    return {
        'epoch': np.int64(3),
        'best': np.float64(0.5),
        'loss': 0.25,
        'none': None,
        'history': collections.defaultdict(list, train=[np.float32(1), 2.0]),
        'counts': collections.Counter('abca'),
        'args': argparse.Namespace(model='ViT-B-32', lr=1e-3, path=pathlib.Path('/data')),
        'config': Config(a=1),
        'optimizer': optimizer.state_dict(),
        'scheduler': schedule.state_dict(),
        'schedule_itself': schedule,
        'rng': [torch.get_rng_state(), np.random.get_state(), random.getstate()],  # noqa: NPY002
        'array': np.arange(5),
        'dtype': torch.bfloat16,
        'device': torch.device('cpu'),
        'set': {1, 2},
        'sparse': torch.eye(3).to_sparse(),
        'complex': torch.zeros(3, dtype=torch.complex64),
    }


@pytest.fixture
def folder(torch, tmp_path):
    """A folder of open_clip, and its state dict."""
    from safetensors.torch import load_file

    path = written(tmp_path, 'open_clip', 'clip')
    state = load_file(path / open_clip.SAFETENSORS)
    (path / open_clip.SAFETENSORS).unlink()
    return path, state


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'model_state_dict', 'module'])
@pytest.mark.parametrize('options', [{}, {'pickle_protocol': 4}, {'pickle_protocol': 5}], ids=str)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_training_checkpoints(torch, folder, wrapper, options, zipped):
    path, state = folder
    model = collections.OrderedDict((f'module._orig_mod.{n}', x) for n, x in state.items())
    content = {wrapper: model, **beside(torch, state)}
    if not zipped:
        del content['complex'], content['sparse']
    torch.save(content, path / BIN, _use_new_zipfile_serialization=zipped, **options)
    assert equal(convert.read(path)[1], made('clip')[1])


def test_numbers_between_the_weights(torch, folder):
    path, state = folder
    torch.save({**state, 'epoch': np.int64(3), 'args': argparse.Namespace(a=1)}, path / BIN)
    assert equal(convert.read(path)[1], made('clip')[1])


def tower(torch, state):
    """A module whose state dict has the names of open_clip."""
    module = torch.nn.Module()
    for name, x in state.items():
        place = module
        *parents, last = name.split('.')
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_parameter(last, torch.nn.Parameter(x.clone()))
    return module


def test_compiled_and_parallel_modules(torch, folder):
    path, state = folder
    module = torch.nn.DataParallel(torch.compile(tower(torch, state)))
    assert next(iter(module.state_dict())).startswith('module._orig_mod.')
    torch.save({'model': module.state_dict()}, path / BIN)
    assert equal(convert.read(path)[1], made('clip')[1])


def test_whole_modules_are_refused(torch, folder):
    path, state = folder
    torch.save(tower(torch, state), path / BIN)
    with pytest.raises(ValueError, match=r'Module.*torch\.save\(model\.state_dict\(\), FILE\)'):
        convert.read(path)
    torch.save({'model': tower(torch, state)}, path / BIN)
    with pytest.raises(ValueError, match=r'Module.*torch\.save\(model\.state_dict\(\), FILE\)'):
        convert.read(path)


@pytest.mark.parametrize('name', ['float8_e4m3fn', 'float8_e5m2', 'int8', 'uint16'])
def test_quantized_tensors_are_named(torch, folder, name):
    path, state = folder
    dtype = getattr(torch, name)
    torch.save({n: x.to(dtype) if x.ndim > 1 else x for n, x in state.items()}, path / BIN)
    with pytest.raises(ValueError, match=rf'is {name}.*Quantized weights are not read'):
        convert.read(path)


def test_weights_of_half_precision_and_views_of_one_buffer(torch, folder):
    path, state = folder
    flat = torch.cat([x.flatten() for x in state.values()])
    sizes = [x.numel() for x in state.values()]
    views = {
        n: part.view(x.shape) for (n, x), part in zip(state.items(), flat.split(sizes), strict=True)
    }
    torch.save(views, path / BIN)
    assert equal(convert.read(path)[1], made('clip')[1])
