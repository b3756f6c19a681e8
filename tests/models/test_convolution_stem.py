"""The ViT's stem of convolutions sees whole patches, and keeps batch norm's running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_variables

from clip_jax.models.image import vit

FIELDS = {
    'image_size': 32,
    'patch_size': 8,
    'width': 32,
    'depth': 1,
    'heads': 2,
    'mlp_dim': 64,
    'stem': 'convolutions',
    'class_position': False,
}


def stem():
    model = vit.ConvolutionStem(8, 32, jnp.float32, jnp.float32)
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    return model, random_variables(model, images), images


def test_each_token_is_of_one_patch_row_by_row():
    model, variables, images = stem()
    apply = jax.jit(model.apply)
    before = apply(variables, images)
    after = apply(variables, images.at[:, 8:, 8:16].add(1.0))
    changed = np.abs(after - before).max(axis=(0, 2)) > 1e-6
    assert before.shape == (2, 6, 32)
    assert changed.tolist() == [False] * 4 + [True, False]


def test_training_updates_the_statistics_and_evaluation_does_not():
    model, variables, images = stem()
    apply = jax.jit(
        functools.partial(model.apply, mutable=['batch_stats']), static_argnames='train'
    )
    _, updated = apply(variables, images, train=True)
    _, same = apply(variables, images, train=False)
    stats = variables['batch_stats']
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updated['batch_stats'], stats)
    assert len(jax.tree.leaves(moved)) == 4 and all(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, same['batch_stats'], stats)


def test_the_class_token_has_no_position():
    model = vit.Encoder(**FIELDS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert shapes['params']['position_embedding'].shape == (16, 32)
    # Fields that mean nothing are the defaults, so that equal models have equal fields.
    assert model.patch_bias
    assert vit.Encoder(**{**FIELDS, 'pool': 'mean', 'class_position': False}).class_position


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'stem': 'convolution'}, "no 'convolution'. Did you mean 'convolutions'"),
        ({'patch_size': 6}, 'patch_size is 6 and width 32; .* multiples of 4'),
    ],
)
def test_impossible_stems_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        vit.Encoder(**{**FIELDS, **fields})
