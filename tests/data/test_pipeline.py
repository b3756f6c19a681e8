"""pipeline: batches depend on the seed alone, resume exactly, and errors name the record."""

import io
import json
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from clip_jax.data import pipeline

COPIES = 3


class Pictures:
    """Picture i is red i with a ramp in green and blue; its captions are 'i 0', 'i 1' and 'i 2'."""

    label_names: list[str] = []

    def __init__(self, count: int, *, broken: int = -1, mute: int = -1, seconds: float = 0.0):
        self.count, self.broken, self.mute, self.seconds = count, broken, mute, seconds
        self.reads = 0
        columns, rows = np.meshgrid(np.arange(0, 200, 5), np.arange(0, 200, 5))
        self.ramp = np.stack([0 * rows, columns, rows], axis=2).astype(np.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        self.reads += 1
        time.sleep(self.seconds)
        if i == self.broken:
            return {'image': b'junk', 'texts': [f'{i} 0']}
        file = io.BytesIO()
        Image.fromarray(self.ramp + np.array([i, 0, 0], np.uint8)).save(file, 'PNG')
        texts = [] if i == self.mute else [f'{i} {k}' for k in range(COPIES)]
        return {'image': file.getvalue(), 'texts': texts}

    def where(self, i: int) -> str:
        return f'album: picture {i}'


def tokenize(texts: list[str]) -> np.ndarray:
    return np.array([text.split() for text in texts], np.int32)


def start(source, **options):
    defaults = {'batch_size': 8, 'seed': 5, 'image_size': 24, 'flip': 0.5, 'num_threads': 2}
    return pipeline.train_iterator(source, tokenize, **{**defaults, **options})


def take(iterator, count: int) -> dict[str, np.ndarray]:
    """Stacks `count` batches: images [count, b, ...] and tokens [count, b, 2]."""
    batches = [next(iterator) for _ in range(count)]
    return {key: np.stack([np.asarray(batch[key]) for batch in batches]) for key in batches[0]}


def first(source, count: int, **options) -> dict[str, np.ndarray]:
    iterator = start(source, **options)
    batches = take(iterator, count)
    iterator.close()
    return batches


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys() == {'image', 'tokens'}
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def by_data() -> NamedSharding:
    return NamedSharding(jax.make_mesh((jax.device_count(),), ('data',)), PartitionSpec('data'))


def test_rows_keep_image_and_caption_together():
    batches = first(Pictures(20), 5)
    assert batches['image'].shape == (5, 8, 24, 24, 3)
    assert batches['image'].dtype == np.uint8
    assert batches['tokens'].shape == (5, 8, 2)
    assert batches['tokens'].dtype == np.int32
    np.testing.assert_array_equal(batches['image'][..., 12, 12, 0], batches['tokens'][..., 0])


def test_batches_do_not_depend_on_threads():
    want = first(Pictures(50), 9, num_threads=0)
    for options in ({'num_threads': 1}, {'num_threads': 4}, {'num_threads': 4, 'prefetch': 0}):
        assert_same(first(Pictures(50), 9, **options), want)
    other = first(Pictures(50), 9, seed=6)
    assert not np.array_equal(other['tokens'], want['tokens'])


@pytest.mark.parametrize('threads', [0, 4])
def test_a_restored_iterator_continues_exactly(threads):
    straight = start(Pictures(50))
    take(straight, 7)
    state = json.dumps(straight.get_state())
    assert len(state) < 100
    assert json.loads(state) == {'global_next_index': 56}
    want = take(straight, 4)
    straight.close()
    for steps in (0, 3):  # a fresh iterator, and one that has been used
        restored = start(Pictures(50), num_threads=threads)
        for _ in range(steps):
            next(restored)
        restored.set_state(json.loads(state))
        assert_same(take(restored, 4), want)
        restored.close()


def test_hosts_together_hold_the_rows_of_one():
    want = first(Pictures(50), 6)
    halves = [start(Pictures(50), shard_index=i, shard_count=2) for i in range(2)]
    got = [take(half, 6) for half in halves]
    assert halves[0].get_state() == halves[1].get_state() == {'global_next_index': 48}
    together = {key: np.concatenate([half[key] for half in got], axis=1) for key in want}
    assert_same(together, want)
    # A checkpoint of two hosts is continued by one.
    whole = start(Pictures(50))
    whole.set_state(halves[0].get_state())
    assert next(whole)['tokens'].tolist() == first(Pictures(50), 7)['tokens'][6].tolist()
    for iterator in (*halves, whole):
        iterator.close()


@pytest.mark.parametrize('count', [8, 9, 15, 50])
def test_no_image_is_twice_in_a_batch_or_in_an_epoch(count):
    steps = count // 8
    numbers = first(Pictures(count), 6 * steps)['tokens'][..., 0]
    epochs = numbers.reshape(6, steps * 8)
    assert all(len(set(epoch)) == steps * 8 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6
    assert len(set(epochs.ravel().tolist())) == count  # what one epoch leaves out, others show


def test_every_epoch_has_its_own_crops_flips_and_captions():
    batches = first(Pictures(16), 20, crop_scale=(0.3, 1.0), flip=0.5)
    captions = {number: set() for number in range(16)}
    views = {number: set() for number in range(16)}
    mirrored = []
    for image, (number, caption) in zip(
        batches['image'].reshape(-1, 24, 24, 3), batches['tokens'].reshape(-1, 2), strict=True
    ):
        captions[number].add(int(caption))
        views[number].add(image.tobytes())
        mirrored.append(image[0, 0, 1] > image[0, -1, 1])
    assert all(len(seen) == COPIES for seen in captions.values())
    assert all(len(seen) == 10 for seen in views.values())
    assert 0.3 < np.mean(mirrored) < 0.7
    assert first(Pictures(16), 1, flip=0.0)['image'][0, :, 0, 0, 1].max() < 20


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r'batch_size 8 is larger .* 7 examples'):
        start(Pictures(7))
    with pytest.raises(ValueError, match=r'batch_size 8 must be a multiple .* 3'):
        start(Pictures(50), shard_count=3)


@pytest.mark.parametrize('scale', [(0.5,), (0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_impossible_crops_are_refused(scale):
    with pytest.raises(ValueError, match=r'crop_scale .* is not a pair of shares'):
        start(Pictures(50), crop_scale=scale)


@pytest.mark.parametrize('flip', [-0.1, 1.1])
def test_impossible_probabilities_are_refused(flip):
    with pytest.raises(ValueError, match=f'flip {flip} is not a probability'):
        start(Pictures(50), flip=flip)


@pytest.mark.parametrize('threads', [0, 2])
@pytest.mark.parametrize('device', [False, True])
def test_a_bad_record_is_named_in_one_line(threads, device):
    cases = [
        ({'broken': 13}, r"album: picture 13: not a readable image: 4 bytes .*b'junk'"),
        ({'mute': 13}, r'album: picture 13: no text'),
    ]
    for fault, message in cases:
        iterator = start(Pictures(16, **fault), num_threads=threads)
        if device:
            iterator = pipeline.to_device(iterator, by_data())
        with pytest.raises(ValueError, match=message) as error:
            take(iterator, 2)  # an epoch
        assert '\n' not in str(error.value)
        iterator.close()


def test_only_a_few_batches_are_read_ahead():
    source = Pictures(50)
    iterator = start(source, num_threads=2, prefetch=1)
    next(iterator)
    reads = -1
    while reads != source.reads:
        reads = source.reads
        time.sleep(0.2)
    assert reads <= (1 + 2 + 1) * 8
    iterator.close()


def test_batches_are_spread_over_the_devices():
    host = first(Pictures(50), 3)
    batches = pipeline.to_device(start(Pictures(50)), by_data())
    got = [next(batches) for _ in range(3)]
    assert got[0]['image'].sharding == by_data()
    assert got[0]['tokens'].sharding == by_data()
    assert_same({key: np.stack([batch[key] for batch in got]) for key in host}, host)
    batches.close()


@pytest.mark.parametrize('ahead', [1, 3])
def test_the_state_is_that_of_the_batch_handed_out_last(ahead):
    want = first(Pictures(50), 8)
    batches = pipeline.to_device(start(Pictures(50)), by_data(), ahead=ahead)
    assert batches.get_state() == {'global_next_index': 0}
    take(batches, 5)
    time.sleep(0.2)  # by now more has been read
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {'global_next_index': 40}
    batches.close()
    host = start(Pictures(50))
    host.set_state(state)
    restored = pipeline.to_device(host, by_data(), ahead=ahead)
    assert restored.get_state() == state
    assert_same(take(restored, 3), {key: value[5:] for key, value in want.items()})
    restored.close()


def test_waited_counts_only_the_waiting():
    slow = pipeline.to_device(start(Pictures(50, seconds=0.01), num_threads=0), by_data())
    began = time.perf_counter()
    take(slow, 4)
    took = time.perf_counter() - began
    assert 0.1 < slow.waited <= took  # 32 records of 0.01 seconds
    slow.close()
    hidden = pipeline.to_device(start(Pictures(50, seconds=0.01), num_threads=0), by_data())
    next(hidden)
    before = hidden.waited
    for _ in range(4):
        time.sleep(0.2)  # a training step, longer than it takes to read a batch
        next(hidden)
    assert hidden.waited - before < 0.2
    hidden.close()


def test_close_ends_the_threads():
    def ours() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith(('to-device', 'grain-prefetch'))]

    batches = pipeline.to_device(start(Pictures(50, seconds=0.002), num_threads=3), by_data())
    next(batches)
    assert ours()
    batches.close()
    batches.close()
    for _ in range(50):  # grain's threads finish their batch first
        if not ours():
            break
        time.sleep(0.1)
    assert not ours()


def test_a_program_may_end_without_closing():
    program = f"""
import sys
sys.path[:0] = {[str(path) for path in sys.path]!r}
import jax
from test_pipeline import Pictures, by_data, start
from clip_jax.data import pipeline
host = start(Pictures(50))
batches = pipeline.to_device(start(Pictures(50)), by_data())
for _ in range(3):
    next(host), next(batches)
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, '')
