"""The Karpathy splits of COCO and Flickr30k: `karpathy:dataset_coco.json`."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax import lookup
from clip_jax.data.sources import _annotations, _captions, _pictures

_IMAGE = {'filename': str, 'filepath': str, 'split': str, 'sentences': [{'raw': str}]}


def source(
    address: str, *, split: str | Sequence[str] = 'test', root: str = ''
) -> _pictures.Pictures:
    """Opens a file of Karpathy and Li (arXiv 1412.2306): images with about five captions each.

    Args:
        address: the JSON file, such as dataset_coco.json or dataset_flickr30k.json.
        split: the split, or several, such as train,restval.
        root: the folder of the images, or of folders such as val2014; '': the folder of the file.

    Raises:
        DataNotFound: the file, the folder or all images are missing.
        ValueError: the file has another layout or no such split, or some images are missing.
    """
    spec = f'karpathy:{address}'
    path = _annotations.one_file(address, spec)
    given = split.split(',') if isinstance(split, str) else split
    wanted = _captions.keys([name.strip() for name in given], f'{spec}: split')
    content = _annotations.parse(path, {'images': [_IMAGE]})
    images = content.get('images') or []
    for image in images:
        if 'filename' not in image or 'split' not in image or 'sentences' not in image:
            images = []
            break
    if not images:
        raise ValueError(
            f'{path}: expected an object with images, each with filename, split and sentences, '
            'such as dataset_coco.json'
        )
    splits = dict.fromkeys(image['split'] for image in images)
    for name in wanted:
        lookup.check(name, splits, what=f'{path}: split')
    images = [image for image in images if image['split'] in wanted]
    names = [os.path.join(image.get('filepath', ''), image['filename']) for image in images]
    folder = os.path.expanduser(root) or path.rpartition('/')[0] or '.'
    return _pictures.Pictures(
        spec,
        [_pictures.File(one) for one in _pictures.locate(names, folder, spec)],
        [[('caption', _sentences(image))] for image in images],
        ['caption'],
        functools.partial(source, address, split=split, root=root),
    )


def _sentences(image: Mapping[str, Any]) -> list[bytes]:
    captions = [_captions.encoded(sentence.get('raw')) for sentence in image['sentences']]
    return [caption for caption in captions if caption]
