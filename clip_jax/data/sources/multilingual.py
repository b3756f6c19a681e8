"""Images with captions in several languages (XTD10, Flickr30k-200, Crossmodal-3600):
`multilingual:FILES`.
"""

import codecs
import functools
import os
from collections.abc import Sequence

from clip_jax.data.sources import _annotations, _captions, _files, _pictures

# Files of XTD10 and of Flickr30k-200 that name the images.
_NAMES = ('test_image_names.txt', 'filenames.txt')
_PREFIX = 'test_1kcaptions_'  # of the files of XTD10
_KEY = 'image/key'  # of Crossmodal-3600

# Names of images, and their captions in each language.
_Read = tuple[list[str], dict[str, list[list[bytes]]]]


def source(
    address: str, *, root: str = '', names: str = '', captions: int = 0
) -> _pictures.Pictures:
    """Opens captions in several languages; each language is a text field.

    Args:
        address: Crossmodal-3600's captions.jsonl; or a text file per language with a caption per
            line, such as XTD10/test_1kcaptions_*.txt. What follows test_1kcaptions_, or else the
            name of the file, is the language.
        root: the folder of the images, or of folders of them; '': the folder of the first file.
        names: the file that names the images, one per line; '': test_image_names.txt or
            filenames.txt beside a file of captions.
        captions: how many captions of an image count in each language, the first ones; 0 for all.

    Raises:
        DataNotFound: no file matches, or the folder or all images are missing.
        ValueError: a file has another layout, or some images are missing.
    """
    spec = f'multilingual:{address}'
    most = _annotations.most(captions, spec)
    paths = _files.matches(address, 'multilingual')
    if paths[0].endswith('.jsonl'):
        if names:
            raise ValueError(f'{spec}: names is for text files; {paths[0]} names its images')
        images, texts = _crossmodal(_annotations.one_file(address, spec))
    else:
        images, texts = _lines(paths, names, spec)
    folder = os.path.expanduser(root) or paths[0].rpartition('/')[0] or '.'
    return _pictures.Pictures(
        spec,
        [_pictures.File(path) for path in _pictures.locate(images, folder, spec)],
        [[(key, own[i][:most]) for key, own in texts.items()] for i in range(len(images))],
        list(texts),
        functools.partial(source, address, root=root, names=names, captions=captions),
    )


def _crossmodal(path: str) -> _Read:
    """Reads a .jsonl file whose rows have an object with `caption` for each language."""
    names: list[str] = []
    texts: dict[str, list[list[bytes]]] = {}
    for where, row in _annotations.rows(path):
        name = row.get(_KEY)
        own = {key: value['caption'] for key, value in row.items() if _is_language(value)}
        if not isinstance(name, str) or not own:
            raise ValueError(
                f"{where}: expected {_KEY!r} and, for each language, {{'caption': [...]}}, as in "
                'captions.jsonl of Crossmodal-3600'
            )
        for language, found in own.items():
            before = texts.setdefault(language, [[] for _ in names])
            before.append([caption for text in found if (caption := _captions.encoded(text))])
        names.append(name)
        for own in texts.values():
            if len(own) < len(names):
                own.append([])
    return names, texts


def _is_language(value: object) -> bool:
    texts = value.get('caption') if isinstance(value, dict) else None
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _lines(paths: Sequence[str], names: str, spec: str) -> _Read:
    """Reads a text file for each language, whose lines are in the order of the images."""
    beside = [_files.join(path.rpartition('/')[0], name) for path in paths for name in _NAMES]
    known = dict.fromkeys([os.path.expanduser(names)] if names else beside)
    images = next((found for path in known if (found := _read_lines(path))), [])
    if not images:
        raise ValueError(
            f'{spec}: {names or "beside the captions"}: no names of images. Give the text file '
            f'that has one per line as names; by default it is {" or ".join(_NAMES)}'
        )
    texts: dict[str, list[list[bytes]]] = {}
    for path in paths:
        if path in known:  # a glob may match it too
            continue
        language = os.path.splitext(os.path.basename(path))[0].removeprefix(_PREFIX)
        lines = _read_lines(path)
        if language in texts:
            raise ValueError(f'{path}: another file has the captions of {language!r} too')
        if len(lines) != len(images):
            raise ValueError(
                f'{path}: {len(lines):,} lines, but there are {len(images):,} names of images; '
                'expected one caption per image'
            )
        texts[language] = [[line] for line in lines]
    if not texts:
        raise ValueError(f'{spec}: matches no file of captions')
    return [name.decode('utf-8', 'replace') for name in images], texts


def _read_lines(path: str) -> list[bytes]:
    r"""Returns the lines of a text file, which end with \n; none if there is no such file."""
    try:
        with _files.open_file(path) as file:
            data = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError:
        return []
    lines = [line.strip() for line in data.split(b'\n')]
    return lines if lines[-1] else lines[:-1]
