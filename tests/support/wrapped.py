"""What programs that train put around and beside weights, in one file."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]


def prefixed(arrays: Arrays, prefix: str) -> dict[str, Any]:
    return {f'{prefix}{name}': x for name, x in arrays.items()}


def others(arrays: Arrays, array: Callable, prefix: str = '') -> dict[str, Any]:
    """Other weights with the same names, as of a moving average."""
    return {f'{prefix}{name}': array(np.zeros(2, np.float32)) for name in arrays}


def inside(arrays: Arrays, layer: str) -> dict[str, Any]:
    """Names of a model of which single layers are wrapped, as by FSDP and torch.compile."""
    return {name.replace('.', f'.{layer}.', 1): x for name, x in arrays.items()}


Flat = Callable[[Arrays, Callable], dict[str, Any]]
# Flat files, which safetensors hold as well: the weights as `arrays`, and what makes an array.
FLAT: dict[str, Flat] = {
    'nothing': lambda x, array: {**x},
    **{
        prefix: functools.partial(lambda prefix, x, array: prefixed(x, prefix), prefix)
        for prefix in ('module.', '_orig_mod.', 'model.', 'state_dict.', 'module._orig_mod.model.')
    },
    'counts': lambda x, array: {
        **prefixed(x, 'module.'),
        'epoch': array(np.int64(3)),
        'step': array(np.float32(3)),
        'global_step': array(np.int64(3)),
    },
    'AveragedModel of torch': lambda x, array: {
        **prefixed(x, 'module.'),
        'n_averaged': array(np.int64(9)),
    },
    'average beside': lambda x, array: {**x, **others(x, array, 'ema.')},
    'timm': lambda x, array: {
        **prefixed(x, 'state_dict.'),
        **others(x, array, 'state_dict_ema.'),
    },
    'ema_pytorch': lambda x, array: {
        **prefixed(x, 'online_model.'),
        **others(x, array, 'ema_model.'),
        'initted': array(np.float32(1)),
        'step': array(np.int64(3)),
    },
    'ema_pytorch alone': lambda x, array: {
        **prefixed(x, 'ema_model.'),
        'initted': array(np.float32(1)),
        'step': array(np.int64(3)),
    },
    'layers of torch.compile': lambda x, array: inside(x, '_orig_mod'),
    'layers of FSDP': lambda x, array: prefixed(
        inside(x, '_fsdp_wrapped_module'), '_fsdp_wrapped_module.'
    ),
    'activation checkpoints': lambda x, array: inside(x, '_checkpoint_wrapped_module'),
    'optimizer beside': lambda x, array: {
        **prefixed(x, 'model.'),
        'optimizer.state.0.exp_avg': array(np.zeros(2, np.float32)),
    },
}
# Files of torch.save alone.
NESTED: dict[str, Flat] = {
    'open_clip': lambda x, array: {
        'epoch': 3,
        'name': 'run',
        'state_dict': prefixed(x, 'module.'),
        'optimizer': {'state': {0: {'exp_avg': array(np.zeros(2, np.float32))}}},
    },
    'timm': lambda x, array: {
        'epoch': 3,
        'arch': 'vit',
        'state_dict': {**x},
        'state_dict_ema': others(x, array),
        'metric': 0.5,
    },
    'average alone': lambda x, array: {'epoch': 3, 'model_ema': prefixed(x, 'module.')},
    'average in the model': lambda x, array: {'model': {**x, 'ema': others(x, array)}},
    'Lightning': lambda x, array: {
        'epoch': 3,
        'global_step': 30,
        'pytorch-lightning_version': '2.4.0',
        'state_dict': prefixed(x, 'model.'),
        'loops': {'fit_loop': {'state_dict': {}}},
        'callbacks': {},
        'optimizer_states': [{'state': {0: {'step': array(np.float32(3))}}}],
        'lr_schedulers': [{'last_epoch': 3}],
        'hparams_name': 'kwargs',
        'hyper_parameters': {'lr': 0.1, 'model': 'ViT-L-14'},
    },
    'DeepSpeed': lambda x, array: {
        'module': prefixed(x, '_orig_mod.'),
        'buffer_names': [],
        'optimizer': None,
        'param_shapes': [dict.fromkeys(x, (2, 3))],
        'lr_scheduler': None,
        'ds_config': {'zero_optimization': {'stage': 1}},
        'global_steps': 30,
        'dp_world_size': 8,
    },
}
