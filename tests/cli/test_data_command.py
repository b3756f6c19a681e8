"""`clip-jax data`: inspect, verify, import, and bad input."""

import functools
import json
import os
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.pictures import encode

from clip_jax.reports import dataset


@pytest.fixture
def succeed(run):
    """Runs a command that succeeds without a word on stderr: returns what it prints."""

    def succeed(*arguments) -> str:
        code, printed, error = run(*arguments)
        assert (code, error) == (0, '')
        return printed

    return succeed


def test_data_is_inspected(succeed, tiny_tars, tmp_path):
    out = tmp_path / 'new' / 'looked'
    said = succeed('data', 'inspect', tiny_tars, '--sample=40', f'--out={out}')
    assert re.search(r'^records +64$', said, re.MULTILINE)
    assert re.search(r'^captions +min 2; median 2; 95% 2; max 2$', said, re.MULTILINE)
    assert f'in {out}: contact_sheet.png, histograms.png, inspect.json' in said
    report = json.loads((out / 'inspect.json').read_text())
    assert (report['records'], report['sample'], report['formats']) == (64, 40, {'JPEG': 40})


def test_data_is_verified(run, succeed, tiny_tars, bad_tar, tmp_path):
    assert re.search(r'^all_usable +True$', succeed('data', 'verify', tiny_tars), re.M)
    out = tmp_path / 'new' / 'bad.jsonl'
    code, said, _ = run('data', 'verify', bad_tar, f'--out={out}', '--no-decode', '--threads=3')
    assert code == 1
    assert re.search(r'^not_an_image: .*bad.tar: 00020.jpg: ', said)
    assert re.search(r'^bad +not_an_image 1$', said, re.MULTILINE)
    (line,) = out.read_text().splitlines()
    assert json.loads(line)['record'] == 20


def test_warnings_are_shown(clip_jax_cli, tmp_path):
    image = np.random.default_rng(0).bytes(9 << 20)
    path = tmp_path / 'large.parquet'
    table = pyarrow.table({'image': [image[i:] for i in range(4)], 'caption': list('abcd')})
    pyarrow.parquet.write_table(table, path, use_dictionary=False)
    said = clip_jax_cli('data', 'verify', f'table:{path}', '--no-decode').stderr
    assert 'has row groups of 36 MB; in random order, one is decoded for each image' in said


def test_data_is_imported_and_trained_on(run, succeed, bad_tar, tiny_config, tmp_path):
    flags = 'data', 'import', bad_tar, tmp_path / 'sets', '--name=tiny', '--shard-size=40'
    said = succeed(*flags, '--label_ext=none')
    assert re.search(r'^records +63$', said, re.MULTILINE)
    assert re.search(r'^with_label +0$', said, re.MULTILINE)
    assert re.search(r'^skipped +not_an_image 1$', said, re.MULTILINE)
    again = succeed(*flags, '--label_ext=none', '--threads=1')
    assert re.search(r'^shards_written +0$', again, re.MULTILINE)
    advice = said.splitlines()[-1].removeprefix('train on it: ').split()
    code, _, error = run(
        'train',
        f'--config={tiny_config}',
        f'--workdir={tmp_path / "run"}',
        '--config.total_steps=1',
        '--config.optimizer.warmup_steps=0',
        *advice,
    )
    assert code == 0, error


def test_data_that_is_not_there_or_wrongly_asked_for(line, tiny_tars, tmp_path):
    data = functools.partial(line, 'data')
    for action in ('inspect', 'verify'):
        assert 'not of the form KIND:ADDRESS' in data(action, 'x.tar')
        assert "no file matches '/no/x.tar'" in data(action, 'tars:/no/x.tar')
        assert "Did you mean 'text_exts'?" in data(action, tiny_tars, '--text_ext=txt')
        assert "there is no flag '--fast'" in data(action, tiny_tars, '--fast')
        assert '--threads is 0' in data(action, tiny_tars, '--threads=0')
        assert 'exists' in data(action, tiny_tars, f'--out={tmp_path}')
        mixture = f'{tiny_tars} + tfds:shapes_captions/test'
        assert '(tars, tfds)' in data(action, mixture, '--data_dir=x')
    assert 'sample is 0' in data('inspect', tiny_tars, '--sample=0')


