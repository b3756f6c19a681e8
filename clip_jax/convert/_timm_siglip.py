"""timm's vision transformers of SigLIP in open_clip's checkpoints: `visual.trunk.*`.

A family of timm's image encoders is a module with these five functions; open_clip.py lists them.
CUSTOM_TEXT says whether the names of the text tower start with `text.`; HEAD names the projection
where it is timm's classifier instead of open_clip's `visual.head.proj`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.convert._table import (
    CONV,
    LEADING_ONE,
    Row,
    dense,
    divided,
    into_heads,
    mlp,
    norm,
    out_of_heads,
    row,
)

CUSTOM_TEXT = True
HEAD = ''
# Name -> image size, patch size, width, depth.
TRUNKS = {
    f'vit_{size}_patch{patch_size}_siglip_{image_size}': (image_size, patch_size, width, depth)
    for size, width, depth, made in (
        ('base', 768, 12, {16: (224, 256, 384, 512), 32: (256,)}),
        ('large', 1024, 24, {16: (256, 384, 512)}),
        ('so400m', 1152, 27, {14: (224, 378, 384), 16: (256, 384, 512)}),
        ('giantopt', 1536, 40, {16: (256, 384)}),
    )
    for patch_size, image_sizes in made.items()
    for image_size in image_sizes
}


def takes(vision: Mapping[str, Any]) -> bool:
    """Returns whether a `vision_cfg` with a timm_model_name is one of this family."""
    return vision['timm_pool'] == 'map' and 'siglip' in vision['timm_model_name']


def fields(
    vision: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], image_size: int
) -> dict[str, Any]:
    """Returns the fields of an image encoder.

    Args:
        vision: the `vision_cfg`, with its defaults.
        shapes: the shapes of the weights, by their names after `visual.trunk.`.
        image_size: in pixels.

    Raises:
        KeyError: a weight is missing.
    """
    width, _, patch_size, _ = shapes['patch_embed.proj.weight']
    return {
        'name': 'vit',
        'image_size': image_size,
        'patch_size': patch_size,
        'width': width,
        'depth': len({n.split('.')[1] for n in shapes if re.match(r'blocks\.\d+\.', n)}),
        'mlp_dim': shapes['blocks.0.mlp.fc1.weight'][0],
        'patch_dropout': vision['patch_dropout'],
        **by_name(vision['timm_model_name'], width),
    }


def by_name(name: str, width: int) -> dict[str, Any]:
    """Returns the fields of timm's SigLIP ViTs that no file stores; giantopt and so400m differ."""
    giant = 'giantopt' in name
    return {
        'heads': 16 if giant or 'so400m' in name else width // 64,
        'activation': 'gelu_tanh' if giant else 'gelu',
        'norm_eps': 1e-6,
        'pool': 'map',
        'pre_norm': False,
        'patch_bias': True,
    }


def holds(image: Mapping[str, Any]) -> bool:
    """Returns whether an image encoder of a card is one of this family."""
    return image['name'] == 'vit' and image['pool'] == 'map'


def vision_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `vision_cfg` of an image encoder; ValueError if timm has none of its sizes."""
    sizes = tuple(image[x] for x in ('image_size', 'patch_size', 'width', 'depth'))
    for name, others in TRUNKS.items():
        if sizes == others:
            return {'timm_model_name': name, 'timm_pool': 'map'}
    raise ValueError(
        'the layout open_clip cannot hold this model: with attention pooling it has only '
        f"timm's models, and none with image_size, patch_size, width, depth {sizes}; "
        f'choices: {", ".join(TRUNKS)}'
    )


def rows(fields: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the table of timm's vision transformer with attention pooling."""
    ours, theirs, heads = 'params/image', 'visual.trunk', fields['heads']
    yield from dense(f'{ours}/patch_embedding', f'{theirs}.patch_embed.proj', CONV)
    yield row(f'{ours}/position_embedding', f'{theirs}.pos_embed', LEADING_ONE)
    yield from blocks(fields, ours, theirs)
    yield from attention_pool(heads, f'{ours}/attention_pool', f'{theirs}.attn_pool')


def blocks(fields: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of the blocks of timm's vision transformer and of the norm after them."""
    for i in range(fields['depth']):
        a, b = f'{ours}/transformer/block_{i}', f'{theirs}.blocks.{i}'
        yield from norms_and_attention(fields['heads'], a, b)
        yield from mlp(f'{a}/mlp', f'{b}.mlp', 'fc1', 'fc2')
    yield from norm(f'{ours}/post_norm', f'{theirs}.norm')


def norms_and_attention(heads: int, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of one block without its MLP."""
    yield from norm(f'{ours}/attention_norm', f'{theirs}.norm1')
    for part, name in (('kernel', 'weight'), ('bias', 'bias')):
        yield row(f'{ours}/attention/qkv/{part}', f'{theirs}.attn.qkv.{name}', into_heads(3, heads))
    yield from dense(f'{ours}/attention/out', f'{theirs}.attn.proj', out_of_heads(heads))
    yield from norm(f'{ours}/mlp_norm', f'{theirs}.norm2')


def attention_pool(heads: int, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of timm's attention pooling with one learned query."""
    yield row(f'{ours}/probe', f'{theirs}.latent', LEADING_ONE)
    for part, name in (('kernel', 'weight'), ('bias', 'bias')):
        yield row(f'{ours}/attention/query/{part}', f'{theirs}.q.{name}', into_heads(heads))
        two = [f'{ours}/attention/{x}/{part}' for x in ('key', 'value')]
        yield row(two, f'{theirs}.kv.{name}', divided(into_heads(heads), 2))
    yield from dense(f'{ours}/attention/out', f'{theirs}.proj', out_of_heads(heads))
    yield from norm(f'{ours}/norm', f'{theirs}.norm')
    yield from mlp(f'{ours}/mlp', f'{theirs}.mlp', 'fc1', 'fc2')
