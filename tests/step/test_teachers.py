"""Distillation in the train step: the total is the sum of its parts, on any mesh."""

import functools

import jax
import numpy as np
import pytest
from support.small_training import CARD, VIT, batch, setup

from clip_jax import build, lookup
from clip_jax.data import preprocess
from clip_jax.models import clip
from clip_jax.step.teachers import Teacher, Teachers

INIT = lookup.module('losses', 'softmax').INIT
# Other images and another dimension than the student's.
LARGE = {**CARD, 'image': {**VIT, 'image_size': 24, 'patch_dropout': 0.0}, 'embed_dim': 24}


@functools.cache
def teacher(loss='relational', card='large'):
    model = build.model({**INIT, **(LARGE if card == 'large' else CARD)})
    bound = lookup.module('distillation', loss, 'loss').loss
    statistics = preprocess.CLIP_MEAN, preprocess.CLIP_STD
    variables = clip.init(model, jax.random.key(7))
    return Teacher(model, bound, 2.0, *statistics), jax.device_get(variables)


def run(devices=1, *, contrastive=1.0, steps=3, **how):
    one, variables = teacher()
    state, step, put = setup(
        devices,
        teachers=Teachers(contrastive, {'large': one}),
        teacher_variables={'large': variables},
        learning_rate=1e-4,
        **how,
    )
    losses, first = [], None
    for i in range(steps):
        state, numbers = step(state, put(batch(i, 32)))
        first = first or {k: float(v) for k, v in numbers.items()}
        losses.append(float(numbers['loss']))
    return losses, state, first


@pytest.mark.parametrize('contrastive', [pytest.param(1.0, marks=pytest.mark.slow), 0.25, 0.0])
def test_the_total_is_the_weighted_sum_of_its_parts(contrastive):
    _, _, numbers = run(contrastive=contrastive, steps=1)
    total = contrastive * numbers['contrastive'] + 2.0 * numbers['teacher/large']
    assert numbers['loss'] == pytest.approx(total, rel=1e-6)
    plain, step, put = setup(1, learning_rate=1e-4)
    _, alone = step(plain, put(batch(0, 32)))
    assert numbers['contrastive'] == pytest.approx(float(alone['loss']), rel=1e-6)


def test_the_loss_of_a_teacher_is_that_of_embeddings_computed_apart():
    _, _, numbers = run(steps=1)
    one, variables = teacher()
    data = batch(0, 32)
    images = jax.image.resize(data['image'].astype(np.float32), (32, 24, 24, 3), 'cubic')
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    pixels = preprocess.normalize(images, mean=preprocess.CLIP_MEAN, std=preprocess.CLIP_STD)
    of_teacher = one.model.apply(variables, pixels, data['tokens'])
    start, _, _ = setup(1, learning_rate=1e-4)
    model = build.model({**INIT, **CARD})
    pixels = preprocess.normalize(data['image'], mean=preprocess.CLIP_MEAN, std=preprocess.CLIP_STD)
    key = jax.random.fold_in(jax.random.wrap_key_data(start.rng), 0)
    of_student = model.apply(
        {'params': start.params}, pixels, data['tokens'], train=True, rngs={'dropout': key}
    )
    value, _ = one.loss(*of_student[:3], *of_teacher[:3])
    assert numbers['teacher/large'] == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize(
    ('devices', 'how'),
    [
        pytest.param(1, {'microbatches': 2}, marks=pytest.mark.slow),
        (8, {'fsdp': 2, 'tensor': 2}),
        pytest.param(8, {'microbatches': 2}, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_same_on_any_mesh_and_with_gradcache(devices, how):
    losses, state, _ = run(devices, **how)
    expected, other, _ = run()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(check, state.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, state.teachers, {'large': teacher()[1]})


def test_of_several_captions_the_first_is_compared():
    one, variables = teacher()
    teachers = Teachers(1.0, {'large': one})
    data = batch(0, 8)
    several = {**data, 'tokens': np.stack([data['tokens'], data['tokens'][::-1]], axis=1)}
    (image, text, _), (same, first, _) = (
        teachers.targets({'large': variables}, x, 1)['large'] for x in (data, several)
    )
    np.testing.assert_array_equal(image, same)
    np.testing.assert_array_equal(text, first)
