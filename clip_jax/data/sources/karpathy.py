"""The Karpathy splits of COCO and Flickr30k: `karpathy:dataset_coco.json`."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax import lookup
from clip_jax.data.sources import _annotations, _captions, _pictures
from clip_jax.runtime import foreign_json

_IMAGE = {'filename': str, 'filepath': str, 'split': str, 'sentences': [{'raw': str}]}


def source(
    address: str, *, split: str | Sequence[str] = 'test', root: str = '', captions: int = 0
) -> _pictures.Pictures:
    """Opens a file of Karpathy and Li (arXiv 1412.2306): images with about five captions each.

    Args:
        address: the JSON file, such as dataset_coco.json or dataset_flickr30k.json.
        split: the split, or several, such as train,restval.
        root: the folder of the images, or of folders such as val2014; '': the folder of the file.
        captions: how many captions of an image count, the first ones; 0 for all.

    Raises:
        DataNotFound: the file, the folder or all images are missing.
        ValueError: the file has another layout or no such split, or some images are missing.
    """
    spec = f'karpathy:{address}'
    most = _annotations.most(captions, spec)
    path = _annotations.one_file(address, spec)
    given = split.split(',') if isinstance(split, str) else split
    wanted = _captions.keys([name.strip() for name in given], f'{spec}: split')
    images = _annotations.parse(path, {'images': [dict]}).get('images') or []
    if not images or any(not {'filename', 'split', 'sentences'} <= {*image} for image in images):
        raise ValueError(
            f'{path}: expected an object with images, each with filename, split and sentences, '
            'such as dataset_coco.json'
        )
    splits = dict.fromkeys(str(image['split']) for image in images)
    for name in wanted:
        lookup.check(name, splits, what=f'{path}: split')
    images = [
        foreign_json.check(image, _IMAGE, f'{path}: images[{k}]')
        for k, image in enumerate(images)
        if image['split'] in wanted
    ]
    names = [os.path.join(image.get('filepath', ''), image['filename']) for image in images]
    folder = os.path.expanduser(root) or path.rpartition('/')[0] or '.'
    return _pictures.Pictures(
        spec,
        [_pictures.File(one) for one in _pictures.locate(names, folder, spec)],
        [[('caption', _sentences(image)[:most])] for image in images],
        ['caption'],
        functools.partial(source, address, split=split, root=root, captions=captions),
    )


def _sentences(image: Mapping[str, Any]) -> list[bytes]:
    captions = [_captions.encoded(sentence.get('raw')) for sentence in image['sentences']]
    return [caption for caption in captions if caption]
