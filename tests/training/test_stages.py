"""Stages of a run: one directory, one optimizer's state, and exact resumption at every boundary."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.runs import command, copied_until, rows, summary, train, training

import clip_jax
from clip_jax import checkpoint
from clip_jax.training import config_schema, loop, stages

STAGES = """(
    {'steps': 4, 'model.image.image_size': 16, 'batch_size': 32, 'data.augment.flip': 0.0},
    {'steps': 3, 'model.image.image_size': 24, 'optimizer.learning_rate': 1e-3},
    {'steps': 5, 'model.image.image_size': 32, 'model.image.patch_dropout': 0.0},
)"""


@pytest.fixture(scope='module')
def staged(tiny_config, tmp_path_factory) -> Path:
    """A config of three stages: 4, 3 and 5 steps at 16, 24 and 32 pixels."""
    page = tmp_path_factory.mktemp('staged') / 'staged.py'
    page.write_text(f"""
import sys
sys.path.insert(0, {str(tiny_config.parent)!r})
import tiny

def get_config():
    c = tiny.get_config().unlock()
    c.stages = {STAGES}
    c.checkpoint.update(every=100, keep=9)
    c.ema.decay = 0.9
    return c.lock()
""")
    return page


@pytest.fixture(scope='module')
def whole(staged, tmp_path_factory) -> tuple[Path, str]:
    """A run of all stages in one process, and what it printed."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    done = train(staged, workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def assert_same(one: Path, other: Path) -> None:
    """Metrics, weights and their average are equal bit for bit."""
    assert training(one) == training(other)
    for suffix in ('', '#average'):
        pair = (clip_jax.load(f'{x}{suffix}').variables for x in (one, other))
        jax.tree.map(np.testing.assert_array_equal, *pair)
    scores = [[r for r in rows(x) if 'zeroshot/top1' in r] for x in (one, other)]
    assert scores[0] == scores[1]


def test_a_run_of_stages_is_one_run(whole):
    workdir, out = whole
    lines = [line for line in out.splitlines() if line.startswith('stage ')]
    assert [line.partition(':')[0] for line in lines] == [f'stage {i} of 3' for i in (1, 2, 3)]
    assert 'stage 2 of 3: 3 steps after step 4, batch_size 16, image_size 24' in lines[1]
    steps = training(workdir)
    assert [row['step'] for row in steps] == list(range(1, 13))
    assert [row['stage'] for row in steps] == [1] * 4 + [2] * 3 + [3] * 5
    assert summary(workdir)['pairs'] == 4 * 32 + 8 * 16
    for step, size, dropout in (4, 16, 0.25), (7, 24, 0.25), (12, 32, 0.0):
        about = checkpoint.read_about(checkpoint.absolute(workdir / f'checkpoints/{step}'))
        image = about['card']['model']['image']
        assert (image['image_size'], image['patch_dropout']) == (size, dropout)
        assert about['card']['preprocess']['size'] == size
        assert about['input']['global_next_index'] == {4: 128, 7: 176, 12: 256}[step]
    assert clip_jax.load(workdir).model.image.image_size == 32
    assert [r['step'] for r in rows(workdir) if 'zeroshot/top1' in r] == [0, 4, 8, 12]
    assert json.loads((workdir / 'card.json').read_text()) == about['card']


def stop_after(monkeypatch, step: int) -> None:
    """Has SIGTERM arrive while a step is dispatched."""
    original = loop.Loop._stop_flags

    def flags(self):
        if self.at == step - 1:
            self._signals.stop = signal.SIGTERM
        return original(self)

    monkeypatch.setattr(loop.Loop, '_stop_flags', flags)


