"""Parameters with the names of big_vision and OpenVision, and their checkpoints as Orbax writes
them.
"""

import functools
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load

from clip_jax import convert
from clip_jax.convert import _table, big_vision, open_clip
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip
from support.small_models import TEXT, VIT, made

OPENVISION = {
    'image': {
        **VIT,
        'image_size': 48,
        'pool': 'mean',
        'class_token': True,
        'pre_norm': False,
        'norm_after_pool': True,
        'norm_eps': 1e-6,
    },
    'text': {
        **TEXT,
        'pool': 'last',
        'causal': False,
        'activation': 'gelu_tanh',
        'norm_eps': 1e-6,
    },
    'embed_dim': 20,
}


def sincos(grid: int, width: int) -> np.ndarray:
    """The image positions of OpenVision, with that of its class token."""
    y, x = np.mgrid[:grid, :grid].reshape(2, -1)
    omega = 1 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1))
    parts = [f(np.outer(place, omega)) for place in (x, y) for f in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(parts, 1)]).astype(np.float32)


# As OpenVision writes it.
CONFIG = {
    'model_cfg': {
        'embed_dim': 20,
        'vision_cfg': {
            'image_size': 48,
            'layers': 2,
            'width': 32,
            'patch_size': 16,
            'no_ln_pre': True,
            'pool_type': 'avg',
            'final_ln_after_pool': True,
            'norm_kwargs': {'eps': 1e-06},
            'head_width': 16,
            'mlp_ratio': 52 / 32,
        },
        'text_cfg': {
            'context_length': 9,
            'vocab_size': 60,
            'hf_tokenizer_name': 'bert-base-uncased',
            'tokenizer_kwargs': {'strip_sep_token': True},
            'width': 24,
            'heads': 2,
            'layers': 2,
            'pool_type': 'last',
            'no_causal_mask': True,
            'act_kwargs': {'approximate': 'tanh'},
            'norm_kwargs': {'eps': 1e-06},
            'mlp_ratio': 2.1667,
        },
    },
    'preprocess_cfg': {
        'mean': [0.485, 0.456, 0.406],
        'std': [0.229, 0.224, 0.225],
        'interpolation': 'bilinear',
        'resize_mode': 'squash',
    },
}


def openvision_files() -> dict[str, bytes]:
    """A small model of OpenVision as the files that it publishes for open_clip."""
    return _made()[0]


def openvision_variables() -> dict:
    """Its variables, with image positions that are learned, as open_clip's are."""
    return _made()[1]


@functools.cache
def _made() -> tuple[dict[str, bytes], dict]:
    model = clip.from_card(OPENVISION)
    rng = np.random.default_rng(1)
    flat = {
        name: rng.normal(0, 0.3, x.shape).astype(np.float32)
        for name, x in _table.flat(clip.shapes(model)).items()
    }
    image = OPENVISION['image']
    grid = image['image_size'] // image['patch_size']
    flat['params/image/position_embedding'] = sincos(grid, image['width'])
    variables = unflatten_dict(flat, sep='/')
    preprocess = Preprocess(image['image_size'], resize='squash').card
    card = {'model': clip.to_card(model), 'preprocess': preprocess, 'tokenizer': None}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / 'x'
        convert.write(folder, 'open_clip', card, variables)
        weights = (folder / open_clip.SAFETENSORS).read_bytes()
    config = json.dumps(CONFIG).encode()
    return {open_clip.CONFIG: config, open_clip.SAFETENSORS: weights}, variables


def openvision(*, separate: bool = False) -> dict:
    """The same model as the parameters of OpenVision's JAX program.

    Args:
        separate: whether attention heads have an axis of their own.
    """
    given = load(openvision_files()[open_clip.SAFETENSORS])
    flat = {
        'img/cls': given['visual.class_embedding'][None, None],
        'img/embedding/kernel': given['visual.conv1.weight'].transpose(2, 3, 1, 0),
        'img/encoder_norm/scale': given['visual.ln_post.weight'],
        'img/encoder_norm/bias': given['visual.ln_post.bias'],
        'img/head/kernel': given['visual.proj'],
        'txt/Embed_0/embedding': given['token_embedding.weight'],
        'txt/pos_embedding': given['positional_embedding'][None],
        'txt/encoder_norm/scale': given['ln_final.weight'],
        'txt/encoder_norm/bias': given['ln_final.bias'],
        'txt/head/kernel': given['text_projection'],
        't': given['logit_scale'].reshape(1),
    }
    for tower, start in (('img', 'visual.'), ('txt', '')):
        for i in range(VIT['depth']):
            block = f'{start}transformer.resblocks.{i}.'
            found = {k.removeprefix(block): x for k, x in given.items() if k.startswith(block)}
            flat |= {
                f'{tower}/Transformer/encoderblock_{i}/{k}': x
                for k, x in _block(found, separate).items()
            }
    flat['txt_decoder/head/kernel'] = np.ones((3, 2), np.float32)
    return unflatten_dict(flat, sep='/')


def _block(found: dict, separate: bool) -> dict:
    attention = 'MultiHeadDotProductAttention_0'
    block = {f'{attention}/out/bias': found['attn.out_proj.bias']}
    heads, out = VIT['heads'], found['attn.out_proj.weight'].T
    block[f'{attention}/out/kernel'] = out.reshape(heads, -1, len(out)) if separate else out
    kernels = np.split(found['attn.in_proj_weight'], 3)
    biases = np.split(found['attn.in_proj_bias'], 3)
    for name, kernel, bias in zip(('query', 'key', 'value'), kernels, biases, strict=True):
        shape = (heads, -1) if separate else (-1,)
        block[f'{attention}/{name}/kernel'] = kernel.T.reshape(len(kernel), *shape)
        block[f'{attention}/{name}/bias'] = bias.reshape(shape)
    for i, (norm, layer) in enumerate((('ln_1', 'c_fc'), ('ln_2', 'c_proj'))):
        block[f'LayerNorm_{i}/scale'] = found[f'{norm}.weight']
        block[f'LayerNorm_{i}/bias'] = found[f'{norm}.bias']
        block[f'MlpBlock_0/Dense_{i}/kernel'] = found[f'mlp.{layer}.weight'].T
        block[f'MlpBlock_0/Dense_{i}/bias'] = found[f'mlp.{layer}.bias']
    return block


def siglip() -> dict:
    """The small SigLIP as the parameters of big_vision."""
    card, variables = made('siglip')
    return unflatten_dict(_table.write(list(big_vision.rows(card['model'])), variables), sep='/')


def state(params: dict) -> dict:
    """A train state, as these programs save it."""
    return {'params': params, 'opt': ({'mu': params, 'count': np.int32(7)}, None)}


def save(folder: pathlib.Path, tree: dict, **options) -> pathlib.Path:
    """Writes one item; `options` are those of Orbax's handler."""
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    checkpointer.save(folder, tree)
    checkpointer.close()
    return folder


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of a folder by their path in it."""
    found = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def save_as_big_vision(folder: pathlib.Path, tree: dict) -> pathlib.Path:
    """Writes a train state as big_vision's training does, without Orbax."""
    from jax.experimental.array_serialization import serialization

    arrays = _table.flat(tree)
    paths = [str(folder / name.replace('/', '~')) for name in arrays]
    manager = serialization.GlobalAsyncCheckpointManager()
    manager.serialize_with_paths(
        [*map(jnp.asarray, arrays.values())], paths, on_commit_callback=lambda: None
    )
    manager.wait_until_finished()
    return folder
