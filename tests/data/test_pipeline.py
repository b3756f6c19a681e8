"""pipeline: batches depend on the seed alone, resume exactly, and errors name the record."""

import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from support.listed import Listed

from clip_jax.data import examples, pipeline, sources
from clip_jax.data.captions import Captions

COPIES = 3


class Pictures:
    """Picture i is red i with a ramp in green and blue; its captions are 'i 0', 'i 1' and 'i 2'."""

    label_names: list[str] = []
    skipped: dict = {}

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
    """Two numbers of each text: those that it consists of, or its length and first letter."""
    if texts[0][0].isdigit():
        return np.array([text.split() for text in texts], np.int32)
    return np.array([[len(text), ord(text[0])] for text in texts], np.int32)


def start(source, *, crop_scale=(0.9, 1.0), flip=0.5, more=None, **options):
    defaults = {'batch_size': 8, 'seed': 5, 'image_size': 24, 'num_threads': 2}
    augment = examples.Augment(crop_scale=crop_scale, flip=flip, **(more or {}))
    return pipeline.train_iterator(source, tokenize, augment=augment, **{**defaults, **options})


def take(iterator, count: int) -> dict[str, np.ndarray]:
    """Stacks `count` batches: images [count, b, ...] and tokens [count, b, 2]."""
    batches = [next(iterator) for _ in range(count)]
    return {key: np.stack([np.asarray(batch[key]) for batch in batches]) for key in batches[0]}


def first(source, count: int, **options) -> dict[str, np.ndarray]:
    with contextlib.closing(start(source, **options)) as iterator:
        return take(iterator, count)


def assert_same(a: dict, b: dict):
    assert a.keys() - {'bad'} == b.keys() - {'bad'} == {'image', 'tokens'}
    for key in a.keys() & b.keys():
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
    with pytest.raises(ValueError, match=r'crop_scale .* is not a range of fractions'):
        start(Pictures(50), crop_scale=scale)


@pytest.mark.parametrize('flip', [-0.1, 1.1])
def test_impossible_probabilities_are_refused(flip):
    with pytest.raises(ValueError, match=f'flip {flip} is not a probability'):
        start(Pictures(50), flip=flip)


def gave_way(batches: dict) -> list[tuple[int, str]]:
    return examples.bad_records(batches['bad'])


def test_a_bad_record_gives_its_place_to_another():
    """Always to the same one, and everything else stays as it is."""
    whole = first(Pictures(32), 8)  # two epochs
    bad = Pictures(32, broken=13, mute=20)
    got, again = first(bad, 8), first(bad, 8, num_threads=0)
    assert_same(got, again)
    # Either is drawn once an epoch, and perhaps in place of the other.
    assert {(13, 'not_an_image'), (20, 'no_caption')} == set(gave_way(got))
    assert Counter(x for x, _ in gave_way(got)) == Counter(
        [*np.intersect1d(whole['tokens'][:4, :, 0], [13, 20])] * 2
    ) + Counter(gave_way_twice(got))
    same = (got['tokens'] == whole['tokens']).all(axis=2)
    changed = np.isin(whole['tokens'][..., 0], [13, 20])
    np.testing.assert_array_equal(same, ~changed)
    np.testing.assert_array_equal(got['image'][same], whole['image'][same])
    assert not np.isin(got['tokens'][..., 0], [13, 20]).any()


def gave_way_twice(batches: dict) -> list[int]:
    """Records that were drawn in place of another and were bad themselves."""
    return [record for record, _ in examples.bad_records(batches['bad'][..., 1:])]


def test_hosts_count_what_one_counts():
    bad = Pictures(32, broken=13, mute=20)
    want = sorted(gave_way(first(bad, 8)))
    halves = [first(bad, 8, shard_index=i, shard_count=2) for i in range(2)]
    assert sorted(gave_way(halves[0]) + gave_way(halves[1])) == want
    # What is handed out counts, not what is read ahead.
    batches = pipeline.to_device(start(bad), by_data(), ahead=3)
    for _ in range(8):
        next(batches)
    assert sorted(batches.bad) == want
    batches.close()


