"""Small models of open_clip with the vision transformers of MobileCLIP, of timm's own classes."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures'
# Name of open_clip's trunk -> image size, patch size, width, depth, heads.
TRUNKS = {
    'vit_base_mci_224': (32, 8, 16, 2, 2),
    'vit_large_patch14_clip_224': (12, 4, 16, 2, 4),
}
MODELS = tuple(TRUNKS)


def encoder(name: str, **options: Any) -> Any:
    """timm's class with the sizes of TRUNKS, as timm.create_model calls it."""
    from timm.layers import HybridEmbed, LayerNorm
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem
    from torch import nn

    image_size, patch_size, width, depth, heads = TRUNKS[name]
    if 'mci' in name:
        strides = (patch_size // 4, 2, 2)
        stem = ConvStem(
            channels=(width // 4, width // 4, width),
            stride=strides,
            kernel_size=strides,
            padding=0,
            act_layer=nn.GELU,
        )
        kind: dict[str, Any] = {
            'embed_layer': functools.partial(HybridEmbed, backbone=stem, proj=False),
            'patch_size': 1,
            'no_embed_class': True,
        }
    else:
        layer_norm = functools.partial(LayerNorm, eps=1e-5)
        kind = {'patch_size': patch_size, 'pre_norm': True, 'norm_layer': layer_norm}
    return VisionTransformer(
        img_size=image_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=options['num_classes'],
        global_pool=options['global_pool'],
        **kind,
    )


@contextlib.contextmanager
def replaced(name: str) -> Iterator[None]:
    """Makes timm's model of a name the small one: open_clip asks timm for models by name."""
    from timm.models import _registry

    entries = _registry._model_entrypoints
    before, entries[name] = entries[name], functools.partial(encoder, name)
    try:
        yield
    finally:
        entries[name] = before


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two images [2, H, W, 3] and two texts."""
    rng, size = np.random.default_rng(0), TRUNKS[name][0]
    tokens = rng.integers(1, 39, (2, 5))
    tokens[:, 3] = 39
    return rng.normal(size=(2, size, size, 3)).astype(np.float32), tokens.astype(np.int32)


def write(folder: pathlib.Path, name: str) -> None:
    """Writes a small model with random weights, and the outputs of each block of its image encoder,
    into a folder.
    """
    import torch
    from open_clip.model import CustomTextCLIP
    from safetensors.torch import save_file

    vision = {
        'image_size': TRUNKS[name][0],
        'timm_model_name': name,
        'timm_model_pretrained': False,
        'timm_pool': 'token',
        'timm_proj': None,
    }
    text = {'context_length': 5, 'vocab_size': 40, 'width': 8, 'heads': 2, 'layers': 1}
    config = {
        'embed_dim': 6,
        'vision_cfg': vision,
        'text_cfg': {**text, 'no_causal_mask': 'mci' not in name},
    }
    torch.manual_seed(0)
    with replaced(name):
        model = CustomTextCLIP(**config).eval()
    with torch.no_grad():
        for key, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point() and 'attn_mask' not in key:
                x.add_(0.1 * torch.randn_like(x).abs())
    blocks: list[np.ndarray] = []
    for block in model.visual.trunk.blocks:
        block.register_forward_hook(lambda module, given, x: blocks.append(x.numpy()))
    images, tokens = inputs(name)
    with torch.no_grad():
        image = model.encode_image(torch.tensor(images.transpose(0, 3, 1, 2)), normalize=True)
        text_embeddings = model.encode_text(torch.tensor(tokens).long(), normalize=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
    preprocess = {'mean': [0.0] * 3, 'std': [1.0] * 3}
    about = {'model_cfg': {**config, 'custom_text': True}, 'preprocess_cfg': preprocess}
    (folder / 'open_clip_config.json').write_text(json.dumps(about, indent=1) + '\n')
    named = {f'block_{i}': x for i, x in enumerate(blocks)}
    np.savez_compressed(
        folder / 'expected.npz', image=image.numpy(), text=text_embeddings.numpy(), **named
    )


if __name__ == '__main__':
    for name in MODELS:
        write(FIXTURES / name, name)
