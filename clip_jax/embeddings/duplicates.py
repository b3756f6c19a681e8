"""Finds near-duplicates: images whose embeddings have at least a given cosine similarity.

All pairs are compared, without approximation, each once: blocks of rows against themselves, later
blocks, and the blocks of evaluation sets. A bound (see _bound.py) leaves out almost all of them on
the devices; the rest are compared exactly (runtime/similarity.py). So the result depends neither on
the block size nor on the number of devices and processes, nor on interruptions. Process p compares
the blocks k with k mod num_processes == p; processes share only the folder:

    settings.json           what the files depend on
    basis.npy               the basis of the sketches
    sketch-0-00000.npy      sketches of a block: of set 0, the data, or 1, ... the evaluation sets
    block-00000.npz         what the comparisons of a block found
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from clip_jax.data.sharded_job import ShardedJob
from clip_jax.embeddings import _bound, _groups
from clip_jax.embeddings._rows import Rows
from clip_jax.planning import topologies
from clip_jax.runtime import atomic, foreign_arrays, foreign_json, lock, multihost, similarity
from clip_jax.runtime.progress import Progress

SETTINGS, BASIS = 'settings.json', 'basis.npy'
STRIP = 256  # rows that are compared exactly at a time
DENSE = 0.02  # share of pairs above which whole products are quicker than single ones
AHEAD = 2  # pairs of blocks on the devices at a time
NEAR = np.dtype([('row', np.int64), ('set', np.int64), ('other', np.int64), ('cosine', np.float64)])


@dataclasses.dataclass(frozen=True)
class Options:
    """What near-duplicates are.

    Attributes:
        threshold: the least cosine similarity of near-duplicates.
        within_set: whether the data are compared with themselves.
        block_size: rows of a block.
    """

    threshold: float = 0.95
    within_set: bool = True
    block_size: int = 65_536

    def __post_init__(self):
        if not 0.5 <= self.threshold < 1:
            raise ValueError(
                f'--threshold is {self.threshold}; expected a cosine from 0.5 to below 1'
            )
        if self.block_size < 1:
            raise ValueError(f'--block-size is {self.block_size}; expected at least 1')


class Found(NamedTuple):
    """The near-duplicates of a set.

    Attributes:
        first: for each row the first row of its group, int64 [N].
        near: the rows with near-duplicates in evaluation sets, of the dtype NEAR [M]: for each row
            the set, and the row of it with the highest cosine.
        compared: how many pairs passed the bound and were compared exactly.
    """

    first: np.ndarray
    near: np.ndarray
    compared: int


@dataclasses.dataclass(frozen=True)
class Job(ShardedJob):
    """One search for near-duplicates, whose shards are blocks of rows.

    Attributes:
        rows: the data.
        against: evaluation sets.
        folder: the folder of the files.
        options: what near-duplicates are.
    """

    rows: Rows
    against: Sequence[Rows]
    folder: epath.Path
    options: Options

    @property
    def source(self) -> Rows:
        return self.rows

    @property
    def shard_size(self) -> int:
        return self.options.block_size

    @property
    def sets(self) -> list[Rows]:
        """The data, then the evaluation sets."""
        return [self.rows, *self.against]

    @property
    def settings(self) -> dict[str, Any]:
        own = dataclasses.asdict(self.options)
        return {**own, 'sets': [_identity(rows) for rows in self.sets]}

    @property
    def long_settings(self) -> dict[str, str]:
        return {'sets': 'the embeddings, the lists or the evaluation sets are others'}

    @property
    def title(self) -> str:
        return f'--out: {self.folder.parent} holds a search that was started'

    @property
    def remedy(self) -> str:
        return 'Give the same options, or name another folder'

    def read_settings(self) -> Mapping[str, Any] | None:
        file = self.folder / SETTINGS
        return foreign_json.read(file) if file.exists() else None

    def write_settings(self) -> None:
        atomic.write_json(self.folder / SETTINGS, self.settings)

    def is_complete(self, shard: int) -> bool:
        return _read(self._block_file(shard)) is not None

    def blocks(self, number: int) -> list[slice]:
        """The blocks of a set."""
        size, count = self.options.block_size, len(self.sets[number])
        return [slice(k, min(k + size, count)) for k in range(0, count, size)]

    def partners(self, block: int) -> list[tuple[int, int]]:
        """The (set, block) that a block of the data is compared with: itself and what follows."""
        own = range(block, self.shards) if self.options.within_set else ()
        others = [(k, b) for k in range(1, len(self.sets)) for b in range(len(self.blocks(k)))]
        return [*((0, b) for b in own), *others]

    def pairs(self, block: int) -> int:
        """How many pairs the comparisons of a block are."""
        count = len(self.range(block))
        after = len(self.rows) - self.range(block).stop
        own = count * (count - 1) // 2 + count * after if self.options.within_set else 0
        return own + count * sum(map(len, self.against))

    def basis(self) -> np.ndarray:
        """Returns the basis of the sketches; the primary process makes it."""

        def make() -> None:
            places = np.linspace(0, len(self.rows) - 1, min(_bound.SAMPLE, len(self.rows)))
            made = _bound.basis(self.rows.take(places.astype(int)), self.options.threshold)
            for path in self.folder.glob('sketch-*.npy'):  # of a basis that was removed
                path.unlink()
            atomic.write(self.folder / BASIS, _bytes(made))

        multihost.run_on_primary(lambda: None if (self.folder / BASIS).exists() else make())
        return _load(self.folder / BASIS)

    def sketches(self, number: int, block: int) -> np.ndarray:
        """Reads the sketches of a block of a set."""
        return _load(self._sketch_file(number, block))

    def write_sketches(self, basis: np.ndarray) -> None:
        """Writes those sketches of this process that are missing."""
        every = [(k, b) for k in range(len(self.sets)) for b in range(len(self.blocks(k)))]
        for number, block in every[jax.process_index() :: jax.process_count()]:
            file, rows = self._sketch_file(number, block), self.sets[number]
            if file.exists():
                continue
            span = self.blocks(number)[block]
            parts = [
                _bound.sketch(rows.take(slice(k, min(k + similarity.CHUNK, span.stop))), basis)
                for k in range(span.start, span.stop, similarity.CHUNK)
            ]
            atomic.write(file, _bytes(np.concatenate(parts)))

    def write_block(self, block: int, pairs: np.ndarray, near: np.ndarray, compared: int) -> None:
        """Writes what the comparisons of a block found; see `Found`."""
        file = io.BytesIO()
        np.savez(file, pairs=pairs, near=near, compared=np.int64(compared))
        atomic.write(self._block_file(block), file.getvalue())

    def read_block(self, block: int) -> dict[str, np.ndarray]:
        """Reads what the comparisons of a block found; ValueError if they are not complete."""
        found = _read(self._block_file(block))
        if found is None:
            raise ValueError(
                f'{self.folder}: block {block} is not complete; give the same command again'
            )
        return found

    def _block_file(self, block: int) -> epath.Path:
        return self.folder / f'block-{block:05}.npz'

    def _sketch_file(self, number: int, block: int) -> epath.Path:
        return self.folder / f'sketch-{number}-{block:05}.npy'


def _identity(rows: Rows) -> dict[str, Any]:
    """What says which rows of which embeddings they are."""
    about = rows.source.description
    records = hashlib.sha256(rows.records.tobytes()).hexdigest()[:32]
    return {
        'data': about.data,
        'fingerprint': about.fingerprint,
        'features': about.features,
        'dim': about.dim,
        'rows': len(rows),
        'records': records,
    }


def _bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _load(path: epath.Path) -> np.ndarray:
    with foreign_arrays.whole(path):
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


def _read(path: epath.Path) -> dict[str, np.ndarray] | None:
    """Reads the arrays of a block; None if there are none, or they are damaged."""
    if not path.exists():
        return None
    try:
        with foreign_arrays.whole(path), np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {name: arrays[name] for name in ('pairs', 'near', 'compared')}
    except ValueError:
        return None


def find(job: Job, say: Callable[[dict[str, Any]], None]) -> Found | None:
    """Compares what has not been compared yet. Every process calls it.

    Args:
        job: the search.
        say: is called with the plan before the first comparison.

    Returns:
        The near-duplicates, in the primary process; None in the others.

    Raises:
        ValueError: the folder holds another search, or a file is damaged.
    """
    held = lock.Lock(job.folder, what='duplicates', flag='--out')
    with contextlib.closing(held):
        multihost.run_on_primary(held.open)
        multihost.run_on_primary(job.begin)
        basis = job.basis()
        say(plan(job, basis.shape[1] + 1))
        _on_all(lambda: job.write_sketches(basis))
        _on_all(lambda: _compare(job, basis.shape[1] + 1))
        return _collected(job) if multihost.is_primary() else None


def _on_all(work: Callable[[], None]) -> None:
    """Works in every process, and waits for all; an error of one is raised in all."""
    error = None
    try:
        work()
    except (ValueError, OSError) as raised:
        error = raised
    multihost.raise_on_all(error)


def plan(job: Job, width: int) -> dict[str, Any]:
    """Says how much work a search is.

    Args:
        job: the search.
        width: the numbers of a sketch.

    Returns:
        JSON values: rows, blocks, pairs and TFLOP of their bounds, next to those of whole
        embeddings; GiB of the sketches on the disk, and MiB on each device; and, of devices whose
        peak is known, the seconds that it allows: an estimate, not measured. A product of sketches
        is written to the device's memory and read once, which takes longer than to compute it.
    """
    pairs, rows = sum(map(job.pairs, range(job.shards))), sum(map(len, job.sets))
    size, tile = job.options.block_size, _bound.tile(job.options.block_size, jax.local_devices())
    found = {
        'rows': rows,
        'blocks': sum(len(job.blocks(k)) for k in range(len(job.sets))),
        'pairs': pairs,
        'sketch': f'{width} numbers of {job.rows.width}',
        'tflop': 2 * width * pairs / 1e12,
        'tflop_of_whole_rows': 2 * job.rows.width * pairs / 1e12,
        'gib_on_disk': 4 * width * rows / 2**30,
        'mib_on_device': (4 * tile**2 + 4 * width * size * (1 + AHEAD)) / 2**20,
    }
    chip = topologies.chip_of(jax.devices()[0].device_kind)
    if chip:
        peak, bandwidth = chip.peak_tflops * 1e12, chip.bandwidth
        seconds = max(2 * width * pairs / peak, 8 * pairs / bandwidth) / jax.device_count()
        found['seconds_at_peak'] = seconds
    return found


def _compare(job: Job, width: int) -> None:
    """Compares those blocks of this process that are missing."""
    own = range(jax.process_index(), job.shards, jax.process_count())
    missing = job.missing(own)
    comparison = _bound.Comparison(job.options.threshold, width, job.options.block_size)
    total = sum(map(job.pairs, own))
    done = total - sum(map(job.pairs, missing))
    with Progress('compare', total, done=done, unit='pairs') as progress:
        for block in missing:
            job.write_block(block, *_compared(job, comparison, block, progress))


def _compared(
    job: Job, comparison: _bound.Comparison, block: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, int]:
    """Compares a block of the data with all its partners; returns what `write_block` takes."""
    span, threshold = job.blocks(0)[block], job.options.threshold
    count, compared = span.stop - span.start, 0
    sketches = job.sketches(0, block)
    bar = np.float32(threshold - _bound.slack(sketches.shape[1]))
    near = np.zeros(count, NEAR)
    near['row'], near['cosine'] = np.arange(span.start, span.stop), -1
    pairs = np.zeros((0, 2), np.int64)
    for (number, other), columns, flags in _flagged(job, comparison, block, sketches):
        start = job.blocks(number)[other].start
        edges = [pairs]
        exact = _Exact(job.rows, job.sets[number], span.start, start, bar, threshold)
        same = (number, other) == (0, block)
        for rows, others, cosines, passed in exact.pairs(flags, sketches, columns, same=same):
            compared += passed
            if number:
                _keep_nearest(near, rows - span.start, number, others, cosines)
            else:
                edges.append(_groups.stars(np.stack([rows, others], axis=1)))
        pairs = _groups.stars(np.concatenate(edges)) if len(edges) > 1 else pairs
        both = count * len(columns)
        progress.advance(count * (count - 1) // 2 if same else both)
    return pairs, near[near['cosine'] >= 0], compared


def _flagged(
    job: Job, comparison: _bound.Comparison, block: int, sketches: np.ndarray
) -> Iterator[tuple[tuple[int, int], np.ndarray, _bound.Flags]]:
    """Yields each partner of a block, its sketches and its flags, AHEAD of them in advance."""
    placed = comparison.placed(sketches, sharded=True)
    waiting: collections.deque = collections.deque()
    for number, other in job.partners(block):
        columns = job.sketches(number, other)
        flags = comparison.flags(
            placed,
            comparison.placed(columns, sharded=False),
            diagonal=(number, other) == (0, block),
        )
        waiting.append(((number, other), columns, flags))
        if len(waiting) == AHEAD:
            yield waiting.popleft()
    yield from waiting


class _Exact(NamedTuple):
    """Compares the pairs of two blocks that pass the bound.

    Attributes:
        rows: what the first block is of.
        columns: what the second block is of.
        first_row: where the first block starts.
        first_column: where the second block starts.
        bar: what the bound must reach.
        threshold: what the cosine must reach.
    """

    rows: Rows
    columns: Rows
    first_row: int
    first_column: int
    bar: np.float32
    threshold: float

    def pairs(
        self, flags: _bound.Flags, a: np.ndarray, b: np.ndarray, *, same: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
        """Yields rows, columns and cosines of near-duplicates, [n] each, and how many pairs were
        compared for them; a and b are the sketches of the blocks, which may be the `same`.
        """
        by_rows, by_columns = map(np.asarray, flags)
        tile = by_rows.shape[-1]
        for row_tile, column_tile in np.argwhere(by_rows.any(axis=-1)):
            rows = np.flatnonzero(by_rows[row_tile, column_tile]) + row_tile * tile
            columns = np.flatnonzero(by_columns[row_tile, column_tile]) + column_tile * tile
            right = self.columns.take(columns + self.first_column)
            for start in range(0, len(rows), STRIP):
                strip = rows[start : start + STRIP]
                over = a[strip] @ b[columns].T >= self.bar
                if same:
                    over &= columns[None] > strip[:, None]
                i, j, cosines = self._cosines(over, strip, right)
                close = cosines >= self.threshold
                found = strip[i[close]] + self.first_row, columns[j[close]] + self.first_column
                yield *found, cosines[close], len(i)

    def _cosines(
        self, over: np.ndarray, strip: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of the pairs that pass the bound, and their cosines."""
        i, j = np.nonzero(over)
        left = self.rows.take(strip + self.first_row)
        if len(i) > DENSE * over.size:
            return i, j, similarity.matrix(left, right)[i, j]
        return i, j, similarity.of_pairs(left[i], right[j])


def _keep_nearest(
    near: np.ndarray, rows: np.ndarray, number: int, others: np.ndarray, cosines: np.ndarray
) -> None:
    """Notes what is nearer to a row than what was seen before; of equal ones the first stays."""
    order = np.lexsort((others, -cosines, rows))
    rows, others, cosines = rows[order], others[order], cosines[order]
    best = np.flatnonzero(np.diff(rows, prepend=-1))
    best = best[cosines[best] > near['cosine'][rows[best]]]
    place = rows[best]
    near['set'][place], near['other'][place] = number, others[best]
    near['cosine'][place] = cosines[best]


def _collected(job: Job) -> Found:
    """Reads what all blocks found."""
    near, compared = [np.zeros(0, NEAR)], 0

    def pairs() -> Iterator[np.ndarray]:
        nonlocal compared
        for block in range(job.shards):
            found = job.read_block(block)
            near.append(found['near'])
            compared += int(found['compared'])
            yield found['pairs']

    first = _groups.firsts(len(job.rows), pairs())
    return Found(first, np.concatenate(near), compared)