def test_a_source_of_bad_records_alone_is_an_error():
    class Empty(Pictures):
        def __getitem__(self, i: int) -> dict:
            return {'image': b'', 'texts': ['0 0']}

    with pytest.raises(
        ValueError, match=r'32 consecutive records .* \(empty 32\); the last is album: pict'
    ) as e:
        first(Empty(16), 1)
    assert '\n' not in str(e.value)


def test_another_error_names_the_record():
    class Mislabeled(Pictures):
        def __getitem__(self, i: int) -> dict:
            raise ValueError('its label is no number')

    with pytest.raises(ValueError, match=r'album: picture \d+: its label is no number'):
        first(Mislabeled(16), 1)


def test_what_a_filter_leaves_out_is_replaced_and_counted():
    """Captions are 3 characters long up to picture 9, then 4."""
    chosen = first(Pictures(32), 4, filter=examples.Filter(min_caption=4))
    assert (chosen['tokens'][..., 0] >= 10).all()
    assert {kind for _, kind in gave_way(chosen)} == {'caption_length'}
    assert {record for record, _ in gave_way(chosen)} == set(range(10))
    counts = examples.count(chosen['bad'])
    assert examples.bad_fraction(counts, 32) == 0  # not wanted is not bad
    for wanted, kind in (
        (examples.Filter(min_side=41), 'small_side'),
        (examples.Filter(max_caption=2), 'caption_length'),
    ):
        with pytest.raises(ValueError, match=kind):
            first(Pictures(16), 1, filter=wanted)
    with pytest.raises(examples.BadRecord, match=r'90 x 20; max_aspect 4') as error:
        examples.Filter(max_aspect=4).image(20, 90)
    assert error.value.kind == 'long_aspect'
    examples.Filter(min_side=20, max_aspect=4.5).image(20, 90)


@pytest.mark.parametrize('option', [{'min_side': -1}, {'max_aspect': 0.5}])
def test_impossible_filters_are_refused(option):
    with pytest.raises(ValueError, match=f'data.filter.{next(iter(option))} is'):
        examples.Filter(**option)


class Shifted(Pictures):
    """Pictures with numbers from 100."""

    def __getitem__(self, i: int) -> dict:
        record = super().__getitem__(i)
        return {**record, 'texts': [f'{100 + i} {k}' for k in range(COPIES)]}


def test_a_mixture_has_no_labels():
    several = Listed([{'image': b'', 'texts': ['a'], 'labels': [1], 'label': 1}])
    assert sources.Mixture([several, several], [1, 1])[1] == {'image': b'', 'texts': ['a']}


def test_a_mixture_alternates_by_weight():
    mixture = sources.Mixture([Pictures(30), Shifted(50)], [3, 1])
    got = first(mixture, 20)
    number = got['tokens'][..., 0]
    assert (number >= 100).sum() == 40  # a quarter of 160
    assert ((number >= 100).sum(axis=1) == 2).all()  # of each batch
    # Each has its own epochs.
    assert len(set(number[number < 100][:30].tolist())) == 30
    assert len(set(number[number >= 100].tolist())) == 40
    assert_same(got, first(mixture, 20, num_threads=0))
    halves = [first(mixture, 20, shard_index=i, shard_count=2) for i in range(2)]
    assert_same({k: np.concatenate([h[k] for h in halves], axis=1) for k in got}, got)
    assert mixture.where(31) == 'album: picture 1' and len(mixture) == 80
    with pytest.raises(IndexError, match='none with the index 80'):
        mixture[80]


def test_in_a_mixture_a_bad_record_gives_way_to_one_of_its_own_source():
    mixture = sources.Mixture([Pictures(30, broken=4), Shifted(50, broken=7)], [1, 1])
    number = first(mixture, 30)['tokens'][..., 0]
    assert (number >= 100).sum() == 120


