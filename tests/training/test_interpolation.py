"""Models between two checkpoints: what is computed, written, refused and drawn (WiSE-FT)."""

import json
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from support import small_models
from support.process import COLORS, clip_jax_command, environment
from support.runs import command

import clip_jax
from clip_jax import pretrained
from clip_jax.embeddings.identity import fingerprint
from clip_jax.training import interpolation


@pytest.fixture(scope='module')
def pair(tiny_run, tmp_path_factory):
    """A run, and the same run some steps before its end."""
    older = tmp_path_factory.mktemp('interpolation') / 'older'
    shutil.copytree(tiny_run, older)
    shutil.rmtree(max((older / 'checkpoints').iterdir(), key=lambda path: int(path.name)))
    return older, tiny_run


def read(path):
    return pretrained.read(path)[1]


def test_the_middle_is_the_mean_and_the_ends_are_the_checkpoints(pair, tmp_path):
    for alpha in (0, 0.3, 1):
        out = tmp_path / f'{alpha}'
        done = command('interpolate', *pair, f'--alpha={alpha}', f'--out={out}')
        assert not done.returncode, done.stderr
        card, found = pretrained.read(out)
        made_of = {'a': str(pair[0]), 'b': str(pair[1]), 'alpha': alpha}
        assert card['interpolated'] == made_of
        assert json.loads((out / 'card.json').read_text()) == card
        a, b = map(read, pair)
        if alpha == 0.3:
            jax.tree.map(
                lambda x, y, z: np.testing.assert_allclose(
                    z,
                    0.7 * np.asarray(x, np.float64) + 0.3 * np.asarray(y, np.float64),
                    rtol=2e-6,
                    atol=1e-7,
                ),
                *(a, b, found),
            )
            assert found['params']['logit_scale'] not in (
                a['params']['logit_scale'],
                b['params']['logit_scale'],
            )
        else:
            assert fingerprint(found) == fingerprint(b if alpha else a)
    texts = ['a red picture']
    np.testing.assert_array_equal(
        clip_jax.interpolate(*pair, 0.3).encode_text(texts),
        clip_jax.load(tmp_path / '0.3').encode_text(texts),
    )


def test_what_is_written_serves_as_any_checkpoint(pair, tmp_path, tiny_config):
    out, exported, more = tmp_path / 'out', tmp_path / 'exported', tmp_path / 'more'
    published = tmp_path / 'published'
    assert not command('convert', pair[1], published, '--layout=open_clip').returncode
    done = command('interpolate', pair[0], published, '--alpha=0.5', f'--out={out}')
    assert not done.returncode, done.stderr
    assert fingerprint(read(out)) == fingerprint(interpolation.Pair(*pair).variables(0.5))
    assert not command('convert', out, exported, '--layout=open_clip').returncode
    assert fingerprint(read(exported)) == fingerprint(read(out))
    done = command('interpolate', exported, published, '--alpha=0.5', f'--out={more}')
    assert not done.returncode, done.stderr
    assert not command('checkpoint', 'verify', out).returncode
    flags = f'init_from={out}', 'total_steps=1', 'optimizer.warmup_steps=0'
    flags = [f'--config.{flag}' for flag in flags]
    done = command('train', f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', *flags)
    assert not done.returncode, done.stderr


def refused(*arguments):
    done = command('interpolate', *arguments)
    assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
    return done.stderr


def test_what_cannot_be_interpolated(pair, tmp_path):
    out = f'--out={tmp_path / "x"}'
    for alpha in ('1.5', '-0.1', 'nan'):
        assert 'expected a number from 0 (all of A) to 1' in refused(*pair, f'--alpha={alpha}', out)
    assert 'exists; name a new folder' in refused(*pair, '--alpha=0.5', f'--out={tmp_path}')
    assert 'expected --alpha=X and --out=DIR' in refused(*pair, '--alpha=0.5')
    assert 'expected --alpha=X and --out=DIR' in refused(*pair, '--alpha=0.5', out, '--sweep=3')
    sweep = '--suite=clip27', f'--workdir={tmp_path / "x"}'
    assert 'expected at least 2' in refused(*pair, '--sweep=1', *sweep)
    assert 'no such file or folder' in refused(pair[0], tmp_path / 'no', '--alpha=0.5', out)
    others = {
        'text.causal': {'model': {'text': {'causal': False}}},
        'preprocess.size': {'preprocess': {'size': 40}},
        'tokenizer.name': {'tokenizer': {'name': 'bpe'}},
    }
    card, variables = small_models.made('clip', tokenizer={'name': 'sentencepiece'})
    pretrained.loaded.write(tmp_path / 'a', card, variables)
    for k, (name, change) in enumerate(others.items()):
        other = json.loads(json.dumps(card))
        for part, values in change.items():
            if part == 'model':
                other['model']['text'] |= values['text']
            else:
                other[part] |= values
        pretrained.loaded.write(tmp_path / f'{k}', other, variables)
        error = refused(tmp_path / 'a', tmp_path / f'{k}', '--alpha=0.5', out)
        assert f'{name} is ' in error and 'same architecture' in error
    assert not (tmp_path / 'x').exists()


@pytest.fixture
def page(tiny_tars, tmp_path):
    """A suite of two tasks over the tiny set."""
    page = tmp_path / 'page.py'
    page.write_text(f"""
from ml_collections import ConfigDict

def get_config():
    tasks = {{
        'colors': {{
            'type': 'zeroshot', 'data': {tiny_tars!r}, 'score': 'top1',
            'classes': {list(COLORS)}, 'templates': ('a {{}} picture',),
        }},
        'captions': {{'type': 'retrieval', 'data': {tiny_tars!r}}},
    }}
    return ConfigDict({{'tasks': ConfigDict(tasks, sort_keys=False), 'options': {{}}}})
""")
    return page


def values(table):
    return [row['values'] for row in table['tasks']]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_table(pair, page, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    arguments = 'interpolate', *map(str, pair), '--sweep=3', f'--suite={page}'
    done = command(*arguments, f'--workdir={whole}', '--reference=captions', '--save')
    assert not done.returncode, done.stderr
    table = json.loads((whole / 'suite.json').read_text())
    assert (table['alphas'], table['reference']) == ([0, 0.5, 1], 'captions')
    assert done.stdout.startswith('| task | type | score | alpha=0 | alpha=0.5 | alpha=1 |')
    for name in ('alpha.png', 'wise_ft.png'):
        assert (whole / name).read_bytes().startswith(b'\x89PNG')
    middle = read(whole / 'models' / 'alpha=0.5')
    assert fingerprint(middle) == fingerprint(interpolation.Pair(*pair).variables(0.5))

    process = subprocess.Popen(
        clip_jax_command(*arguments, f'--workdir={killed}'),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 100
    while not list(killed.glob('*/captions.json')) and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / 'suite.json').exists()
    done = command(*arguments, f'--workdir={killed}')
    assert not done.returncode and '(read)' in done.stderr
    assert values(json.loads((killed / 'suite.json').read_text())) == values(table)
    assert not (killed / 'models').exists()
