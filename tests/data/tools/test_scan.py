"""Passes over records: in order, bounded, stopped at once; and what training can use."""

import threading
import time

import numpy as np
import pytest

from clip_jax.data.errors import BadRecord
from clip_jax.data.tools import scan

IMAGE = np.zeros((20, 30, 3), np.uint8)


@pytest.mark.parametrize('threads', [1, 2, 7])
def test_results_come_in_order(threads):
    def slow(i: int) -> int:
        time.sleep((i * 7 % 5) / 2000)
        return i

    assert list(scan.in_order(slow, 3, 103, threads=threads)) == [*range(3, 103)]
    assert list(scan.in_order(slow, 3, 103, threads=threads, ahead=50)) == [*range(3, 103)]
    assert list(scan.in_order(slow, 3, 3, threads=threads)) == []


def test_threads_work_at_the_same_time():
    # Nobody passes before three are there.
    together = threading.Barrier(3)
    count = 3 * scan.CHUNK
    found = list(scan.in_order(lambda i: together.wait(timeout=20), 0, count, threads=3))
    assert len(found) == count


def test_few_results_wait_for_a_slow_reader():
    begun = []
    results = scan.in_order(begun.append, 0, 100_000, threads=2)
    next(results)
    time.sleep(0.1)
    assert len(begun) <= 2 * 2 * scan.CHUNK
    results.close()


def test_as_many_wait_as_are_asked_for():
    begun = []
    results = scan.in_order(begun.append, 0, 100_000, threads=2, ahead=500)
    next(results)
    time.sleep(0.2)
    assert 400 < len(begun) <= 500 + 2 * scan.CHUNK
    results.close()


def test_an_error_comes_in_its_place():
    def bad(i: int) -> int:
        if i == 2 * scan.CHUNK:
            raise ValueError('no such record')
        return i

    found = []
    with pytest.raises(ValueError, match='no such record'):
        found.extend(scan.in_order(bad, 0, 100_000, threads=2))
    assert found == [*range(2 * scan.CHUNK)]


def test_an_error_ends_what_has_not_begun():
    begun = []

    def bad(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise ValueError('no such record')
        time.sleep(0.02)

    with pytest.raises(ValueError, match='no such record'):
        list(scan.in_order(bad, 0, 100_000, threads=2))
    # Of four parts that were handed out, one failed and two were under way.
    assert len(begun) <= 1 + 2 * scan.CHUNK


def test_what_training_can_use():
    def kind(**example) -> str:
        with pytest.raises(BadRecord) as error:
            scan.check(example, decode=False)
        return error.value.kind

    for example in (
        {'image': IMAGE, 'texts': ['a']},
        {'image': IMAGE, 'label': 0},
        {'image': IMAGE, 'texts': [], 'label': 3},
    ):
        assert scan.check(example, decode=False) is None
        np.testing.assert_array_equal(scan.check(example, decode=True), IMAGE)
    assert kind(image=IMAGE) == kind(image=IMAGE, texts=[]) == 'no_caption'
    assert kind(image=IMAGE, texts=[], label=-1) == 'no_caption'
    assert kind(image=b'', texts=['a']) == kind(texts=['a']) == 'empty'
    assert kind(image=b'no image', texts=['a']) == 'not_an_image'


class Place:
    def where(self, i: int) -> str:
        return f'a.tar: {i}.jpg'


def test_a_place_is_named_once():
    assert scan.error_message(Place(), 4, ValueError('no')) == 'a.tar: 4.jpg: no'
    assert scan.error_message(Place(), 4, ValueError('a.tar: 4.jpg: no')) == 'a.tar: 4.jpg: no'
