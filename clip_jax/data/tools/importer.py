"""Writes any source as a TFDS data set of ArrayRecord files; an interrupted import resumes.

Shard k holds the usable ones of a fixed range of the source's records. It is written to a temporary
file, synced and renamed; then a note stores how many records and bytes it has. A shard whose note
agrees with its file is not written again.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image

from clip_jax import lookup
from clip_jax.data import sharded_job
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import opening, upright
from clip_jax.data.sharded_job import ShardedJob
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, check, error_message, in_order, labels_of
from clip_jax.runtime import atomic, foreign_json, lock
from clip_jax.runtime.messages import first_few, one_line
from clip_jax.runtime.progress import Progress

VERSION = '1.0.0'
DESCRIPTION = 'Images with captions, written by clip-jax data import.'
OPTIONAL = ('texts', 'label', 'labels')  # what a record may have besides its image


@dataclasses.dataclass(frozen=True)
class ImportJob(ShardedJob):
    """One split to write. It can be pickled and sent to the workers of Apache Beam.

    Attributes:
        open: opens the source.
        spec: the SPEC of the source.
        options: the options of the source.
        directory: TFDS's data_dir, a local or mounted folder.
        name: the name of the data set.
        split: the name of the split.
        size: larger images are downsampled to this shorter side, in pixels; 0 copies all bytes.
        quality: JPEG quality of downsampled images.
        shard_size: records of the source per shard.
        decode: whether images that are not downsampled are decoded too, to find corrupt ones.
        max_pixels: images with more are left out.
    """

    open: Callable[[], Source]
    spec: str
    options: Mapping[str, Any]
    directory: str
    name: str
    split: str = 'train'
    size: int = 0
    quality: int = 95
    shard_size: int = 10_000
    decode: bool = False
    max_pixels: int = opening.MAX_PIXELS

    def __post_init__(self):
        opening.check_max_pixels(self.max_pixels)
        if atomic.is_remote(self.directory):
            raise ValueError(
                f'{self.directory}: ArrayRecord files can be written only to local disks and '
                'mounted folders; import into one of these, then copy the folder'
            )
        for what, word in ('name', self.name), ('split', self.split):
            if not re.fullmatch('[a-z][a-z0-9_]*', word) or word == 'all':
                raise ValueError(
                    f'{what} is {word!r}; expected lowercase letters, digits and underscores, '
                    'such as pets_2'
                )
        if self.name in lookup.names('data.datasets'):
            raise ValueError(
                f'name is {self.name}, which is a built-in data set of clip_jax; choose another'
            )
        for what, value, low, high in (
            ('size', self.size, 0, 65_500),
            ('quality', self.quality, 1, 100),
            ('shard_size', self.shard_size, 1, sys.maxsize),
        ):
            if not low <= value <= high:
                raise ValueError(f'{what} is {value}; expected {low} to {high}')

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != 'source'}

    @functools.cached_property
    def source(self) -> Source:
        """The source, opened once per process."""
        return self.open()

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the data set."""
        return pathlib.Path(self.directory).expanduser() / self.name / VERSION

    @property
    def work(self) -> pathlib.Path:
        """The folder of this split's notes and temporary files."""
        return self.folder / f'import-{self.split}'

    @property
    def settings(self) -> dict[str, Any]:
        """What the files depend on."""
        keys = ('spec', 'options', 'size', 'quality', 'shard_size', 'decode', 'max_pixels')
        return {key: getattr(self, key) for key in keys} | {'records': len(self.source)}

    @property
    def title(self) -> str:
        return f'{self.folder}: the import of its split {self.split} was started'

    @property
    def remedy(self) -> str:
        return 'Give the same options, or choose another name or split'

    def read_settings(self) -> dict[str, Any] | None:
        file = self.work / 'settings.json'
        return foreign_json.read(file) if file.exists() else None

    def write_settings(self) -> None:
        atomic.write(self.work / 'settings.json', json.dumps(self.settings, indent=1))

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard, named as TFDS expects."""
        name = f'{self.name}-{self.split}.array_record-{shard:05}-of-{self.shards:05}'
        return self.folder / name

    def note(self, shard: int) -> dict[str, Any] | None:
        """The note of a complete shard; None if there is none."""
        return sharded_job.read_note(self._note_path(shard), 'records', 'bytes', 'skipped')

    def _note_path(self, shard: int) -> pathlib.Path:
        return self.work / f'{shard:05}.json'

    def is_complete(self, shard: int) -> bool:
        note, path = self.note(shard), self.path(shard)
        if note is None or not path.exists():
            return False
        return path.stat().st_size == note['bytes'] and _is_intact(path, note['records'])

    def write_shard(
        self, shard: int, *, threads: int = 1, advance: Callable[[], None] = lambda: None
    ) -> None:
        """Writes one shard and its note; calls `advance` after each record."""
        cv2.setNumThreads(0)  # each thread has an image of its own
        # Its modules are imported before there are threads: while TFDS imports lazily, imports of
        # other threads fail, those of Pillow's plugins among them.
        _serializer()
        partial = self.work / f'{shard:05}.partial'
        counts, skipped, records = Counter(), [], self.range(shard)
        results = in_order(self._convert, records.start, records.stop, threads=threads)
        with contextlib.closing(results), _writing(partial) as write:
            for result in results:
                advance()
                if isinstance(result, dict):
                    skipped.append(result)
                    continue
                data, fields = result
                write(data)
                counts += Counter(['records', *fields])
        if not _is_intact(partial, counts['records']):
            raise OSError(f'{partial}: the file is incomplete; is the disk full?')
        atomic.commit(partial, self.path(shard))
        note = {key: counts[key] for key in ('records', *OPTIONAL)}
        note |= {'bytes': self.path(shard).stat().st_size, 'skipped': skipped}
        atomic.write(self._note_path(shard), json.dumps(note))

    def _convert(self, i: int) -> tuple[bytes, list[str]] | dict[str, Any]:
        """Returns record i serialized and which OPTIONAL fields it has; of a bad record, the line
        for the list of those left out.
        """
        try:
            example = self.source[i]
            check(example, decode=self.decode, max_pixels=self.max_pixels)
            image = self._encoded(example['image'])
        except BadRecord as error:
            where = self.source.where(i)
            return {'record': i, 'kind': error.kind, 'where': where, 'message': str(error)}
        except ERRORS as error:
            raise ValueError(error_message(self.source, i, error)) from error
        texts, label = example.get('texts', []), int(example.get('label', -1))
        labels = labels_of(example)
        has = {'texts': texts, 'label': label >= 0, 'labels': labels and 'labels' in example}
        record = {'image': image, 'captions': texts, 'label': label, 'labels': labels}
        return _serialized(record), [field for field in OPTIONAL if has[field]]

    def _encoded(self, image: bytes | np.ndarray) -> bytes:
        """The bytes to store: the given ones or, if the shorter side exceeds `size` (not 0), a JPEG
        of that size.
        """
        if self.size and min(upright.measure(image, max_pixels=self.max_pixels)) > self.size:
            pixels = upright.decode(image, max_pixels=self.max_pixels)
            return _resized(pixels, self.size, self.quality)
        if isinstance(image, np.ndarray):
            file = io.BytesIO()
            pixels = upright.decode(image, max_pixels=self.max_pixels)
            Image.fromarray(pixels).save(file, 'PNG')
            return file.getvalue()
        return image


def run(job: ImportJob, *, threads: int, beam: tuple[str, Mapping[str, Any]] | None = None) -> dict:
    """Writes the missing shards of a split and returns a summary of the split.

    Args:
        job: the split to write.
        threads: how many threads read and convert records.
        beam: the name and the options of an Apache Beam runner, whose workers write the shards.

    Raises:
        ValueError: if the folder holds another import of this split, or anything else, or if no
            record can be used.
    """
    start = time.monotonic()
    if threads < 1:
        raise ValueError(f'threads is {threads}; expected at least 1')
    # All checks come before anything is written.
    pipeline = _pipeline(*beam) if beam else None
    total = len(job.source)
    _check_data_set(job)
    held = lock.Lock(epath.Path(job.work), what='import', flag='split')
    with contextlib.closing(held):
        held.open()
        job.begin()
        missing = job.missing()
        if pipeline:
            _run_on_beam(job, missing, pipeline)
        else:
            left = sum(len(job.range(shard)) for shard in missing)
            with Progress('import', total, done=total - left) as progress:
                for shard in missing:
                    job.write_shard(shard, threads=threads, advance=progress.advance)
        summary = _complete(job)
    del summary['label_names']
    summary['shards'] = len(summary['shards'])
    return {**summary, 'shards_written': len(missing), 'seconds': time.monotonic() - start}


def _check_data_set(job: ImportJob) -> None:
    """Raises ValueError if the data set was not imported, or has other classes."""
    others = _splits(job.folder)
    if (job.folder / 'dataset_info.json').exists() and not others:
        raise ValueError(
            f'{job.folder}: holds a data set that clip-jax data import did not write; choose '
            'another name'
        )
    for split, other in others.items():
        names = other['label_names']
        own = job.source.label_names
        if split != job.split and names and own not in ([], names):
            raise ValueError(
                f'{job.folder}: the classes of its split {split} are {len(names)} '
                f'({first_few(names)}), those of {job.spec} are {len(own)} ({first_few(own)}); '
                'choose another name'
            )


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that adds a record to an ArrayRecord file; OSError if the disk is full."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # Random access needs groups of one record.
    writer = ArrayRecordWriter(str(path), 'group_size:1')

    def explained(call: Callable[..., None], *args: bytes) -> None:
        try:
            call(*args)
        except RuntimeError as error:
            path.unlink(missing_ok=True)
            raise OSError(
                f'{path}: cannot be written ({one_line(error)}). With the cause removed, the same '
                'command continues'
            ) from error

    try:
        yield functools.partial(explained, writer.write)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first error says more
            writer.close()
        raise
    explained(writer.close)


def _is_intact(path: pathlib.Path, records: int) -> bool:
    """Whether a file is a complete ArrayRecord, with its footer, of this many records."""
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        return reader.ok() and reader.num_records() == records


def _complete(job: ImportJob) -> dict[str, Any]:
    """Lists the records left out and adds the split to the data set; returns its summary."""
    kinds, counts, shards = Counter(), Counter(), []
    with atomic.writing(job.folder / f'skipped-{job.split}.jsonl') as file:
        for shard in range(job.shards):
            note = job.note(shard)
            if note is None:
                raise ValueError(
                    f'{job.folder}: shard {shard} is not complete; give the same command again'
                )
            shards.append([note['records'], note['bytes']])
            counts += Counter({field: note[field] for field in OPTIONAL})
            kinds.update(line['kind'] for line in note['skipped'])
            file.writelines(json.dumps(x, ensure_ascii=False) + '\n' for x in note['skipped'])
    if not any(records for records, _ in shards):
        raise ValueError(
            f'{job.spec}: none of its {len(job.source)} records can be used: {dict(kinds)}; '
            f'{job.folder}/skipped-{job.split}.jsonl lists them'
        )
    summary = {
        'records': sum(records for records, _ in shards),
        'bytes': sum(size for _, size in shards),
        'with_captions': counts['texts'],
        'with_label': counts['label'],
        'with_labels': counts['labels'],
        'skipped': dict(kinds),
        'skipped_by_source': {kind: x._asdict() for kind, x in job.source.skipped.items()},
        'label_names': job.source.label_names,
        'shards': shards,
    }
    atomic.write(job.work / 'summary.json', json.dumps(summary))
    _write_info(job)
    return summary


def _splits(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The summaries of all complete splits of a data set, by name."""
    files = sorted(folder.glob('import-*/summary.json'))
    return {f.parent.name.removeprefix('import-'): foreign_json.read(f) for f in files}


