"""The name table of OpenAI's CLIP and of open_clip's classes: `visual.*`, `resblocks`."""

from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.convert._table import (
    CONV,
    SAME,
    Row,
    dense,
    divided,
    into_heads,
    mlp,
    norm,
    out_of_heads,
    row,
)

Fields = Mapping[str, Any]

# Scalars in OpenAI's TorchScript archives that are no parameters.
NUMBERS = ('input_resolution', 'context_length', 'vocab_size')


def ignored(name: str) -> bool:
    """Returns whether an array is no parameter: NUMBERS, BatchNorm counters, the mask."""
    return name in NUMBERS or name.rpartition('.')[2] in ('num_batches_tracked', 'attn_mask')


def rows(model: Fields, text: str = '') -> Iterator[Row]:
    """Yields the table of the whole model; `text` is the prefix of the text tower's names."""
    yield from image_rows(model)
    yield from text_rows(model, text)


def image_rows(model: Fields) -> Iterator[Row]:
    """Yields the table of the image tower and its projection."""
    image = {'vit': vit, 'resnet': resnet}[model['image']['name']]
    yield from image(model['image'], 'visual')
    if model['image']['name'] == 'vit':
        yield row('params/image_projection/kernel', 'visual.proj', SAME)


def text_rows(model: Fields, text: str) -> Iterator[Row]:
    """Yields the table of the text tower, its projection, and the logit scale and bias."""
    yield from text_tower(model['text'], text)
    ours, theirs = 'params/text_projection', f'{text}text_projection'
    if model['text_proj'] == 'biased':
        yield from dense(ours, theirs)
    elif model['text_proj'] == 'linear':
        yield row(f'{ours}/kernel', theirs, SAME)  # (in, out): a parameter, not a layer
    yield row('params/logit_scale', 'logit_scale', SAME)
    if model.get('init_logit_bias') is not None:
        yield row('params/logit_bias', 'logit_bias', SAME)


def vit(fields: Fields, theirs: str) -> Iterator[Row]:
    """Yields the table of the vision transformer."""
    ours = 'params/image'
    yield row(f'{ours}/patch_embedding/kernel', f'{theirs}.conv1.weight', CONV)
    yield row(f'{ours}/class_embedding', f'{theirs}.class_embedding', SAME)
    yield row(f'{ours}/position_embedding', f'{theirs}.positional_embedding', SAME)
    if fields['pre_norm']:
        yield from norm(f'{ours}/pre_norm', f'{theirs}.ln_pre')
    yield from blocks(fields, ours, f'{theirs}.')
    if fields['pool'] == 'queries':
        yield from query_pool(fields, f'{ours}/attention_pool', f'{theirs}.attn_pool')
    yield from norm(f'{ours}/post_norm', f'{theirs}.ln_post')


