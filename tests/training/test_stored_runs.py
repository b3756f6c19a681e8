"""Runs that learn from stored embeddings: as from the model that made them; exact resume."""

import io
import subprocess
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image
from support.process import clip_jax_command, environment, free_port
from support.runs import command, copied_until, train, training

import clip_jax
from clip_jax.cli import config_file
from clip_jax.planning import abstract_step
from clip_jax.step import rules

RUN = 'total_steps=20', 'checkpoint.every=10', 'checkpoint.keep=9', 'ema.decay=0.9'


@pytest.fixture(scope='module')
def square(tiny_tars, tmp_path_factory):
    """SPEC of the tiny set with images of the models' size, which nothing resizes."""
    path = tmp_path_factory.mktemp('square') / 'square-00000.tar'
    with tarfile.open(tiny_tars.removeprefix('tars:')) as old, tarfile.open(path, 'w') as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith('.jpg'):
                file = io.BytesIO()
                Image.open(io.BytesIO(data)).resize((16, 16)).save(file, 'PNG')
                member.name, data = member.name.replace('.jpg', '.png'), file.getvalue()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture(scope='module')
def folders(square, tiny_run, tmp_path_factory):
    """The embeddings of the data by the small run, and their first 12 coordinates."""
    folder = tmp_path_factory.mktemp('stored')
    arguments = 'embed', f'--model={tiny_run}', f'--data={square}', '--shard-size=10'
    for name, more in ('whole', ()), ('first', ('--dim=12', '--save-dtype=float16')):
        assert not command(*arguments, f'--out={folder / name}', *more).returncode
    return folder


@pytest.fixture(scope='module')
def config(tiny_config, square, tiny_run, folders, tmp_path_factory):
    """The small config without augmentation and with two teachers; an argument says what the first
    one has: embeddings, path or both.
    """
    path = tmp_path_factory.mktemp('stored') / 'stored.py'
    path.write_text(f"""
import sys
sys.path.insert(0, {str(tiny_config.parent)!r})
import tiny
from ml_collections import ConfigDict

def get_config(how='embeddings'):
    c = tiny.get_config().unlock()
    c.data.train = {square!r}
    c.data.augment.crop_scale, c.data.augment.flip = (1.0, 1.0), 0.0
    c.evals, c.eval_every = ConfigDict(), 50
    where = dict(path={str(tiny_run)!r}, embeddings={str(folders / 'whole')!r})
    where = {{k: v for k, v in where.items() if how in (k, 'both')}}
    c.distillation.teachers.one = ConfigDict({{**where, 'loss': 'mobileclip', 'weight': 0.5}})
    c.distillation.teachers.two = ConfigDict(
        {{'embeddings': {str(folders / 'first')!r}, 'loss': 'feature', 'weight': 9.0}})
    return c.lock()
""")
    return path


@pytest.fixture(scope='module')
def taught(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'stored'
    done = train(config, workdir, *RUN)
    assert done.returncode == 0, done.stderr
    return workdir


def test_stored_embeddings_teach_as_the_model_does(config, taught, tmp_path):
    done = train(f'{config}:path', tmp_path / 'online', *RUN)
    assert done.returncode == 0, done.stderr
    for row, other in zip(training(taught), training(tmp_path / 'online'), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
        total = row['contrastive'] + 0.5 * row['teacher/one'] + 9 * row['teacher/two']
        assert row['loss'] == pytest.approx(total, rel=1e-5)
    one, other = (clip_jax.load(x).variables for x in (taught, tmp_path / 'online'))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), one, other)


def test_projections_are_in_checkpoints_and_in_no_model(taught, config):
    cut = copied_until(taught, taught.with_name('cut'), 10)
    done = train(config, cut, *RUN)
    assert 'resumes from step 10' in done.stdout, done.stderr
    assert training(cut) == training(taught)
    for average in ('', '#average'):
        one, other = (
            rules.paths(clip_jax.load(f'{x}{average}').variables['params']) for x in (taught, cut)
        )
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert not any('distillation' in name for name in one)


@pytest.mark.slow
def test_two_processes_learn_from_a_mixture_as_one_does(
    config, square, tiny_tars, tiny_run, tmp_path
):
    data, folder = f'3 * {square} + 1 * {tiny_tars}', tmp_path / 'mixture'
    embed = 'embed', f'--model={tiny_run}', f'--data={data}', f'--out={folder}', '--shard-size=50'
    assert not command(*embed).returncode
    changes = [f'distillation.teachers.{name}.embeddings={folder}' for name in ('one', 'two')]
    changes += [f'data.train={data}', 'total_steps=4', 'data.num_workers=1']
    done = train(config, tmp_path / 'alone', *changes)
    assert done.returncode == 0, done.stderr
    flags = [f'--config.{change}' for change in changes]
    flags += [f'--config={config}', f'--workdir={tmp_path / "both"}', '--num-processes=2']
    flags += [f'--coordinator=localhost:{free_port()}']
    running = [
        subprocess.Popen(
            clip_jax_command('train', *flags, f'--process-id={i}'), env=environment(1, alone=False)
        )
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    for row, other in zip(training(tmp_path / 'both'), training(tmp_path / 'alone'), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ('embeddings=nowhere', 'teachers.one: nowhere: not a folder of embeddings (there is no'),
        ('weight=1.0', 'teachers.one: has path and embeddings; expected one'),
        ('embeddings=', 'teachers.one: has neither path nor embeddings; expected one'),
        ('loss=', 'teachers.one: loss must be given'),
    ],
)
def test_wrong_settings_are_one_line(changes, message, config, tmp_path):
    if 'has path and' in message:
        config = f'{config}:both'
    done = train(config, tmp_path / 'run', *RUN, f'distillation.teachers.one.{changes}')
    assert done.returncode != 0
    assert message in done.stderr and 'Traceback' not in done.stderr


def test_a_plan_has_stored_teachers_and_projections(config):
    read = config_file.read(str(config), ['--config.model.embed_dim=24'])
    with read.unlocked():
        read.tokenizer.vocab_size = 40
        del read.distillation.teachers['two']
        read.distillation.teachers.one.loss = 'interactive'
    step = abstract_step.step_of(read, jax.devices()[:1], 'float32')
    sizes = jax.tree.map(lambda x: x.shape, (step.batch['stored'], step.state.params))
    assert sizes[0] == {'one': {'image': (16, 16), 'text': (16, 16)}}
    assert sizes[1]['distillation']['one']['text'] == {'kernel': (24, 16)}
    state, numbers = jax.eval_shape(step.function, step.state, step.batch)
    assert 'teacher/one' in numbers and state.params.keys() == step.state.params.keys()


def test_other_data_is_one_line(config, tiny_tars, tmp_path):
    done = train(config, tmp_path / 'run', *RUN, f'data.train={tiny_tars}')
    assert 'the image of record 0 is not the one that was embedded' in done.stderr
    assert done.returncode != 0 and 'Traceback' not in done.stderr
