"""Similarities are exact: those of rational numbers, whatever the blocks and the library."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from clip_jax.evals import _embed, _similarity
from clip_jax.runtime import similarity


def unit_rows(seed, count, dim):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def exact(row, column):
    return sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, column, strict=True))


@pytest.mark.parametrize('dim', [1, 3, 64, 513, 2048])
def test_similarities_are_those_of_rational_numbers(dim):
    a, b = (_similarity.on_grid(unit_rows(seed, 5, dim)) for seed in (0, 1))
    expected = np.array([[float(exact(x, y)) for y in b] for x in a])
    assert all(Fraction(x) == exact(a[0], b[k]) for k, x in enumerate(expected[0]))
    np.testing.assert_array_equal(_similarity.matrix(a, b), expected)
    np.testing.assert_array_equal(_similarity.of_pairs(a, b), expected.diagonal())


def test_rounding_changes_less_than_encoders_do():
    rows = unit_rows(0, 100, 512)
    rounded = _similarity.on_grid(rows)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - rows).max() <= 2**-27
    np.testing.assert_array_equal(_similarity.on_grid(rounded), rounded)
    np.testing.assert_array_equal(rows, unit_rows(0, 100, 512))  # those of the caller stay


def test_sums_in_any_order_are_the_same():
    a, b = (_similarity.on_grid(unit_rows(seed, 60, 640)) for seed in (0, 1))
    order = np.random.default_rng(2).permutation(640)
    expected = _similarity.matrix(a, b)
    np.testing.assert_array_equal(_similarity.matrix(a[:, order], b[:, order]), expected)
    np.testing.assert_array_equal(_similarity.matrix(b, a).T, expected)
    rows = [_similarity.matrix(a[[i]], b)[0] for i in range(60)]
    np.testing.assert_array_equal(rows, expected)
    # In float32 this would not hold.
    plain = a @ b.T
    assert (a[:, order] @ b[:, order].T != plain).any()


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (7, 10), (64, 33), (1024, 8192)])
def test_counts_do_not_depend_on_tiles_and_library(monkeypatch, backend, rows, columns):
    a, b = _similarity.on_grid(unit_rows(0, 60, 63)), _similarity.on_grid(unit_rows(1, 90, 63))
    a[10:20], b[:30] = a[10], b[0]  # many tie
    expected = _similarity.matrix(a, b)
    of_rows, of_columns = expected[:, 3].copy(), expected[12].copy()
    # The same program as on a GPU, compiled for the CPU.
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    for name, size in (('COLUMNS', columns), ('GPU_ROWS', rows)):
        monkeypatch.setattr(_similarity, name, size)
    monkeypatch.setattr(_embed, 'CHUNK', rows)
    found = _similarity.count_at_least(a, b, of_rows, of_columns)
    np.testing.assert_array_equal(found[0], (expected >= of_rows[:, None]).sum(axis=1))
    np.testing.assert_array_equal(found[1], (expected >= of_columns).sum(axis=0))
    assert found[0].min() >= 30 and found[1].min() >= 10


@pytest.mark.parametrize('scale', [0, 0.5, 3])
def test_rows_of_another_length_are_an_error(scale):
    rows = unit_rows(0, 4, 8)
    rows[2] *= scale
    with pytest.raises(ValueError, match=f'of length {scale}; expected length 1'):
        _similarity.on_grid(rows)


def test_rows_of_any_length_are_scaled_whatever_the_others_are():
    rows = unit_rows(0, 50, 640) * np.random.default_rng(1).uniform(0.1, 9, (50, 1))
    found = similarity.unit(rows)
    np.testing.assert_allclose(found, unit_rows(0, 50, 640), atol=1e-7)
    np.testing.assert_array_equal(similarity.on_grid(found), found)
    for i in range(50):
        np.testing.assert_array_equal(similarity.unit(rows[[i]])[0], found[i])
    for wrong in 0, np.nan, np.inf:
        with pytest.raises(ValueError, match='of length 0 or not finite'):
            similarity.unit(np.where(np.arange(50)[:, None] == 7, wrong, rows))
