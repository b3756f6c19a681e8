"""Training on images of any aspect ratio: what each batch has, meshes, and resumption."""

import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support import small_training
from support.runs import command, copied_until, rows, train, training

import clip_jax
from clip_jax.cli import config_file
from clip_jax.data.patches import Patches
from clip_jax.data.sources import open_source
from clip_jax.models import clip
from clip_jax.planning import abstract_step
from clip_jax.step.teachers import Teacher

CARD = {
    'image': {'name': 'naflex', 'image_size': 16, 'patch_size': 4, **small_training.SMALL},
    'text': small_training.TEXT,
    'embed_dim': 16,
}
KINDS = ((9, 4), (12, 6))  # patches of an image and their size, by batch


def batch(seed: int, n: int = 16) -> dict:
    """Images of one brightness each and of many shapes, and texts that name it."""
    most, size = KINDS[seed % len(KINDS)]
    made = small_training.batch(seed, n, 1)
    rng = np.random.default_rng(seed)
    grid = np.stack([rng.integers(1, 4, n), rng.integers(1, 4, n)], axis=1).astype(np.int32)
    pixels = np.broadcast_to(made['image'][:, None], (n, most, size, size, 3)).copy()
    pixels[np.arange(most) >= grid.prod(axis=1)[:, None]] = 0
    return {'image': Patches(pixels, grid), 'tokens': made['tokens']}


def losses(devices: int, **options) -> list[float]:
    # With a higher rate, rounding errors grow too much in 20 steps.
    state, step, put = small_training.setup(devices, card=CARD, learning_rate=1e-4, **options)
    found = []
    for i in range(20):
        state, numbers = step(state, put(batch(i)))
        found.append(float(numbers['loss']))
    return found


@pytest.fixture(scope='module')
def alone() -> list[float]:
    return losses(1)


@pytest.mark.parametrize(
    'options',
    [
        {'fsdp': 2, 'tensor': 2, 'scan': True, 'remat': 'full'},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({'microbatches': 2}, marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_on_eight_devices_are_those_on_one(alone, options):
    assert alone[-1] < alone[0]
    np.testing.assert_allclose(losses(8, **options), alone, atol=1e-5)


@pytest.fixture(scope='module')
def config(tiny_config, tmp_path_factory) -> Path:
    """A config of six steps with two budgets and patches of another size than the model's."""
    page = tmp_path_factory.mktemp('naflex') / 'naflex.py'
    page.write_text(f"""
import sys
sys.path.insert(0, {str(tiny_config.parent)!r})
import tiny

def get_config():
    c = tiny.get_config().unlock()
    c.model.image = type(c)(
        {{'name': 'naflex', 'image_size': 16, 'patch_size': 4, 'width': 16, 'depth': 1,
         'heads': 2, 'mlp_dim': 16}}
    )
    c.data.budgets = ((9, 0.5), (20, 0.5))
    c.data.patch_sizes = ((6, 1.0),)
    c.total_steps, c.checkpoint.every, c.checkpoint.keep, c.eval_every = 6, 3, 9, 6
    del c.evals['retrieval']
    return c.lock()
""")
    return page


@pytest.fixture(scope='module')
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('naflex_run') / 'run'
    done = train(config, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_embeds_and_is_scored_at_its_own_budget(run, tiny_tars, tmp_path):
    model = clip_jax.load(run)
    rule = model.preprocess
    assert (rule.resize, rule.patch_size, rule.max_patches) == ('patches', 4, 16)
    assert any('zeroshot/top1' in row for row in rows(run))
    images = [np.full((10, width, 3), 90, np.uint8) for width in (10, 40, 3)]
    together = model.encode_image(images)
    alone = np.concatenate([model.encode_image(image) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    out = tmp_path / 'embedded'
    done = command('embed', f'--model={run}', f'--data={tiny_tars}', f'--out={out}')
    assert done.returncode == 0, done.stderr
    data = open_source(tiny_tars)
    expected = model.encode_image([data[i]['image'] for i in range(len(data))])
    np.testing.assert_allclose(open_source(f'embeddings:{out}').embeddings(), expected, atol=1e-3)
    best = clip_jax.search(out, Image.open(io.BytesIO(data[5]['image'])), 1)
    assert best[0].score > 0.99


def test_it_resumes_with_the_batches_that_it_would_have_seen(run, config, tmp_path):
    again = copied_until(run, tmp_path / 'again', 3)
    done = train(config, again)
    assert done.returncode == 0, done.stderr
    assert training(again) == training(run)
    pair = (clip_jax.load(x).variables for x in (again, run))
    jax.tree.map(np.testing.assert_array_equal, *pair)


TWO_SIZES = (
    "({'steps': 2, 'model.image.image_size': 16}, {'steps': 4, 'model.image.image_size': 32})"
)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('data.budgets=((9, 0.5), (20, 0.6))', 'data.budgets is .* add up to 1'),
        ('data.patch_sizes=((0, 1.0),)', 'data.patch_sizes is .* pairs of a number'),
        ('model.image.name=vit', r'data.budgets is .* expected \(\) or model.image.name naflex'),
        ('preprocess.resize=squash', "resize 'squash' with patch_size 4"),
        (f'stages={TWO_SIZES}', 'takes images of any size'),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(config, tmp_path, change, message):
    done = train(config, tmp_path / 'run', change)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_a_plan_is_of_the_largest_batch(config):
    def planned(*changes: str) -> abstract_step.Step:
        found = config_file.read(str(config), [f'--config.{change}' for change in changes])
        return abstract_step.step_of(found, jax.devices()[:1], 'float32')

    drawn, largest = planned(), planned('data.budgets=((20, 1.0),)')
    assert drawn.batch['image'].pixels.shape == (16, 20, 6, 6, 3)
    assert drawn.batch['image'].pixels.shape == largest.batch['image'].pixels.shape
    flops = [
        abstract_step.forward_flops(x.model, x.batch['image'])
        for x in (drawn, largest, planned('data.budgets=((9, 1.0),)'))
    ]
    assert flops[0] == flops[1] > 1.2 * flops[2]
    assert jax.eval_shape(drawn.function, drawn.state, drawn.batch)[1]['loss'].shape == ()


def test_a_teacher_of_images_of_one_size_is_refused():
    given = batch(0)
    for card, images in (
        (small_training.CARD, given['image']),
        (CARD, small_training.batch(0)['image']),
    ):
        teacher = Teacher(clip.from_card(card), max, 1.0, (0.5,) * 3, (0.5,) * 3)
        with pytest.raises(ValueError, match=r'distillation: the student takes images of .* kind'):
            teacher.embed({}, images, given['tokens'])
