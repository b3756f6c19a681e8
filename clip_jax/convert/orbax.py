"""Orbax checkpoints of big_vision and of its descendant OpenVision (`jax_orbax_weight`).

Of the train state only the parameters are read.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import _cards, _openvision, _orbax, _preprocess_cfg, _tokenizer_files
from clip_jax.runtime.foreign_arrays import Array
from clip_jax.runtime.messages import first_few

_STARTS = ('', 'params/', 'state/params/')  # before the names of parameters
_CONFIG_ABOVE = 4  # folders above an item, the first of which with a config counts


def sniff(path: pathlib.Path) -> bool:
    """Returns whether a folder has an item of Orbax with an image and a text tower."""
    return any(_start(_orbax.names(item)) is not None for item in _orbax.items(path))


def _start(names: list[str]) -> str | None:
    return next(
        (
            start
            for start in _STARTS
            if all(any(n.startswith(f'{start}{x}') for n in names) for x in ('img/', 'txt/'))
        ),
        None,
    )


def read(path: pathlib.Path, name: str = '') -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the parameters of a checkpoint.

    Args:
        path: the folder of a step, of one of its items, or of several steps, the newest of which is
            read; or one that holds it.
        name: of an OpenVision model, 'openvision-vit-large-patch14-224', if no
            open_clip_config.json in the folder or above it says what the weights do not.

    Returns:
        The model card, and the variables.

    Raises:
        ValueError: it is damaged, of other models, or needs a name.
    """
    item, start = _found(path)
    theirs = _orbax.arrays(item, start)
    theirs = {key.removeprefix(start): x for key, x in theirs.items()}
    theirs = {key: x for key, x in theirs.items() if not key.startswith(_openvision.DECODER)}
    if _openvision.holds(theirs):
        return _read_openvision(path, item, theirs, name)
    if name:
        raise ValueError(f'{path}: these weights need no name of an architecture; leave it out')
    return lookup.module('convert', 'big_vision').complete(theirs, item, path)


def hint(path: pathlib.Path) -> str:
    """Says what is wrong with a folder of Orbax that `sniff` refuses; '' for other folders."""
    names = sorted({name for item in _orbax.items(path) for name in _orbax.names(item)})
    if not names:
        return ''
    return (
        f'an Orbax checkpoint whose arrays are named {first_few(names, 3)}; expected those of '
        "big_vision and OpenVision, as 'params/img/embedding/kernel' and "
        "'params/txt/Embed_0/embedding'"
    )


def missing(card: Mapping[str, Any]) -> str:
    """Says which tokenizer file a checkpoint without one lacks."""
    if card['model']['image']['class_token']:
        return 'tokenizer.json and tokenizer_config.json of its repository'
    return lookup.module('convert', 'big_vision').missing(card)


def _found(path: pathlib.Path) -> tuple[pathlib.Path, str]:
    starts = {item: _start(_orbax.names(item)) for item in _orbax.items(path)}
    found = [(item, start) for item, start in starts.items() if start is not None]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f'{path}: holds {len(found)} checkpoints: {first_few([str(x) for x, _ in found])}; '
        'give the path of one'
    )


def _read_openvision(
    path: pathlib.Path, item: pathlib.Path, theirs: Mapping[str, Array], name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    layout = lookup.module('convert', 'open_clip')
    places = [item, *item.absolute().parents[:_CONFIG_ABOVE]]
    folder = next((x for x in places if (x / layout.CONFIG).is_file()), None)
    if name:
        with _cards.understood(str(item)):
            fields = _openvision.architecture(theirs, name, str(path))
        settings, text, what = _openvision.PREPROCESS, _openvision.TOKENIZER, name
    elif folder:
        what = str(folder / layout.CONFIG)
        config, model_cfg = layout.settings(folder)
        with _cards.understood(what):
            fields = layout.architecture(model_cfg, theirs, what=what)
        settings, text = config.get('preprocess_cfg'), model_cfg['text_cfg']
    else:
        raise ValueError(
            f'{path}: OpenVision, whose weights do not say for which image size they are; give the '
            f"model's name, as #model=openvision-vit-large-patch14-224, or put its {layout.CONFIG} "
            'into the folder'
        )
    fields['image']['positions'] = 'sincos2d'
    model, variables = _cards.complete(
        fields,
        functools.partial(_openvision.rows, separate=_openvision.is_separate(theirs)),
        theirs,
        what=str(item),
    )
    tokenizers = (
        _tokenizer_files.open_clip(place, model['text'], text, what=what)
        for place in (path, folder)
        if place
    )
    card = {
        'model': model,
        'preprocess': _preprocess_cfg.read(settings, model['image']['image_size'], what=what),
        'tokenizer': next(filter(None, tokenizers), None),
    }
    return card, variables
