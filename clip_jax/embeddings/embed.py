"""An encoder over a data set, written as a folder of embeddings (data/embeddings.py says what lies
there).

Shards are made of fixed ranges of records, and every device computes batches of one size, each of
images of one shard at their places in it. So what is written depends neither on the number of
devices and processes, nor on interruptions. Shard k belongs to process k mod their number;
processes share the folder and nothing else.
"""

import collections
import contextlib
import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from clip_jax import build, lookup, pretrained, sharding
from clip_jax.data import embedding_store
from clip_jax.data.bad_record_log import FEW
from clip_jax.data.errors import BadRecord
from clip_jax.data.examples import describe_counts
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, in_order, why
from clip_jax.pretrained import Clip
from clip_jax.runtime import atomic, environment, lock, multihost
from clip_jax.runtime.messages import first_few
from clip_jax.runtime.progress import Progress

DTYPES = ('float32', 'float16')
EXAMPLES = 5  # places that the description names for each kind of bad records
# How a difference is told that is too long to be shown.
LONG = {'card': 'another card', 'label_names': 'other names of classes, or in another order'}
SUMMARY, BAD_RECORDS = 'summary.json', 'bad_records.jsonl'


@dataclasses.dataclass(frozen=True)
class Options:
    """What a folder gets and how."""

    features: str = 'embedding'
    dtype: str = 'auto'  # computed in: see build.check_dtype
    save_dtype: str = 'float32'  # of the files
    shard_size: int = 8192  # records of the source
    batch_size: int = 128  # images that a device computes at a time
    max_bad_fraction: float = (
        0.05  # share of records that cannot be used, above which the program stops
    )
    threads: int = 1  # they read and decode

    def __post_init__(self):
        lookup.check(self.features, pretrained.FEATURES, what='--features')
        build.check_dtype(self.dtype)
        lookup.check(self.save_dtype, DTYPES, what='--save-dtype')
        for name in ('shard_size', 'batch_size', 'threads'):
            if getattr(self, name) < 1:
                flag = name.replace('_', '-')
                raise ValueError(f'--{flag} is {getattr(self, name)}; expected at least 1')
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f'--max-bad-fraction is {self.max_bad_fraction}; expected a share from 0 to 1'
            )


@dataclasses.dataclass(frozen=True)
class Job:
    """One folder to fill; `settings` are all that its files depend on."""

    clip: Clip
    source: Source
    folder: epath.Path
    options: Options
    settings: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.options.shard_size)

    def range(self, shard: int) -> range:
        """The records of the source that shard `shard` is made of."""
        first = shard * self.options.shard_size
        return range(first, min(first + self.options.shard_size, len(self.source)))


class Shard:
    """What is known of a shard whose records are being read and embedded."""

    def __init__(self, number: int):
        self.number = number
        self.records: list[dict[str, Any]] = []
        self.bad: list[dict[str, Any]] = []
        self.rows: list[np.ndarray] = []


class Piece(NamedTuple):
    """Up to a batch of images of one shard."""

    shard: Shard
    images: list[np.ndarray]
    last: bool


def run(
    model: str, source: Source, out: str, options: Options, *, spec: str, spec_options: Mapping
) -> dict[str, Any]:
    """Embeds what is missing of a data set in the folder `out`, and returns a summary.

    Every process of a run calls it. ValueError if the folder has other embeddings, or anything
    else, or if too much of the data cannot be used.
    """
    folder = epath.Path(out).expanduser()
    _check_folder(folder, spec, options)
    # Processes do not wait for each other, so that each has a mesh of its own.
    mesh = sharding.make_mesh(jax.local_devices())
    clip = pretrained.load(model, dtype=options.dtype, mesh=mesh)
    clip = dataclasses.replace(clip, batch_size=options.batch_size * clip.mesh.size)
    settings = _settings(model, clip, source, options, spec, spec_options)
    job = Job(clip, source, folder, options, settings)
    held = lock.Lock(folder, what='embed', flag='--out')
    with contextlib.closing(held):
        multihost.run_on_primary(held.open)
        multihost.run_on_primary(lambda: _begin(job))
        mine = range(jax.process_index(), job.shards, jax.process_count())
        missing = [shard for shard in mine if not embedding_store.read_note(folder, shard)]
        begun = time.monotonic()
        error = None
        try:
            write_shards(job, missing)
        except (ValueError, OSError) as raised:  # the others write theirs to the end all the same
            error = raised
        multihost.raise_on_all(error)
        seconds = time.monotonic() - begun
        multihost.run_on_primary(lambda: _complete(job))
    written = int(
        multihost.all_reduce_sum(np.array([sum(len(job.range(shard)) for shard in missing)]))[0]
    )
    summary = _summary(job, written, seconds)
    if multihost.is_primary() and written:
        atomic.write_json(folder / SUMMARY, summary)
    return summary