def test_weights_and_specs_are_told_apart():
    assert sources.split('tars:a + b.tar') == [(1, 'tars:a'), (1, 'b.tar')]
    assert sources.split('0.5 * tars:a*.tar + tfds:b/train[:10%]') == [
        (0.5, 'tars:a*.tar'),
        (1, 'tfds:b/train[:10%]'),
    ]
    for wrong in ('x * tars:a', '0 * tars:a', '-1 * tars:a', 'nan * tars:a'):
        with pytest.raises(ValueError, match=r'expected WEIGHT \* SPEC'):
            sources.split(wrong)


def hashes(source, count: int, hosts: int = 1, begin: int = 0, **options) -> list[str]:
    """A hash of each of so many global batches, from number `begin` on."""
    iterators = [start(source, shard_index=i, shard_count=hosts, **options) for i in range(hosts)]
    found = []
    for iterator in iterators:
        iterator.set_state({'global_next_index': begin * 8})
    for _ in range(count):
        parts = [next(iterator) for iterator in iterators]
        digest = hashlib.sha256()
        for key in sorted(parts[0]):
            digest.update(np.concatenate([part[key] for part in parts]).tobytes())
        found.append(digest.hexdigest())
    for iterator in iterators:
        iterator.close()
    return found


def test_processes_make_the_batches_of_threads(tiny_tars):
    """Also after a restore, and of a million steps later."""
    made = functools.partial(
        hashes,
        sources.open_source(tiny_tars),
        captions=Captions(fields={'txt': 1.0}, count=2),
        more={'randaugment': (2, 9), 'random_erasing': 0.5},
    )
    want = made(12)
    assert len(set(want)) == 12
    assert made(12, num_workers=2) == want
    assert made(4, begin=8, num_workers=1, num_threads=1) == want[8:]
    assert made(1, begin=10**6, num_threads=0) == made(1, begin=10**6, hosts=4)


class Fields(Pictures):
    """Captions of two fields, 'i 0' to 'i 2' and 'i 3', and hard negatives 'i 10' to 'i 12'."""

    text_fields = ('caption', 'synthetic', 'swapped')

    def __getitem__(self, i: int) -> dict:
        record = super().__getitem__(i)
        fields = {'caption': record['texts'], 'synthetic': [f'{i} 3']}
        if i % 5:
            fields['swapped'] = [f'{i} {k}' for k in (10, 11, 12)]
        return {**record, 'fields': fields}


def test_several_captions_and_hard_negatives_are_rows_of_tokens():
    """The same in threads and hosts, and after a restore."""
    captions = Captions(
        fields={'caption': 0.5, 'synthetic': 0.5},
        negative_fields=('swapped',),
        negatives=2,
        count=3,
    )
    want = first(Fields(40), 6, captions=captions)
    assert want['tokens'].shape == (6, 8, 5, 2) and want['tokens'].dtype == np.int32
    numbers, texts = want['tokens'][..., 0], want['tokens'][..., 1]
    assert (numbers == numbers[..., :1]).all() and (numbers % 5 > 0).all()
    np.testing.assert_array_equal(want['image'][..., 12, 12, 0], numbers[..., 0])
    assert (texts[..., :3] < 10).all() and (texts[..., 3:] >= 10).all()
    assert (np.diff(np.sort(texts)) > 0).all()  # all of an image differ
    assert {kind for _, kind in gave_way(want)} == {'no_negative'}
    assert_same(first(Fields(40), 6, captions=captions, num_threads=0), want)
    halves = [
        first(Fields(40), 6, captions=captions, shard_index=i, shard_count=2) for i in range(2)
    ]
    assert_same({k: np.concatenate([h[k] for h in halves], axis=1) for k in want}, want)
    with contextlib.closing(start(Fields(40), captions=captions)) as restored:
        restored.set_state({'global_next_index': 4 * 8})
        assert_same(take(restored, 2), {key: value[4:] for key, value in want.items()})


