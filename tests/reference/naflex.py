"""Makes tests/convert/fixtures/naflex_*.npz with transformers.

    PYTHONPATH=tests python tests/reference/naflex.py

Each file has the config and the processor's config, the weights (float16) and what a small random
Siglip2Model makes of `images` and TOKENS: pixels, grids, embeddings and outputs of blocks.
"""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
_SMALL = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4}
_SMALL |= {'intermediate_size': 24}
_WIDE = {**_SMALL, 'hidden_size': 24, 'num_attention_heads': 2, 'intermediate_size': 20}
_TEXT = {'vocab_size': 60, 'max_position_embeddings': 9}
# The config of images, that of texts, and the most patches.
KINDS = {
    'small': ({**_SMALL, 'patch_size': 4, 'num_patches': 9}, {**_SMALL, **_TEXT}, 12),
    'wide': (
        {**_WIDE, 'patch_size': 3, 'num_patches': 16, 'num_hidden_layers': 3},
        {**_SMALL, **_TEXT, 'projection_size': 24, 'num_hidden_layers': 1},
        23,
    ),
}
# Height and width: wide, tall and square, smaller and larger than the budget.
SIZES = (
    (20, 20),
    (9, 40),
    (70, 11),
    (3, 5),
    (64, 90),
    (1, 1),
    (13, 12),
    (100, 4),
    (30, 55),
    (8, 8),
)
BLOCKS = 3  # images of which a file has the outputs of blocks
TOKENS = np.random.default_rng(1).integers(2, 60, (4, 9)).astype(np.int32)


def images() -> list[np.ndarray]:
    """Ten images of ten aspect ratios."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def theirs(kind: str) -> tuple[Any, Any]:
    """Makes a random model of a kind, whose weights float16 holds, and the image processor."""
    import torch
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    vision, text, most = KINDS[kind]
    torch.manual_seed(0)
    model = Siglip2Model(Siglip2Config(vision_config=vision, text_config=text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((0.1 + 0.2 * torch.randn(parameter.shape)).half().float())
    size = vision['patch_size']
    return model, Siglip2ImageProcessorPil(patch_size=size, max_num_patches=most)


def expected(model: Any, processor: Any) -> dict[str, np.ndarray]:
    """Returns pixels before normalization, grids, embeddings, and outputs of the image's blocks."""
    import torch

    given = [Image.fromarray(image) for image in images()]
    raw = processor(given, do_rescale=False, do_normalize=False, return_tensors='np')
    inputs = processor(given, return_tensors='pt')
    with torch.no_grad():
        found = model.vision_model(**inputs, output_hidden_states=True)
        text = model.text_model(torch.tensor(TOKENS))
    return {
        'pixels': raw['pixel_values'].astype(np.uint8),
        'grid': raw['spatial_shapes'].astype(np.int32),
        'image': found.pooler_output.numpy(),
        'text': text.pooler_output.numpy(),
        **{f'block/{i}': x[:BLOCKS].numpy() for i, x in enumerate(found.hidden_states[1:])},
    }


if __name__ == '__main__':
    for kind in KINDS:
        model, processor = theirs(kind)
        weights = {
            f'weights/{k}': x.numpy().astype(np.float16) for k, x in model.state_dict().items()
        }
        texts = {'config': model.config.to_json_string(), 'processor': processor.to_json_string()}
        content = {name: np.array(x) for name, x in texts.items()}
        np.savez_compressed(
            FOLDER / f'naflex_{kind}.npz', **content, **weights, **expected(model, processor)
        )
