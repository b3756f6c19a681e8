"""ConvNeXt; tests/convert/test_timm_towers.py compares it with timm's, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_variables

from clip_jax.models import on_cpu
from clip_jax.models.image import convnext

SMALL = {'image_size': 64, 'widths': (8, 8, 8, 16), 'depths': (1, 1, 2, 1)}


@pytest.mark.parametrize('shape', [(2, 9, 7, 5), (1, 2, 2, 3), (1, 1, 1, 2)])
def test_the_convolution_on_cpu_is_the_convolution(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, shape[-1]))
    one, other = (
        jax.value_and_grad(lambda x, k, f=f: jnp.sum(f(x, k) ** 2), (0, 1))(x, kernel)
        for f in (convnext.depthwise, on_cpu.depthwise)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)


def test_the_branch_of_an_example_is_dropped_as_a_whole_and_in_training_alone():
    model = convnext.Encoder(**SMALL, drop_path=0.5, layer_scale=1.0)
    images = jax.random.normal(jax.random.key(0), (8, 64, 64, 3))
    variables = random_variables(model, images)
    block = convnext.Block(0.5, 1e-6, 1.0, jnp.float32, jnp.float32)
    x = jax.random.normal(jax.random.key(1), (64, 3, 3, 8))
    params = {'params': variables['params']['stage_1']['block_0']}
    branch = block.apply(params, x, None) - x
    kept = block.apply(params, x, jax.random.split(jax.random.key(2), 64)) - x
    factor = jnp.sum(kept * branch, (1, 2, 3)) / jnp.sum(branch**2, (1, 2, 3))
    assert np.allclose(np.minimum(abs(factor), abs(factor - 2)), 0, atol=1e-4)
    assert 16 < int(jnp.sum(factor > 1)) < 48
    plain, train = (
        model.apply(variables, images, train=train, rngs={'dropout': jax.random.key(3)})
        for train in (False, True)
    )
    assert (model.apply(variables, images) == plain).all() and not (plain == train).all()


@pytest.mark.slow
def test_an_example_is_dropped_by_its_place_in_the_global_batch():
    model = convnext.Encoder(**SMALL, drop_path=0.5, layer_scale=1.0)
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    variables = random_variables(model, images)

    def apply(images, index):
        rngs = {'dropout': jax.random.key(3)}
        return model.apply(variables, images, train=True, example_index=index, rngs=rngs)

    whole = apply(images, jnp.arange(4))
    np.testing.assert_allclose(apply(images[2:], jnp.array([2, 3])), whole[2:], atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        ({'depths': (1, 1, 1)}, r'depths are \(1, 1, 1\); expected 4 numbers'),
        ({'widths': (8, 8, 0, 8)}, 'widths are .* at least 1'),
        ({'image_size': 31}, 'image_size is 31; expected at least 32'),
        ({'norm_eps': 2.0}, 'norm_eps is 2.0'),
        ({'drop_path': 1.0}, 'drop_path is 1.0'),
    ],
)
def test_impossible_sizes_are_refused(change, line):
    with pytest.raises(ValueError, match=line):
        convnext.Encoder(**{**SMALL, **change})