@pytest.mark.slow
@pytest.mark.parametrize('step', [3, 4, 5])
def test_stopping_around_a_boundary_changes_nothing(step, staged, whole, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        done = train(staged, workdir)
    assert 'stopped at step' in done.stdout, done.stderr
    assert not (workdir / 'summary.json').exists()
    again = train(staged, workdir)
    assert again.returncode == 0 and 'resumes from step' in again.stdout, again.stderr
    assert_same(workdir, whole[0])


def test_a_kill_at_a_boundary_changes_nothing(staged, whole, tmp_path):
    """Only the checkpoint of the boundary is there, and nothing of the next stage."""
    workdir = copied_until(whole[0], tmp_path / 'run', 4)
    done = train(staged, workdir)
    assert 'resumes from step 4 of 12' in done.stdout, done.stderr
    assert_same(workdir, whole[0])


@pytest.mark.slow
def test_a_corrupt_checkpoint_of_a_stage_leads_back_to_the_stage_before(staged, whole, tmp_path):
    workdir = copied_until(whole[0], tmp_path / 'run', 7)
    training_files = [p for p in (workdir / 'checkpoints/7/training').rglob('*') if p.is_file()]
    max(training_files, key=lambda p: p.stat().st_size).write_bytes(b'')
    done = train(staged, workdir)
    assert 'resumes from step 4 of 12' in done.stdout, done.stderr
    assert_same(workdir, whole[0])


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (({'steps': 4},), r'stages: their steps add up to 4; expected total_steps, 12'),
        (({'step': 12},), r"stages\[0\]: there is no 'step'. Did you mean 'steps'"),
        (({'steps': 12, 'model.text.width': 8},), r"stages\[0\]: there is no 'model.text.width'"),
        (({'steps': 12, 'batch_size': 1.5},), r'batch_size is 1.5; expected an integer'),
        (({'steps': 0},), r'stages\[0\]: steps is 0; expected at least 1'),
        (({'batch_size': 8},), r'stages\[0\] has no steps'),
        ((12,), r'stages\[0\] is 12; expected keys and values'),
        (
            ({'steps': 4, 'model.image.image_size': 32}, {'steps': 8}),
            r'stages\[1\]: without model.image.image_size, which another stage sets',
        ),
    ],
)
def test_wrong_stages_are_one_line(entries, message):
    config = ConfigDict(config_schema.defaults().to_dict()).unlock()
    config.total_steps, config.stages = 12, entries
    with pytest.raises(ValueError, match=message) as error:
        stages.of(config)
    assert '\n' not in str(error.value)


def test_stages_are_checked_before_anything_is_written(tiny_config, tmp_path):
    flag = '--config.stages=({"steps": 4}, {"steps": 8, "model.image.image_size": 4})'
    workdir = tmp_path / 'run'
    done = command('train', f'--config={tiny_config}', f'--workdir={workdir}', flag)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and 'stages[' in line
    assert not workdir.exists()
    plan = command('plan', f'--config={tiny_config}', '--topology=local', flag)
    assert plan.returncode == 1 and 'clip-jax plan takes one with --stage=N' in plan.stderr


def test_only_later_stages_can_change():
    two = ({'steps': 4, 'batch_size': 8}, {'steps': 8})
    stages.check_past(two, ({'steps': 6, 'batch_size': 8}, {'steps': 9}), 4)
    stages.check_past((), ({'steps': 4}, {'steps': 8, 'batch_size': 2}), 4)
    with pytest.raises(ValueError, match='step 6 was made with other ones'):
        stages.check_past(two, ({'steps': 6, 'batch_size': 8}, {'steps': 6}), 6)


def test_data_that_have_moved_are_known_by_their_records(tiny_run, tiny_config, tmp_path):
    data = json.loads((tiny_run / 'config.json').read_text())['data']['train']
    moved, other = tmp_path / 'moved.tar', tmp_path / 'other.tar'
    shutil.copyfile(data.removeprefix('tars:'), moved)
    other.write_bytes(moved.read_bytes().replace(b'picture', b'drawing'))
    workdir = copied_until(tiny_run, tmp_path / 'run', 8)
    refused = train(tiny_config, workdir, f'data.train=tars:{other}')
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 1 and 'its records are not the same' in line
    done = train(tiny_config, workdir, f'data.train=tars:{moved}')
    assert done.returncode == 0 and 'the same records' in done.stdout, done.stderr
    assert training(workdir) == training(tiny_run)
