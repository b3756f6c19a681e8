"""Weights that the wrappers of PyTorch and timm save are read without what they add.

`pip install -e '.[reference]'` installs PyTorch and timm, and `pytest -m reference` runs these
tests.
"""

import argparse

import numpy as np
import pytest
from safetensors.numpy import load
from support import wrapped
from support.layouts import exported

from clip_jax.convert import _files

pytestmark = pytest.mark.reference


@pytest.fixture
def torch():
    return pytest.importorskip('torch', reason='PyTorch is not installed')


@pytest.fixture
def arrays():
    return load(exported('open_clip', 'clip')['open_clip_model.safetensors'])


def same(path, arrays):
    found = _files.arrays(path)
    return found.keys() == arrays.keys() and all(
        np.array_equal(found[name].read(), x) for name, x in arrays.items()
    )


@pytest.mark.parametrize('kind', ['torch', 'safetensors', 'legacy'])
@pytest.mark.parametrize('name', wrapped.FLAT)
def test_flat_files(name, kind, torch, arrays, tmp_path):
    from safetensors.torch import save_file

    tensors = {key: torch.from_numpy(x) for key, x in arrays.items()}
    content = wrapped.FLAT[name](tensors, torch.as_tensor)
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pt')
    if kind == 'safetensors':
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == 'torch')
    assert same(path, arrays)


@pytest.mark.parametrize('name', wrapped.NESTED)
def test_training_checkpoints(name, torch, arrays, tmp_path):
    tensors = {key: torch.from_numpy(x) for key, x in arrays.items()}
    content = wrapped.NESTED[name](tensors, torch.as_tensor)
    content['args'] = argparse.Namespace(lr=0.1)
    content['param_shapes'] = [{key: x.shape for key, x in tensors.items()}]
    torch.save(content, tmp_path / 'x.pt')
    assert same(tmp_path / 'x.pt', arrays)


def model(torch, arrays):
    """A module with these parameters, whose state dict has their names."""
    root = torch.nn.Module()
    for name, array in arrays.items():
        *parents, last = name.split('.')
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_parameter(last, torch.nn.Parameter(torch.from_numpy(array.copy())))
    return root


def averaged_by_timm(module):
    utils = pytest.importorskip('timm.utils', reason='timm is not installed')
    return utils.ModelEmaV2(module)


def wrappers(torch):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def layers(module, wrap):
        module.visual = wrap(module.visual)
        return module

    return {
        'DataParallel': torch.nn.DataParallel,
        'AveragedModel': torch.optim.swa_utils.AveragedModel,
        'compile': torch.compile,
        'DataParallel of compile': lambda x: torch.nn.DataParallel(torch.compile(x)),
        'compile of DataParallel': lambda x: torch.compile(torch.nn.DataParallel(x)),
        'compiled layers': lambda x: layers(x, torch.compile),
        'checkpointed layers': lambda x: layers(x, checkpoint_wrapper),
        'timm': averaged_by_timm,
    }


NAMES = ['DataParallel', 'AveragedModel', 'compile', 'DataParallel of compile']
NAMES += ['compile of DataParallel', 'compiled layers', 'checkpointed layers', 'timm']


@pytest.mark.parametrize('name', NAMES)
def test_real_wrappers(name, torch, arrays, tmp_path):
    module = wrappers(torch)[name](model(torch, arrays))
    torch.save(module.state_dict(), tmp_path / 'x.pt')
    assert same(tmp_path / 'x.pt', arrays)
