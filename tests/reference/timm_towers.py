"""Small models of open_clip with image encoders of timm: weights, and what timm computes."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
TEXT = {'context_length': 5, 'vocab_size': 40, 'width': 8, 'heads': 2, 'layers': 1}


@contextlib.contextmanager
def replaced(name: str, make: Callable) -> Iterator[None]:
    """Makes timm's model of a name another one, as open_clip asks for models by their names."""
    from timm.models import _registry

    entries = _registry._model_entrypoints
    before, entries[name] = entries[name], make
    try:
        yield
    finally:
        entries[name] = before


def write(folder: pathlib.Path, config: Mapping[str, Any], make: Callable, blocks: str) -> None:
    """Writes a model of open_clip with random weights, and what it computes of random inputs.

    Args:
        folder: the folder to fill: open_clip's config and weights, and expected.npz.
        config: the `model_cfg`.
        make: makes the image encoder.
        blocks: the type of the modules whose outputs are written, channels last.
    """
    import torch
    from open_clip.model import CLIP, CustomTextCLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with replaced(config['vision_cfg']['timm_model_name'], make):
        sizes = {k: v for k, v in config.items() if k != 'custom_text'}
        model = (CustomTextCLIP if config.get('custom_text') else CLIP)(**sizes).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.normal_(0.5, 0.3) if 'gamma' in name else x.add_(0.1 * torch.randn_like(x))
    outputs = _hooked(model, blocks)
    images, tokens = inputs(config['vision_cfg']['image_size'])
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2)), normalize=True)
        text = model.encode_text(torch.tensor(tokens).long(), normalize=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
    preprocess = {'mean': [0.5] * 3, 'std': [0.5] * 3}
    about = {'model_cfg': config, 'preprocess_cfg': preprocess}
    (folder / 'open_clip_config.json').write_text(json.dumps(about, indent=1) + '\n')
    np.savez_compressed(
        folder / 'expected.npz',
        image=image.numpy(),
        text=text.numpy(),
        **{f'block_{i}': x for i, x in enumerate(outputs)},
    )


def inputs(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images [2, H, W, 3] and texts of TEXT."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    tokens = rng.integers(1, TEXT['vocab_size'] - 1, (2, TEXT['context_length']))
    tokens[:, 3] = TEXT['vocab_size'] - 1
    return images, tokens.astype(np.int32)


def _hooked(model: Any, blocks: str) -> list[np.ndarray]:
    """The list to which the blocks add their outputs."""
    outputs: list[np.ndarray] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        x = output.numpy()
        outputs.append(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)

    for module in model.modules():
        if type(module).__name__ == blocks:
            module.register_forward_hook(note)
    return outputs
