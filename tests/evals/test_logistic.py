"""The optimum is scikit-learn's, on any number of devices, whatever the features look like."""

import itertools
import tracemalloc

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clip_jax import sharding
from clip_jax.evals import _logistic
from clip_jax.evals._logistic import Regression


def example(seed=0, n=1200, dim=20, classes=4, overlap=1.0):
    """Rows of classes that overlap, whose directions vary by very different amounts."""
    rng = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dim)) ** -1
    labels = rng.integers(classes, size=n)
    means = rng.normal(size=(classes, dim)) * scale
    rows = means[labels] + overlap * rng.normal(size=(n, dim)) * scale
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return (rows @ turn + 0.3).astype(np.float32), labels


def several_labels(rows, classes=5):
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(rows.shape[1], classes))
    return (rows - 0.3) @ direction + 0.5 * rng.normal(size=(len(rows), classes)) > 0.4


def logits(fit, rows):
    return rows.astype(np.float64) @ fit.weights + fit.bias


def objective(weights, bias, rows, targets, C):
    """scikit-learn's, in float64; `targets` are labels, or bool [N, K] of binary regressions."""
    z = rows.astype(np.float64) @ weights + bias
    if targets.ndim == 1:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), targets]
    else:
        loss = np.logaddexp(0, np.where(targets, -z, z))
    return C * loss.sum() + (weights**2).sum() / 2


def reference(rows, targets, C):
    """scikit-learn's weights [D, K] and intercepts, to the last digits."""
    model = LogisticRegression(C=C, tol=1e-9, max_iter=20_000)
    model.fit(rows.astype(np.float64), targets)
    return model.coef_.T, model.intercept_


@pytest.mark.parametrize('C', [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4])
@pytest.mark.parametrize('seed', range(2))
def test_objective_and_predictions_are_those_of_scikit_learn(C, seed):
    rows, labels = example(seed)
    fit = Regression(rows, labels, 4).fit(C)
    weights, bias = reference(rows, labels, C)
    found = objective(fit.weights, fit.bias, rows, labels, C)
    best = objective(weights, bias, rows, labels, C)
    assert abs(found / best - 1) < 1e-5
    assert fit.converged
    assert fit.objective == pytest.approx(found, rel=1e-5)
    theirs = (rows @ weights + bias).argmax(axis=1)
    agree = np.mean(logits(fit, rows).argmax(axis=1) == theirs)
    assert agree >= 0.998


@pytest.mark.parametrize('C', [1e-4, 1, 1e3])
def test_two_classes_are_one_binary_regression_as_in_scikit_learn(C):
    rows, labels = example(classes=2)
    fit = Regression(rows, labels, 2).fit(C)
    assert fit.weights.shape == (20, 1)
    weights, bias = reference(rows, labels, C)
    found = objective(fit.weights, fit.bias, rows, labels[:, None] == 1, C)
    assert found == pytest.approx(objective(weights, bias, rows, labels[:, None] == 1, C), rel=1e-5)
    np.testing.assert_allclose(logits(fit, rows), rows @ weights + bias, atol=0.02, rtol=0.02)


@pytest.mark.parametrize('C', [1e-3, 1, 1e3])
def test_several_labels_are_a_binary_regression_each(C):
    rows, _ = example()
    targets = several_labels(rows)
    fit = Regression(rows, targets, 5).fit(C)
    best = 0
    for k in range(5):
        weights, bias = reference(rows, targets[:, k], C)
        best += objective(weights, bias, rows, targets[:, k : k + 1], C)
    found = objective(fit.weights, fit.bias, rows, targets, C)
    assert abs(found / best - 1) < 1e-5
    assert fit.objective == pytest.approx(found, rel=1e-5)


