"""A linear probe is scikit-learn's logistic regression with the paper's sweep."""

import dataclasses
import functools
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from support.labeled import Toy, classes, encode_image, several
from support.reports import flat
from support.runs import command

from clip_jax import build, pretrained, sharding
from clip_jax.cli import main
from clip_jax.evals import _embed, _logistic, _sweep
from clip_jax.evals._labeled import held_out
from clip_jax.evals.linear_probe import Probe, evaluate

NAMES = ['cat', 'dog', 'bird', 'fish']


def probe(train, test, **options):
    return flat(evaluate(encode_image, None, test, train=train, **options))


def sets(n=600, **options):
    train, test = classes(n, seed=0, **options), classes(300, seed=1, **options)
    return Toy(*train, NAMES, 'train'), Toy(*test, NAMES, 'test')


def reference(train, C, features='pre_projection'):
    rows = encode_image(train.images, features=features).astype(np.float64)
    return LogisticRegression(C=C, tol=1e-9, max_iter=20_000).fit(rows, train.labels)


def steady(report):
    return {k: v for k, v in report.items() if k != 'seconds_of'}


@pytest.mark.parametrize('features', ['pre_projection', 'embedding'])
@pytest.mark.parametrize('C', [0.1, 1.0, 1000.0])
def test_accuracy_is_that_of_scikit_learn_at_the_same_c(features, C):
    train, test = sets(overlap=2)
    report = probe(train, test, features=features, C=C)
    model = reference(train, C, features)
    rows = encode_image(test.images, features=features)
    assert report['accuracy'] == pytest.approx(model.score(rows, test.labels), abs=1e-3)
    assert 0.3 < report['accuracy'] < 0.95
    assert (report['C'], report['sweep']) == (C, [])
    assert report['training_images'] == 600
    matrix = np.zeros((4, 4), int)
    np.add.at(matrix, (test.labels, model.predict(rows)), 1)
    assert np.abs(np.array(report['confusion']['matrix']) - matrix).max() <= 1
    assert report['per_class'] == [
        [name, int(row.sum()), row[k] / row.sum()]
        for k, (name, row) in enumerate(
            zip(NAMES, np.array(report['confusion']['matrix']), strict=True)
        )
    ]


def test_mean_per_class_and_area_under_roc_are_those_of_scikit_learn():
    train, test = sets(overlap=2)
    few = [i for i, k in enumerate(test.labels) if k != 1 or i % 5 == 0]
    test = Toy(test.images[few], test.labels[few], NAMES)
    guess = reference(train, 1).predict(test.images)
    report = probe(train, test, C=1, metric='mean_per_class')
    expected = balanced_accuracy_score(test.labels, guess)
    assert report['mean_per_class'] == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(np.mean(guess == test.labels), abs=1e-3)

    train, test = (Toy(x.images, x.labels % 2, ['even', 'odd']) for x in sets(overlap=2))
    model = reference(train, 1)
    report = probe(train, test, C=1, metric='roc_auc')
    expected = roc_auc_score(test.labels, model.decision_function(test.images))
    assert report['roc_auc'] == pytest.approx(expected, abs=1e-4)
    assert 0.5 < expected < 0.99


def test_several_labels_are_a_regression_each_and_precision_over_11_points():
    (rows, labels), (test_rows, test_labels) = several(500), several(300, seed=1)
    report = probe(
        Toy(rows, labels, NAMES), Toy(test_rows, test_labels, NAMES), C=1, metric='map_11_point'
    )
    values = []
    for k in range(4):
        own = np.array([k in some for some in labels])
        model = LogisticRegression(C=1, tol=1e-9, max_iter=20_000).fit(rows.astype(float), own)
        right = np.array([k in some for some in test_labels])
        order = np.argsort(-model.decision_function(test_rows))
        found = np.cumsum(right[order])
        precision, recall = found / np.arange(1, 301), found / right.sum()
        values.append(np.mean([max(precision[recall >= i / 10 - 1e-9]) for i in range(11)]))
    assert report['map_11_point'] == pytest.approx(np.mean(values), abs=2e-3)
    assert 0.5 < np.mean(values) < 0.99
    assert [row[0] for row in report['per_class']] == NAMES
    assert 'confusion' not in report
    swept = probe(Toy(rows, labels), Toy(test_rows, test_labels), metric='map_11_point')
    assert swept['map_11_point'] > 0.6
    assert swept['validation_images'] == 100


