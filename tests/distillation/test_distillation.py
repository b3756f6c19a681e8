"""What every file of distillation/ promises, in each implementation."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import lookup, sharding
from clip_jax.models.clip import l2_normalize

NAMES = lookup.names('distillation')
LOSSES = [
    pytest.param(lookup.module('distillation', name), implementation, id=f'{name}-{implementation}')
    for name in NAMES
    for implementation in getattr(
        lookup.module('distillation', name), 'IMPLEMENTATIONS', ('dense',)
    )
]
SCALES = jnp.float32(40), jnp.float32(60)
SAME_SIZE = ('feature', 'interactive')  # their students are projected


def embeddings(module, count, size=24):
    """Images and texts of a student and of a teacher, whose embeddings may be of another size."""
    size_of_teacher = size if name_of(module) in SAME_SIZE else 16
    basis = jax.random.normal(jax.random.key(0), (count, size))
    noise = jax.random.normal(jax.random.key(1), (4, count, size))
    *student, image, text = l2_normalize(basis + noise)
    teacher = (l2_normalize(x[:, :size_of_teacher]) for x in (image, text))
    return (*student, *teacher)


def name_of(module):
    return module.__name__.rpartition('.')[2]


def run(module, implementation, inputs, mesh=None, axis='data'):
    """((value, metrics), gradients of the student's images, texts and scale, and the teacher's)."""
    options = {'mesh': mesh, 'axis': axis, 'implementation': implementation, 'block_size': 5}
    given = {k: v for k, v in options.items() if k in inspect.signature(module.loss).parameters}

    def loss(image, text, scale, teacher_image, teacher_text, teacher_scale):
        fn = functools.partial(module.loss, **given)
        return fn(image, text, scale, teacher_image, teacher_text, teacher_scale)

    fn = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4, 5), has_aux=True))
    return fn(*inputs[:2], SCALES[0], *inputs[2:], SCALES[1])


def oracle(name, image, text, teacher_image, teacher_text):
    """((value, gradients of image, text and scale), and the size of each), in float64."""
    image, text, teacher_image, teacher_text = (
        np.asarray(x, np.float64) for x in (image, text, teacher_image, teacher_text)
    )
    scale, teacher_scale = map(float, SCALES)
    count = len(image)

    def log_softmax(x):
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    if name == 'feature':
        differences = image - teacher_image, text - teacher_text
        value = sum((x**2).mean() for x in differences)
        gradients = [2 * x / x.size for x in differences]
        return (value, *gradients, 0), (value, *map(np.linalg.norm, gradients), 1)
    weight = 1 if name == 'relational' else 1 / 2
    value, d_scale, value_size, scale_size = 0, 0, 0, 0
    gradients = [np.zeros_like(image), np.zeros_like(text)]
    # Rows, columns, and the same of the teacher.
    sides = (image, text, teacher_image, teacher_text), (text, image, teacher_text, teacher_image)
    for i, (rows, columns, teacher_rows, teacher_columns) in enumerate(sides):
        columns = teacher_columns if name == 'interactive' else columns
        cosine = rows @ columns.T
        log_student = log_softmax(scale * cosine)
        log_teacher = log_softmax(teacher_scale * teacher_rows @ teacher_columns.T)
        target = np.eye(count) if name == 'interactive' else np.exp(log_teacher)
        entropy = 0 if name == 'interactive' else (target * log_teacher).sum()
        value += weight * (entropy - (target * log_student).sum()) / count
        value_size += weight * (abs(entropy) + abs(target * log_student).sum()) / count
        slope = weight * (np.exp(log_student) - target) / count
        gradients[i] += scale * slope @ columns
        if name != 'interactive':
            gradients[1 - i] += scale * slope.T @ rows
        d_scale += (slope * cosine).sum()
        scale_size += abs(slope * cosine).sum()
    sizes = value_size, *map(np.linalg.norm, gradients), scale_size
    return (value, *gradients, d_scale), sizes


def assert_exact(module, result, inputs):
    (value, metrics), (d_image, d_text, d_scale, *of_teacher) = result
    exact, sizes = oracle(name_of(module), *inputs)
    for ours, theirs, size in zip((value, d_image, d_text, d_scale), exact, sizes, strict=True):
        assert np.linalg.norm(np.asarray(ours, np.float64) - theirs) <= 2e-6 * size
    assert not any(np.asarray(x).any() for x in of_teacher)
    assert value.shape == () and all(x.shape == () for x in metrics.values())


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
@pytest.mark.parametrize(
    ('devices', 'local'), [(1, 13), pytest.param(2, 6, marks=pytest.mark.slow), (8, 3)]
)
def test_value_and_gradients_equal_a_float64_oracle(module, implementation, devices, local):
    inputs = embeddings(module, devices * local)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    placed = jax.device_put(inputs, sharding.over_batch(mesh))
    assert_exact(module, run(module, implementation, placed, mesh), inputs)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_a_batch_over_two_axes_and_a_third_that_holds_copies(module, implementation):
    mesh = jax.sharding.Mesh(np.reshape(jax.devices(), (2, 2, 2)), ('data', 'fsdp', 'tensor'))
    inputs = embeddings(module, 16)
    result = run(module, implementation, inputs, mesh, ('data', 'fsdp'))
    assert_exact(module, result, inputs)


@pytest.mark.parametrize('name', ['relational', 'mobileclip'])
@pytest.mark.parametrize('implementation', ['dense', 'gather'])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name, implementation):
    module = lookup.module('distillation', name)
    image, text, *_ = embeddings(module, 12)
    value, _ = module.loss(
        image, text, SCALES[0], image, text, SCALES[0], implementation=implementation, block_size=5
    )
    assert value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('name', ['relational', 'interactive', 'mobileclip'])
def test_in_blocks_the_matrix_is_never_whole(name):
    module = lookup.module('distillation', name)
    shape, number = jax.ShapeDtypeStruct((4096, 8), jnp.float32), jax.ShapeDtypeStruct((), float)

    def scratch(implementation):
        loss = functools.partial(module.loss, implementation=implementation, block_size=64)
        gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        program = gradient.lower(shape, shape, number, shape, shape, number).compile()
        return program.memory_analysis().temp_size_in_bytes

    matrix = 4 * 4096**2
    assert scratch('gather') < matrix / 4 < matrix <= scratch('dense')


@pytest.mark.parametrize('name', NAMES)
def test_wrong_arguments_are_refused(name):
    module = lookup.module('distillation', name)
    image, text, *teacher = embeddings(module, 6)
    loss = functools.partial(module.loss, image, text, SCALES[0])
    with pytest.raises(ValueError, match=r'^distillation.*\[5, '):
        loss(*(x[:5] for x in teacher), SCALES[1])
    if name in SAME_SIZE:
        with pytest.raises(ValueError, match='project'):
            loss(*(x[:, :16] for x in teacher), SCALES[1])
    if name == 'feature':
        return
    with pytest.raises(ValueError, match="there is no 'ring'"):
        loss(*teacher, SCALES[1], implementation='ring')
    with pytest.raises(ValueError, match='block_size is 0; expected at least 1'):
        loss(*teacher, SCALES[1], block_size=0)
    with pytest.raises(ValueError, match=r'6 pairs is not a multiple of the 8 devices'):
        loss(*teacher, SCALES[1], mesh=sharding.make_mesh(jax.devices()))
