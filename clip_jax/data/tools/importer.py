"""Any source written as a TFDS data set of ArrayRecord files, in shards that survive interruption.

Shard k holds what is usable of a fixed range of the source's records. It is written beside its
place, synced, renamed, and then a note says how many records and bytes it has; whoever comes later
trusts a shard with a note that fits. So the files of an import do not depend on how often it was
interrupted, nor on the number of threads, nor on where its shards were written.
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
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, check, in_order, labels_of, why
from clip_jax.runtime import atomic, lock
from clip_jax.runtime.messages import first_few
from clip_jax.runtime.progress import Progress

VERSION = '1.0.0'
DESCRIPTION = 'Images with captions, written by clip-jax data import.'
KEPT = ('texts', 'label', 'labels')  # what a record may have beside its image


@dataclasses.dataclass(frozen=True)
class ImportJob:
    """One split to write, and where; it can be pickled and sent to where shards are written."""

    open: Callable[[], Source]
    spec: str
    options: Mapping[str, Any]  # of the source
    directory: str
    name: str
    split: str = 'train'
    size: int = 0  # pixels of the shorter side, larger images are made smaller; 0: as they are
    quality: int = 95  # of the JPEGs that are written then
    shard_size: int = 10_000  # records of the source
    decode: bool = False  # whether images that are not resized are decoded, to find damaged ones

    def __post_init__(self):
        if atomic.is_remote(self.directory):
            raise ValueError(
                f'{self.directory}: ArrayRecord files are written to local disks and mounted '
                'folders only; import into one of these, then copy the folder'
            )
        for what, word in ('name', self.name), ('split', self.split):
            if not re.fullmatch('[a-z][a-z0-9_]*', word) or word == 'all':
                raise ValueError(
                    f'{what} is {word!r}; expected small letters, digits and underscores, as pets_2'
                )
        if self.name in lookup.names('data.datasets'):
            raise ValueError(f'name is {self.name}, which is a set of clip_jax; choose another')
        for what, value, least, most in (
            ('size', self.size, 0, 65_500),
            ('quality', self.quality, 1, 100),
            ('shard_size', self.shard_size, 1, sys.maxsize),
        ):
            if not least <= value <= most:
                raise ValueError(f'{what} is {value}; expected {least} to {most}')

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != 'source'}

    @functools.cached_property
    def source(self) -> Source:
        """What is imported, opened once in each process."""
        return self.open()

    @property
    def folder(self) -> pathlib.Path:
        """Where the set lies."""
        return pathlib.Path(self.directory).expanduser() / self.name / VERSION

    @property
    def work(self) -> pathlib.Path:
        """Where notes on this split lie, and half-written files."""
        return self.folder / f'import-{self.split}'

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.shard_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What the files depend on."""
        keys = ('spec', 'options', 'size', 'quality', 'shard_size', 'decode')
        return {key: getattr(self, key) for key in keys} | {'records': len(self.source)}

    def range(self, shard: int) -> range:
        """The records of the source that shard `shard` is made of."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, len(self.source)))

    def path(self, shard: int) -> pathlib.Path:
        """Where TFDS looks for a shard."""
        name = f'{self.name}-{self.split}.array_record-{shard:05}-of-{self.shards:05}'
        return self.folder / name

    def note(self, shard: int) -> pathlib.Path:
        """Where it is said that a shard is complete."""
        return self.work / f'{shard:05}.json'

    def write_shard(
        self, shard: int, *, threads: int = 1, advance: Callable[[], None] = lambda: None
    ) -> None:
        """Writes one shard and its note; `advance` is called after each record."""
        from array_record.python.array_record_module import ArrayRecordWriter

        cv2.setNumThreads(0)  # a thread here has one image at a time
        partial = self.work / f'{shard:05}.partial'
        counts, left_out, places = Counter(), [], self.range(shard)
        # Random access needs groups of one record.
        writer = ArrayRecordWriter(str(partial), 'group_size:1')
        made = in_order(self._made, places.start, places.stop, threads=threads)
        with contextlib.closing(made), contextlib.closing(writer):
            for found in made:
                advance()
                if isinstance(found, dict):
                    left_out.append(found)
                    continue
                data, kept = found
                writer.write(data)
                counts += Counter(['records', *kept])
        if not _holds(partial, counts['records']):
            raise OSError(f'{partial}: could not be written to its end; is the disk full?')
        atomic.commit(partial, self.path(shard))
        note = {key: counts[key] for key in ('records', *KEPT)}
        note |= {'bytes': self.path(shard).stat().st_size, 'left_out': left_out}
        atomic.write(self.note(shard), json.dumps(note))

    def _made(self, i: int) -> tuple[bytes, list[str]] | dict[str, Any]:
        """Returns record i serialized and which of KEPT it has, or, for the list of what is left
        out, why it cannot be used.
        """
        try:
            example = self.source[i]
            check(example, decode=self.decode)
            image = _encoded(example['image'], self.size, self.quality)
        except BadRecord as error:
            where = self.source.where(i)
            return {'record': i, 'kind': error.kind, 'where': where, 'message': str(error)}
        except ERRORS as error:
            raise ValueError(why(self.source, i, error)) from error
        texts, label = example.get('texts', []), int(example.get('label', -1))
        labels = labels_of(example)
        has = {'texts': texts, 'label': label >= 0, 'labels': labels and 'labels' in example}
        record = {'image': image, 'captions': texts, 'label': label, 'labels': labels}
        return _serialized(record), [what for what in KEPT if has[what]]


def run(job: ImportJob, *, threads: int, beam: tuple[str, Mapping[str, Any]] | None = None) -> dict:
    """Writes what is missing of a split, and returns a summary of all of it.

    `beam` is a runner's name and its options: then its workers write the shards. ValueError if the
    folder has another import of this split, or anything else.
    """
    begun = time.monotonic()
    if threads < 1:
        raise ValueError(f'workers is {threads}; expected at least 1')
    # Whatever can be wrong is found before anything is written.
    pipeline = _pipeline(*beam) if beam else None
    total = len(job.source)
    _check_set(job)
    held = lock.Lock(epath.Path(job.work), what='import', flag='split')
    with contextlib.closing(held):
        held.open()
        _check_settings(job)
        missing = [shard for shard in range(job.shards) if not _finished(job, shard)]
        if pipeline:
            _run_on_beam(job, missing, pipeline)
        else:
            to_do = sum(len(job.range(shard)) for shard in missing)
            with Progress('import', total, done=total - to_do) as progress:
                for shard in missing:
                    job.write_shard(shard, threads=threads, advance=progress.advance)
        summary = _complete(job)
    del summary['label_names']
    summary['shards'] = len(summary['shards'])
    return {**summary, 'shards_written': len(missing), 'seconds': time.monotonic() - begun}


def _check_set(job: ImportJob) -> None:
    """ValueError for a set that was not imported, or whose classes are others."""
    others = _splits(job.folder)
    if (job.folder / 'dataset_info.json').exists() and not others:
        raise ValueError(
            f'{job.folder}: holds a data set that was not written by import; choose another name'
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


def _check_settings(job: ImportJob) -> None:
    """Notes down what the files depend on; ValueError if the import was begun otherwise."""
    file = job.work / 'settings.json'
    now = json.loads(json.dumps(job.settings))
    if not file.exists():
        atomic.write(file, json.dumps(now, indent=1))
        return
    before = json.loads(file.read_text())
    changed = [f'{k} was {before[k]}, is {now[k]}' for k in now if now[k] != before[k]]
    if changed:
        raise ValueError(
            f'{job.folder}: the import of its split {job.split} was begun otherwise: '
            f'{"; ".join(changed)}. Give the same options, or choose another name or split'
        )


def _finished(job: ImportJob, shard: int) -> bool:
    """Whether a shard is there to its last byte, as its note says."""
    note, path = job.note(shard), job.path(shard)
    if not note.exists() or not path.exists():
        return False
    expected = json.loads(note.read_text())
    return path.stat().st_size == expected['bytes'] and _holds(path, expected['records'])


def _holds(path: pathlib.Path, records: int) -> bool:
    """Whether a file is a complete ArrayRecord, with its footer, of so many records."""
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        return reader.ok() and reader.num_records() == records


def _complete(job: ImportJob) -> dict[str, Any]:
    """Lists what was left out, and makes the split a part of the set; returns its summary."""
    kinds, counts, shards = Counter(), Counter(), []
    lines = job.work / 'left_out.partial'
    with open(lines, 'w') as file:
        for shard in range(job.shards):
            note = json.loads(job.note(shard).read_text())
            shards.append([note['records'], note['bytes']])
            counts += Counter({what: note[what] for what in KEPT})
            kinds.update(line['kind'] for line in note['left_out'])
            file.writelines(json.dumps(x, ensure_ascii=False) + '\n' for x in note['left_out'])
    atomic.commit(lines, job.folder / f'left_out-{job.split}.jsonl')
    if not any(records for records, _ in shards):
        raise ValueError(
            f'{job.spec}: none of {len(job.source)} records can be used: {dict(kinds)}; '
            f'{job.folder}/left_out-{job.split}.jsonl says why'
        )
    summary = {
        'records': sum(records for records, _ in shards),
        'bytes': sum(size for _, size in shards),
        'with_captions': counts['texts'],
        'with_label': counts['label'],
        'with_labels': counts['labels'],
        'left_out': dict(kinds),
        'left_out_by_source': {kind: x._asdict() for kind, x in job.source.left_out.items()},
        'label_names': job.source.label_names,
        'shards': shards,
    }
    atomic.write(job.work / 'summary.json', json.dumps(summary))
    _write_info(job)
    return summary


def _splits(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The summaries of all complete splits of a set, by name."""
    files = sorted(folder.glob('import-*/summary.json'))
    return {f.parent.name.removeprefix('import-'): json.loads(f.read_text()) for f in files}


