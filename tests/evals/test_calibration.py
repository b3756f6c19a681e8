"""Calibration: definitions against plain loops, and the temperature against another optimizer."""

import numpy as np
import pytest
from scipy import optimize, special

from clip_jax import evals
from clip_jax.evals import _calibration, zeroshot


def random_logits(seed, n=400, classes=7, scale=8.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 0.8
    return scale * logits, labels


def in_parts(logits, labels, size=64):
    return lambda: (
        (logits[i : i + size], labels[i : i + size]) for i in range(0, len(logits), size)
    )


def loss(logits, labels, *, sigmoid):
    """The mean negative log-likelihood, from probabilities."""
    targets = np.eye(logits.shape[1])[labels]
    if sigmoid:
        return -np.sum(
            targets * special.log_expit(logits) + (1 - targets) * special.log_expit(-logits), axis=1
        ).mean()
    return -np.sum(targets * special.log_softmax(logits, axis=1), axis=1).mean()


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_confidence_and_loss_are_those_of_probabilities(seed, sigmoid):
    logits, labels = random_logits(seed)
    for temperature in 1.0, 3.5:
        found = _calibration.predictions(
            in_parts(logits, labels)(), sigmoid=sigmoid, temperature=temperature
        )
        z = logits / temperature
        p = special.expit(z) if sigmoid else special.softmax(z, axis=1)
        np.testing.assert_allclose(found.confidence, p.max(axis=1), rtol=1e-12)
        assert found.loss.mean() == pytest.approx(loss(z, labels, sigmoid=sigmoid), rel=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_the_expected_error_is_that_of_a_loop_over_bins(seed):
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(500), rng.random(500) < 0.6
    confidence[:4] = 0.0, 1.0, 1 / 15, 2 / 15  # edges belong to the bin below them
    bins = _calibration.reliability(confidence, right)
    error = 0.0
    for k in range(15):
        low, high = k / 15, (k + 1) / 15
        inside = (confidence > low) & (confidence <= high)
        if k == 0:
            inside |= confidence == 0
        assert bins[k][:3] == [low, high, inside.sum()]
        gap = abs(right[inside].mean() - confidence[inside].mean())
        error += inside.mean() * gap
    assert _calibration.expected_error(bins) == pytest.approx(error, rel=1e-12)


def test_known_errors():
    def error(confidence, right):
        return _calibration.expected_error(_calibration.reliability(confidence, right))

    assert error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert error(np.full(10, 0.7), np.zeros(10, bool)) == pytest.approx(0.7)
    assert error(np.ones(4), np.ones(4, bool)) == 0
    assert error(np.array([0.25]), np.array([True])) == 0.75  # one image
    # Two bins whose gaps have opposite signs do not cancel.
    assert error(np.array([0.1, 0.9]), np.array([True, False])) == pytest.approx(0.9)
    assert [row[:3] for row in _calibration.reliability(np.array([0.5]), np.array([True]))] == [
        [7 / 15, 8 / 15, 1]
    ]


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize(('seed', 'scale'), [(0, 8.0), (1, 0.2), (2, 3.0), (3, 1.0)])
def test_the_temperature_is_that_of_scipy(seed, scale, sigmoid):
    logits, labels = random_logits(seed, scale=scale)
    found = _calibration.temperature(in_parts(logits, labels), sigmoid=sigmoid)
    expected = optimize.minimize_scalar(
        lambda u: loss(logits * np.exp(u), labels, sigmoid=sigmoid),
        bounds=(-4.6, 4.6),
        method='bounded',
        options={'xatol': 1e-9},
    )
    assert found == pytest.approx(np.exp(-expected.x), rel=1e-5)
    assert loss(logits / found, labels, sigmoid=sigmoid) <= expected.fun + 1e-12


@pytest.mark.parametrize('sigmoid', [False, True])
def test_the_temperature_takes_few_passes(sigmoid):
    logits, labels = random_logits(0)
    passes = []

    def chunks():
        passes.append(1)
        return [(logits, labels)]

    _calibration.temperature(chunks, sigmoid=sigmoid)
    assert len(passes) <= 10


def test_three_of_four_right_give_a_probability_of_three_quarters():
    # Two classes, three of four images right: the best probability is 3/4, logit log 3.
    logits = np.tile([[10.0, 0.0]], (4, 1))
    found = _calibration.temperature(lambda: [(logits, np.array([0, 0, 0, 1]))])
    assert found == pytest.approx(10 / np.log(3), rel=1e-9)


def test_where_the_loss_has_no_minimum_the_end_is_taken(caplog):
    logits = np.tile([[1.0, 0.0]], (4, 1))
    for labels, end in (np.zeros(4, int), 0.01), (np.ones(4, int), 100):
        assert _calibration.temperature(lambda own=labels: [(logits, own)]) == end
        assert 'no minimum' in caplog.text
        caplog.clear()
    # Equal logits have the same loss at any temperature.
    _calibration.temperature(lambda: [(np.zeros((4, 2)), labels)])
    assert 'no minimum' in caplog.text


class Digits:
    """Images i of class i % 3, whose embeddings are that class's with noise."""

    label_names = ('one', 'two', 'three')

    def __init__(self, n, seed, **fields):
        rng = np.random.default_rng(seed)
        rows = np.eye(3)[np.arange(n) % 3] + 0.7 * rng.normal(size=(n, 3))
        self.rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        vars(self).update(fields)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {'image': self.rows[i], 'label': i % 3}

    def where(self, i):
        return f'digit {i}'

    def __str__(self):
        return 'digits'


def encoder(logits):
    rows = dict(zip(Digits.label_names, np.eye(3, dtype=np.float32), strict=True))
    return evals.TextEncoder(lambda texts: np.stack([rows[t] for t in texts]), lambda: logits)


def evaluate(logits, data, **options):
    return zeroshot.evaluate(np.stack, encoder(logits), data, templates='{}', **options)


@pytest.mark.parametrize('logits', [evals.Logits(20.0), evals.Logits(9.0, -4.0)])
def test_zeroshot_reports_the_calibration_before_and_after_fitting(logits):
    test, validation = Digits(301, 0), Digits(200, 1)
    report = evaluate(logits, test, validation=validation)
    z = {
        name: logits.scale * np.stack(data.rows).astype(float) + (logits.bias or 0)
        for name, data in (('test', test), ('validation', validation))
    }
    labels = np.arange(301) % 3
    found = report['calibration']
    assert found['activation'] == ('sigmoid' if logits.sigmoid else 'softmax')
    temperature = report['info']['temperature']
    expected = optimize.minimize_scalar(
        lambda u: loss(z['validation'] * np.exp(u), np.arange(200) % 3, sigmoid=logits.sigmoid),
        bounds=(-4.6, 4.6),
        method='bounded',
    )
    assert temperature == pytest.approx(np.exp(-expected.x), rel=1e-4)
    for prefix, divisor, own in ('', 1, found), ('fitted/', temperature, found['fitted']):
        mean = loss(z['test'] / divisor, labels, sigmoid=logits.sigmoid)
        assert report['scores'][f'{prefix}nll']['value'] == pytest.approx(mean, abs=1e-6)
        assert own['temperature'] == divisor
        assert sum(row[2] for row in own['bins']) == 301
        error = _calibration.expected_error(own['bins'])
        assert report['scores'][f'{prefix}ece']['value'] == error
    assert report['scores']['fitted/nll']['value'] < report['scores']['nll']['value']
    assert report['counts']['validation_images'] == 200
    assert report['info']['logit_scale'] == logits.scale
    alone = evaluate(logits, test)
    assert alone['calibration'] == {k: v for k, v in found.items() if k != 'fitted'}
    assert alone['scores']['ece'] == report['scores']['ece']
    assert [*alone['scores']] == ['top1', 'top5', 'mean_per_class', 'macro_f1', 'ece', 'nll']


def test_where_the_logits_are_not_known_it_says_so():
    report = evaluate(None, Digits(30, 0))
    assert report['info']['calibration'].startswith('not measured')
    assert 'calibration' not in report and not {'ece', 'nll'} & {*report['scores']}
    with pytest.raises(ValueError, match='validation: the factor of the similarities is not known'):
        evaluate(None, Digits(30, 0), validation=Digits(30, 1))


def test_images_of_classes_that_do_not_compete_are_not_fitted_on():
    logits = evals.Logits(20.0)
    one = Digits(40, 1, label_names=('two', 'one', 'three'))
    with pytest.raises(ValueError, match="other classes than digits: 'two' for 'one'"):
        evaluate(logits, Digits(30, 0), validation=one)

    class Two(Digits):
        def __getitem__(self, i):
            return {'image': self.rows[i], 'label': 2 * (i % 2)}

    validation = Digits(40, 1)
    report = evaluate(logits, Two(30, 0), validation=validation, classes='present')
    some = np.array([i for i in range(40) if i % 3 != 1])
    assert report['counts']['validation_images'] == len(some)
    z = logits.scale * validation.rows[some][:, [0, 2]].astype(float)
    expected = _calibration.temperature(lambda: [(z, some % 3 // 2)])
    assert report['info']['temperature'] == pytest.approx(expected, rel=1e-6)

    class Last(Digits):
        def __getitem__(self, i):
            return {'image': self.rows[i], 'label': 1}

    with pytest.raises(ValueError, match='no image of digits has a class of the test set'):
        evaluate(logits, Two(30, 0), validation=Last(5, 1), classes='present')


def test_images_with_several_labels_have_no_calibration():
    class Several(Digits):
        def __getitem__(self, i):
            return {'image': self.rows[i], 'labels': [i % 3]}

    logits = evals.Logits(20.0)
    assert 'calibration' not in evaluate(logits, Several(30, 0))
    for pair in (Several(30, 0), Digits(30, 0)), (Digits(30, 0), Several(30, 0)):
        with pytest.raises(ValueError, match='validation: digits has several labels per image'):
            evaluate(logits, pair[0], validation=pair[1])
