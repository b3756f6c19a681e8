"""Embeddings of a data set come in the order of its records, each of which is read once."""

import threading
import time

import numpy as np
import pytest

from clip_jax.evals import _embed


class Toy:
    """Images that are numbers, counted when they are read."""

    label_names = []

    def __init__(self, n):
        self.n, self.reads = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads.append(i)
        return {'image': i, 'texts': [f'{i}'], 'label': i % 3}

    def where(self, i):
        return f'toy record {i}'


def rows(images):
    return np.stack([np.array([i, 1], np.float32) for i in images])


@pytest.mark.parametrize('at_a_time', [1, 7, 50, 100])
def test_rows_and_records_are_in_order_and_each_is_read_once(monkeypatch, at_a_time):
    monkeypatch.setattr(_embed, 'IMAGES', at_a_time)
    data = Toy(50)
    found, records = _embed.records(rows, data)
    np.testing.assert_array_equal(found[:, 0], np.arange(50))
    assert records == [{'texts': [f'{i}'], 'label': i % 3} for i in range(50)]
    assert data.reads == [*range(50)]


def test_an_encoder_may_read_in_any_order_in_threads():
    def encode(images):
        found = {}

        def read(k):
            time.sleep(0.001 * (k % 3))
            found[k] = images[k]

        threads = [threading.Thread(target=read, args=[k]) for k in reversed(range(len(images)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return rows([found[k] for k in range(len(images))])

    found, records = _embed.records(encode, Toy(40))
    np.testing.assert_array_equal(found[:, 0], np.arange(40))
    assert [record['label'] for record in records] == [i % 3 for i in range(40)]


def test_an_encoder_that_reads_nothing_gets_the_records_all_the_same():
    found, records = _embed.records(lambda images: np.ones((len(images), 2)), Toy(20))
    assert found.shape == (20, 2) and [record['label'] for record in records[:4]] == [0, 1, 2, 0]


def test_images_are_a_sequence():
    images = _embed._Images(Toy(10), range(2, 8))
    assert len(images) == 6 and list(images) == [2, 3, 4, 5, 6, 7]
    assert images[1:3] == [3, 4] and images[-1] == 7 and 5 in images
    with pytest.raises(IndexError):
        images[6]


def test_features_are_asked_for_by_name():
    def encode(images, *, features='embedding'):
        return rows(images) * (2 if features == 'pre_projection' else 1)

    np.testing.assert_array_equal(
        _embed.records(encode, Toy(5), features='pre_projection')[0][:, 1], 2
    )
    np.testing.assert_array_equal(_embed.records(encode, Toy(5))[0][:, 1], 1)


@pytest.mark.parametrize('at_a_time', [1, 4, 1000])
@pytest.mark.parametrize('bad', [{0}, {13}, {49}, {13, 14, 40}])
def test_the_first_record_that_cannot_be_embedded_is_named(monkeypatch, at_a_time, bad):
    monkeypatch.setattr(_embed, 'IMAGES', at_a_time)

    def encode(images):
        if found := bad.intersection(images):
            raise ValueError(f'{min(found)} is no image')
        return rows(images)

    with pytest.raises(ValueError, match=rf'^toy record {min(bad)}: {min(bad)} is no image$'):
        _embed.records(encode, Toy(50))


def test_finding_it_takes_few_calls():
    calls = []

    def encode(images):
        calls.append(len(images))
        if 600 in images:
            raise ValueError('no image')
        return rows(images)

    with pytest.raises(ValueError, match='toy record 600: no image'):
        _embed.records(encode, Toy(1000))
    assert len(calls) < 15


def test_an_error_that_has_nothing_to_do_with_a_record_is_told_as_it_is():
    errors = iter([ValueError('the network is down')])

    def encode(images):
        for error in errors:
            raise error
        return rows(images)

    with pytest.raises(ValueError, match=r'^the network is down$'):
        _embed.records(encode, Toy(20))


def test_a_folder_of_embeddings_has_them():
    class Folder(Toy):
        def embeddings(self, features):
            return np.full((self.n, 2), len(features), np.float32)

        def records(self):
            return [{'label': 1}] * self.n

    def encode(images):
        raise AssertionError('nothing is to be embedded')

    for features in ('embedding', 'pre_projection'):
        found, records = _embed.records(encode, Folder(3), features=features)
        np.testing.assert_array_equal(found, np.full((3, 2), len(features)))
        assert records == [{'label': 1}] * 3