def _write_info(job: ImportJob) -> None:
    """Writes what TFDS wants to know of a set, for all splits that are complete."""
    import tensorflow_datasets as tfds

    splits = _splits(job.folder)
    names = next(filter(None, (split['label_names'] for split in splits.values())), [])
    # Where some images have several labels, all have a list.
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
    # As a whole: who trains on another split meanwhile reads the old files or the new ones.
    new = job.work / 'info.partial'
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    info.write_to_directory(new)
    for file in sorted(new.iterdir(), key=lambda file: file.name == 'dataset_info.json'):
        atomic.commit(file, job.folder / file.name)
    new.rmdir()


def _features(*, captions: bool, label: bool, labels: bool, label_names: list[str]) -> Any:
    """The features of a set as TFDS objects."""
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
    """What makes tf.Examples of records."""
    from tensorflow_datasets.core import example_serializer

    features = _features(captions=True, label=True, labels=True, label_names=[])
    return example_serializer.ExampleSerializer(features.get_serialized_info())


def _serialized(record: Mapping[str, Any]) -> bytes:
    """A record as TFDS stores it.

    All have all fields, whether or not the set says so in the end: which it needs is known when the
    last record is read, and readers skip the others.
    """
    # By default the order of fields differs from process to process.
    return _serializer().get_tf_example(record).SerializeToString(deterministic=True)