def by_hand(score):
    """The paper's sweep over the steps 0 to 96, by a score of a step; what it visits, and the
    best.
    """
    visited = set(range(0, 97, 16))
    for distance in (8, 4, 2, 1):
        best = max(sorted(visited), key=score)
        visited |= {step for step in (best - distance, best + distance) if 0 <= step <= 96}
    return sorted(visited), max(sorted(visited), key=score)


@pytest.mark.parametrize('peak', [0, 3, 21, 48, 77, 96])
def test_the_sweep_narrows_down_on_the_best_of_96_steps(peak):
    def score(step):
        return -abs(step - peak)

    @dataclasses.dataclass
    class Fit:
        C: float

    starts = []

    def fit(C, start):
        starts.append((C, start and start.C))
        return Fit(C)

    tried = _sweep.sweep(fit, lambda made: score(round(8 * (np.log10(made.C) + 6))))
    visited, best = by_hand(score)
    assert best == peak
    np.testing.assert_allclose([made.C for made, _ in tried], 10 ** (np.array(visited) / 8 - 6))
    assert np.isclose(_sweep.best(tried).C, 10 ** (peak / 8 - 6))
    assert starts[0] == (1e-6, None)
    assert starts[1] == (1e-4, 1e-6)
    assert len(tried) <= 15


def test_of_equal_scores_the_strongest_penalty_is_taken():
    tried = _sweep.sweep(lambda C, start: C, lambda C: 0.5 if C > 0.5 else 0.0)
    assert _sweep.best(tried) == min(C for C, score in tried if score == 0.5)


def test_the_sweep_ends_where_scikit_learn_would_end():
    train, test = sets(n=300, overlap=2.5)
    validation = Toy(*classes(200, seed=2, overlap=2.5), NAMES)
    report = probe(train, test, validation=validation)

    @functools.cache
    def score(step):
        return reference(train, 10 ** (step / 8 - 6)).score(validation.images, validation.labels)

    visited, best = by_hand(score)
    steps = [round(8 * (np.log10(C) + 6)) for C, _ in report['sweep']]
    assert steps == visited
    for step, (_, found) in zip(steps, report['sweep'], strict=True):
        assert found == pytest.approx(score(step), abs=0.011)  # two images of 200
    assert max(found for _, found in report['sweep']) == pytest.approx(score(best), abs=0.011)
    # The last fit sees the training and the validation set.
    both = Toy(np.r_[train.images, validation.images], np.r_[train.labels, validation.labels])
    expected = reference(both, report['C']).score(test.images, test.labels)
    assert report['accuracy'] == pytest.approx(expected, abs=1e-3)
    assert (report['training_images'], report['validation_images']) == (300, 200)
    assert report['fit']['converged']


def test_without_a_validation_set_a_fifth_of_each_class_is_held_out_and_fitted_at_last():
    train, test = sets()
    report = probe(train, test)
    assert report['training_images'] + report['validation_images'] == 600
    mask = held_out(train.labels[:, None] == np.arange(4), 5)
    assert mask.sum() == report['validation_images']
    for k in range(4):
        own = mask[train.labels == k]
        assert own.sum() == round(len(own) / 5)
    expected = reference(train, report['C']).score(test.images, test.labels)
    assert report['accuracy'] == pytest.approx(expected, abs=1e-3)


def test_what_is_held_out_leaves_each_class_some_examples():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.1, 0.5):
        targets = rng.random((200, 8)) < share
        mask = held_out(targets, 5)
        assert 20 <= mask.sum() <= 60
        np.testing.assert_array_equal(mask, held_out(targets, 5))
        for own in targets.T:
            if own.sum() > 2:
                assert 0 < mask[own].sum() < own.sum()
    assert not held_out(np.eye(5, dtype=bool), 5)[:5].all()


def test_the_same_again_and_any_number_of_devices_give_the_same(monkeypatch):
    train, test = sets()
    expected = steady(probe(train, test))
    assert steady(probe(train, test)) == expected
    meshes = [sharding.make_mesh(jax.devices()[:count]) for count in (1, 8)]
    for mesh in meshes:
        monkeypatch.setattr(_logistic.sharding, 'make_mesh', functools.partial(lambda x: x, mesh))
        assert steady(probe(train, test)) == expected
    for chunk in (1, 7, 64):
        monkeypatch.setattr(_embed, 'CHUNK', chunk)
        assert steady(probe(train, test)) == expected


