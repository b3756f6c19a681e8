"""From a source to batches on the devices: shuffled, augmented, read ahead and resumable."""

import collections
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import grain
import jax
import numpy as np

from clip_jax.data import transforms
from clip_jax.data.sources import Source


def train_iterator(
    source: Source,
    tokenizer: Callable[[list[str]], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    image_size: int,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    flip: float = 0.0,
    num_threads: int = 2,
    prefetch: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches {'image': uint8 [b, size, size, 3], 'tokens': int32 [b, length]} of a source.

    `batch_size` counts the rows of all hosts; this one yields b = batch_size / shard_count of them.
    Every epoch has its own order, crops, flips and captions. They depend on `seed` alone, not on
    threads, hosts or interruptions: host h has the h-th block of the one-host batch.
    `get_state()` is {'global_next_index': n}, the same on all hosts and fit for JSON; `set_state`
    continues there. Each of `num_threads` makes one batch at a time (0: it is made when asked for)
    and up to `prefetch` more wait, which bounds memory. Call `close()` when done.
    A record that cannot be used is a ValueError that says where it is stored.
    """
    if len(source) < batch_size:
        raise ValueError(
            f'batch_size {batch_size} is larger than the data set, which has {len(source)} '
            'examples: an image would be its own negative. Use a smaller batch or more data.'
        )
    if batch_size % shard_count:
        raise ValueError(
            f'batch_size {batch_size} must be a multiple of the number of hosts, {shard_count}.'
        )
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(
            f'crop_scale {tuple(crop_scale)} is not a pair of shares of the area, as (0.5, 1)'
        )
    if not 0 <= flip <= 1:
        raise ValueError(f'flip {flip} is not a probability from 0 to 1')
    # A thread here has one image at a time; OpenCV's own threads would only compete with it.
    cv2.setNumThreads(0)
    example = functools.partial(
        _example,
        source=source,
        tokenizer=tokenizer,
        image_size=image_size,
        crop_scale=crop_scale,
        flip=flip,
    )
    # Each epoch leaves out the last `remainder` of its own order: a batch that reached into the
    # next epoch could hold an image twice, and the image would be its own negative.
    remainder = len(source) % batch_size
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()[: len(source) - remainder]
    dataset = dataset.repeat(reseed_each_epoch=True).random_map(example)
    dataset = _Blocks(dataset, batch_size, shard_count)
    batches = grain.experimental.ElasticIterator(
        dataset,
        batch_size,
        grain.sharding.ShardOptions(shard_index=shard_index, shard_count=shard_count),
        read_options=grain.ReadOptions(
            num_threads=num_threads,
            # Counted in batches, those in the making included.
            prefetch_buffer_size=num_threads + prefetch if num_threads else 0,
        ),
    )
    return iter(batches)


class _Blocks(grain.MapDataset):
    """Reorders every batch so that taking each `count`-th row of it, as ElasticIterator does for
    host h of `count`, takes the h-th block of the batch.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, count: int):
        super().__init__(parent)
        self._batch_size, self._count = batch_size, count

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._batch_size)
        row, host = divmod(place, self._count)
        block = self._batch_size // self._count
        return self._parent[batch * self._batch_size + host * block + row]


def _example(
    index: int,
    rng: np.random.Generator,
    *,
    source: Source,
    tokenizer: Callable[[list[str]], np.ndarray],
    image_size: int,
    crop_scale: tuple[float, float],
    flip: float,
) -> dict[str, np.ndarray]:
    """Makes one row of a batch; `rng` is grain's for this row of this epoch."""
    record = source[index]
    try:
        text = transforms.choose_text(record.get('texts', ()), rng)
        image = transforms.decode(record.get('image', b''))
    except ValueError as error:
        raise ValueError(f'{source.where(index)}: {error}') from error
    image = transforms.random_resized_crop(image, rng, size=image_size, scale=crop_scale)
    return {'image': transforms.flip(image, rng, flip), 'tokens': tokenizer([text])[0]}


def to_device(
    iterator: grain.DatasetIterator, sharding: jax.sharding.Sharding, *, ahead: int = 2
) -> 'DeviceBatches':
    """Moves batches onto the devices, up to `ahead` before use; restore `iterator` before this."""
    return DeviceBatches(iterator, sharding, ahead=ahead)


class DeviceBatches(Iterator):
    """Batches as global arrays; `waited` is how many seconds `next` has had to wait in all."""

    def __init__(self, iterator, sharding: jax.sharding.Sharding, *, ahead: int):
        self.waited = 0.0
        self._iterator = iterator
        self._sharding = sharding
        self._state = iterator.get_state()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix='to-device')
        self._pending = collections.deque(self._worker.submit(self._read) for _ in range(ahead))

    def __next__(self) -> dict[str, jax.Array]:
        start = time.perf_counter()
        batch, self._state = self._pending.popleft().result()
        self.waited += time.perf_counter() - start
        self._pending.append(self._worker.submit(self._read))
        return batch

    def get_state(self) -> dict:
        """Returns the host iterator's state after the batch handed out last, not that read last."""
        return self._state

    def close(self):
        """Stops reading ahead and closes the host iterator."""
        self._worker.shutdown(cancel_futures=True)
        self._iterator.close()

    def _read(self) -> tuple[dict[str, jax.Array], dict]:
        batch = next(self._iterator)
        state = self._iterator.get_state()
        to_global = functools.partial(jax.make_array_from_process_local_data, self._sharding)
        return jax.block_until_ready(jax.tree.map(to_global, batch)), state
