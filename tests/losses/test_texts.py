"""Several positives of an image, hard negatives and Matryoshka dimensions, in both losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from clip_jax import lookup, sharding
from clip_jax.models.clip import l2_normalize

MODULES = [lookup.module('losses', name) for name in ('softmax', 'sigmoid')]
LOSSES = [
    pytest.param(module, implementation, id=f'{module.__name__[16:]}-{implementation}')
    for module in MODULES
    for implementation in module.IMPLEMENTATIONS
]
# Devices, images per device, positives, hard negatives, masked. In blocks of 4, the texts of a
# device are whole blocks or not.
CASES = [
    (1, 5, 2, 1, True),
    pytest.param(2, 6, 1, 2, False, marks=pytest.mark.slow),
    (8, 2, 3, 2, True),
]
SCALE = jnp.float32(30)


def embeddings(count, positives, negatives, d=24):
    """Images, their captions, and hard negatives between the image and its captions."""
    images, *others = jax.random.normal(jax.random.key(0), (1 + positives + negatives, count, d))
    texts = l2_normalize(jnp.stack(others, axis=1) + 2 * images[:, None])
    return l2_normalize(images), texts[:, :positives], texts[:, positives:]


def bias(module):
    value = module.INIT['init_logit_bias']
    return None if value is None else jnp.float32(value)


@functools.partial(jax.jit, static_argnames=('module', 'implementation', 'mesh', 'dims'))
def run(module, implementation, embeddings, mask=None, mesh=None, dims=()):
    """((value, metrics), gradients of images, texts, negatives, scale and bias or None)."""

    def loss(image, text, negatives, scale, bias):
        given = {'mask': mask, 'mesh': mesh, 'implementation': implementation, 'block_size': 4}
        negatives = negatives if negatives.shape[1] else None
        return module.loss(image, text, scale, bias, negatives=negatives, dims=dims, **given)

    numbers = (0, 1, 2, 3) if bias(module) is None else (0, 1, 2, 3, 4)
    return jax.value_and_grad(loss, numbers, has_aux=True)(*embeddings, SCALE, bias(module))


def oracle(module, image, text, negatives, mask=None):
    exact = getattr(oracles, f'{module.__name__[16:]}_of_texts')
    return exact(image, text, SCALE, bias(module), mask=mask, negatives=negatives)


def assert_exact(result, exact, sizes):
    (value, _), gradients = result
    for ours, theirs, size in zip((value, *gradients), exact, sizes, strict=False):
        assert np.linalg.norm(np.asarray(ours, np.float64) - theirs) <= 5e-6 * size


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
@pytest.mark.parametrize(('devices', 'local', 'positives', 'negatives', 'masked'), CASES)
def test_value_and_gradients_equal_a_float64_oracle(
    module, implementation, devices, local, positives, negatives, masked
):
    inputs = embeddings(devices * local, positives, negatives)
    mask = np.random.default_rng(1).random(devices * local) < 0.7 if masked else None
    mesh = sharding.make_mesh(jax.devices()[:devices])
    placed = jax.device_put(inputs, sharding.over_batch(mesh))
    result = run(module, implementation, placed, mask, mesh)
    assert_exact(result, *oracle(module, *inputs, mask))
    if masked:
        assert not any(np.asarray(gradient)[~mask].any() for gradient in result[1][:3])


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_one_positive_without_negatives_is_the_plain_loss(module, implementation):
    image, text, none = embeddings(8, 1, 0)
    (value, metrics), gradients = run(module, implementation, (image, text, none))
    plain = functools.partial(module.loss, implementation=implementation, block_size=4)
    given = (image, text[:, 0], SCALE, bias(module))
    expected = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(*given)
    assert value == expected[0][0] and metrics == expected[0][1]
    # XLA may add in another order where it fuses a gradient that nobody asked for above.
    np.testing.assert_allclose(gradients[1][:, 0], expected[1][1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_a_hard_negative_counts_in_the_accuracy_of_images_alone(module, implementation):
    image = jnp.eye(4)
    text = l2_normalize(image + 0.5)  # all find their images
    negatives = image[:, None].at[1:].set(text[1:, None] * 0.5)  # that of image 0 is better
    _, metrics = run(module, implementation, (image, text[:, None], negatives))[0]
    assert metrics['accuracy/image_to_text'] == 0.75
    assert metrics['accuracy/text_to_image'] == 1


def test_equal_captions_have_the_sigmoid_loss_of_one():
    image, text, none = embeddings(6, 1, 0)
    thrice = jnp.repeat(text, 3, axis=1)
    values = [run(MODULES[1], 'gather', (image, x, none))[0][0] for x in (text, thrice)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-6)


@pytest.mark.parametrize(
    ('module', 'implementation', 'dims'),
    [
        pytest.param(MODULES[0], 'dense', (3, 12), marks=pytest.mark.slow),
        (MODULES[0], 'gather', (4, 24)),
        (MODULES[1], 'ring', (3, 12)),
    ],
)
def test_dims_average_the_losses_of_normalized_prefixes(module, implementation, dims):
    inputs = embeddings(8, 2, 1)
    mesh = sharding.make_mesh(jax.devices())
    (value, metrics), gradients = run(module, implementation, inputs, mesh=mesh, dims=dims)
    values, expected = [], [np.zeros(x.shape) for x in inputs]
    for d in dims:
        prefixes = [np.asarray(x, np.float64)[..., :d] for x in inputs]
        norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in prefixes]
        units = [x / norm for x, norm in zip(prefixes, norms, strict=True)]
        exact, _ = oracle(module, *units)
        values.append(exact[0])
        for total, slope, unit, norm in zip(expected, exact[1:], units, norms, strict=False):
            tangent = slope - (slope * unit).sum(-1, keepdims=True) * unit
            total[..., :d] += tangent / norm / len(dims)
    assert value == pytest.approx(np.mean(values), rel=2e-6)
    for ours, theirs in zip(gradients, expected, strict=False):
        assert np.linalg.norm(ours - theirs) < 2e-6 * np.linalg.norm(theirs)
    full = run(module, implementation, inputs, mesh=mesh)[0][1]
    assert metrics == full


@pytest.mark.parametrize('module', MODULES)
@pytest.mark.parametrize('dims', [(0, 8), (8, 8), (16, 8), (8, 25), (True, 8), (4.0, 8), 8])
def test_wrong_dims_are_refused(module, dims):
    image, text, _ = embeddings(4, 1, 0)
    with pytest.raises(ValueError, match=r'dims is .*8.*; expected (increasing|at most 24)'):
        module.loss(image, text, SCALE, dims=dims)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_wrong_shapes_are_refused(module, implementation):
    image, text, negatives = embeddings(4, 2, 1)
    loss = functools.partial(module.loss, image, scale=SCALE, implementation=implementation)
    with pytest.raises(ValueError, match=r'text has the shape \[3, 2, 24\]; expected \[B, D\] or'):
        loss(text[:3])
    with pytest.raises(ValueError, match=r'text has the shape \[4, 0, 24\]'):
        loss(text[:, :0])
    with pytest.raises(ValueError, match=r'negatives has the shape \[4, 24\]; expected \[B, N, D'):
        loss(text, negatives=negatives[:, 0])
