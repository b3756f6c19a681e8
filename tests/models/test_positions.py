"""Learned positions fit another number of patches."""

import functools

import jax
import numpy as np
import pytest
from support.small_models import random_variables

from clip_jax.models import clip, positions

SMALL = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}
TEXT = {'name': 'transformer', 'vocab_size': 9, 'context_length': 4, 'eot_id': 3, **SMALL}
ENCODERS = {
    'class token': {'name': 'vit', 'image_size': 32, 'patch_size': 8, **SMALL},
    'map': {'name': 'vit', 'image_size': 32, 'patch_size': 8, 'pool': 'map', **SMALL},
    'fixed': {'name': 'vit', 'image_size': 32, 'patch_size': 8, 'positions': 'sincos2d', **SMALL},
    'patches only': {'name': 'vit', 'image_size': 32, 'patch_size': 8, 'class_position': False}
    | SMALL,
    'resnet': {'name': 'resnet', 'image_size': 64, 'width': 4, 'depths': (1, 1, 1, 1), 'heads': 2},
}


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2, as Pillow and PyTorch (antialias=True) have it."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def matrix(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of an antialiased bicubic resize, half-pixel centers."""
    stretch = max(old / new, 1)
    centers = (np.arange(new) + 0.5) * old / new
    weights = cubic((np.arange(old) + 0.5 - centers[:, None]) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(('old', 'new'), [(4, 7), (7, 4), (14, 24), (5, 5)])
def test_the_interpolation_is_bicubic_with_antialiasing(old, new):
    table = np.random.default_rng(0).normal(size=(1 + old * old, 3)).astype(np.float32)
    m, grid = matrix(old, new), table[1:].reshape(old, old, 3)
    expected = np.einsum('ai,bj,ijc->abc', m, m, grid).reshape(-1, 3)
    found = positions.resized(table, new, tokens=1)
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    np.testing.assert_array_equal(found[0], table[0])
    if old == new:
        np.testing.assert_array_equal(found, table)


@pytest.mark.parametrize('kind', ENCODERS)
def test_a_model_takes_images_of_another_size(kind):
    fields = {'image': ENCODERS[kind], 'text': TEXT, 'embed_dim': 8}
    model = clip.from_card(fields)
    variables = random_variables(model)
    before = jax.tree.map(np.asarray, variables)
    size = model.image.image_size
    larger, changed = clip.with_image_size(clip.to_card(model), variables, 2 * size)
    new = clip.from_card(larger)
    assert jax.tree.map(np.shape, changed) == jax.tree.map(np.shape, clip.shapes(new))
    encode = jax.jit(functools.partial(new.apply, method='encode_image'))
    embeddings = encode(changed, np.ones((2, 2 * size, 2 * size, 3), np.float32))
    assert embeddings.shape == (2, 8)
    same = [
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (changed, before)), strict=False)
    ]
    assert same.count(False) == (kind != 'fixed')
    jax.tree.map(np.testing.assert_array_equal, variables, before)  # the old model still works


def test_a_size_that_cannot_be_is_refused():
    model = clip.from_card({'image': ENCODERS['class token'], 'text': TEXT, 'embed_dim': 8})
    variables = random_variables(model)
    with pytest.raises(ValueError, match='image_size 4 is smaller than patch_size 8'):
        clip.with_image_size(clip.to_card(model), variables, 4)
    resnet = clip.from_card({'image': ENCODERS['resnet'], 'text': TEXT, 'embed_dim': 8})
    variables = random_variables(resnet)
    with pytest.raises(ValueError, match='image_size 100 is not a multiple of 32'):
        clip.with_image_size(clip.to_card(resnet), variables, 100)
