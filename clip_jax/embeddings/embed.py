"""Embeds a data set into a folder of embeddings (see data/embedding_store.py for its files).

Shards are fixed ranges of records, and each device computes batches of one size, each of images of
one shard. So the files depend neither on the number of devices and processes nor on interruptions.
Process p writes the shards k with k mod num_processes == p; processes share only the folder.
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
from clip_jax.data.bad_record_log import MIN_BAD
from clip_jax.data.embedding_index import hash_of
from clip_jax.data.errors import BadRecord
from clip_jax.data.examples import describe_counts
from clip_jax.data.image import opening
from clip_jax.data.patches import stacked
from clip_jax.data.sharded_job import ShardedJob, check_files, check_settings
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, error_message, in_order
from clip_jax.embeddings import captions
from clip_jax.models import inference, matryoshka
from clip_jax.models.features import check as check_features
from clip_jax.models.fingerprint import fingerprint
from clip_jax.places import resolve
from clip_jax.pretrained import Clip, loaded
from clip_jax.runtime import atomic, environment, lock, multihost
from clip_jax.runtime.progress import Progress

LISTED = 5  # bad records of each kind that the description names
SUMMARY, BAD_RECORDS = 'summary.json', 'bad_records.jsonl'
STARTED = 'holds embeddings that were started'
REMEDY = 'Give the same options, or name another folder'


@dataclasses.dataclass(frozen=True)
class Options:
    """What is embedded and how.

    Attributes:
        features: what is stored of an image, as `Clip.encode_image` names it.
        text_features: what is stored of a caption, as `Clip.encode_text` names it; 'none': its text
            alone; '': 'embedding' beside embeddings of images, else 'none'.
        dim: only the first coordinates of embeddings, L2-normalized again; 0: all.
        dtype: compute dtype: 'auto', 'float32' or 'bfloat16'.
        save_dtype: dtype of the files: 'float32' or 'float16'.
        shard_size: records of the source per shard.
        batch_size: images per device and batch.
        max_bad_fraction: fraction of bad records above which the job stops.
        threads: how many threads read and decode images.
        gray16: see `Preprocess`; '' is that of the model's card.
        max_pixels: images with more are bad records.
    """

    features: str = 'embedding'
    text_features: str = ''
    dim: int = 0
    dtype: str = 'auto'
    save_dtype: str = 'float32'
    shard_size: int = 8192
    batch_size: int = 128
    max_bad_fraction: float = 0.05
    threads: int = 1
    gray16: str = ''
    max_pixels: int = opening.MAX_PIXELS

    def __post_init__(self):
        opening.check_max_pixels(self.max_pixels)
        check_features(self.features, 'image', what='--features')
        if self.text_features not in ('', captions.NONE):
            check_features(self.text_features, 'text', what='--text-features')
        build.check_dtype(self.dtype)
        lookup.check(self.save_dtype, embedding_store.DTYPES, what='--save-dtype')
        if self.dim < 0:
            raise ValueError(f'--dim is {self.dim}; expected at least 1')
        for name in ('shard_size', 'batch_size', 'threads'):
            if getattr(self, name) < 1:
                flag = name.replace('_', '-')
                raise ValueError(f'--{flag} is {getattr(self, name)}; expected at least 1')
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f'--max-bad-fraction is {self.max_bad_fraction}; expected a fraction from 0 to 1'
            )


@dataclasses.dataclass(frozen=True)
class EmbedJob(ShardedJob):
    """One folder to write.

    Attributes:
        model: where the model was loaded from.
        clip: the model.
        source: the data.
        folder: the folder of embeddings.
        options: what is embedded and how.
        settings: all that the files depend on.
    """

    model: str
    clip: Clip
    source: Source
    folder: epath.Path
    options: Options
    settings: Mapping[str, Any]

    @property
    def shard_size(self) -> int:
        return self.options.shard_size

    @property
    def title(self) -> str:
        return f'--out: {self.folder} {STARTED}'

    @property
    def remedy(self) -> str:
        return REMEDY

    @property
    def long_settings(self) -> dict[str, str]:
        return {
            'fingerprint': f'the model is another one, {self.model}',
            'card': 'the card of the model is another one',
            'label_names': 'the names or the order of the classes are others',
        }

    @property
    def description(self) -> epath.Path:
        """The file that describes the folder."""
        return self.folder / embedding_store.DESCRIPTION

    def read_settings(self) -> dict[str, Any] | None:
        if not self.description.exists():
            return None
        return embedding_store.read_description(self.folder).to_json()

    def write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(
            self.description, {'complete': False, 'model': self.model, **self.settings}
        )

    def is_complete(self, shard: int) -> bool:
        return embedding_store.read_note(self.folder, shard) is not None


class Shard:
    """A shard whose records are being read and embedded."""

    def __init__(self, number: int):
        self.number = number
        self.records: list[dict[str, Any]] = []
        self.bad: list[dict[str, Any]] = []
        self.embeddings: list[np.ndarray] = []


class Piece(NamedTuple):
    """Up to a batch of images of one shard, for one device."""

    shard: Shard
    images: list[np.ndarray]
    last: bool


def run(
    model: str, source: Source, out: str, options: Options, *, spec: str, spec_options: Mapping
) -> dict[str, Any]:
    """Embeds the missing shards of a data set. Every process calls it.

    Args:
        model: a run directory or a checkpoint of any known layout.
        source: the data.
        out: the folder to write.
        options: what is embedded and how.
        spec: the SPEC of the source.
        spec_options: the options of the source.

    Returns:
        A summary: counts, seconds, devices and versions.

    Raises:
        ValueError: if the folder holds other embeddings, or anything else, or if too many records
            are bad.
    """
    folder = epath.Path(out).expanduser()
    _check_folder(folder, spec, options)
    # Processes do not wait for each other, so each has its own mesh.
    mesh = sharding.make_mesh(jax.local_devices())
    clip = pretrained.load(model, dtype=options.dtype, mesh=mesh)
    matryoshka.check(options.dim or None, clip.model.embed_dim, features=options.features)
    clip.feature_shape(options.features)  # ValueError before anything is written
    clip = dataclasses.replace(clip, batch_size=options.batch_size * clip.mesh.size)
    clip = clip.with_preprocess(
        gray16=options.gray16 or clip.preprocess.gray16, max_pixels=options.max_pixels
    )
    place = resolve.pinned(model) or model
    if not atomic.is_remote(place):
        place = os.path.abspath(os.path.expanduser(model))
    settings = _settings(clip, source, options, spec, spec_options)
    job = EmbedJob(place, clip, source, folder, options, settings)
    held = lock.Lock(folder, what='embed', flag='--out')
    with contextlib.closing(held):
        multihost.run_on_primary(held.open)
        multihost.run_on_primary(job.begin)
        missing = job.missing(range(jax.process_index(), job.shards, jax.process_count()))
        start = time.monotonic()
        error = None
        try:
            write_shards(job, missing)
        except (ValueError, OSError) as raised:  # the other processes still finish their shards
            error = raised
        multihost.raise_on_all(error)
        seconds = time.monotonic() - start
        multihost.run_on_primary(lambda: _complete(job))
    records = np.array([sum(len(job.range(shard)) for shard in missing)])
    written = int(multihost.all_reduce_sum(records)[0])
    summary = _summary(job, written, seconds)
    if multihost.is_primary() and written:
        atomic.write_json(folder / SUMMARY, summary)
    return summary


def _settings(
    clip: Clip, source: Source, options: Options, spec: str, spec_options: Mapping
) -> dict[str, Any]:
    settings = {
        'fingerprint': fingerprint(clip.variables),
        'data': spec,
        'data_options': dict(spec_options),
        'source_records': len(source),
        'label_names': list(source.label_names),  # labels are indices of it
        'features': options.features,
        'dim': options.dim,
        'save_dtype': options.save_dtype,
        'captions': captions.kind(clip, options.text_features, options.features),
        'compute_dtype': str(np.dtype(clip.model.dtype)),
        'shard_size': options.shard_size,
        'batch_size': options.batch_size,
        'image_options': {k: getattr(clip.preprocess, k) for k in ('gray16', 'max_pixels')},
        'card': clip.card,
        'scale': _scale(clip),
    }
    return json.loads(json.dumps(settings))


def _scale(clip: Clip) -> float:
    """The factor of the model's similarities; 0 of an encoder alone, which compares nothing."""
    params = clip.variables['params']
    return float(inference.scale(params)) if 'logit_scale' in params else 0.0