def _encoded(image: bytes | np.ndarray, size: int, quality: int) -> bytes:
    """The bytes to store: those that there are or, of an image whose shorter side is above `size`
    (if not 0), a JPEG of that size.
    """
    if size and min(upright.measure(image)) > size:
        return _resized(upright.decode(image), size, quality)
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(upright.decode(image)).save(file, 'PNG')
        return file.getvalue()
    return image


def _resized(pixels: np.ndarray, size: int, quality: int) -> bytes:
    """A JPEG of pixels [H, W, 3] made smaller, without aliasing, to a shorter side of `size`."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    image = Image.fromarray(pixels)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality)
    return file.getvalue()


def _pipeline(runner: str, options: Mapping[str, Any]) -> Any:
    """An empty Beam pipeline on a runner; ValueError without Beam, and for unknown names."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError(
            "--beam-runner needs Apache Beam, which is not installed: pip install 'clipax[beam]'"
        ) from None
    return beam.Pipeline(runner, PipelineOptions.from_dictionary(dict(options)))


def _run_on_beam(job: ImportJob, shards: list[int], pipeline: Any) -> None:
    """Writes shards in a pipeline, each an element; its workers see the same folders as we do."""
    import apache_beam as beam

    try:
        with pipeline:
            pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(job.write_shard)
    except Exception as error:  # of any type: runners wrap what happens in their workers
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'Apache Beam: {reason[-1]}') from error