def ill_conditioned(rows):
    """With a constant column, one twice, and columns of very different sizes and offsets."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(len(rows), 1))
    columns = [
        rows,
        np.full((len(rows), 1), 1e4),
        rows[:, :3],
        1e4 * rows[:, 3:6] + 1e5,
        1e-4 * noise,
        np.zeros((len(rows), 1)),
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize('C', [1e-6, 1e-2, 1, 1e3])
def test_ill_conditioned_features_have_the_same_optimum(C):
    rows, labels = example()
    rows = ill_conditioned(rows)
    fit = Regression(rows, labels, 4).fit(C)
    found = objective(fit.weights, fit.bias, rows, labels, C)
    assert fit.converged
    assert np.isfinite(fit.weights).all()
    # An exact change of variables for scikit-learn, which does not converge on such features.
    best = objective(*newton(rows, labels, 4, C), rows, labels, C)
    assert abs(found / best - 1) < 1e-4


@pytest.mark.parametrize('C', [1e-6, 1, 1e4, 1e6])
def test_features_that_depend_on_each_other_have_an_optimum(C):
    # More rows than curvature is measured on, all in a plane of two dimensions.
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(6000, 2))
    rows = (factors @ rng.normal(size=(2, 256))).astype(np.float32)
    labels = (factors[:, 0] + rng.normal(0, 0.3, size=6000) > 0).astype(int)
    fit = Regression(rows, labels, 2).fit(C)
    assert fit.converged
    plane = np.linalg.svd(rows, full_matrices=False)[2][:2].T  # the same in two features
    weights, bias = reference(rows @ plane, labels, C)
    best = objective(plane @ weights, bias, rows, labels[:, None] == 1, C)
    found = objective(fit.weights, fit.bias, rows, labels[:, None] == 1, C)
    assert abs(found / best - 1) < 1e-4


def newton(rows, labels, classes, C):
    """The optimum by damped Newton steps in float64, on centerd rows."""
    center = rows.mean(axis=0, dtype=np.float64)
    x = np.concatenate([rows - center, np.ones((len(rows), 1))], axis=1)
    d = x.shape[1]
    w = np.zeros((d, classes))
    own = np.eye(classes)[labels]
    penalty = np.ones(d)
    penalty[-1] = 0

    def value(w):
        z = x @ w
        loss = np.logaddexp.reduce(z, axis=1) - (z * own).sum(axis=1)
        return C * loss.sum() + (penalty[:, None] * w * w).sum() / 2

    for _ in range(100):
        z = x @ w
        p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
        gradient = C * x.T @ (p - own) + penalty[:, None] * w
        hessian = np.zeros((d, classes, d, classes))
        for j in range(classes):
            for k in range(classes):
                h = p[:, j] * ((j == k) - p[:, k])
                hessian[:, j, :, k] = C * (x * h[:, None]).T @ x
                if j == k:
                    hessian[:, j, :, k] += np.diag(penalty)
        flat = hessian.reshape(d * classes, d * classes)
        size = np.sqrt(np.maximum(flat.diagonal(), 1e-12))
        step = np.linalg.lstsq(flat / np.outer(size, size), gradient.ravel() / size, rcond=1e-13)
        step = (step[0] / size).reshape(d, classes)
        t = 1.0
        while value(w - t * step) > value(w) and t > 1e-9:
            t /= 2
        w = w - t * step
        if (gradient * step).sum() < 1e-10 * value(w):
            break
    return w[:-1], w[-1] - center @ w[:-1]


@pytest.mark.parametrize('C', [1e2, 1e4, 1e6])
def test_classes_that_can_be_told_apart_do_not_run_away(C):
    rows, labels = example(overlap=0.01)
    fit = Regression(rows, labels, 4).fit(C)
    assert fit.converged
    assert np.mean(logits(fit, rows).argmax(axis=1) == labels) == 1
    found = objective(fit.weights, fit.bias, rows, labels, C)
    assert fit.objective == pytest.approx(found, rel=1e-4)
    best = objective(*newton(rows, labels, 4, C), rows, labels, C)
    assert abs(found / best - 1) < 1e-4


def test_more_features_than_rows():
    rows, labels = example(n=40, dim=100)
    fit = Regression(rows, labels, 4).fit(1.0)
    best = objective(*reference(rows, labels, 1.0), rows, labels, 1.0)
    assert objective(fit.weights, fit.bias, rows, labels, 1.0) == pytest.approx(best, rel=1e-5)


def test_the_best_intercept_alone_is_found_where_there_is_nothing_to_learn_from():
    labels = np.repeat([0, 1, 2], [10, 20, 70])
    fit = Regression(np.ones((100, 3), np.float32), labels, 3).fit(1.0)
    np.testing.assert_array_equal(fit.weights, 0)
    share = np.exp(fit.bias) / np.exp(fit.bias).sum()
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], rtol=1e-5)


@pytest.mark.parametrize('several', [False, True])
def test_a_part_of_the_rows_is_fitted_as_if_it_were_alone(several):
    rows, targets = example()
    targets = several_labels(rows) if several else targets
    among = np.random.default_rng(0).random(len(rows)) < 0.3
    fit = Regression(rows, targets, 4).fit(1.0, among=among)
    alone = Regression(rows[among], targets[among], 4).fit(1.0)
    assert fit.objective == pytest.approx(alone.objective, rel=1e-5)
    np.testing.assert_allclose(fit.weights, alone.weights, atol=5e-3)
    assert np.abs(fit.weights - Regression(rows, targets, 4).fit(1.0).weights).max() > 0.05


def test_a_fit_may_begin_at_another_one():
    rows, labels = example()
    regression = Regression(rows, labels, 4)
    cold, warm = regression.fit(100.0), regression.fit(100.0, start=regression.fit(80.0))
    assert warm.objective == pytest.approx(cold.objective, rel=1e-5)
    assert warm.iterations < cold.iterations
    assert regression.fit(100.0, start=cold).iterations <= 2


def test_iterations_are_limited_and_it_is_said_if_they_do_not_suffice():
    rows, labels = example()
    regression = Regression(rows, labels, 4)
    fit = regression.fit(100.0, max_iterations=3)
    assert (fit.iterations, fit.converged) == (3, False)
    assert regression.fit(100.0).objective < fit.objective


@pytest.mark.parametrize(
    ('n', 'several'),
    [
        (250, False),
        (17, True),
        *(
            pytest.param(n, several, marks=pytest.mark.slow)
            for n, several in itertools.product([1, 7, 16, 17, 250], [False, True])
            if (n, several) not in {(250, False), (17, True)}
        ),
    ],
)
def test_one_device_and_eight_find_the_same_to_the_last_bit(n, several):
    rows, targets = example(n=max(n, 4))
    targets = several_labels(rows) if several else targets
    for C in 1e-2, 1e2:
        fits = [
            Regression(rows, targets, 4, mesh=sharding.make_mesh(jax.devices()[:count])).fit(C)
            for count in (1, 2, 8)
        ]
        for fit in fits[1:]:
            np.testing.assert_array_equal(fit.weights, fits[0].weights)
            np.testing.assert_array_equal(fit.bias, fits[0].bias)
            assert fit.objective == fits[0].objective


def test_a_number_of_devices_that_does_not_divide_the_parts_finds_the_same_optimum():
    rows, labels = example()
    fits = [
        Regression(rows, labels, 4, mesh=sharding.make_mesh(jax.devices()[:count])).fit(10.0)
        for count in (1, 3)
    ]
    assert fits[1].objective == pytest.approx(fits[0].objective, rel=1e-6)


def test_one_program_serves_every_c_and_every_part():
    rows, labels = example()
    regression = Regression(rows, labels, 4)
    program = _logistic._program(regression.mesh, True)
    regression.fit(1.0)
    compiled = program._cache_size()
    first = None
    for C in 1e-6, 1e6:
        first = regression.fit(C, among=labels > 0, start=first)
    assert program._cache_size() == compiled


@pytest.mark.parametrize('several', [False, True])
def test_the_curvature_of_rows_is_found_in_blocks(several, monkeypatch):
    rows, labels = example(n=1000)
    targets = several_labels(rows, classes=300) if several else labels
    classes = 300 if several else 4
    monkeypatch.setattr(_logistic, 'ROWS', 64)
    regression = Regression(rows, targets, classes)
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(20, classes)) / 5, rng.normal(size=classes)
    tracemalloc.start()
    found = regression._curvature(w, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    z = (rows - regression.center) / regression.scale @ w + b
    total = np.logaddexp(0, z) if several else np.logaddexp.reduce(z, axis=1)[:, None]
    p = np.exp(z - total)
    np.testing.assert_allclose(found, (p * (1 - p)).mean(axis=1), rtol=1e-4)
    assert not several or peak < 4 * 1000 * 300  # never a number for each row and class
