"""`clip-jax classify`: predictions for images without labels, and bad input."""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest
from support.process import COLORS

NAMES = list(COLORS)
TEMPLATE = 'a {} picture'


@pytest.fixture(scope='module')
def photographs(tiny_tars, tmp_path_factory):
    """A folder of the images of `tiny_tars`, without labels and captions."""
    folder = tmp_path_factory.mktemp('photographs')
    with tarfile.open(tiny_tars.removeprefix('tars:')) as tar:
        for member in tar:
            if member.name.endswith('.jpg'):
                (folder / member.name).write_bytes(tar.extractfile(member).read())
    return folder


def rows(path) -> list[dict[str, str]]:
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_every_image_of_a_folder_gets_a_label(run, tiny_run, clip, photographs, tmp_path):
    out = tmp_path / 'new' / 'found.csv'
    flags = f'--model={tiny_run}', f'--labels={",".join(NAMES)}', f'--out={out}'
    code, printed, error = run('classify', f'folder:{photographs}', *flags, '--templates', TEMPLATE)
    assert (code, error) == (0, '')
    assert f'in {out}: a row for each of 64 records' in printed
    found, paths = rows(out), sorted(photographs.iterdir())
    assert [row['where'] for row in found] == [str(path) for path in paths]
    expected = clip.classify(paths, NAMES, templates=TEMPLATE)
    assert [row['label'] for row in found] == [NAMES[k] for k in expected.argmax(axis=1)]
    numbers = [float(row['probability']) for row in found]
    np.testing.assert_allclose(numbers, expected.max(axis=1), rtol=1e-4)
    assert [*found[0]] == ['where', 'label', 'probability', 'bad']
    assert {row['bad'] for row in found} == {''}
    assert [path.name for path in out.parent.iterdir()] == ['found.csv']


def test_more_labels_of_a_tar_best_first(run, tiny_run, tiny_tars, tmp_path):
    names, out = tmp_path / 'names.txt', tmp_path / 'found.csv'
    names.write_text('\n'.join(NAMES))
    flags = f'--model={tiny_run}', f'--labels={names}', f'--out={out}', '--top-k=3'
    assert run('classify', tiny_tars, *flags)[0] == 0
    for row in rows(out):
        labels = [row[name] for name in ('label', 'label_2', 'label_3')]
        numbers = [float(row[f'probability{suffix}']) for suffix in ('', '_2', '_3')]
        assert len({*labels}) == 3 and {*labels} < {*NAMES}
        assert numbers == sorted(numbers, reverse=True) and 0 < sum(numbers) < 1
        assert '00000.tar' in row['where']


def test_bad_records_of_a_table_are_named_and_counted(run, tiny_run, photographs, tmp_path):
    first, second, *_ = sorted(photographs.iterdir())
    shutil.copy(first, tmp_path / 'good.jpg')
    (tmp_path / 'cut.jpg').write_bytes(second.read_bytes()[:300])
    (tmp_path / 'x.csv').write_text('image\ngood.jpg\ncut.jpg\nnone.jpg\n')
    out = tmp_path / 'found.csv'
    flags = f'--model={tiny_run}', '--labels=["red", "blue"]', f'--out={out}'
    code, printed, _ = run('classify', f'table:{tmp_path / "x.csv"}', *flags)
    assert code == 0
    assert [row['bad'] for row in rows(out)] == ['', 'truncated', 'no_image']
    assert [bool(row['label']) for row in rows(out)] == [True, False, False]
    assert 'images               1' in printed and 'truncated 1; no_image 1' in printed


def test_prompts_of_each_class(run, tiny_run, clip, photographs, tmp_path):
    own = {'red': ['a red picture'], 'blue': ['a blue picture', 'something blue']}
    (tmp_path / 'prompts.json').write_text(json.dumps({'colors': own}))
    out, labels = tmp_path / 'found.csv', ['red', 'blue']
    flags = f'--model={tiny_run}', '--labels=red,blue', f'--out={out}'
    options = f'--templates={tmp_path / "prompts.json"}', '--key=colors'
    assert run('classify', f'folder:{photographs}', *flags, *options)[0] == 0
    expected = clip.classify(sorted(photographs.iterdir()), labels, templates=own)
    numbers = [float(row['probability']) for row in rows(out)]
    np.testing.assert_allclose(numbers, expected.max(axis=1), rtol=1e-4)


@pytest.fixture
def classify(line, tiny_run, photographs, tmp_path):
    """Classifies the photographs, which fails: returns the line that says why."""

    def classify(*options, data=f'folder:{photographs}', labels='red,blue', out='found.csv'):
        flags = f'--model={tiny_run}', f'--labels={labels}', f'--out={tmp_path / out}'
        return line('classify', data, *flags, *options)

    return classify


def test_what_cannot_be_classified(classify, tmp_path):
    (tmp_path / 'there.csv').write_text('mine')
    assert 'there.csv: expected a new name' in classify(out='there.csv')
    assert 'expected a new name that ends in .csv' in classify(out='found.txt')
    assert 'expected a new name that ends in .csv' in classify('--out=')
    assert "no such file: 'red'; expected a text or JSON file" in classify(labels='red')
    assert 'found 1, expected two or more' in classify(labels='["red"]')
    assert 'name 2 is empty' in classify(labels='red,')
    assert 'a number from 1 to 2' in classify('--top_k=3')
    assert 'a number from 1 to 2' in classify('--top_k=many')
    assert 'lacks the {}' in classify('--templates=["a photo"]')
    assert "key is 'a', but neither" in classify('--key=a')
    assert 'no logit bias' in classify('--activation=sigmoid')
    assert "Did you mean 'templates'?" in classify('--template={}')
    assert "Did you mean 'image_exts'?" in classify('--data.image_ext=jpg')
    assert "there is no flag 'more'" in classify('more')


def test_a_table_in_which_nothing_can_be_used(classify, tmp_path):
    (tmp_path / 'x.csv').write_text('image\nnone.jpg\n')
    assert 'none of its records can be used' in classify(data=f'table:{tmp_path / "x.csv"}')


def test_the_help_lists_the_options_of_the_classifier_and_of_the_data(run):
    code, text, _ = run('classify', 'folder:x', '--help')
    assert code == 0
    listed = text.partition('options of the classifier:')[2]
    for option in ('--templates=', '--key=', '--top_k=', '--activation=', '--data.image_exts='):
        assert f'\n  {option}' in listed
    assert '--labels=VALUE' not in listed and '--threads=VALUE' not in listed
