"""Runs that begin from another run, with rules and averaged weights."""

import json
import pathlib

import numpy as np
import pytest
from support.runs import copied_until, rows, summary, train, training

import clip_jax
from clip_jax import checkpoint, convert
from clip_jax.step import rules
from clip_jax.training import config_schema, setup

ONE_TOWER = pathlib.Path(__file__).parents[1] / 'convert' / 'fixtures' / 'CLIPVisionModel'
CHANGES = (
    'ema.decay=0.9',
    'optimizer.freeze=("lock_image:1",)',
    'optimizer.layer_decay.text=0.8',
    'total_steps=12',
    'checkpoint.every=4',
    'checkpoint.keep=9',
    'eval_every=6',
    'figures=False',
)


@pytest.fixture(scope='module')
def tuned(tiny_run, tiny_config, tmp_path_factory):
    """A run that starts from the weights of another."""
    workdir = tmp_path_factory.mktemp('tuned') / 'run'
    done = train(tiny_config, workdir, *CHANGES, f'init_from={tiny_run}')
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_the_start_says_what_is_trained_and_the_rest_stays(tuned, tiny_run):
    workdir, out = tuned
    assert 'frozen' in out and 'trained: ' in out
    before, after = (
        rules.paths(clip_jax.load(path).variables['params']) for path in (tiny_run, workdir)
    )
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert 'image/patch_embedding/kernel' in same
    assert not any(name.startswith('text/') for name in same)


def test_the_average_is_evaluated_saved_and_loaded(tuned):
    workdir, _ = tuned
    raw, mean = (clip_jax.load(f'{workdir}{suffix}') for suffix in ('', '#average'))
    raw, mean = (rules.paths(x.variables['params']) for x in (raw, mean))
    assert raw.keys() == mean.keys()
    assert np.array_equal(raw['image/patch_embedding/kernel'], mean['image/patch_embedding/kernel'])
    assert not np.array_equal(raw['text/post_norm/scale'], mean['text/post_norm/scale'])
    scores = summary(workdir)
    assert {'zeroshot/top1', 'zeroshot_average/top1'} <= scores.keys()
    report = json.loads((workdir / 'evals' / 'zeroshot_average.json').read_text())
    assert report['scores']['top1']['value'] == scores['zeroshot_average/top1']


def test_a_run_without_an_average_says_so(tiny_run):
    with pytest.raises(ValueError, match=r'has no average of the weights; expected a run with ema'):
        clip_jax.load(f'{tiny_run}#average')


