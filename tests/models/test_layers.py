"""The layers that the encoders share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import build
from clip_jax.models import attention, clip, layers
from clip_jax.planning import hlo

MASK = jnp.arange(9)[None, None, None] < jnp.array([5, 9, 1])[:, None, None, None]


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('mask', [None, MASK], ids=['all', 'masked'])
def test_attention_and_its_gradients_are_those_of_jax(causal, mask):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, (3, 9, 2, 8)) for key in keys]

    def ours(*inputs):
        return (attention.attend(*inputs, mask, causal=causal) ** 2).sum()

    def theirs(*inputs):
        return (jax.nn.dot_product_attention(*inputs, mask=mask, is_causal=causal) ** 2).sum()

    assert ours(*inputs) == pytest.approx(float(theirs(*inputs)), rel=1e-6)
    gradients = jax.grad(ours, (0, 1, 2))(*inputs), jax.grad(theirs, (0, 1, 2))(*inputs)
    for x, y in zip(*gradients, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6 * np.abs(y).max())
    # Forward mode, and forward over reverse mode as for Hessian-vector products.
    tangents = tuple(jnp.flip(x, axis=1) for x in inputs)
    for f, g in (ours, theirs), (jax.grad(ours, (0, 1, 2)), jax.grad(theirs, (0, 1, 2))):
        _, found = jax.jvp(f, tuple(inputs), tangents)
        _, expected = jax.jvp(g, tuple(inputs), tangents)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize('image', ['vit', 'resnet'])
def test_all_products_of_both_encoders_are_bfloat16_in_the_backward_pass_too(image):
    small = {'width': 32, 'depth': 2, 'heads': 2, 'mlp_dim': 64}
    fields = {
        'vit': {'name': 'vit', 'image_size': 16, 'patch_size': 8, **small},
        'resnet': {
            'name': 'resnet',
            'image_size': 32,
            'width': 8,
            'depths': (1, 1, 1, 1),
            'heads': 4,
        },
    }[image]
    text = {'name': 'transformer', 'vocab_size': 50, 'context_length': 8, 'eot_id': 3, **small}
    model = build.model({'image': fields, 'text': text, 'embed_dim': 16}, 'bfloat16')
    variables = clip.shapes(model)
    buffers = {k: v for k, v in variables.items() if k != 'params'}

    def objective(params, buffers, images, tokens):
        (image, text, *_), _ = model.apply(
            {'params': layers.cast(params, jnp.bfloat16, clip.logical_axes(model)), **buffers},
            images,
            tokens,
            train=True,
            mutable=[*buffers],
        )
        return (image * text).sum()

    size = fields['image_size']
    batch = jnp.zeros((4, size, size, 3)), jnp.zeros((4, 8), jnp.int32)
    program = jax.make_jaxpr(jax.grad(objective))(variables['params'], buffers, *batch)
    assert hlo.flops(program.jaxpr).keys() == {'bfloat16'}


@pytest.mark.parametrize('remat', ['dots', 'full'])
@pytest.mark.parametrize('position', [0, 'of each row'])
def test_rematerialization_changes_neither_the_pooled_token_nor_its_gradient(remat, position):
    x = jax.random.normal(jax.random.key(0), (2, 4, 8))
    at = jnp.array([3, 1]) if position == 'of each row' else position

    def gradient(**how):
        config = layers.TransformerConfig(depth=2, heads=2, mlp_dim=16, **how)
        model = layers.Transformer(config)
        params = model.init(jax.random.key(1), x)

        def objective(x):
            return (model.apply(params, x, position=at) ** 2).sum()

        return jax.jit(jax.grad(objective))(x)

    np.testing.assert_allclose(gradient(remat=remat), gradient(), rtol=0, atol=1e-5)