def _write_info(job: ImportJob) -> None:
    """Writes the metadata that TFDS needs, for all complete splits."""
    import tensorflow_datasets as tfds

    splits = _splits(job.folder)
    names = next(filter(None, (split['label_names'] for split in splits.values())), [])
    # If some images have several labels, all have a list.
    lists = any(split['with_labels'] for split in splits.values())
    features = _features(
        captions=any(split['with_captions'] for split in splits.values()),
        label=not lists and any(split['with_label'] for split in splits.values()),
        labels=lists,
        label_names=names,
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=job.name,
        version=tfds.core.Version(VERSION),
        data_dir=str(job.folder),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description=DESCRIPTION, features=features, disable_shuffling=True
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(
        tfds.core.splits.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[records for records, _ in split['shards']],
                    num_bytes=split['bytes'],
                )
                for name, split in splits.items()
            ]
        )
    )
    # Atomic: a run that trains on another split reads either the old files or the new ones.
    new = job.work / 'info.partial'
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    info.write_to_directory(new)
    for file in sorted(new.iterdir(), key=lambda file: file.name == 'dataset_info.json'):
        atomic.commit(file, job.folder / file.name)
    new.rmdir()


def _features(*, captions: bool, label: bool, labels: bool, label_names: list[str]) -> Any:
    """The features of a data set as TFDS objects."""
    import tensorflow_datasets as tfds

    of_class = tfds.features.Scalar(np.int64)
    if label_names:
        of_class = tfds.features.ClassLabel(names=label_names)
    features = {
        'image': tfds.features.Image(),
        'captions': tfds.features.Sequence(tfds.features.Text()) if captions else None,
        'label': of_class if label else None,
        'labels': tfds.features.Sequence(of_class) if labels else None,
    }
    return tfds.features.FeaturesDict({k: v for k, v in features.items() if v is not None})


