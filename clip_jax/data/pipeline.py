"""The input pipeline: from a source to batches on the devices; shuffled, prefetched, resumable."""

import collections
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import grain
import jax
import numpy as np
from absl import flags

from clip_jax.data.augment import Augment
from clip_jax.data.budgets import Budgets
from clip_jax.data.captions import Captions
from clip_jax.data.examples import TRIES, ExampleMaker, Filter, bad_records
from clip_jax.data.image.opening import MAX_PIXELS, check_max_pixels
from clip_jax.data.shuffle import GlobalShuffle
from clip_jax.data.sources import Source, parts_of
from clip_jax.data.stored_embeddings import StoredEmbeddings


def train_iterator(
    source: Source,
    tokenizer: Callable[[list[str]], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    image_size: int,
    budgets: Budgets | None = None,
    augment: Augment = Augment(),
    filter: Filter = Filter(),
    captions: Captions = Captions(),
    stored: Mapping[str, StoredEmbeddings] | None = None,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
) -> 'TrainIterator':
    """Iterates over batches of a source, infinitely.

    Every epoch has its own order, crops, flips and captions. They depend only on `seed`, not on
    threads, processes, hosts or interruptions: host h gets the h-th block of each global batch. Bad
    records are replaced (see examples.ExampleMaker). Call `close()` when done.

    Args:
        source: the training data.
        tokenizer: texts to int32 [b, length].
        batch_size: examples per global batch, of all hosts.
        seed: the seed of everything random.
        image_size: side of the images in pixels.
        budgets: for a model that takes images of any aspect ratio: what each batch has instead.
        augment: augmentation of images.
        filter: which records are used.
        captions: how captions are chosen.
        stored: embeddings that other models gave the data, by name.
        max_pixels: images with more are bad records.
        num_threads: threads, each of which makes one batch at a time; 0 makes batches on demand.
        num_workers: processes that make the batches instead, with num_threads each; 0 for none.
        prefetch: batches that may wait beyond those in progress.
        shard_index: the number of this host.
        shard_count: the number of hosts.

    Returns:
        An iterator of {'image': uint8 [b, size, size, 3], with `budgets` Patches; 'tokens': int32
        [b, length], 'bad': int64 [b, examples.TRIES]} with b = batch_size / shard_count. If an
        example has several texts, tokens are [b, texts, length]: captions, then hard negatives.
        With `stored` also 'stored', by name the embeddings 'image' and 'text' (of the first
        caption), float32 [b, D] each. Its `get_state()` is {'global_next_index': n}, the same
        on all hosts; `set_state` resumes from it.

    Raises:
        ValueError: if batch_size is not a multiple of the number of hosts, or larger than the data;
            a field of captions does not exist; or `stored` is of other data.
    """
    if batch_size % shard_count:
        raise ValueError(
            f'batch_size {batch_size} must be a multiple of the number of hosts, {shard_count}.'
        )
    captions.check(source)
    stored = stored or {}
    for one in stored.values():
        one.check(source, captions)
    # Each thread has an image of its own; OpenCV's threads would compete with these.
    cv2.setNumThreads(0)
    parts, local = parts_of(source), batch_size // shard_count
    make = ExampleMaker(
        source,
        seed=seed,
        augment=augment,
        filter=filter,
        captions=captions,
        parts=tuple((part.start, part.stop) for part in parts),
        max_pixels=check_max_pixels(max_pixels),
        stored=stored,
    )
    return TrainIterator(
        _Batches(
            GlobalShuffle(parts, batch_size, seed),
            make,
            tokenizer,
            image_size,
            budgets,
            block=slice(shard_index * local, (shard_index + 1) * local),
        ),
        batch_size,
        grain.ReadOptions(
            num_threads=num_threads,
            # In batches, including those in progress.
            prefetch_buffer_size=num_threads + prefetch if num_threads else 0,
        ),
        _processes(num_workers, prefetch),
    )


def _processes(num_workers: int, prefetch: int) -> grain.MultiprocessingOptions | None:
    if not num_workers:
        return None
    # grain reads absl's flags, which only absl's own main parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=max(1, prefetch))


def _start_worker(index: int, count: int) -> None:
    """Prepares a worker process: JAX on the CPU only; it ends when its parent has ended."""
    # It imports JAX and must not reserve memory of the accelerator, which its parent uses.
    os.environ['JAX_PLATFORMS'] = 'cpu'
    jax.config.update('jax_platforms', 'cpu')
    # A terminal sends Ctrl-C to all processes of a program, a scheduler SIGTERM. The parent may
    # need more batches until it has saved; it closes the iterator when it needs no more.
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # since this is a worker
        parent.join()
        os._exit(0)  # nobody reads the batches any more

    threading.Thread(target=watch, name='parent', daemon=True).start()


class _Batches(grain.MapDataset):
    """The batches of one host: batch i is its block of global batch i."""

    def __init__(
        self,
        order: GlobalShuffle,
        make: ExampleMaker,
        tokenizer: Callable[[list[str]], np.ndarray],
        image_size: int,
        budgets: Budgets | None,
        block: slice,
    ):
        super().__init__()
        self._order, self._make, self._tokenizer = order, make, tokenizer
        self._image_size, self._budgets, self._block = image_size, budgets, block

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        places = [x[self._block].tolist() for x in self._order.batch(index)]
        count, size = len(places[0]), self._image_size
        image: Any = np.empty((count, size, size, 3), np.uint8)
        if self._budgets:
            image = self._budgets.blank(int(index), count)
        bad = np.full((count, TRIES), -1, np.int64)
        stored = {
            name: {side: np.empty((count, one.width), np.float32) for side in ('image', 'text')}
            for name, one in self._make.stored.items()
        }
        images, rows = (
            [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(count)]
            for whole in (image, stored)
        )
        texts = [text for own in map(self._make, *places, images, bad, rows) for text in own]
        tokens = self._tokenizer(texts)
        if len(texts) > count:
            tokens = tokens.reshape(count, -1, tokens.shape[-1])
        batch = {'image': image, 'tokens': tokens, 'bad': bad}
        return {**batch, 'stored': stored} if stored else batch


class TrainIterator(Iterator):
    """Prefetched batches of one host; its state is a global index, so any number of hosts can
    resume.
    """

    def __init__(
        self,
        batches: _Batches,
        batch_size: int,
        read_options: grain.ReadOptions,
        processes: grain.MultiprocessingOptions | None,
    ):
        self._batches, self._batch_size = batches, batch_size
        self._read_options, self._processes = read_options, processes
        self._next = 0  # global index of the next example
        self._running: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._running is None:
            ahead = self._batches[self._next // self._batch_size :].to_iter_dataset(
                self._read_options
            )
            if self._processes:
                ahead = ahead.mp_prefetch(self._processes, _start_worker)
            self._running = iter(ahead)
        batch = next(self._running)
        self._next += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns where the next batch starts: JSON values, the same on all hosts."""
        return {'global_next_index': self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Resumes from a state of this or another iterator; prefetched batches are dropped.

        ValueError if no batch of this size starts there.
        """
        if state['global_next_index'] % self._batch_size:
            raise ValueError(
                f'the input resumes from example {state["global_next_index"]}, not a multiple of '
                f'batch_size {self._batch_size}; expected the batch_size that it was saved with'
            )
        self.close()
        self._next = state['global_next_index']

    def close(self) -> None:
        """Stops threads and processes."""
        if self._running is not None:
            self._running.close()
        self._running = None


def to_device(
    iterator: TrainIterator, sharding: jax.sharding.Sharding, *, ahead: int = 2
) -> 'DeviceBatches':
    """Transfers batches to the devices, up to `ahead` in advance.

    Restore the state of `iterator` before this.
    """
    return DeviceBatches(iterator, sharding, ahead=ahead)


class DeviceBatches(Iterator):
    """Batches as global arrays.

    Attributes:
        waited: seconds that `next` has waited for batches in total.
        bad: (index, kind) of the records of this host that were replaced.
    """

    def __init__(self, iterator, sharding: jax.sharding.Sharding, *, ahead: int):
        self.waited = 0.0
        self.bad: list[tuple[int, str]] = []
        self._iterator = iterator
        self._sharding = sharding
        self._state = iterator.get_state()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='to-device')
        self._pending = collections.deque(self._worker.submit(self._read) for _ in range(ahead))

    def __next__(self) -> dict[str, jax.Array]:
        start = time.perf_counter()
        batch, bad, self._state = self._pending.popleft().result()
        self.bad += bad_records(bad)
        self.waited += time.perf_counter() - start
        self._pending.append(self._worker.submit(self._read))
        return batch

    def get_state(self) -> dict:
        """Returns the state after the last batch returned, not the last one prefetched."""
        return self._state

    def close(self) -> None:
        """Stops prefetching and closes the host iterator."""
        self._worker.shutdown(cancel_futures=True)
        self._iterator.close()

    def _read(self) -> tuple[dict[str, jax.Array], np.ndarray, dict]:
        batch = next(self._iterator)
        bad = batch.pop('bad')
        state = self._iterator.get_state()
        to_global = functools.partial(jax.make_array_from_process_local_data, self._sharding)
        return jax.block_until_ready(jax.tree.map(to_global, batch)), bad, state
