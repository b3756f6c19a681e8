"""Runs with adapters: what is trained and saved, reading and resuming them, and wrong settings."""

import json
import shutil

import numpy as np
import pytest
from support.runs import summary, train, training

import clip_jax
from clip_jax.step import rules

CHANGES = (
    'lora.image.rank=2',
    'lora.text.rank=3',
    'lora.text.alpha=6.0',
    'ema.decay=0.9',
    "optimizer.rules=({'path': 'image_projection/.*', 'frozen': False},)",
    'total_steps=12',
    'checkpoint.every=4',
    'checkpoint.keep=9',
    'eval_every=6',
    'figures=False',
)


@pytest.fixture(scope='module')
def adapted(tiny_run, tiny_config, tmp_path_factory):
    """A run with adapters of another run, and what it printed."""
    folder = tmp_path_factory.mktemp('adapted')
    shutil.copytree(tiny_run, folder / 'base')
    done = train(tiny_config, folder / 'run', *CHANGES, f'init_from={folder / "base"}')
    assert done.returncode == 0, done.stderr
    return folder / 'run', done.stdout


def params(path):
    return {
        k: np.asarray(x) for k, x in rules.paths(clip_jax.load(path).variables['params']).items()
    }


def saved(workdir, step=12):
    """The arrays in the item `variables` of a checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(workdir / 'checkpoints' / str(step) / 'variables')['params']


def test_a_checkpoint_has_what_is_trained_and_reading_merges_it(adapted):
    workdir, out = adapted
    assert 'lora/image' in out
    tree = saved(workdir)
    assert tree.keys() == {'lora', 'image_projection'}
    before, after = params(workdir.with_name('base')), params(workdir)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    kernels = {n for n in before if n.endswith(('attention/qkv/kernel', 'attention/out/kernel'))}
    assert changed == kernels | {'image_projection/kernel'} and len(kernels) == 4
    for tower, scale in (('image', 1.0), ('text', 2.0)):
        one = tree['lora'][tower]['transformer']['block_0']['attention']['out']['kernel']
        a, b = (np.asarray(one[x], np.float64) for x in 'ab')
        name = f'{tower}/transformer/block_0/attention/out/kernel'
        np.testing.assert_allclose(after[name], before[name] + scale * (a @ b), atol=1e-6)
    assert 'lora' not in clip_jax.load(workdir).card


def test_evaluations_during_training_see_the_merged_model(adapted, tiny_config):
    workdir, _ = adapted
    scores = summary(workdir)
    for suffix, name in (('', 'zeroshot'), ('#average', 'zeroshot_average')):
        report = json.loads((workdir / 'evals' / f'{name}.json').read_text())
        assert report['scores']['top1']['value'] == scores[f'{name}/top1']
    raw, mean = params(workdir), params(f'{workdir}#average')
    assert not np.array_equal(
        *(x['text/transformer/block_0/attention/out/kernel'] for x in (raw, mean))
    )
    assert np.array_equal(*(x['text/token_embedding/embedding'] for x in (raw, mean)))


def test_a_resumed_run_is_bit_exact(adapted, tiny_config, tmp_path):
    workdir, _ = adapted
    cut = workdir.with_name('cut')
    shutil.copytree(workdir, cut)
    for step in ('8', '12'):
        shutil.rmtree(cut / 'checkpoints' / step)
    (cut / 'summary.json').unlink()
    done = train(tiny_config, cut, *CHANGES, f'init_from={workdir.with_name("base")}')
    assert 'resumes from step 4' in done.stdout, done.stderr
    assert training(cut) == training(workdir)
    for suffix in ('', '#average'):
        one, other = params(f'{workdir}{suffix}'), params(f'{cut}{suffix}')
        assert all(np.array_equal(one[name], other[name]) for name in one)