def test_imports_that_cannot_be(line, tiny_tars, tmp_path):
    def write(*options, spec=tiny_tars) -> str:
        return line('data', 'import', spec, tmp_path / 'sets', '--name=tiny', *options)

    assert "no file matches '/no/x.tar'" in write(spec='tars:/no/x.tar')
    assert "Did you mean 'text_exts'?" in write('--text_ext=txt')
    assert 'quality is 101' in write('--quality=101', '--size=20')
    assert 'weights' in write(spec=f'3 * {tiny_tars} + {tiny_tars}')
    assert '--beam-runner' in write('--beam.direct_num_workers=2')
    assert "split is 'train[:9]'" in write('--split=train[:9]')


@pytest.fixture
def odd_names(tmp_path):
    """A folder of images whose names are Latin-1 bytes or would control a terminal; one is bad."""
    root = tmp_path / os.fsdecode(b'ann\xe9e')
    image = encode(np.zeros((9, 9, 3), np.uint8), 'PNG')
    names = [b'caf\xe9/\xe9t\xe9.png', b'a\x1b[31m/red\x07.png', 'a\x1b[31m/\u202egnp.png'.encode()]
    for name in map(os.fsdecode, names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
    (root / os.fsdecode(b'caf\xe9/\xe8.png')).write_bytes(b'no image')
    (root / 'caf\n\x1b]0;title\x07').mkdir()
    return root


def test_names_of_any_bytes_work_and_do_not_control_the_terminal(run, odd_names, tmp_path):
    spec, listed = f'folder:{odd_names}', tmp_path / 'bad.jsonl'
    code, verified, _ = run('data', 'verify', spec, f'--out={listed}')
    assert code == 1 and 'not_an_image: ' in verified and r'ann\xe9e/caf\xe9/\xe8.png' in verified
    (line,) = listed.read_text().splitlines()
    assert os.fsencode(json.loads(line)['where']).endswith(b'caf\xe9/\xe8.png')
    code, inspected, _ = run('data', 'inspect', spec, f'--out={tmp_path}/looked')
    assert code == 0 and r'a\x1b[31m 2; café 1' in inspected
    report = json.loads((tmp_path / 'looked/inspect.json').read_text())
    assert report['data'] == spec and report['bad'] == {'not_an_image': 1}
    code, imported, _ = run('data', 'import', spec, tmp_path / 'prepared', '--name=odd')
    assert code == 0
    (line,) = (tmp_path / 'prepared/odd/1.0.0/skipped-train.jsonl').read_text().splitlines()
    assert os.fsencode(json.loads(line)['where']).endswith(b'caf\xe9/\xe8.png')
    code, _, error = run('data', 'inspect', f'{spec}/gone\x1b[2J')
    assert code == 1 and r'gone\x1b[2J' in error
    for printed in verified, inspected, imported, error:
        assert all(character.isprintable() for character in printed.replace('\n', ''))


def test_an_inspection_that_fails_leaves_nothing(run, tiny_tars, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    out = tmp_path / 'looked'
    with monkeypatch.context() as patch:
        patch.setattr(dataset, 'histograms', full)
        assert run('data', 'inspect', tiny_tars, '--sample=3', f'--out={out}')[0] == 1
    assert not [*tmp_path.iterdir()]
    assert run('data', 'inspect', tiny_tars, '--sample=3', f'--out={out}')[0] == 0


def test_the_limit_on_pixels_is_an_option_of_each_action(run, tmp_path):
    image = encode(np.zeros((20, 20, 3), np.uint8), 'PNG')
    (tmp_path / 'set/a').mkdir(parents=True)
    (tmp_path / 'set/a/1.png').write_bytes(image)
    for action, *more in (['inspect'], ['verify'], ['import', tmp_path / 'prepared', '--name=x']):
        arguments = ('data', action, f'folder:{tmp_path}/set', *more)
        code, said, error = run(*arguments, '--max-pixels=399')
        assert 'too_large' in said + error
        code, said, error = run(*arguments[:3], *more, '--max-pixels=0')
        assert code == 1 and 'max_pixels is 0; expected 1 to' in error
