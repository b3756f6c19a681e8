"""Scores and folders of the first coordinates of embeddings (Matryoshka)."""

import dataclasses
import json

import numpy as np
import pytest
from support.process import COLORS
from support.runs import command

import clip_jax
from clip_jax import build, lookup, pretrained
from clip_jax.evaluation import evaluate

CLASSES = {'classes': list(COLORS), 'templates': ['a {} picture']}


@pytest.fixture(scope='module')
def clip(tiny_run):
    return pretrained.load(tiny_run)


@pytest.fixture(scope='module')
def folder(tiny_run, tiny_tars, tmp_path_factory):
    """Embeddings of the tiny set, of 6 coordinates."""
    folder = tmp_path_factory.mktemp('dims') / 'embedded'
    flags = f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={folder}', '--dim=6'
    done = command('embed', *flags)
    assert not done.returncode, done.stderr
    return folder


def cut(rows, dim):
    rows = rows[:, :dim]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_embeddings_are_cut_and_normalized_again(clip):
    images = [np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 200)]
    for encode, given in (clip.encode_image, images), (clip.encode_text, ['a', 'b c']):
        np.testing.assert_allclose(encode(given, dim=5), cut(encode(given), 5), atol=1e-6)
        assert encode([], dim=5).shape == (0, 5)
    np.testing.assert_array_equal(clip.encode_image(iter(images), dim=5)[:, 0].shape, (3,))
    width = clip.model.embed_dim
    for dim in 0, width + 1, 2.5:
        for encode in clip.encode_image, clip.encode_text:
            with pytest.raises(ValueError, match=f'dim is {dim}; expected an integer from 1 to'):
                encode([], dim=dim)
    with pytest.raises(ValueError, match='only embeddings can be cut'):
        clip.encode_image([], dim=5, features='pre_projection')


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('zeroshot', CLASSES),
        ('retrieval', {}),
        ('fewshot', {'features': 'embedding', 'shots': (1, 2), 'seeds': 2}),
        ('linear_probe', {'features': 'embedding', 'C': 1.0}),
    ],
)
def test_every_evaluation_scores_dimensions(name, options, clip, tiny_tars):
    others = {'train': tiny_tars} if name in ('fewshot', 'linear_probe') else {}
    asked = {**options, **others, 'dims': (8, 4)}
    calls = []
    counted = dataclasses.replace(clip, on_batch=lambda: calls.append(1))
    report = evaluate.prepare(name, asked, tiny_tars).report(counted)
    once = len(calls)
    calls.clear()
    plain = evaluate.prepare(name, {**options, **others}, tiny_tars).report(counted)
    assert once <= len(calls)  # images and texts are embedded once for all
    source = build.source(tiny_tars, {})
    function = lookup.module('evals', name).evaluate
    for dim in 4, 8:

        def image(images, dim=dim, **more):
            return cut(clip.encode_image(images, **more), dim)

        def text(texts, dim=dim):
            return cut(clip.encode_text(texts), dim)

        expected = function(image, text, source, **options, **dict.fromkeys(others, source))
        for key, score in expected['scores'].items():
            found = report['scores'][f'dim{dim}/{key}']
            assert found['value'] == pytest.approx(score['value'], abs=1e-6)
    whole = {k: v for k, v in report['scores'].items() if not k.startswith('dim')}
    assert whole == plain['scores'] and next(iter(report['scores'])) in whole
    assert [dim for dim, _ in report['dims']] == [4, 8, clip.model.embed_dim]
    assert report['options']['dims'] == (8, 4)


def test_a_folder_of_cut_embeddings_serves_evaluations_and_search(
    folder, clip, tiny_run, tiny_tars
):
    stored = build.source(f'embeddings:{folder}', {}, embeddings=True)
    assert stored.description.dim == 6 and stored.description.shape == [6]
    images = [build.source(tiny_tars, {})[i]['image'] for i in range(3)]
    np.testing.assert_allclose(stored.embeddings()[:3], clip.encode_image(images, dim=6), atol=1e-5)
    np.testing.assert_allclose(
        stored.texts()[1][:1], clip.encode_text([stored.texts()[0][0]], dim=6), atol=1e-5
    )
    spec = f'embeddings:{folder}'
    for name, options in ('retrieval', {}), ('zeroshot', CLASSES):
        prepared = evaluate.prepare(name, options, spec, embeddings=True)
        direct = evaluate.prepare(name, {**options, 'dims': 6}, tiny_tars).report(clip)
        for key, score in prepared.report(clip)['scores'].items():
            assert score['value'] == pytest.approx(direct['scores'][f'dim6/{key}']['value'])
    (hit,) = clip_jax.search(folder, 'a red picture', k=1)
    best = stored.embeddings() @ clip.encode_text(['a red picture'], dim=6)[0]
    assert hit.score == pytest.approx(best.max(), abs=1e-5)
    # A test set whose images are embedded now gets the same coordinates.
    asked = {'train': spec, 'features': 'embedding', 'C': 1.0}
    report = evaluate.prepare('linear_probe', asked, tiny_tars, embeddings=True).report(clip)
    assert report['info']['width'] == 6


def test_what_cannot_be_cut(folder, tiny_run, tiny_tars, tmp_path):
    def refused(*arguments):
        done = command(*arguments)
        assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
        return done.stderr

    model, data = f'--model={tiny_run}', f'--data={tiny_tars}'
    new = 'embed', model, data, f'--out={tmp_path / "x"}'
    assert 'dim is 999; expected an integer from 1 to' in refused(*new, '--dim=999')
    assert '--dim is -1' in refused(*new, '--dim=-1')
    assert 'only embeddings can be' in refused(*new, '--dim=4', '--features=pre_projection')
    assert not (tmp_path / 'x').exists()
    assert 'dim' in refused('embed', model, data, f'--out={folder}', '--dim=5')
    retrieval = 'eval', 'retrieval', model, data
    assert 'dim is 999; expected an integer from 1' in refused(*retrieval, '--dims=4,999')
    for wrong in ('0', 'x', '[]', '(2.5,)'):
        assert 'expected integers above 0' in refused(*retrieval, f'--dims={wrong}')
    probe = 'eval', 'linear_probe', model, data, f'--train={tiny_tars}', '--dims=4'
    assert 'add features=embedding' in refused(*probe)
    assert 'dims and save' in refused(*probe, '--features=embedding', '--save=probe.npz')
    whole = tmp_path / 'whole'
    assert not command('embed', model, data, f'--out={whole}').returncode
    both = f'--data=embeddings:{whole}', f'--train=embeddings:{folder}', '--features=embedding'
    assert 'other coordinates of the embeddings' in refused('eval', 'linear_probe', *both)


def test_the_curve_is_drawn(tiny_run, tiny_tars, tmp_path):
    out = tmp_path / 'report.json'
    flags = f'--model={tiny_run}', f'--data={tiny_tars}', '--dims=4,8', f'--out={out}'
    done = command('eval', 'retrieval', *flags)
    assert not done.returncode and 'dims.png' in done.stdout, done.stderr
    assert 'dim4/image_to_text/recall@1' in json.loads(out.read_text())['scores']