def _check_folder(folder: epath.Path, spec: str, options: Options) -> None:
    """Raises ValueError, before a model is loaded, if the folder holds anything else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f'--out: {folder} is a file; name a folder')
    file = folder / embedding_store.DESCRIPTION
    if file.exists():
        check_settings(
            embedding_store.read_description(folder).to_json(),
            {
                'data': spec,
                'features': options.features,
                'dim': options.dim,
                'save_dtype': options.save_dtype,
            },
            title=f'--out: {folder} {STARTED}',
            remedy=REMEDY,
        )
        return
    check_files(folder, lock.name('embed'), file.name, what='--out')


def write_shards(job: EmbedJob, shards: Sequence[int]) -> None:
    """Embeds and writes shards; the next one is embedded while one is written."""
    total = sum(len(job.range(shard)) for shard in shards)
    what = 'embed'
    if jax.process_count() > 1:
        what = f'embed, process {jax.process_index()} of {jax.process_count()}'
    written: Future | None = None
    with Progress(what, total) as progress, ThreadPoolExecutor(1) as writer:
        for shard in _embedded(job, _pieces(job, shards, progress), progress):
            files = _to_save(job, shard)
            if written:
                written.result()
            written = writer.submit(
                embedding_store.write_shard,
                job.folder,
                shard.number,
                **files,
                records=shard.records,
                bad=shard.bad,
                span=job.range(shard.number),
            )
        if written:
            written.result()


def _embedded(job: EmbedJob, pieces: Iterator[Piece], progress: Progress) -> Iterator[Shard]:
    """Yields each shard when all its images are embedded; each device gets one piece at a time."""
    waiting: collections.deque[list[Piece]] = collections.deque()
    per_device = job.options.batch_size

    def batches() -> Iterator[Any]:
        for group in loaded.groups(pieces, job.clip.mesh.size):
            waiting.append(group)
            rows = [job.clip.preprocess.blank()] * job.clip.batch_size
            for k, piece in enumerate(group):
                rows[k * per_device : k * per_device + len(piece.images)] = piece.images
            yield stacked(rows)

    for found in job.clip.encode_batches(batches(), features=job.options.features):
        for k, piece in enumerate(waiting.popleft()):
            first = k * per_device
            piece.shard.embeddings.append(found[first : first + len(piece.images)])
            progress.advance(len(piece.images))
            if piece.last:
                yield piece.shard


def _pieces(job: EmbedJob, shards: Sequence[int], progress: Progress) -> Iterator[Piece]:
    """Reads the records of shards, in threads ahead of the devices, and yields them in pieces."""
    size = job.options.shard_size
    ranges = [job.range(shard) for shard in shards]
    read = in_order(
        lambda k: _read(job, ranges[k // size][k % size]),  # all but the last have this size
        0,
        sum(map(len, ranges)),
        threads=job.options.threads,
        ahead=loaded.AHEAD * job.clip.batch_size,
    )
    bad, seen = Counter(), 0
    with contextlib.closing(read):
        for number, records in zip(shards, ranges, strict=True):
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


def _read(job: EmbedJob, i: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns record i without its image, and the preprocessed image; of a bad record, the line for
    the list of bad records, and None.
    """
    try:
        example = dict(job.source[i])
        encoded = example.pop('image', b'')
        image = job.clip.preprocess(encoded)
    except BadRecord as error:
        where = job.source.where(i)
        return {'record': i, 'kind': error.kind, 'where': where, 'message': str(error)}, None
    except ERRORS as error:
        raise ValueError(error_message(job.source, i, error)) from error
    about = {'record': i, 'where': job.source.where(i), 'image_hash': hash_of(encoded)}
    return {**about, **example}, image


