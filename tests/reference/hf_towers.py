"""Small models of transformers' own classes: weights, and what transformers computes."""

import json
import pathlib
import re
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
_BLOCKS = {
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
}
IMAGE_SIZE = 8
_IMAGE = {**_BLOCKS, 'image_size': IMAGE_SIZE, 'patch_size': 4}
_TEXT = {**_BLOCKS, 'vocab_size': 40, 'max_position_embeddings': 5}
# Trained on larger images than its processor makes: positions are interpolated.
_DINO = {**_IMAGE, 'image_size': 20}
del _DINO['intermediate_size']
PROCESSOR = {
    'image_processor_type': 'BitImageProcessor',
    'size': {'shortest_edge': 9},
    'crop_size': {'height': IMAGE_SIZE, 'width': IMAGE_SIZE},
}
# Class -> its config's class and values.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'CLIPVisionModel': ('CLIPVisionConfig', {**_IMAGE, 'hidden_act': 'gelu'}),
    'CLIPVisionModelWithProjection': ('CLIPVisionConfig', {**_IMAGE, 'projection_dim': 6}),
    'CLIPTextModel': ('CLIPTextConfig', {**_TEXT, 'eos_token_id': 2}),
    'CLIPTextModelWithProjection': (
        'CLIPTextConfig',
        {**_TEXT, 'eos_token_id': 39, 'projection_dim': 6},
    ),
    'MetaClip2VisionModelWithProjection': (
        'MetaClip2VisionConfig',
        {**_IMAGE, 'projection_dim': 6},
    ),
    'ChineseCLIPModel': (
        'ChineseCLIPConfig',
        {'vision_config': _IMAGE, 'text_config': _TEXT, 'projection_dim': 6},
    ),
    'Dinov2Model': ('Dinov2Config', {**_DINO, 'mlp_ratio': 2}),
    'Dinov2WithRegistersModel': (
        'Dinov2WithRegistersConfig',
        {**_DINO, 'use_swiglu_ffn': True, 'num_register_tokens': 3},
    ),
    'DINOv3ViTModel': ('DINOv3ViTConfig', {**_IMAGE, 'num_register_tokens': 2}),
    'DINOv3ViTModel:gated': (
        'DINOv3ViTConfig',
        {
            **_IMAGE,
            'num_register_tokens': 4,
            'use_gated_mlp': True,
            'hidden_act': 'silu',
            'query_bias': False,
            'value_bias': False,
        },
    ),
    'SiglipVisionModel': ('SiglipVisionConfig', _IMAGE),
    'SiglipTextModel': ('SiglipTextConfig', {**_TEXT, 'projection_size': 6}),
}
# In the default suite, in the folder of their name.
STORED = (
    'CLIPVisionModel',
    'CLIPTextModelWithProjection',
    'ChineseCLIPModel',
    'Dinov2Model',
    'Dinov2WithRegistersModel',
    'DINOv3ViTModel',
)


def inputs(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images [2, H, W, 3], and two texts of 5 tokens, of which 39 is the last; 0 is padding."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    tokens = rng.integers(3, 39, (2, 5))
    tokens[:, 3], tokens[1, 4] = 39, 0
    return images, tokens.astype(np.int32)


def outputs(model: Any) -> dict[str, np.ndarray]:
    """What a model of transformers computes of `inputs`: the embeddings of its towers, 'image' and
    'text', and of each block, 'image_0', ….
    """
    import torch

    blocks: list[np.ndarray] = []
    for name, module in model.named_modules():
        if re.search(r'(^|\.)layers?\.\d+$', name):
            module.register_forward_hook(
                lambda module, given, x: blocks.append(
                    (x[0] if isinstance(x, tuple) else x).numpy()
                )
            )
    about = model.config
    images, tokens = map(torch.tensor, inputs(IMAGE_SIZE))
    images, tokens = images.permute(0, 3, 1, 2), tokens.long()
    if hasattr(about, 'vision_config'):
        runs = {
            'image': lambda: model.get_image_features(images),
            'text': lambda: model.get_text_features(tokens, attention_mask=tokens != 0),
        }
    elif hasattr(about, 'vocab_size'):
        runs = {'text': lambda: model(tokens)}
    else:
        runs = {'image': lambda: model(images)}
    found = {}
    for tower, run in runs.items():
        with torch.no_grad():
            out = run()
        found[tower] = next(
            x.numpy()
            for x in map(out.get, ('image_embeds', 'text_embeds', 'pooler_output'))
            if x is not None
        )
        found |= {f'{tower}_{i}': x for i, x in enumerate(blocks)}
        blocks.clear()
    return found


def make(name: str) -> Any:
    """A model of transformers with random weights."""
    import torch
    import transformers

    config, values = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name.partition(':')[0])(
        getattr(transformers, config)(**values)
    ).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x))
    return model


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a model with random weights, and what it computes, into a folder."""
    model = make(name)
    model.save_pretrained(folder)
    np.savez_compressed(folder / 'expected.npz', **outputs(model))
    if name.startswith('Dinov2'):
        (folder / 'preprocessor_config.json').write_text(json.dumps(PROCESSOR) + '\n')
    config = json.loads((folder / 'config.json').read_text())
    config.pop('transformers_version')
    (folder / 'config.json').write_text(json.dumps(config, indent=1) + '\n')


if __name__ == '__main__':
    for name in STORED:
        write(FIXTURES / name, name)
