"""Small models of transformers with one tower: weights, and what transformers computes."""

import json
import pathlib
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
_BLOCKS = {
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
}
_IMAGE = {**_BLOCKS, 'image_size': 8, 'patch_size': 4}
_TEXT = {**_BLOCKS, 'vocab_size': 40, 'max_position_embeddings': 5}
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
    'SiglipVisionModel': ('SiglipVisionConfig', _IMAGE),
    'SiglipTextModel': ('SiglipTextConfig', {**_TEXT, 'projection_size': 6}),
}
# In the default suite, in the folder of their name.
STORED = ('CLIPVisionModel', 'CLIPTextModelWithProjection')


def inputs(image_size: int | None) -> np.ndarray:
    """Two images [2, H, W, 3], or without a size two texts of 5 tokens, of which 39 is the last."""
    rng = np.random.default_rng(0)
    if image_size:
        return rng.normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    tokens = rng.integers(3, 39, (2, 5))
    tokens[:, 3] = 39
    return tokens.astype(np.int32)


def embedded(model: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """What a model of transformers computes of `inputs`: embeddings, and each block's output."""
    import torch

    blocks: list[np.ndarray] = []
    for module in model.modules():
        if type(module).__name__.endswith(('EncoderLayer', 'Layer')):
            module.register_forward_hook(
                lambda module, given, x: blocks.append(
                    (x[0] if isinstance(x, tuple) else x).numpy()
                )
            )
    given = torch.tensor(inputs(getattr(model.config, 'image_size', None)))
    with torch.no_grad():
        out = model(given.permute(0, 3, 1, 2)) if given.ndim == 4 else model(given.long())
    for name in ('image_embeds', 'text_embeds', 'pooler_output'):
        if getattr(out, name, None) is not None:
            return out[name].numpy(), blocks
    raise AssertionError('no embedding')


def make(name: str) -> Any:
    """A model of transformers with random weights."""
    import torch
    import transformers

    config, values = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**values)).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x))
    return model


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a model with random weights, and what it computes, into a folder."""
    model = make(name)
    model.save_pretrained(folder)
    embeddings, blocks = embedded(model)
    named = {f'block_{i}': x for i, x in enumerate(blocks)}
    np.savez_compressed(folder / 'expected.npz', embedding=embeddings, **named)
    config = json.loads((folder / 'config.json').read_text())
    config.pop('transformers_version')
    (folder / 'config.json').write_text(json.dumps(config, indent=1) + '\n')


if __name__ == '__main__':
    for name in STORED:
        write(FIXTURES / name, name)
