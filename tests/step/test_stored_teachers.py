"""Teachers whose embeddings come with the batch, and projections to their sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.small_training import CARD, OPTIMIZER, VIT, assert_same, batch, make_optimizer, setup

from clip_jax import build, lookup
from clip_jax.data import preprocess
from clip_jax.models import clip
from clip_jax.step.teachers import StoredTeacher, Teacher, Teachers

INIT = lookup.module('losses', 'softmax').INIT
CARDS = {
    size: {**INIT, **CARD, 'image': {**VIT, 'patch_dropout': 0.0}, 'embed_dim': size}
    for size in (16, 24)
}
STEPS, PAIRS = 20, 32
NO_DROPOUT = {'card': CARDS[16]}


def loss_of(name):
    return lookup.module('distillation', name, 'loss').loss


@functools.cache
def online(name, size):
    model = build.model(CARDS[size])
    statistics = preprocess.CLIP_MEAN, preprocess.CLIP_STD
    variables = jax.device_get(clip.init(model, jax.random.key(7)))
    return Teacher(model, loss_of(name), 2.0, *statistics), variables


@functools.cache
def embeddings(size):
    """The batches of a run, with the embeddings of a teacher, and its scale."""
    one, variables = online('feature', size)
    embed = jax.jit(functools.partial(one.embed, variables))
    batches = []
    for i in range(STEPS):
        data = batch(i, PAIRS)
        image, text, scale = jax.device_get(embed(data['image'], data['tokens']))
        batches.append({**data, 'stored': {'one': {'image': image, 'text': text}}})
    return batches, float(scale)


@functools.cache
def run(name, size=24, devices=1, stored=True, **how):
    batches, scale = embeddings(size)
    one, variables = online(name, size)
    if stored:
        one, variables = StoredTeacher(loss_of(name), 2.0, scale), None
    projected = {'one': (16, size)} if name in ('feature', 'interactive') and size != 16 else None
    state, step, put = setup(
        devices,
        teachers=Teachers(1.0, {'one': one}),
        teacher_variables={'one': variables} if variables else {},
        projected=projected,
        learning_rate=1e-4,
        **NO_DROPOUT,
        **how,
    )
    losses = []
    for data in batches:
        kept = data if stored else {k: data[k] for k in ('image', 'tokens')}
        state, numbers = step(state, put(kept))
        losses.append(float(numbers['loss']))
    return losses, state


@pytest.mark.parametrize(
    'name', [pytest.param('mobileclip', marks=pytest.mark.slow), 'interactive']
)
def test_stored_embeddings_teach_as_the_model_does(name):
    assert_same(run(name), run(name, stored=False))


@pytest.mark.parametrize(
    ('devices', 'how'),
    [
        (1, {'microbatches': 2}),
        pytest.param(8, {}, marks=pytest.mark.slow),
        (8, {'fsdp': 2, 'tensor': 2, 'microbatches': 2, 'shard_optimizer': True}),
    ],
)
def test_projections_and_stored_embeddings_are_the_same_on_any_mesh(devices, how):
    assert_same(run('interactive', devices=devices, **how), run('interactive'))


def oracle(name, of_student, projections, schedule):
    """Values and projections of a run of which these alone are trained, in float64."""
    batches, _ = embeddings(24)
    transformation = optax.adamw(
        schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=OPTIMIZER['weight_decay']
    )

    def value(params, student, teacher, scale):
        x, y = (
            (p := side @ params[key]['kernel']) / jnp.linalg.norm(p, axis=1, keepdims=True)
            for key, side in zip(('image', 'text'), student, strict=True)
        )
        if name == 'feature':
            return jnp.mean((x - teacher[0]) ** 2) + jnp.mean((y - teacher[1]) ** 2)
        logits = scale * x @ teacher[1].T, scale * y @ teacher[0].T
        return sum(-jnp.mean(jnp.diagonal(jax.nn.log_softmax(z))) for z in logits) / 2

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), projections)
        state, values = transformation.init(params), []
        for data, (*student, scale) in zip(batches, of_student, strict=True):
            teacher = [
                jnp.asarray(data['stored']['one'][k], jnp.float64) for k in ('image', 'text')
            ]
            student = [jnp.asarray(x, jnp.float64) for x in student]
            found, gradient = jax.value_and_grad(value)(params, student, teacher, float(scale))
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            values.append(float(found))
        return values, jax.device_get(params)


@pytest.mark.parametrize(('name', 'how'), [('feature', {}), ('interactive', {'microbatches': 2})])
def test_projections_are_trained_as_an_oracle_does_it(name, how):
    batches, scale = embeddings(24)
    only = {'rules': ({'path': '(?!distillation/).*', 'frozen': True},), 'grad_clip_norm': 0}
    start, step, put = setup(
        1,
        teachers=Teachers(0.0, {'one': StoredTeacher(loss_of(name), 1.0, scale)}),
        projected={'one': (16, 24)},
        optimizer=only,
        **NO_DROPOUT,
        **how,
    )
    model = build.model(CARDS[16])
    schedule = make_optimizer(model, projected={'one': (16, 24)}, **only).schedule

    @jax.jit
    def embed(images, tokens):
        pixels = preprocess.normalize(images, mean=preprocess.CLIP_MEAN, std=preprocess.CLIP_STD)
        return model.apply(start.variables, pixels, tokens)[:3]

    of_student = [embed(data['image'], data['tokens']) for data in batches]
    values, expected = oracle(
        name, jax.device_get(of_student), start.params['distillation']['one'], schedule
    )
    state, losses = start, []
    for data in batches:
        state, numbers = step(state, put(data))
        losses.append(float(numbers['loss']))
    np.testing.assert_allclose(losses, values, rtol=1e-5)
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(check, state.params['distillation']['one'], expected)
    jax.tree.map(np.testing.assert_array_equal, state.variables, start.variables)