def _settings(
    model: str, clip: Clip, source: Source, options: Options, spec: str, spec_options: Mapping
) -> dict[str, Any]:
    texts = options.features == 'embedding' and clip.tokenizer is not None
    local = os.path.abspath(os.path.expanduser(model))
    settings = {
        'model': model if atomic.is_remote(model) else local,
        'fingerprint': pretrained.fingerprint(clip.variables),
        'data': spec,
        'data_options': dict(spec_options),
        'source_records': len(source),
        'label_names': list(source.label_names),  # labels are places in them
        'features': options.features,
        'dtype': options.save_dtype,
        'captions': 'embedded' if texts else 'stored',
        'arithmetic': str(np.dtype(clip.model.dtype)),
        'shard_size': options.shard_size,
        'batch_size': options.batch_size,
        'card': clip.card,
    }
    return json.loads(json.dumps(settings))


def _check_folder(folder: epath.Path, spec: str, options: Options) -> None:
    """ValueError, before a model is loaded, for a folder that is certainly not that of this run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f'--out: {folder} is a file; name a folder')
    file = folder / embedding_store.DESCRIPTION
    if file.exists():
        before = embedding_store.read_description(folder)
        now = {'data': spec, 'features': options.features, 'dtype': options.save_dtype}
        _check_same(folder, before, now)
        return
    if others := atomic.unexpected_files(folder, lock.name('embed'), file.name):
        raise ValueError(
            f'--out: {folder} holds other things ({first_few(others)}); name a new folder'
        )


def _check_same(folder: epath.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name in now if name != 'model' and now[name] != before.get(name)]
    if not names:
        return
    if 'fingerprint' in names:
        changed = [f'the model was {before["model"]}, is another, {now["model"]}']
    else:
        changed = [
            LONG.get(name, f'{name} was {before.get(name)}, is {now[name]}') for name in names
        ]
    raise ValueError(
        f'--out: {folder} holds embeddings that were begun otherwise: {"; ".join(changed)}. Give '
        'the same options, or name another folder'
    )


def _begin(job: Job) -> None:
    """Notes down what the files depend on; ValueError if they were begun otherwise."""
    job.folder.mkdir(parents=True, exist_ok=True)
    file = job.folder / embedding_store.DESCRIPTION
    if file.exists():
        _check_same(job.folder, embedding_store.read_description(job.folder), job.settings)
    else:
        atomic.write_json(file, {'complete': False, **job.settings})


def write_shards(job: Job, shards: Sequence[int]) -> None:
    """Embeds and writes these shards; the next is already embedded while one is written."""
    total = sum(len(job.range(shard)) for shard in shards)
    what = 'embed'
    if jax.process_count() > 1:
        what = f'embed, process {jax.process_index()} of {jax.process_count()}'
    written: Future | None = None
    with Progress(what, total) as progress, ThreadPoolExecutor(1) as writer:
        for shard in _embedded(job, _pieces(job, shards, progress), progress):
            files = _rows(job, shard)
            if written:
                written.result()
            written = writer.submit(
                embedding_store.write_shard,
                job.folder,
                shard.number,
                **files,
                records=shard.records,
                bad=shard.bad,
            )
        if written:
            written.result()


def _embedded(job: Job, pieces: Iterator[Piece], progress: Progress) -> Iterator[Shard]:
    """Yields every shard when all its images have rows; each device has a piece at a time."""
    waiting: collections.deque[list[Piece]] = collections.deque()
    size, rows = job.clip.preprocess.size, job.options.batch_size

    def batches() -> Iterator[np.ndarray]:
        for some in pretrained.groups(pieces, job.clip.mesh.size):
            waiting.append(some)
            batch = np.zeros((job.clip.batch_size, size, size, 3), np.uint8)
            for k, piece in enumerate(some):
                for place, image in enumerate(piece.images, start=k * rows):
                    batch[place] = image
            yield batch

    for found in job.clip.encode_batches(batches(), features=job.options.features):
        for k, piece in enumerate(waiting.popleft()):
            piece.shard.rows.append(found[k * rows : k * rows + len(piece.images)])
            progress.advance(len(piece.images))
            if piece.last:
                yield piece.shard


def _pieces(job: Job, shards: Sequence[int], progress: Progress) -> Iterator[Piece]:
    """Reads the records of shards, in threads ahead of the devices, and cuts them into pieces."""
    size = job.options.shard_size
    places = [job.range(shard) for shard in shards]
    read = in_order(
        lambda k: _read(job, places[k // size][k % size]),  # all but the last have this size
        0,
        sum(map(len, places)),
        threads=job.options.threads,
        ahead=pretrained.AHEAD * job.clip.batch_size,
    )
    bad, seen = Counter(), 0
    with contextlib.closing(read):
        for number, records in zip(shards, places, strict=True):
            shard, images = Shard(number), []
            for _, (record, image) in zip(records, read, strict=False):
                if image is None:
                    progress.advance()
                    shard.bad.append(record)
                    bad[record['kind']] += 1
                    _check_bad(job, bad, seen)
                    continue
                if len(images) == job.options.batch_size:
                    yield Piece(shard, images, False)
                    images = []
                shard.records.append(record)
                images.append(image)
                seen += 1
            yield Piece(shard, images, True)


def _read(job: Job, i: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns record i without its image, and that as the model wants it; of a record that cannot
    be used, what is wrong with it, and None.
    """
    try:
        example = dict(job.source[i])
        image = job.clip.preprocess(example.pop('image', b''))
    except BadRecord as error:
        where = job.source.where(i)
        return {'record': i, 'kind': error.kind, 'where': where, 'message': str(error)}, None
    except ERRORS as error:
        raise ValueError(why(job.source, i, error)) from error
    return {'record': i, 'where': job.source.where(i), **example}, image