@pytest.mark.parametrize('more', [{'randaugment': (2, 9)}, {'trivial_augment': True}])
def test_augmentations_are_the_same_anywhere(more):
    more = {**more, 'random_erasing': 0.5}
    want = first(Pictures(50), 5, more=more)
    assert not np.array_equal(want['image'], first(Pictures(50), 5)['image'])
    assert_same(first(Pictures(50), 5, more=more, num_threads=0), want)
    halves = [first(Pictures(50), 5, more=more, shard_index=i, shard_count=2) for i in range(2)]
    assert_same({k: np.concatenate([h[k] for h in halves], axis=1) for k in want}, want)
    with contextlib.closing(start(Pictures(50), more=more)) as restored:
        restored.set_state({'global_next_index': 3 * 8})
        assert_same(take(restored, 2), {key: value[3:] for key, value in want.items()})


def test_a_field_that_no_source_has_is_an_error_before_the_first_batch():
    with pytest.raises(ValueError, match=r"no 'captions'. Did you mean 'caption'\?"):
        start(Fields(40), captions=Captions(fields={'captions': 1}))


@pytest.mark.slow
@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('workers', [0, 1, 4])
def test_two_hundred_batches_are_the_same_anywhere(tiny_tars, hosts, workers):
    source = sources.open_source(tiny_tars)
    want = hashes(source, 200, num_threads=0)
    assert hashes(source, 200, hosts, num_workers=workers) == want
    assert hashes(source, 50, hosts, begin=150, num_workers=workers) == want[150:]


def test_a_row_depends_on_seed_record_and_epoch_alone():
    """Not on the size of the batch, nor on the place in it."""

    def by_caption(batches: dict) -> dict:
        tokens = batches['tokens'].reshape(-1, 2)
        images = batches['image'].reshape(-1, 24, 24, 3)
        return {
            (*key, i // 32): x
            for i, (key, x) in enumerate(zip(map(tuple, tokens), images, strict=True))
        }

    small, large = first(Pictures(32), 16, batch_size=4), first(Pictures(32), 4, batch_size=16)
    small, large = by_caption(small), by_caption(large)
    assert small.keys() == large.keys() and len(small) == 64
    for key, image in small.items():
        np.testing.assert_array_equal(image, large[key])


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
    assert_same({key: np.stack([batch[key] for batch in got]) for key in got[0]}, host)
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
        time.sleep(0.4)  # a training step, longer than it takes to read a batch
        next(hidden)
    assert hidden.waited - before < slow.waited / 2
    hidden.close()


def test_close_ends_the_threads():
    before = {*threading.enumerate()}  # of iterators in other tests

    def ours() -> list[str]:
        names = [thread.name for thread in threading.enumerate() if thread not in before]
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


def test_processes_end_with_the_program_that_is_killed(tiny_tars):
    """What reads its output sees the end of it; a process that lived on would keep it open."""
    program = f"""
import sys
sys.path[:0] = {[str(path) for path in sys.path]!r}
from test_pipeline import start
from clip_jax.data import sources
if __name__ == '__main__':
    batches = start(sources.open_source({tiny_tars!r}), num_workers=2)
    next(batches), next(batches)
    print('begun', flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, '-c', program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b'begun\n'
        process.kill()
        assert process.communicate(timeout=15) == (b'', None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_program_may_end_without_closing():
    program = f"""
import sys
sys.path[:0] = {[str(path) for path in sys.path]!r}
import jax
from test_pipeline import Pictures, by_data, start
from clip_jax.data import pipeline, sources
host = start(Pictures(50))
batches = pipeline.to_device(start(Pictures(50)), by_data())
for _ in range(3):
    next(host), next(batches)
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, '')