def test_a_resumed_run_is_bit_exact_with_rules_and_an_average(tuned, tiny_run, tiny_config):
    workdir, _ = tuned
    cut = copied_until(workdir, workdir.with_name('cut'), 4)
    done = train(tiny_config, cut, *CHANGES, f'init_from={tiny_run}')
    assert 'resumes from step 4' in done.stdout, done.stderr
    for suffix in ('', '#average'):
        one, other = (clip_jax.load(f'{x}{suffix}').variables['params'] for x in (workdir, cut))
        one, other = rules.paths(one), rules.paths(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_decays_branch_off_from_one_trunk(tiny_config, tmp_path):
    """Warmup, stable, decay: a branch repeats what a run with that decay from the start does."""
    common = ('checkpoint.every=4', 'checkpoint.keep=9', 'eval_every=50', 'figures=False')
    common += ('optimizer.schedule.name=wsd',)
    decay = ('optimizer.schedule.decay_steps=4',)
    trunk, whole = tmp_path / 'trunk', tmp_path / 'whole'
    stable = ('optimizer.schedule.decay_steps=0', 'total_steps=12')
    assert train(tiny_config, trunk, *common, *stable).returncode == 0
    assert train(tiny_config, whole, *common, *decay, 'total_steps=12').returncode == 0
    for step in (4, 8):
        branch = tmp_path / f'from-{step}'
        start = f'init_from={trunk}/checkpoints/{step}', 'init_state=all'
        done = train(tiny_config, branch, *common, *decay, *start, f'total_steps={step + 4}')
        assert f'begins at step {step}' in done.stdout, done.stderr
        assert training(branch)[0]['step'] > step
        rates = [row['learning_rate'] for row in training(branch)]
        assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    assert training(tmp_path / 'from-8') == [row for row in training(whole) if row['step'] > 8]
    one, other = (clip_jax.load(x).variables['params'] for x in (whole, tmp_path / 'from-8'))
    one, other = rules.paths(one), rules.paths(other)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert rows(tmp_path / 'from-8')[0]['step'] == 8  # what the start scores


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (('init_state=all',), 'init_state is all, which needs init_from'),
        (('init_state=everything',), "init_state: there is no 'everything'"),
        (('init_state=all', 'init_from={run}'), 'total_steps is 12, and init_from is at step 12'),
        (
            ('init_state=all', 'init_from={run}', 'total_steps=20', 'optimizer.name=lion'),
            'init_state all needs the optimizer, the rules and the average of init_from',
        ),
        (('ema.decay=1.0',), r'ema.decay is 1.0; expected at least 0 and less than 1'),
        (('optimizer.freeze=("lock_imag",)',), "Did you mean 'lock_image'"),
        (('optimizer.momentum=0.9',), "adamw: option: there is no 'momentum'"),
    ],
)
def test_wrong_settings_are_one_line(changes, message, tiny_run, tiny_config, tmp_path):
    changes = [change.format(run=tiny_run) for change in changes]
    done = train(tiny_config, tmp_path / 'run', 'figures=False', *changes)
    assert done.returncode != 0
    assert message in done.stderr and 'Traceback' not in done.stderr
    assert not checkpoint.steps(checkpoint.absolute(tmp_path / 'run') / 'checkpoints')


def test_a_new_text_tower_is_trained_for_an_image_tower_alone(tiny_config, tmp_path):
    frozen = 'optimizer.rules=({"path": "image/.*", "frozen": True},)'
    given = 'init_towers=("image",)', f'init_from={ONE_TOWER}'
    # The tiny config has sizes of its own, which it would override.
    sizes = {'width': 16, 'mlp_dim': 24, 'depth': 2, 'heads': 2, 'patch_size': 4, 'image_size': 16}
    sizes = [f'model.image.{key}={x}' for key, x in sizes.items()]
    brief = 'total_steps=2', 'optimizer.warmup_steps=0', 'eval_every=2', 'figures=False'
    done = train(tiny_config, tmp_path / 'run', frozen, *given, *sizes, *brief)
    assert done.returncode == 0, done.stderr
    made = clip_jax.load(tmp_path / 'run')
    before = convert.read(ONE_TOWER)[1]['params']['image']
    after = made.variables['params']['image']
    np.testing.assert_array_equal(
        after['transformer']['block_1']['mlp']['in']['kernel'],
        before['transformer']['block_1']['mlp']['in']['kernel'],
    )
    assert after['position_embedding'].shape == (1 + 4 * 4, 16)
    assert made.encode_text(['a red circle']).shape == (1, made.model.embed_dim)


def test_a_tower_that_is_not_there_is_one_line(tiny_config, tmp_path):
    done = train(tiny_config, tmp_path / 'run', f'init_from={ONE_TOWER}')
    line = "has no text encoder; to train a new one, set init_towers to ('image',)"
    assert done.returncode == 1 and line in done.stderr


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'init_from': None}, r"init_towers is \('image',\), which needs init_from"),
        ({'init_towers': ('text', 'image')}, r"expected \('image', 'text'\), \('image',\) or"),
        ({'init_state': 'all'}, 'which has neither adapters'),
    ],
)
def test_towers_that_cannot_be_taken_are_one_line(changes, line):
    config = config_schema.defaults().copy_and_resolve_references()
    config.update({'init_towers': ('image',), 'init_from': str(ONE_TOWER)} | changes)
    with pytest.raises(ValueError, match=line):
        setup.find_start(config)
