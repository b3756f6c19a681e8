"""TFDS data sets in ArrayRecord format: `tfds:NAME[/CONFIG]/SPLIT`.

The built-in data sets (`clip_jax/data/datasets`) are generated when they are first used.
"""

import contextlib
import functools
import io
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax import lookup
from clip_jax.data.errors import BadRecord, DataNotFound, Skipped
from clip_jax.data.sources import _captions, _tfds_info
from clip_jax.data.sources._tfds_info import INFO_FILE
from clip_jax.runtime.messages import brief, one_line


class TfdsSource:
    """Random access to one split of a prepared data set; images stay encoded."""

    skipped: dict[str, Skipped] = {}  # preparing the data set took care of that

    def __init__(
        self,
        name: str,
        records: Sequence[bytes],
        parse: Callable[[bytes], Mapping[str, Any]],
        keys: Mapping[str, str],
        text_keys: Sequence[str],
        label_names: list[str],
    ):
        """Makes the source of serialized records.

        Args:
            name: what messages call it.
            records: the serialized records.
            parse: parses a record into features.
            keys: the features of 'image', and 'label' or 'labels'.
            text_keys: the features of captions.
            label_names: the class names.
        """
        self.label_names = label_names
        self.text_fields = tuple(map(_captions.field, text_keys))
        self._name = name
        self._records = records
        self._parse = parse
        self._keys, self._text_keys = keys, text_keys

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} records, none with the index {i}.')
        try:
            record = self._records[i]
        except RuntimeError as error:
            if failed := _tfds_info.failed_call(error):
                raise OSError(failed, brief(error), self.where(i)) from error
            raise BadRecord('damaged', one_line(error)) from error  # its checksum is wrong
        parsed = self._parse(record)
        example = {what: _at(parsed, key) for what, key in self._keys.items()}
        if self._text_keys:
            texts = [(key, _texts(parsed, key)) for key in self._text_keys]
            example |= _captions.of_example(texts, several=len(texts) > 1)
        if 'labels' in example:
            example['labels'] = [int(label) for label in example['labels']]
        return example

    def where(self, i: int) -> str:
        """Says where example i is stored."""
        return f'record {i} of {self}'

    def __str__(self) -> str:
        return self._name


def source(
    address: str,
    *,
    data_dir: str = '',
    image_key: str = 'image',
    text_key: str | Sequence[str] = 'captions',
    label_key: str = 'label',
) -> TfdsSource:
    """Opens a split of a prepared data set.

    Nested features have a slash in their names: text_key='captions/text'.

    Args:
        address: NAME[/CONFIG]/SPLIT; SPLIT may be a slice.
        data_dir: the folder of prepared data sets; '': TFDS's default.
        image_key: the feature of images.
        text_key: the feature of one caption or several, or several features.
        label_key: the feature of labels; several labels per image give 'labels'. If there is no
            feature 'label', 'labels' is read.

    Raises:
        DataNotFound: if the data set does not exist.
        ValueError: if the split or a feature does not exist, or the format is not ArrayRecord.
    """
    set_name, _, split = address.rpartition('/')
    if not set_name or not split:
        raise ValueError(
            f'tfds:{address} is not of the form tfds:NAME[/CONFIG]/SPLIT, for example '
            "'tfds:shapes_captions/train'."
        )
    import tensorflow_datasets as tfds

    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    builder = _tfds_info.builder(_folder(root, set_name))
    features = builder.info.features
    texts = _captions.keys(text_key, f'tfds:{address}: text_key')
    keys, texts = _keys(features, address, image_key, texts, label_key)
    found = keys.get('label', keys.get('labels'))
    label = _at(features, found) if found else None
    label = label.feature if isinstance(label, tfds.features.Sequence) else label
    names = label.names if isinstance(label, tfds.features.ClassLabel) else []
    # Only the features in use are parsed.
    tops = {key.split('/')[0] for key in (*keys.values(), *texts)}
    used = tfds.features.FeaturesDict({top: features[top] for top in sorted(tops)})
    encoded = {image_key: tfds.decode.SkipDecoding()}
    parse = functools.partial(used.deserialize_example_np, decoders=encoded)
    records = _records(builder, address, split)
    # A record is parsed into a dict; the annotation of TFDS also has single values.
    # pyrefly: ignore[bad-argument-type]
    return TfdsSource(f'tfds:{address}', records, parse, keys, texts, names)


def _texts(parsed: Mapping[str, Any], key: str) -> list[str]:
    """The captions of a feature, which has one or several."""
    texts = _at(parsed, key)
    return _captions.texts([texts] if isinstance(texts, bytes) else texts)


def _at(tree: Any, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split('/'), tree)