def _check_bad(job: EmbedJob, bad: Mapping[str, int], usable: int) -> None:
    count = sum(bad.values())
    if count >= MIN_BAD and count > job.options.max_bad_fraction * (count + usable):
        raise ValueError(
            f'{count:,} of {count + usable:,} records are bad, more than --max-bad-fraction, '
            f'{job.options.max_bad_fraction:.1%}: {describe_counts(bad)}. clip-jax data verify '
            'lists them'
        )


def _to_save(job: EmbedJob, shard: Shard) -> dict[str, np.ndarray]:
    """The embeddings of a shard in the dtype of the files; ValueError if some are not finite."""
    shape, dim = job.clip.feature_shape(job.options.features), job.options.dim or None
    images = np.concatenate([np.zeros((0, *shape), np.float32), *shard.embeddings])
    images = matryoshka.first(images, dim)
    texts = [text for record in shard.records for text in record.get('texts') or ()]
    of_texts = captions.rows(job.clip, texts, job.settings['captions'], job.options.dim)
    return {
        'images': _cast(job, shard, images, 'images'),
        'texts': _cast(job, shard, of_texts, 'captions'),
    }


def _cast(job: EmbedJob, shard: Shard, embeddings: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(embeddings).all():
        records = job.range(shard.number)
        raise ValueError(
            f'{what} of records {records[0]:,} to {records[-1]:,}: their embeddings are not '
            'finite; the model cannot be used'
        )
    with np.errstate(over='ignore'):
        saved = embeddings.astype(job.options.save_dtype)
    if not np.isfinite(saved).all():
        raise ValueError(
            f'{job.options.features}: values up to {np.abs(embeddings).max():,.0f} overflow '
            f'{job.options.save_dtype}; give --save-dtype=float32 and another --out'
        )
    return saved


def _complete(job: EmbedJob) -> None:
    """Lists the bad records and completes the description."""
    counts, bad = [], []
    for number in range(job.shards):
        note = embedding_store.read_note(job.folder, number)
        if note is None:
            raise ValueError(
                f'{job.folder}: shard {number} is not complete; give the same command again'
            )
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
    examples = {k: [x['where'] for x in bad if x['kind'] == k][:LISTED] for k in sorted(kinds)}
    before = embedding_store.read_description(job.folder)
    description = embedding_store.Description(
        complete=True,
        model=before.model,  # the same model may have been moved since
        **job.settings,
        images=images,
        texts=sum(m for _, m in counts),
        shape=[job.options.dim or n for n in job.clip.feature_shape(job.options.features)],
        text_shape=captions.shape(job.clip, job.settings['captions'], job.options.dim),
        bad={k: {'count': kinds[k], 'examples': found} for k, found in examples.items()},
        shards=counts,
    )
    atomic.write_json(job.description, description.to_json())


def _summary(job: EmbedJob, written: int, seconds: float) -> dict[str, Any]:
    description = embedding_store.read_description(job.folder)
    return {
        'images': description.images,
        'texts': description.texts,
        'bad_records': {kind: found['count'] for kind, found in description.bad.items()},
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