def test_batches_of_any_size_and_any_number_of_devices_give_the_same_scores(tiny_run, tiny_tars):
    clip, data = pretrained.load(tiny_run), build.source(tiny_tars, {})
    reports = []
    for batch_size, count in (64, 8), (1, 8), (7, 8), (64, 1):
        mesh = sharding.make_mesh(jax.devices()[:count])
        variables = jax.device_put(clip.variables, sharding.replicated(mesh))
        model = dataclasses.replace(clip, batch_size=batch_size, mesh=mesh, variables=variables)
        reports.append(flat(evaluate(model.encode_image, model.encode_text, data, train=data)))
    for report in reports[1:]:
        for key in 'accuracy', 'sweep', 'confusion', 'per_class':
            assert report[key] == reports[0][key]
    assert reports[0]['width'] == 32  # of the trunk; embeddings have 16


def test_classes_go_by_their_names_where_sets_number_them_differently():
    train, test = sets()
    expected = probe(train, test, C=1)
    order = [2, 0, 3, 1]
    renamed = Toy(
        test.images, [order.index(k) for k in test.labels], [NAMES[k] for k in order], 'test'
    )
    assert steady(probe(train, renamed, C=1)) == steady(expected)
    nameless = Toy(test.images, test.labels, (), 'test')
    assert steady(probe(train, nameless, C=1)) == steady(expected)
    numbers = probe(Toy(train.images, train.labels), nameless, C=1)
    assert numbers['accuracy'] == expected['accuracy']
    assert [row[0] for row in numbers['per_class']] == ['0', '1', '2', '3']
    assert probe(Toy(train.images, train.labels), test, C=1)['per_class'] == expected['per_class']


def test_images_without_a_label_do_not_count():
    train, test = sets()
    expected = probe(train, test, C=1)
    more = [
        Toy(np.r_[x.images[:7] + 9, x.images], np.r_[[-1] * 7, x.labels], NAMES)
        for x in (train, test)
    ]
    report = probe(*more, C=1)
    assert (report['unlabeled'], report['unlabeled_for_training']) == (7, 7)
    assert report['accuracy'] == expected['accuracy']
    assert report['images'] == 300
    places = [mistake['index'] - 7 for mistake in report['mistakes']]
    assert places == [mistake['index'] for mistake in expected['mistakes']]


def test_a_class_that_is_named_and_of_which_nothing_has_an_image_does_not_compete():
    train, test = sets()
    names = [NAMES[0], 'dragon', *NAMES[1:], 'unicorn']
    place = [0, 2, 3, 4]
    more = [Toy(x.images, [place[k] for k in x.labels], names) for x in (train, test)]
    report = probe(*more, C=1)
    assert report['classes_without_images'] == ['dragon', 'unicorn']
    assert report['classes'] == 4
    assert report['accuracy'] == probe(train, test, C=1)['accuracy']


def test_mistakes_are_those_of_the_most_confidence():
    train, test = sets(overlap=2)
    report = probe(train, test, C=1)
    model = reference(train, 1)
    probability = model.predict_proba(test.images)
    assert 1 < len(report['mistakes']) <= 24
    for mistake in report['mistakes']:
        own = probability[mistake['index']]
        right = test.labels[mistake['index']]
        assert mistake['label'] == NAMES[right] != mistake['guess'] == NAMES[own.argmax()]
        assert mistake['score'] == pytest.approx(own.max(), abs=5e-3)
        assert mistake['score_of_label'] == pytest.approx(own[right], abs=5e-3)
    margins = [m['score'] - m['score_of_label'] for m in report['mistakes']]
    assert margins == sorted(margins, reverse=True)


# saved probes


