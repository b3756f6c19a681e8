"""Runs that learn from a teacher: their metrics, resume, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import command, copied_until, train, training

import clip_jax
from clip_jax.cli import config_file, plan
from clip_jax.planning import abstract_step, hlo
from clip_jax.step import rules

RUN = ('total_steps=8', 'checkpoint.every=4', 'checkpoint.keep=9', 'eval_every=50', 'figures=False')


@pytest.fixture(scope='module')
def config(tiny_run, tiny_config, tmp_path_factory):
    """The small config with the small run as a teacher."""
    path = tmp_path_factory.mktemp('taught') / 'taught.py'
    options = {'path': str(tiny_run), 'loss': 'mobileclip', 'weight': 0.5}
    options |= {'implementation': 'gather'}
    path.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(tiny_config.parent)!r})\n'
        'import tiny\n'
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        '    c = tiny.get_config().unlock()\n'
        f'    c.distillation.teachers.one = ConfigDict({options!r})\n'
        '    return c.lock()\n'
    )
    return path


@pytest.fixture(scope='module')
def taught(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'taught'
    done = train(config, workdir, *RUN)
    assert done.returncode == 0, done.stderr
    return workdir


def test_each_part_is_logged(taught):
    for row in training(taught):
        total = row['contrastive'] + 0.5 * row['teacher/one']
        assert row['loss'] == pytest.approx(total, rel=1e-5)


def test_a_resumed_run_is_bit_exact_and_checkpoints_have_no_teacher(config, taught):
    cut = copied_until(taught, taught.with_name('cut'), 4)
    done = train(config, cut, *RUN)
    assert 'resumes from step 4' in done.stdout, done.stderr
    assert training(cut) == training(taught)
    one, other = (rules.paths(clip_jax.load(x).variables['params']) for x in (taught, cut))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert {p.name for p in (taught / 'checkpoints' / '8').iterdir()} >= {'variables', 'training'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (('distillation.contrastive=-1.0',), 'contrastive is -1.0; expected a weight above 0'),
        (('distillation.teachers.one.loss=mobilclip',), "Did you mean 'mobileclip'"),
        (('distillation.teachers.one.path=nowhere',), 'nowhere: no such file or folder'),
        (('distillation.teachers.one.implementation=ring',), 'one: distillation: implementation: '),
        (('tokenizer.context_length=9',), 'teachers.one: its tokenizer is not the one of the stud'),
    ],
)
def test_wrong_settings_are_one_line(changes, message, config, tmp_path):
    done = train(config, tmp_path / 'run', *RUN, *changes)
    assert done.returncode != 0
    assert message in done.stderr and 'Traceback' not in done.stderr


def test_a_weight_without_teachers_is_refused(tiny_config, tmp_path):
    done = train(tiny_config, tmp_path / 'run', *RUN, 'distillation.contrastive=0.5')
    assert 'contrastive is 0.5, and there are no teachers; leave it at 1' in done.stderr


@pytest.fixture(scope='module')
def of_teacher(tiny_run):
    """MiB and FLOPs of the forward pass of the teacher, for a batch of 16."""
    clip = clip_jax.load(tiny_run)
    inputs = jnp.zeros((16, 16, 16, 3)), jnp.zeros((16, 12), jnp.int32)
    jaxpr = jax.make_jaxpr(clip.model.apply)(clip.variables, *inputs).jaxpr
    size = sum(x.nbytes for x in jax.tree.leaves(clip.variables)) / 2**20
    return size, sum(hlo.flops(jaxpr).values())


def test_the_step_of_a_plan_has_the_teacher(config, tiny_config, of_teacher):
    found = []
    for page in config, tiny_config:
        read = config_file.read(str(page), ['--config.tokenizer.vocab_size=40'])
        step = abstract_step.step_of(read, jax.devices()[:1], 'float32', read=plan.shapes)
        with jax.set_mesh(step.mesh):
            jaxpr = jax.make_jaxpr(step.function)(step.state, step.batch).jaxpr
        found.append((abstract_step.local_mib(step.state.teachers), sum(hlo.flops(jaxpr).values())))
    (size, flops), (none, alone) = found
    assert (size, none) == (pytest.approx(of_teacher[0]), 0)
    assert of_teacher[1] < flops - alone < 1.1 * of_teacher[1]  # and the loss
    with pytest.raises(ValueError, match='this step has no teachers that embed each batch'):
        abstract_step.step_of(config_file.read(str(config)), jax.devices()[:1], 'float32')


@pytest.mark.slow
def test_a_plan_counts_the_memory_of_the_teacher(config, tiny_config, of_teacher, tmp_path):
    plans = []
    for page in config, tiny_config:
        out = tmp_path / f'{page.stem}.json'
        flags = '--topology=local:1', '--config.tokenizer.vocab_size=40', f'--out={out}'
        done = command('plan', f'--config={page}', *flags)
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(out.read_text()))
    taught, alone = plans
    assert taught['memory_mib']['teachers'] == pytest.approx(of_teacher[0])
    assert 'teachers' not in alone['memory_mib']
    assert taught['needs_mib'] > alone['needs_mib'] + of_teacher[0]
