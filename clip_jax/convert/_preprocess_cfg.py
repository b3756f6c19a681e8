"""open_clip's `preprocess_cfg`."""

from collections.abc import Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.convert import _image_processor, _settings
from clip_jax.data.preprocess import CLIP_MEAN, CLIP_STD


def read(config: Any, size: int, *, what: str) -> dict[str, Any]:
    """Reads a `preprocess_cfg`.

    Args:
        config: its content; None for the defaults.
        size: the image size of the model, which open_clip takes too.
        what: the file; error messages start with it.

    Returns:
        The card's `preprocess`.

    Raises:
        ValueError: a key is unknown, wrong or refused.
    """
    what = f'{what}: preprocess_cfg'
    config = {} if config is None else config
    given = _settings.checked(config, _settings.OPEN_CLIP_PREPROCESS, what)
    resize = given.get('resize_mode') or 'shortest'
    if resize == 'longest' and given.get('fill_color'):
        raise ValueError(f"{what}.fill_color is {given['fill_color']}; with 'longest' it must be 0")
    name = given.get('interpolation') or 'bicubic'
    lookup.check(name, ['bicubic', 'bilinear', 'random'], what=f'{what}.interpolation')
    lookup.check(resize, ['shortest', 'longest', 'squash'], what=f'{what}.resize_mode')
    rule = {
        'size': size,
        'resize': resize,
        'interpolation': 'bilinear' if name == 'bilinear' else 'bicubic',
        # As open_clip does, 0 and [] stand for the default.
        'mean': _image_processor.three(given.get('mean') or CLIP_MEAN, f'{what}.mean'),
        'std': _image_processor.three(given.get('std') or CLIP_STD, f'{what}.std'),
    }
    return _image_processor.valid(rule, what)


def written(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `preprocess_cfg` of a card's `preprocess`; ValueError if there is none."""
    if rule['resize'] in ('none', 'patches') or rule.get('resize_to') is not None:
        raise ValueError(
            'the layout open_clip cannot hold this model: it always resizes to the size of the '
            f'model, but preprocess.resize is {rule["resize"]!r} and preprocess.resize_to '
            f'{rule.get("resize_to")!r}'
        )
    return {
        'size': rule['size'],
        'mode': 'RGB',
        'mean': rule['mean'],
        'std': rule['std'],
        'interpolation': rule['interpolation'],
        'resize_mode': rule['resize'],
    }