@functools.cache
def _serializer() -> Any:
    """Turns records into tf.Examples."""
    from tensorflow_datasets.core import example_serializer

    features = _features(captions=True, label=True, labels=True, label_names=[])
    return example_serializer.ExampleSerializer(features.get_serialized_info())


def _serialized(record: Mapping[str, Any]) -> bytes:
    """Serializes a record as TFDS does.

    Every record has all fields: which ones the data set has is known after the last record, and
    readers skip the others.
    """
    # By default the order of the fields differs between processes.
    return _serializer().get_tf_example(record).SerializeToString(deterministic=True)


def _resized(pixels: np.ndarray, size: int, quality: int) -> bytes:
    """Downsamples pixels [H, W, 3], antialiased, to a shorter side of `size`; returns a JPEG."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    image = Image.fromarray(pixels)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality)
    return file.getvalue()


def _pipeline(runner: str, options: Mapping[str, Any]) -> Any:
    """Makes an empty Beam pipeline; ValueError without Beam, or for an unknown runner or option."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError(
            "--beam-runner needs Apache Beam, which is not installed: pip install 'clipax[beam]'"
        ) from None
    return beam.Pipeline(runner, PipelineOptions.from_dictionary(dict(options)))


def _run_on_beam(job: ImportJob, shards: list[int], pipeline: Any) -> None:
    """Writes shards in a pipeline, one element per shard; the workers must see the same folders."""
    import apache_beam as beam

    try:
        with pipeline:
            pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(job.write_shard)
    except Exception as error:  # of any type: runners wrap the errors of their workers
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'Apache Beam: {reason[-1]}') from error