@pytest.mark.parametrize('kind', ['many', 'two', 'several'])
def test_a_saved_probe_says_the_same_as_the_report(kind, tmp_path):
    if kind == 'several':
        train, test = Toy(*several(300), NAMES), Toy(*several(200, seed=1), NAMES)
        metric = 'map_11_point'
    else:
        train, test = sets(overlap=2, count=2 if kind == 'two' else 4)
        if kind == 'two':
            train.label_names = test.label_names = NAMES[:2]
        metric = 'accuracy'
    path = tmp_path / 'new' / 'probe.npz'
    report = probe(train, test, C=10, metric=metric, features='embedding', save=str(path))
    assert report['probe'] == str(path)
    assert [p.name for p in path.parent.iterdir()] == ['probe.npz']
    loaded = Probe.load(path)
    assert (loaded.classes, loaded.features, loaded.C) == (train.label_names, 'embedding', 10)
    rows = encode_image(test.images)
    predicted, probability = loaded.predict(rows), loaded.probabilities(rows)
    assert probability.shape == (len(test), len(loaded.classes))
    if kind == 'several':
        assert predicted.dtype == bool
        np.testing.assert_array_equal(predicted, probability > 0.5)
        return
    assert np.mean(predicted == test.labels) == report['accuracy']
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    expected = reference(train, 10, 'embedding').predict_proba(rows)
    np.testing.assert_allclose(probability, expected, atol=5e-3)
    assert loaded.predict(rows[0]).tolist() == predicted[:1].tolist()
    assert loaded.predict(rows[:0]).shape == (0,)
    with pytest.raises(ValueError, match='width 5; this probe was fitted on embedding'):
        loaded.predict(rows[:, :5])


def test_a_probe_keeps_the_fingerprint_of_what_made_its_features(tmp_path):
    train, test = sets()
    train.fingerprint = 'abc'
    probe(train, test, C=1, save=str(tmp_path / 'probe.npz'))
    assert Probe.load(tmp_path / 'probe.npz').fingerprint == 'abc'


