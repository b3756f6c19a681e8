"""One function makes the reports of `clip-jax eval`, suites and training, with the same keys."""

import json

import numpy as np
import pytest
from support.pictures import encode
from support.process import COLORS
from support.sources import CAPTIONS, make_embeddings

from clip_jax import evals, pretrained
from clip_jax.cli import main
from clip_jax.data.errors import Skipped
from clip_jax.evaluation import evaluate, single

KEYS = {
    *('model', 'type', 'data', 'data_options', 'options', 'scores', 'counts', 'info', 'skipped'),
    *('compute_dtype', 'device', 'seconds', 'versions'),
}


def prepare(name, options, data, **more):
    return evaluate.prepare(name, options, data, more)


@pytest.fixture(scope='module')
def model(tiny_run):
    return pretrained.load(tiny_run)


def test_the_three_ways_to_a_report_give_the_same_one(tiny_run, tiny_tars, tmp_path):
    (tmp_path / 'suite.py').write_text(f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{'tasks': {{'captions': {{'type': 'retrieval', 'data': {tiny_tars!r}}}}}}})
""")
    single, suite = tmp_path / 'report.json', tmp_path / 'suite'
    of_suite = [f'--suite={tmp_path}/suite.py', f'--model={tiny_run}', f'--out={suite}']
    of_one = [f'--data={tiny_tars}', f'--model={tiny_run}', f'--out={single}']
    for arguments in ['retrieval', *of_one], ['suite', *of_suite]:
        with pytest.raises(SystemExit):
            main.main(['eval', *arguments])
    paths = single, next(suite.glob('*/captions.json')), tiny_run / 'evals/retrieval.json'
    reports = [json.loads(path.read_text()) for path in paths]
    common = set.intersection(*(set(report) for report in reports))
    assert common == {*reports[0]} == KEYS | {'similarity', 'queries', 'correct'}
    assert {*reports[1]} - common == {*('fingerprint', 'card_hash', 'image_options', 'text_hash')}
    assert {*reports[2]} - common == {'step'}
    # A config has all options of a source, with their defaults.
    assert reports[0]['data_options'] == reports[1]['data_options'] == {}
    for key in common - {'seconds', 'data_options'}:
        assert reports[0][key] == reports[1][key] == reports[2][key]


def test_an_evaluation_gets_its_options_that_are_set(tiny_tars, model):
    options = {'classes': list(COLORS), 'templates': None}
    report = prepare('zeroshot', options, tiny_tars).report(model)
    assert (report['type'], report['options']) == ('zeroshot', {'classes': list(COLORS)})
    assert (report['counts']['classes'], report['counts']['images']) == (4, 64)
    assert report['skipped'] == {} and report['model'] is None


@pytest.mark.parametrize(
    ('name', 'options', 'names'),
    [
        ('zero_shot', {}, ["'zero_shot'", "'zeroshot'"]),
        ('_embed', {}, ["'_embed'", 'zeroshot']),
        ('zeroshot', {'class': 'all'}, ['evals/zeroshot', "'class'", "'classes'"]),
        ('retrieval', {'templates': 'plain'}, ['evals/retrieval', "'templates'"]),
        ('zeroshot', {'data': 'tars:x'}, ['evals/zeroshot', "'data'"]),
        ('linear_probe', {}, ['evals/linear_probe', 'train']),
        ('linear_probe', {'train': 5}, ['evals/linear_probe', 'train', '5', 'SPEC']),
        ('linear_probe', {'train': 'tars:/no/such.tar'}, ['/no/such.tar']),
        ('linear_probe', {'train': 'tars:/no/such.tar', 'metrics': 'x'}, ["'metric'"]),
    ],
)
def test_wrong_options_are_named_before_the_data_is_opened(name, options, names):
    with pytest.raises(ValueError) as error:
        prepare(name, options, 'tars:/no/data.tar')
    assert all(name in str(error.value) for name in names)
    assert '/no/data.tar' not in str(error.value)


def test_options_that_name_data_are_opened(tiny_tars, model):
    path = tiny_tars.partition(':')[2]
    options = {'train': tiny_tars, 'validation': f'tars:{path}', 'C': 2}
    prepared = prepare('linear_probe', options, tiny_tars, tars={'label_ext': 'cls'}, tfds={'x': 1})
    assert set(prepared.others) == {'train', 'validation'}
    assert [len(source) for source in prepared.sources] == [64, 64, 64]
    assert prepared.settings['data_options'] == {'tars': {'label_ext': 'cls'}}
    report = prepared.report(model, path='here', step=3)
    assert (report['info']['C'], report['counts']['images']) == (2, 64)
    assert (report['model'], report['step'], report['options']) == ('here', 3, options)
    assert not prepare('retrieval', {}, tiny_tars).others


class Incomplete(str):
    """A source that skipped records when it was opened."""

    skipped = {'empty': Skipped(3, ['x']), 'truncated': Skipped(1, ['y'])}


def made(report, **others):
    """An evaluation that returns a report whatever the model is."""
    return evaluate.Evaluation(
        {'type': 'x'}, lambda *_, **specs: report, Incomplete('tars:test'), others
    )


def test_a_report_lists_the_records_that_sources_skipped(model):
    report = {'scores': {'accuracy': evals.score(0.5)}}
    found = made(report, train=Incomplete('tars:train')).report(model)
    assert found['skipped'] == {
        f'tars:{part}: {kind}': count
        for part in ('train', 'test')
        for kind, count in (('empty', 3), ('truncated', 1))
    }
    assert found['counts'] == found['info'] == {}


@pytest.mark.parametrize(
    'report',
    [
        None,
        {'accuracy': 0.5},
        {'scores': {}},
        {'scores': {'accuracy': 0.5}},
        {'scores': {'accuracy': {**evals.score(0.5), 'value': '0.5'}}},
    ],
)
def test_a_plug_in_without_valid_scores_is_named(report, model):
    with pytest.raises(ValueError, match='evals/x'):
        made(report).report(model)


def test_an_evaluation_of_your_own_is_an_importable_module(tmp_path, monkeypatch, model, tiny_tars):
    (tmp_path / 'my_package').mkdir()
    (tmp_path / 'my_package' / 'count.py').write_text('''
from clip_jax import evals
from clip_jax.data.sources import Source


def evaluate(encode_image, encode_text, data, *, other: Source | None = None, times: int = 1):
    """Counts."""
    loss = evals.score(times * len(other), better='lower', unit='records')
    return {'scores': {'loss': loss}, 'counts': {'images': len(data)}}
''')
    monkeypatch.syspath_prepend(tmp_path)
    options = {'other': tiny_tars, 'times': 2}
    report = prepare('my_package.count', options, tiny_tars).report(model)
    assert report['scores']['loss'] == evals.score(128, better='lower', unit='records')
    assert evaluate.values({'mine': report}) == {'mine/loss': 128}


def test_options_of_images_reach_the_model_and_the_report(tiny_run, tmp_path):
    options = {'classes': ['red', 'blue'], 'templates': ['{}']}
    for name, scale in ('bits8', 1), ('bits16', 257):
        for k, shade in enumerate((40, 90, 200)):
            place = tmp_path / name / str(k % 2) / f'{k}.png'
            place.parent.mkdir(parents=True, exist_ok=True)
            dtype = np.uint8 if scale == 1 else np.uint16
            place.write_bytes(encode(np.full((30, 30), shade * scale, dtype), 'PNG'))

    def report(name, **more):
        return single.run('zeroshot', options, f'folder:{tmp_path}/{name}', model=tiny_run, **more)

    scaled = report('bits16', image_options={'gray16': 'scale'})
    plain = report('bits8')
    assert scaled['examples'] == plain['examples'] != report('bits16')['examples']
    assert scaled['image_options'] == {'gray16': 'scale'} and 'image_options' not in plain
    with pytest.raises(ValueError, match=r'900 pixels; at most 899'):
        report('bits8', image_options={'max_pixels': 899})


def test_options_of_images_need_images_to_read(tmp_path):
    make_embeddings(tmp_path, [caption.encode() for caption in CAPTIONS])
    with pytest.raises(ValueError, match=r'--max-pixels: embeddings:.* has no images to read'):
        single.run(
            *('retrieval', {}, f'embeddings:{tmp_path}'),
            model=None,
            image_options={'max_pixels': 9},
        )