def _folder(root: epath.Path, set_name: str) -> epath.Path:
    """Returns the folder of the newest version of a data set; built-in ones are generated."""
    base = root / set_name
    if (base / INFO_FILE).exists():  # The name ends with a version.
        return base
    name, _, config = set_name.partition('/')
    if name in lookup.names('data.datasets'):
        return _built_in_folder(root, name, config)
    versions = _versions(base)
    if not versions:
        nearest = root / name if (root / name).exists() else root
        raise DataNotFound(
            f'tfds: no prepared data set in {base}. {_contents(nearest)} Prepare it with: '
            f'tfds build {set_name} --file_format=array_record --data_dir={root}'
        )
    return versions[-1]


def _versions(base: epath.Path) -> list[epath.Path]:
    """Prepared versions, oldest first; unfinished builds have other names."""
    from tensorflow_datasets.core import Version

    folders = base.glob('*') if base.exists() else ()
    folders = [folder for folder in folders if Version.is_valid(folder.name)]
    folders = [folder for folder in folders if (folder / INFO_FILE).exists()]
    return sorted(folders, key=lambda folder: Version(folder.name))


def _contents(folder: epath.Path) -> str:
    if not folder.exists():
        return f'The folder {folder} does not exist.'
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return f'{folder} holds: {", ".join(there) or "nothing"}.'


def _built_in_folder(root: epath.Path, name: str, config: str) -> epath.Path:
    """Returns the folder of the current version of a built-in data set, generated if needed."""
    import tensorflow_datasets as tfds

    lookup.module('data.datasets', name)
    make = tfds.builder_cls(name)
    folder = root / name / config / str(make.VERSION)
    if (folder / INFO_FILE).exists():
        return folder
    if config and config not in make.builder_configs:
        configs = ', '.join(make.builder_configs) or 'none'
        raise ValueError(f'tfds: {name} has no config {config!r}. Its configs: {configs}.')
    print(f'Building {name} in {folder} (once)', file=sys.stderr, flush=True)
    try:
        # Only the notices of TFDS are hidden; its progress bars go to stderr.
        with contextlib.redirect_stdout(io.StringIO()):
            make(data_dir=root, config=config or None).download_and_prepare()
    except OSError:
        # The last step renames the folder, which fails if another process was faster.
        if not (folder / INFO_FILE).exists():
            raise
    return folder


def _records(builder: Any, address: str, split: str) -> Sequence[bytes]:
    """The serialized records of a split; ValueError if unknown, empty or not ArrayRecord."""
    import tensorflow_datasets as tfds

    needed = tfds.core.FileFormat.ARRAY_RECORD
    formats = builder.info.available_file_formats()
    if needed not in formats:
        raise ValueError(
            f'tfds:{address}: {builder.data_dir} holds {"/".join(f.value for f in formats)} '
            f'files, expected {needed.value}. Delete that folder and prepare it again with: '
            f'tfds build {builder.name} --file_format={needed.value}'
        )
    splits = builder.info.splits
    try:
        count = splits[split].num_examples
    except (KeyError, ValueError) as error:
        there = ', '.join(f'{name} ({splits[name].num_examples})' for name in sorted(splits))
        raise ValueError(
            f'tfds:{address}: there is no split {split!r}. There are: {there}; a slice is written '
            'as train[:10%].'
        ) from error
    if not count:
        raise ValueError(f'tfds:{address}: {split!r} selects no examples. Take a larger slice.')
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw, file_format=needed)
    except ValueError as error:  # of names of files that no file can have
        raise _tfds_info.damaged(epath.Path(builder.data_dir), error) from error


def _keys(
    features: Any, address: str, image_key: str, text_keys: Sequence[str], label_key: str
) -> tuple[dict[str, str], list[str]]:
    """Finds the features of image and label, and those of texts; only texts and labels with their
    default names may be missing.
    """
    import tensorflow_datasets as tfds

    stored = _flat(features.get_serialized_info())
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    others = {key: info for key, info in stored.items() if key not in images}
    texts = [
        k for k, f in others.items() if np.dtype(f.np_dtype) == np.object_ and len(f.shape) < 2
    ]
    integers = {k: f for k, f in others.items() if np.issubdtype(f.np_dtype, np.integer)}
    labels = [k for k, f in integers.items() if len(f.shape) < 2]
    keys, found = {}, []
    for what, key, default, choices in (
        ('image', image_key, '', images),
        *(('texts', key, 'captions', texts) for key in text_keys),
        ('label', label_key, 'label', labels),
    ):
        if what == 'label' and key == default and 'label' not in choices:
            key = default = 'labels'  # the usual name if images have several
        if what == 'texts' and key in choices:
            found.append(key)
        elif key in choices:
            several = what == 'label' and stored[key].shape
            keys['labels' if several else what] = key
        elif key != default:
            raise ValueError(
                f'tfds:{address}: no feature {key!r} that holds {what}. Features that can: '
                f'{", ".join(choices) or "none"}. All: {", ".join(stored)}.'
            )
    return keys, found


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Joins the keys of nested dicts with slashes; flax's function would import JAX, which the
    processes of the input do without.
    """
    flat = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f'{prefix}{key}/') if inner else {prefix + key: value}
    return flat
