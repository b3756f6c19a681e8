"""Uncompressed tar shards, as of WebDataset and img2dataset, with random access: `tars:GLOB`."""

import os
from collections.abc import Sequence

from clip_jax.data.sources import (
    _captions,
    _files,
    _tar_files,
    _tar_index,
    _tar_labels,
    _tar_samples,
    _tar_shards,
)
from clip_jax.data.sources._tar_source import TarSource
from clip_jax.data.sources._tar_texts import Texts
from clip_jax.runtime import environment


def source(
    address: str,
    *,
    image_exts: Sequence[str] = ('jpg', 'jpeg', 'png', 'webp', 'avif'),
    text_exts: Sequence[str] = ('txt',),
    text_lines: bool = True,
    label_ext: str = 'cls',
    other_exts: Sequence[str] = (),
    json_key: str | Sequence[str] = 'caption',
    class_names: str = 'classnames.txt',
    index_dir: str = '',
) -> TarSource:
    """Indexes tar shards.

    A sample is the members of one shard with the same key, the path up to the extension: the
    longest one that an option names, else what follows the first dot of the file name. Samples are
    in the order of the shards. What is in no sample, and damage, is counted in `skipped`.

    Args:
        address: a path, a glob or a brace range such as `x-{00000..00041}.tar`; with `://`, it is
            read through fsspec.
        image_exts: extensions of images; the first member of a sample with one of them is used.
        text_exts: extensions of captions, such as txt, syn.txt or json; a sample has those of all
            its members, in the order of the extensions, each caption once.
        text_lines: whether each line of a member is a caption; otherwise the whole text is one.
        label_ext: the extension of labels. The member holds an integer, or several separated by
            space, which become 'labels'; with npy, an array, which always becomes 'labels'.
        other_exts: extensions of members that are left out on purpose, such as seg.png.
        json_key: the field of .json members with the caption, a string or a list; or several
            fields.
        class_names: a file with the names of the classes, one per line, in the folder of the shards
            or in the one above; '': labels have no names.
        index_dir: the folder of cached indices; '': `clip_jax/tars` in the user's cache folder.

    Raises:
        DataNotFound: if no file matches.
        ValueError: if no sample has an image, or a shard is compressed, empty or not a tar.
    """
    roles = _tar_samples.roles(image_exts, text_exts, label_ext, other_exts)
    if _files.is_remote(index_dir):
        raise ValueError(f'tars: index_dir is {index_dir!r}; expected a local folder')
    # Absolute, because other processes open the index as well.
    folder = os.path.abspath(os.path.expanduser(index_dir) or environment.cache_folder('tars'))
    shards = _tar_shards.matches(address)
    index = _tar_index.open_index(address, shards, roles, folder, _tar_files.front_to_back)
    texts = Texts(
        [ext for ext, role in roles.items() if role[:4] == 'text'],
        _captions.keys(json_key, 'tars: json_key'),
        text_lines,
    )
    labels = _tar_labels.Labels(label_ext.lower().rpartition('.')[2] == 'npy', [], '')
    if index.has_labels:
        labels = labels.named(index.paths, class_names)
    return TarSource(f'tars:{address}', index, texts, labels)
