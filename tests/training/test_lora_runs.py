"""Runs with adapters: what is trained and saved, reading and resuming them, and wrong settings."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support.runs import command, copied_until, summary, train, training

import clip_jax
from clip_jax import checkpoint
from clip_jax.step import rules
from clip_jax.training.evaluations import Evaluations

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


def test_the_average_is_merged_too(adapted):
    workdir, _ = adapted
    raw, mean = params(workdir), params(f'{workdir}#average')
    same = {name for name in raw if np.array_equal(raw[name], mean[name])}
    assert 'text/token_embedding/embedding' in same
    assert 'text/transformer/block_0/attention/out/kernel' not in same
    assert {'zeroshot/top1', 'zeroshot_average/top1'} <= summary(workdir).keys()


def test_evaluations_during_training_see_the_merged_model(adapted):
    workdir, _ = adapted
    clip = clip_jax.load(workdir)
    card = checkpoint.read_about(checkpoint.find(workdir))['card']
    base = clip_jax.load(workdir.with_name('base')).variables
    tree = {**base['params'], **saved(workdir)}
    seen = []

    class Fake:
        def report(self, model, path):
            seen.append(rules.paths(model.variables['params']))
            return {}

    class Optimizer:
        def averaged(self, params, opt_state, ema):
            return None

    state = SimpleNamespace(variables={'params': tree}, params=tree, opt_state=None, ema={})
    clip = dataclasses.replace(clip, card=card, variables={})
    Evaluations(None, clip, {'fake': Fake()}, workdir, None, None, Optimizer()).run(state)
    expected = params(workdir)
    assert seen[0].keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(seen[0][name], x, rtol=0, atol=1e-7)


def test_a_resumed_run_is_bit_exact_with_a_base_that_was_moved(adapted, tiny_config):
    workdir, _ = adapted
    base, cut, aside = (workdir.with_name(name) for name in ('base', 'cut', 'aside'))
    copied_until(workdir, cut, 4)
    base.rename(aside)
    try:
        done = train(tiny_config, cut, *CHANGES, f'init_from={base}')
        assert 'name where it is: --config.init_from=PATH' in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        done = train(tiny_config, cut, *CHANGES, f'init_from={aside}')
        assert 'resumes from step 4' in done.stdout, done.stderr
    finally:
        aside.rename(base)
    assert training(cut) == training(workdir)
    for suffix in ('', '#average'):
        one, other = params(f'{workdir}{suffix}'), params(f'{cut}{suffix}')
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_base_that_moves_with_the_run_or_is_named_is_found(adapted, tmp_path):
    workdir, _ = adapted
    expected = params(workdir)
    both = tmp_path / 'both'
    shutil.copytree(workdir.parent, both)
    base = workdir.with_name('base')
    aside = base.rename(base.with_name('aside'))
    try:
        for path in (both / 'run', f'{workdir}#base={both}/base'):
            found = params(path)
            assert all(np.array_equal(found[name], x) for name, x in expected.items())
        with pytest.raises(ValueError, match=r'is not at .*/base/.*PATH') as error:
            clip_jax.load(f'{workdir}#average')
        assert f'name where it is: {workdir}#average#base=PATH' in str(error.value)
        assert '\n' not in str(error.value)
        with pytest.raises(ValueError, match='has adapters of another model itself'):
            clip_jax.load(f'{workdir}#average#base={workdir}')
    finally:
        aside.rename(base)


def test_another_base_is_refused(adapted, tiny_config, tmp_path):
    workdir, _ = adapted
    with pytest.raises(ValueError) as error:
        clip_jax.load(f'{workdir}#base={workdir.with_name("base")}/checkpoints/8')
    assert 'checkpoints/8 is another model (fingerprint' in str(error.value)
    assert f'name where it is: {workdir}#base=PATH' in str(error.value)
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='has no adapters, so that it has no base'):
        clip_jax.load(f'{workdir.with_name("base")}#base={workdir}')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (('lora.image.rank=2',), 'lora.image.rank is 2, which needs init_from'),
        (
            ('lora.text.rank=2', 'init_from={base}', 'init_state=all'),
            'lora.text.rank is 2, and init_state is all; adapters begin without a state',
        ),
        (('lora.text.rank=2', 'init_from={run}'), 'has adapters of another model itself'),
        (('init_from={run}', 'init_state=all'), 'has the state of adapters only; resume its run'),
        (('init_from={mixed}', 'init_state=all'), 'has no state of training, as a model that'),
        (
            ('init_from={bad}', 'init_state=all'),
            'checkpoint is corrupt: the content of training/',
        ),
        (('lora.image.rank=99', 'init_from={base}'), 'is a matrix of 32 x 32; expected at most'),
    ],
)
def test_wrong_settings_are_one_line(changes, message, adapted, others, tiny_config, tmp_path):
    names = {**others, 'run': adapted[0], 'base': adapted[0].with_name('base')}
    changes = ('total_steps=20', 'figures=False', *(x.format(**names) for x in changes))
    done = train(tiny_config, tmp_path / 'run', *changes)
    assert done.returncode != 0
    assert message in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope='module')
def others(adapted, tmp_path_factory):
    """An interpolated model, and a run whose item `training` is damaged."""
    folder, base = tmp_path_factory.mktemp('others'), adapted[0].with_name('base')
    done = command('interpolate', base, adapted[0], '--alpha=0.5', f'--out={folder / "mixed"}')
    assert done.returncode == 0, done.stderr
    shutil.copytree(base, folder / 'bad')
    files = (folder / 'bad/checkpoints/12/training').rglob('*')
    largest = max((x for x in files if x.is_file()), key=lambda x: x.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b'?')
    return {'mixed': folder / 'mixed', 'bad': folder / 'bad'}


def test_an_interpolated_model_is_whole(adapted, others):
    base, run, mixed = (
        params(x) for x in (adapted[0].with_name('base'), adapted[0], others['mixed'])
    )
    for name, x in mixed.items():
        np.testing.assert_allclose(x, (base[name] + run[name]) / 2, rtol=0, atol=1e-6)


def test_commands_that_read_checkpoints_take_one_with_adapters(adapted, tmp_path):
    workdir, _ = adapted
    for arguments in (('checkpoint', 'list', workdir), ('checkpoint', 'verify', workdir)):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