def _check_bad(job: Job, bad: Mapping[str, int], usable: int) -> None:
    wrong = sum(bad.values())
    if wrong >= FEW and wrong > job.options.max_bad_fraction * (wrong + usable):
        raise ValueError(
            f'{wrong:,} of {wrong + usable:,} records read cannot be used, more than '
            f'--max-bad-fraction, {job.options.max_bad_fraction:.1%}: {describe_counts(bad)}. '
            'clip-jax data verify lists them'
        )


def _rows(job: Job, shard: Shard) -> dict[str, np.ndarray]:
    """The rows of a shard as they are stored; ValueError if some are no numbers."""
    width = job.clip.width(job.options.features)
    images = np.concatenate([np.zeros((0, width), np.float32), *shard.rows])
    texts = [t for record in shard.records for t in record.get('texts') or ()]
    return {
        'images': _stored(job, shard, images, 'images'),
        'texts': _stored(job, shard, _text_rows(job, texts), 'captions'),
    }


def _text_rows(job: Job, texts: Sequence[str]) -> np.ndarray:
    """The rows of captions, of which equal ones are embedded once."""
    if job.settings['captions'] != 'embedded' or not texts:
        return np.zeros((0, job.clip.model.embed_dim), np.float32)
    place = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    tokens = job.clip.tokenizer(list(place))
    # To whole batches on all devices: their size must not depend on how many there are.
    padding = -len(tokens) % job.clip.batch_size
    rows = job.clip.encode_text(np.pad(tokens, [(0, padding), (0, 0)]))
    return rows[[place[text] for text in texts]]


def _stored(job: Job, shard: Shard, rows: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise ValueError(
            f'{what} of records {job.range(shard.number)[0]:,} to {job.range(shard.number)[-1]:,}: '
            'their embeddings are not finite; the model cannot be used'
        )
    with np.errstate(over='ignore'):
        stored = rows.astype(job.options.save_dtype)
    if not np.isfinite(stored).all():
        raise ValueError(
            f'{job.options.features} goes up to {np.abs(rows).max():,.0f}, more than '
            f'{job.options.save_dtype} holds; give --save-dtype=float32, and another --out'
        )
    return stored


def _complete(job: Job) -> None:
    """Lists what could not be used, and describes the folder."""
    counts, bad = [], []
    for number in range(job.shards):
        note = embedding_store.read_note(job.folder, number)
        if note is None:
            raise ValueError(f'{job.folder}: shard {number} is not there; give the command again')
        counts.append([note['images'], note['texts']])
        bad += note['bad']
    images = sum(n for n, _ in counts)
    kinds = Counter(one['kind'] for one in bad)
    if not images:
        raise ValueError(f'{job.source}: none of its records can be used: {describe_counts(kinds)}')
    _check_bad(job, kinds, images)
    if bad:
        lines = ''.join(json.dumps(one, ensure_ascii=False) + '\n' for one in bad)
        atomic.write(job.folder / BAD_RECORDS, lines)
    examples = {k: [x['where'] for x in bad if x['kind'] == k][:EXAMPLES] for k in sorted(kinds)}
    before = embedding_store.read_description(job.folder)
    description = {
        'complete': True,
        **job.settings,
        'model': before['model'],  # the same one may lie at another place
        'images': images,
        'texts': sum(m for _, m in counts),
        'width': job.clip.width(job.options.features),
        'bad': {k: {'count': kinds[k], 'examples': found} for k, found in examples.items()},
        'shards': counts,
    }
    atomic.write_json(job.folder / embedding_store.DESCRIPTION, description)


def _summary(job: Job, written: int, seconds: float) -> dict[str, Any]:
    description = embedding_store.read_description(job.folder)
    return {
        'images': description['images'],
        'texts': description['texts'],
        'bad_records': {kind: found['count'] for kind, found in description['bad'].items()},
        'shards': job.shards,
        'records_now': written,
        'seconds': seconds,
        'records_a_second': written / seconds if written else 0.0,
        'processes': jax.process_count(),
        'devices': jax.device_count(),
        'device': jax.devices()[0].device_kind,
        'threads': job.options.threads,
        'versions': environment.versions(),
    }