def test_a_probe_is_replaced_as_a_whole_and_nothing_else_is(tmp_path, monkeypatch):
    train, test = sets()
    path = tmp_path / 'probe.npz'
    probe(train, test, C=1, save=str(path))
    probe(train, test, C=2, save=str(path))
    assert Probe.load(path).C == 2
    before = path.read_bytes()

    def breaks(file, **arrays):
        file.write(b'half')
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(np, 'savez', breaks)
        with pytest.raises(OSError, match='no space'):
            probe(train, test, C=3, save=str(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['probe.npz']
    other = tmp_path / 'notes.txt'
    other.write_text('mine')
    with pytest.raises(ValueError, match=r'notes\.txt exists'):
        evaluate(None, None, test, train=train, save=str(other))  # before anything is embedded
    assert other.read_text() == 'mine'
    for place, message in (
        (other / 'probe.npz', r'notes\.txt is not a folder'),
        ('gs://x/p.npz', r'gs://x/p\.npz: expected a local path'),
    ):
        with pytest.raises(ValueError, match=f'^save: .*{message}$'):
            evaluate(None, None, test, train=train, save=str(place))


def damaged_probes() -> dict[str, bytes]:
    """Files that are nearly a probe of two classes and three features."""
    about = {'classes': ['a', 'b'], 'features': 'embedding', 'several': False, 'C': 1.0}

    def made(weights=np.zeros((3, 2)), bias=np.zeros(2), **changes) -> bytes:
        file, text = io.BytesIO(), np.array(json.dumps(about | changes))
        np.savez(file, weights=weights, bias=bias, about=text)
        return file.getvalue()

    whole = made()
    assert whole.count(b'PK\x01\x02-\x03-\0\0\0') == 3
    return {
        'encrypted': whole.replace(b'PK\x01\x02-\x03-\0\0\0', b'PK\x01\x02-\x03-\0\x01\0'),
        'a bad character': whole.replace(b'False, ', b'Fal$e, ', 1),
        'cut': whole[:-10],
        'texts': made(weights=np.array([['a', 'b']] * 3)),
        'other classes': made(classes=['a']),
        'classes that are numbers': made(classes=[1, 2]),
        'no classes': made(classes=5),
        'another key': made(more=1),
        'not finite': made(bias=np.array([0, np.nan])),
        'one axis': made(weights=np.zeros(2)),
    }


@pytest.mark.parametrize('kind', damaged_probes())
def test_a_damaged_probe_is_one_line(tmp_path, kind):
    (tmp_path / 'x.npz').write_bytes(damaged_probes()[kind])
    with pytest.raises(ValueError, match=r'x\.npz: not a linear probe') as error:
        Probe.load(tmp_path / 'x.npz')
    assert '\n' not in str(error.value)


def test_what_is_no_probe_is_not_loaded(tmp_path):
    with pytest.raises(ValueError, match='no such file'):
        Probe.load(tmp_path / 'none.npz')
    np.savez(tmp_path / 'other.npz', weights=np.zeros(3))
    (tmp_path / 'text.npz').write_text('x')
    (tmp_path / 'empty.npz').write_bytes(b'')
    objects = np.array([{'a': 1}], dtype=object)
    np.savez(tmp_path / 'objects.npz', weights=objects, bias=objects, about=np.array('{}'))
    np.save(tmp_path / 'array.npy', np.zeros(3))
    for name in 'other.npz', 'text.npz', 'empty.npz', 'objects.npz', 'array.npy':
        with pytest.raises(ValueError, match=f'{name}: not a linear probe') as error:
            Probe.load(tmp_path / name)
        assert '\n' not in str(error.value)


# what is wrong


TRAIN, TEST = sets(n=60)
TRAIN.name, TEST.name = 'train', 'test'
LISTS = [[int(k)] for k in TEST.labels]


class Unlabeled(Toy):
    def __getitem__(self, i):
        return {'image': self.images[i]}


@pytest.mark.parametrize(
    ('train', 'test', 'options', 'message'),
    [
        (
            Toy(TRAIN.images, TRAIN.labels, NAMES[:3], 'train'),
            TEST,
            {},
            'labels of train go up to 3',
        ),
        (TRAIN, Toy(TEST.images, TEST.labels + 1, (), 'test'), {}, 'go up to 4, but there are 4'),
        (
            TRAIN,
            Toy(TEST.images, TEST.labels, ['cat', 'dog', 'bird', 'whale'], 'test'),
            {},
            "test has images of classes that the training set does not name: 'whale'",
        ),
        (
            Toy(TRAIN.images, TRAIN.labels % 3, NAMES, 'train'),
            TEST,
            {},
            "train has no image of 'fish', but test has",
        ),
        (
            Toy(TRAIN.images, np.zeros(60, int), NAMES, 'train'),
            Toy(TEST.images, np.zeros(300, int), NAMES, 'test'),
            {},
            "train has images of one class only, 'cat'; expected two or more",
        ),
        (
            Unlabeled(TRAIN.images, [], NAMES, 'train'),
            TEST,
            {},
            'train has images without a label',
        ),
        (TRAIN, Toy(TEST.images, [-1] * 300, NAMES, 'test'), {}, 'no image of test has a label'),
        (Toy(TRAIN.images, [-1] * 60, NAMES, 'train'), TEST, {}, 'no image of train has a label'),
        (TRAIN, Toy(TEST.images, LISTS, NAMES, 'test'), {}, 'test has several labels'),
        (
            Toy(TRAIN.images[:4], [0, 1, 2, 3], NAMES, 'train'),
            TEST,
            {},
            'the training set has one image per class',
        ),
        (TRAIN, TEST, {'metric': 'acuracy'}, "Did you mean 'accuracy'?"),
        (TRAIN, TEST, {'features': 'pre_projections'}, "Did you mean 'pre_projection'?"),
        (TRAIN, TEST, {'metric': 'roc_auc'}, 'roc_auc does not fit test, which has 4 classes'),
        (TRAIN, TEST, {'metric': 'map_11_point'}, 'images have one label each'),
        (
            Toy(TEST.images, LISTS, NAMES, 'train'),
            Toy(TEST.images, LISTS, NAMES, 'test'),
            {},
            'metric accuracy does not fit test, whose images have several labels each; expected '
            'map_11_point',
        ),
        (
            Toy(TEST.images, [[0, k] for k in TEST.labels], NAMES, 'train'),
            Toy(TEST.images, LISTS, NAMES, 'test'),
            {'metric': 'map_11_point'},
            "every image of train has the class 'cat'",
        ),
        (
            Toy(TRAIN.images, TRAIN.labels % 2, NAMES[:2], 'train'),
            Toy(TEST.images, TEST.labels * 0, NAMES[:2], 'test'),
            {'metric': 'roc_auc'},
            "metric roc_auc does not fit test, all of whose images have the class 'cat'",
        ),
        (
            Toy(TRAIN.images, TRAIN.labels % 2, NAMES[:2], 'train'),
            Toy(TEST.images, TEST.labels % 2, NAMES[:2], 'test'),
            {
                'metric': 'roc_auc',
                'validation': Toy(TEST.images, TEST.labels * 0 + 1, NAMES[:2], 'validation'),
            },
            "metric roc_auc does not fit validation, all of whose images have the class 'dog'",
        ),
        (
            Toy(TRAIN.images, [0] + [1] * 59, NAMES[:2], 'train'),
            Toy(TEST.images, TEST.labels % 2, NAMES[:2], 'test'),
            {'metric': 'roc_auc'},
            'a fifth of train',
        ),
        (
            Toy(TRAIN.images, [-1] * 60, (), 'train'),
            Toy(TEST.images, TEST.labels, (), 'test'),
            {},
            'no image of train has a label',
        ),
        (TRAIN, TEST, {'C': 0}, 'C is 0; expected a number above 0'),
        (TRAIN, TEST, {'C': 'high'}, "C is 'high'; expected a number above 0"),
        (TRAIN, TEST, {'max_iterations': 0}, 'max_iterations is 0; expected an integer'),
        (TRAIN, TEST, {'max_iterations': 1.5}, 'max_iterations is 1.5; expected an integer'),
        (TRAIN, TEST, {'save': 5}, 'save is 5; expected the name of a file'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(train, test, options, message, tmp_path):
    with pytest.raises(ValueError) as error:
        probe(train, test, **{'save': str(tmp_path / 'probe.npz'), **options})
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('train', 'test', 'message'),
    [
        (TRAIN, Unlabeled(TEST.images, [], NAMES, 'test'), 'test has images without a label'),
        (Toy(TEST.images, LISTS, NAMES), Toy(TEST.images, LISTS, NAMES), 'metric accuracy does'),
    ],
)
def test_what_the_first_images_show_is_said_before_any_is_embedded(train, test, message):
    def encode(images, **_):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        evaluate(encode, None, test, train=train)


@pytest.mark.parametrize('part', ['train', 'test'])
def test_features_that_are_no_numbers_are_an_error_and_no_score(part):
    train, test = sets(n=60)
    (train if part == 'train' else test).images[3, 2] = np.nan
    with pytest.raises(ValueError, match=r'1 of .* images are not finite'):
        probe(train, test)


# on the command line


def test_specs_on_the_command_line_are_opened(tiny_run, tiny_tars, tmp_path):
    out, saved = tmp_path / 'report.json', tmp_path / 'probe.npz'
    sets_ = f'--data={tiny_tars}', f'--train={tiny_tars}', f'--validation={tiny_tars}'
    line = 'eval', 'linear_probe', f'--model={tiny_run}', *sets_, '--data.label_ext=cls'
    done = command(*line, f'--save={saved}', f'--out={out}')
    assert done.returncode == 0, done.stderr
    report = flat(json.loads(out.read_text()))
    assert report['accuracy'] > 0.9
    assert report['options']['train'] == tiny_tars
    assert (report['training_images'], report['validation_images']) == (64, 64)
    assert re.search(rf'^probe +{saved}$', done.stdout, re.M)
    clip, data = pretrained.load(tiny_run), build.source(tiny_tars, {})
    loaded = Probe.load(saved)
    rows = clip.encode_image([data[i]['image'] for i in range(64)], features=loaded.features)
    labels = [data[i]['label'] for i in range(64)]
    assert np.mean(loaded.predict(rows) == labels) == report['accuracy']


@pytest.mark.parametrize('name', ['linear_probe', 'fewshot'])
def test_an_empty_class_is_named(capfd, tiny_run, tmp_path, name):
    for color, count in ('blue', 4), ('green', 0), ('red', 4):
        (tmp_path / 'images' / color).mkdir(parents=True)
        for i in range(count):
            path = tmp_path / 'images' / color / f'{i}.png'
            Image.new('RGB', (24, 24), color).save(path)
    data = [f'--{flag}=folder:{tmp_path}/images' for flag in ('data', 'train')]
    shots = ['--shots=2'] if name == 'fewshot' else []
    with pytest.raises(SystemExit) as end:
        main.main(['eval', name, f'--model={tiny_run}', *data, '--C=1', *shots])
    assert end.value.code == 0
    assert re.search('^classes_without_images +green$', capfd.readouterr().out, re.M)