def query_pool(fields: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of CoCa's attentional pooler; torch fuses Q, K and V if widths are equal."""
    heads, names = fields['pool_heads'], ('query', 'key', 'value')
    yield row(f'{ours}/probe', f'{theirs}.query', SAME)
    yield from norm(f'{ours}/query_norm', f'{theirs}.ln_q')
    yield from norm(f'{ours}/key_norm', f'{theirs}.ln_k')
    kernels = [f'{ours}/attention/{name}/kernel' for name in names]
    if fields['pool_width'] == fields['width']:
        yield row(kernels, f'{theirs}.attn.in_proj_weight', divided(into_heads(heads), 3))
    else:
        for kernel, name in zip(kernels, names, strict=True):
            yield row(kernel, f'{theirs}.attn.{name[0]}_proj_weight', into_heads(heads))
    biases = [f'{ours}/attention/{name}/bias' for name in names]
    yield row(biases, f'{theirs}.attn.in_proj_bias', divided(into_heads(heads), 3))
    yield from dense(f'{ours}/attention/out', f'{theirs}.attn.out_proj', out_of_heads(heads))


def text_tower(fields: Fields, theirs: str) -> Iterator[Row]:
    """Yields the table of the text transformer without its projection."""
    ours = 'params/text'
    yield row(f'{ours}/token_embedding/embedding', f'{theirs}token_embedding.weight', SAME)
    yield row(f'{ours}/position_embedding', f'{theirs}positional_embedding', SAME)
    if fields['pool'] == 'cls':
        yield row(f'{ours}/class_embedding', f'{theirs}cls_emb', SAME)
    yield from blocks(fields, ours, theirs)
    yield from norm(f'{ours}/post_norm', f'{theirs}ln_final')


def blocks(fields: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of the blocks of one tower."""
    for i in range(fields['depth']):
        names = f'{ours}/transformer/block_{i}', f'{theirs}transformer.resblocks.{i}'
        yield from block(fields, *names)


def block(fields: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of one block."""
    heads = fields['heads']
    yield from norm(f'{ours}/attention_norm', f'{theirs}.ln_1')
    fused = into_heads(3, heads)
    yield row(f'{ours}/attention/qkv/kernel', f'{theirs}.attn.in_proj_weight', fused)
    yield row(f'{ours}/attention/qkv/bias', f'{theirs}.attn.in_proj_bias', fused)
    yield from dense(f'{ours}/attention/out', f'{theirs}.attn.out_proj', out_of_heads(heads))
    yield from norm(f'{ours}/mlp_norm', f'{theirs}.ln_2')
    yield from mlp(f'{ours}/mlp', f'{theirs}.mlp', 'c_fc', 'c_proj')
    yield from layer_scales(fields, ours, theirs)


def layer_scales(fields: Fields, ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of the LayerScales of one block, if it has them."""
    if fields['layer_scale']:
        yield row(f'{ours}/attention_scale', f'{theirs}.ls_1.gamma', SAME)
        yield row(f'{ours}/mlp_scale', f'{theirs}.ls_2.gamma', SAME)


def resnet(fields: Fields, theirs: str) -> Iterator[Row]:
    """Yields the table of ModifiedResNet with the output projection of its attention pool."""
    ours = 'image/stem'
    for i in (1, 2, 3):
        yield from dense(f'params/{ours}/conv_{i}', f'{theirs}.conv{i}', CONV, bias=False)
        yield from batch_norm(f'{ours}/norm_{i}', f'{theirs}.bn{i}')
    for s, depth in enumerate(fields['depths'], start=1):
        for b in range(depth):
            ours, block = f'image/stage_{s}/block_{b}', f'{theirs}.layer{s}.{b}'
            for i in (1, 2, 3):
                yield from dense(f'params/{ours}/conv_{i}', f'{block}.conv{i}', CONV, bias=False)
                yield from batch_norm(f'{ours}/norm_{i}', f'{block}.bn{i}')
            if b == 0:
                yield from dense(
                    f'params/{ours}/downsample_conv', f'{block}.downsample.0', CONV, bias=False
                )
                yield from batch_norm(f'{ours}/downsample_norm', f'{block}.downsample.1')
    ours, theirs = 'params/image/attention_pool', f'{theirs}.attnpool'
    yield row(f'{ours}/position_embedding', f'{theirs}.positional_embedding', SAME)
    for part in ('query', 'key', 'value'):
        rule = into_heads(fields['heads'])
        yield row(f'{ours}/{part}/kernel', f'{theirs}.{part[0]}_proj.weight', rule)
        yield row(f'{ours}/{part}/bias', f'{theirs}.{part[0]}_proj.bias', rule)
    yield from dense('params/image_projection', f'{theirs}.c_proj')


def batch_norm(ours: str, theirs: str) -> Iterator[Row]:
    """Yields the table of a BatchNorm with its running statistics."""
    yield from norm(f'params/{ours}', theirs)
    yield row(f'batch_stats/{ours}/mean', f'{theirs}.running_mean', SAME)
    yield row(f'batch_stats/{ours}/var', f'{theirs}.running_var', SAME)
