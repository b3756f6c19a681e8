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
_SQUARE = {'height': IMAGE_SIZE, 'width': IMAGE_SIZE}
# The beginning of a class -> its image processor.
PROCESSORS = {
    'Dinov2': {
        'image_processor_type': 'BitImageProcessor',
        'size': {'shortest_edge': 9},
        'crop_size': _SQUARE,
    },
    'Tipsv2': {'image_processor_type': 'Tipsv2ImageProcessor', 'size': _SQUARE},
}
# Of TIPS v2 a file may lack the temperature; what masks patches in pretraining is not read.
OPTIONAL = ('temperature', 'mask_token')
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
    'Tipsv2Model': (
        'Tipsv2Config',
        {'vision_config': {**_DINO, 'mlp_ratio': 2.5}, 'text_config': _TEXT},
    ),
    'Tipsv2Model:gated': (
        'Tipsv2Config',
        {
            'vision_config': {**_DINO, 'use_swiglu_ffn': True, 'num_register_tokens': 2},
            'text_config': {**_TEXT, 'layer_norm_eps': 1e-4},
            'temperature_init_value': 0.02,
        },
    ),
    'Tipsv2VisionModel': ('Tipsv2VisionConfig', {**_DINO, 'mlp_ratio': 1.5}),
    'Tipsv2TextModel': ('Tipsv2TextConfig', _TEXT),
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
    'Tipsv2Model:gated',
)


def folder_of(name: str) -> pathlib.Path:
    """Where a stored model is."""
    return FIXTURES / name.replace(':', '_')


def inputs(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images [2, H, W, 3], and two texts of 5 tokens, of which 39 is the last; 0 is padding."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    tokens = rng.integers(3, 39, (2, 5))
    tokens[:, 3], tokens[1, 4] = 39, 0
    return images, tokens.astype(np.int32)


def outputs(model: Any) -> dict[str, np.ndarray]:
    """What a model of transformers computes of `inputs`: the embeddings of its towers, 'image' and
    'text', of each block, 'image_0', …, and the factor of similarities, 'scale', of TIPS v2.
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
        masks = about.model_type.startswith('tipsv2')
        runs = {'text': lambda: model(tokens, **({'attention_mask': tokens != 0} if masks else {}))}
    else:
        runs = {'image': lambda: model(images)}
    found = {}
    if hasattr(model, 'temperature'):
        found['scale'] = 1 / model.temperature.detach().numpy()
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
        for key, x in model.named_parameters():
            x.add_(0.003 if key == 'temperature' else 0.1 * torch.randn_like(x))
    return model


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a model with random weights, and what it computes, into a folder."""
    model = make(name)
    model.save_pretrained(folder)
    np.savez_compressed(folder / 'expected.npz', **outputs(model))
    if processor := PROCESSORS.get(name[:6]):
        (folder / 'preprocessor_config.json').write_text(json.dumps(processor) + '\n')
    config = json.loads((folder / 'config.json').read_text())
    config.pop('transformers_version')
    (folder / 'config.json').write_text(json.dumps(config, indent=1) + '\n')


if __name__ == '__main__':
    for name in STORED:
        write(folder_of(name), name)
