"""transformers' image processors, as its Pillow backend applies them; those of TIPS and DINOv3,
which have no other, as its torchvision backend does.

For the others the latter rounds otherwise: pixels differ by 1 of 255, and with the filter 'nearest'
by more.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from clip_jax import lookup
from clip_jax.convert import _cards, _files, _settings
from clip_jax.data.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PILLOW,
    Preprocess,
)

PREPROCESSOR = 'preprocessor_config.json'
PROCESSOR = 'processor_config.json'  # since transformers 5, with the other one inside
# Pillow's resampling filters by number.
RESAMPLE = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}

_SAME: dict[str, Any] = {
    'do_resize': True,
    'resample': 3,
    'default_to_square': False,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'do_pad': False,
}
NAFLEX = 'Siglip2ImageProcessor'
DEFAULTS: dict[str, dict[str, Any]] = {
    'CLIPImageProcessor': {
        **_SAME,
        'size': {'shortest_edge': 224},
        'do_center_crop': True,
        'crop_size': 224,
        'image_mean': list(CLIP_MEAN),
        'image_std': list(CLIP_STD),
    },
    'SiglipImageProcessor': {
        **_SAME,
        'size': {'height': 224, 'width': 224},
        'do_center_crop': False,
        'image_mean': list(_cards.HALF),
        'image_std': list(_cards.HALF),
    },
    # NaFlex: it ignores size and crop_size.
    NAFLEX: {
        **_SAME,
        'resample': 2,
        'patch_size': 16,
        'max_num_patches': 256,
        'image_mean': list(_cards.HALF),
        'image_std': list(_cards.HALF),
    },
}
_OF_PATCHES = ('patch_size', 'max_num_patches')


for _same in ('ChineseCLIPImageProcessor', 'BitImageProcessor'):
    DEFAULTS[_same] = DEFAULTS['CLIPImageProcessor']
DEFAULTS['DINOv3ViTImageProcessor'] = {
    **DEFAULTS['SiglipImageProcessor'],
    'resample': 2,
    'image_mean': list(IMAGENET_MEAN),
    'image_std': list(IMAGENET_STD),
}
DEFAULTS['Tipsv2ImageProcessor'] = {
    **DEFAULTS['SiglipImageProcessor'],
    'size': {'height': 448, 'width': 448},
    'resample': 2,
    'do_normalize': False,
}
# Those that transformers has with torchvision alone, and what it resizes: bytes or floats.
_RESAMPLING = {'Tipsv2ImageProcessor': 'torchvision', 'DINOv3ViTImageProcessor': 'float'}


def size_of(folder: pathlib.Path, usual: str) -> int | None:
    """Returns the side of the images that the image processor of a folder makes; None if it has
    none, or they are not square.
    """
    config, what = _found(folder)
    if config is None:
        return None
    given = _settings.checked(config, _settings.IMAGE_PROCESSOR, what)
    name = given.get('image_processor_type', usual).removesuffix('Fast')
    values = {
        **DEFAULTS[lookup.check(name, DEFAULTS, what=f'{what}: image_processor_type')],
        **given,
    }
    key = 'crop_size' if values['do_center_crop'] else 'size'
    sides = _sides(values[key], True, f'{what}: {key}')
    return sides['height'] if sides.get('height') == sides.get('width') else None


def read(
    folder: pathlib.Path, size: int, *, usual: str, patch_size: int | None = None
) -> dict[str, Any]:
    """Reads the image processor of a folder.

    Args:
        folder: the folder of the weights.
        size: the image size of the model.
        usual: the class of the model's image processor, if the folder names none.
        patch_size: the patch size of a model that takes images of any size (NaFlex).

    Returns:
        The card's `preprocess`.

    Raises:
        ValueError: a key is unknown, wrong, or asks for what `Preprocess` cannot do.
    """
    config, what = _found(folder)
    if config is None:
        logging.warning(
            '%s: has neither %s nor %s; images are prepared as by the %s of transformers for '
            '%d pixels',
            *(folder, PROCESSOR, PREPROCESSOR, usual, size),
        )
        sides = {'height': size, 'width': size}
        crops = DEFAULTS[usual].get('do_center_crop')
        config = {'size': size if crops else sides, 'crop_size': size}
        config |= {} if patch_size is None else {'patch_size': patch_size}
    given = _settings.checked(config, _settings.IMAGE_PROCESSOR, what)
    old = given.get('feature_extractor_type', usual).replace('FeatureExtractor', 'ImageProcessor')
    name = given.get('image_processor_type', old).removesuffix('Fast')
    lookup.check(name, DEFAULTS, what=f'{what}: image_processor_type')
    if (name == NAFLEX) != (patch_size is not None):
        raise ValueError(
            f'{what}: image_processor_type is {name}; expected {usual}, as the model takes '
            f'images {"of any size (NaFlex)" if patch_size else f"of {size} x {size} pixels"}'
        )
    values = {**DEFAULTS[name], **given}
    if name == 'CLIPImageProcessor' and values.get('use_square_size'):
        values['size'] = {'height': 224, 'width': 224}
    mean, std = _statistics(values, what)
    if values['resample'] not in RESAMPLE:
        raise ValueError(f'{what}: resample is {values["resample"]}; expected 0 to 5, of Pillow')
    geometry = (_geometry if patch_size is None else _of_patches)(values, patch_size or size, what)
    resizes = geometry['resize'] != 'none'
    rule = {
        'size': size,
        **geometry,
        'interpolation': RESAMPLE[values['resample']],
        'mean': mean,
        'std': std,
        'rgb': 'white',
        'crop': 'down',
        'resampling': _RESAMPLING.get(name, PILLOW) if resizes else PILLOW,
    }
    return valid(rule, what)


def _of_patches(values: Mapping[str, Any], patch_size: int, what: str) -> dict[str, Any]:
    """Returns the fields of the resize 'patches'; ValueError if the model has other patches."""
    if not values['do_resize']:
        raise ValueError(f'{what}: do_resize is false; expected true, so that patches fit')
    if values['patch_size'] != patch_size:
        raise ValueError(
            f"{what}: patch_size is {values['patch_size']}; expected {patch_size}, the model's"
        )
    most = values['max_num_patches']
    return {'resize': 'patches', 'patch_size': patch_size, 'max_patches': most}


def valid(rule: dict[str, Any], what: str) -> dict[str, Any]:
    """Returns a card's `preprocess`; a ValueError that names the file if it is impossible."""
    try:
        return Preprocess.from_card(rule).card
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from error


def _found(folder: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the content and the name of the file that transformers prefers."""
    if (folder / PROCESSOR).is_file():
        what = str(folder / PROCESSOR)
        outer = _files.json_of(folder / PROCESSOR)
        inner = _settings.checked(outer, _settings.PROCESSOR, what).get('image_processor')
        if inner is not None:
            return inner, f'{what}: image_processor'
    if (folder / PREPROCESSOR).is_file():
        return _files.json_of(folder / PREPROCESSOR), str(folder / PREPROCESSOR)
    return None, str(folder)


def _geometry(values: Mapping[str, Any], size: int, what: str) -> dict[str, Any]:
    """Returns `resize` and `resize_to`; ValueError unless every image becomes size x size."""
    for key in _OF_PATCHES:
        if key in values:
            raise ValueError(
                f'{what}: {key} is {values[key]}, which belongs to images of any size (NaFlex); '
                'the model is not for them'
            )
    crop, resize = values['do_center_crop'], 'none'
    to: Any = None
    if values['do_resize']:
        sides = _sides(values['size'], values['default_to_square'], f'{what}: size')
        resize = 'shortest' if 'shortest_edge' in sides else 'squash'
        to = sides.get('shortest_edge') or [sides['height'], sides['width']]
    if not crop and not isinstance(to, list):
        raise ValueError(
            f'{what}: do_center_crop is false and {"size" if values["do_resize"] else "do_resize"} '
            f'does not make images square; the model takes {size} x {size} pixels'
        )
    key = 'crop_size' if crop else 'size'
    height, width = _pair(values.get('crop_size'), f'{what}: crop_size') if crop else to
    if (height, width) != (size, size):
        raise ValueError(
            f'{what}: {key} gives {height} x {width} pixels, but the model takes {size} x {size}'
        )
    pad = values.get('pad_size')
    if values['do_pad'] and pad is not None and _pair(pad, f'{what}: pad_size') != [size, size]:
        raise ValueError(f'{what}: do_pad with a pad_size other than {size} x {size}')
    return {'resize': resize, 'resize_to': None if to in (size, [size, size]) else to}


def _pair(size: Any, what: str) -> list[int]:
    sides = _sides(size, True, what)
    if 'shortest_edge' in sides:
        raise ValueError(f'{what} is {size}; expected height and width')
    return [sides['height'], sides['width']]


def _sides(size: Any, square: bool, what: str) -> dict[str, int]:
    """Returns a size as {height, width} or {shortest_edge}; ValueError for other forms."""
    if isinstance(size, int):
        size = {'height': size, 'width': size} if square else {'shortest_edge': size}
    elif isinstance(size, list) and len(size) == 2:
        size = {'height': size[0], 'width': size[1]}
    forms = ({'height', 'width'}, {'shortest_edge'})
    if not isinstance(size, dict) or set(size) not in forms or min(size.values()) < 1:
        raise ValueError(
            f'{what} is {size}; supported are a number, [height, width], {{height, width}} and '
            '{shortest_edge}, all positive'
        )
    return size


def _statistics(values: Mapping[str, Any], what: str) -> tuple[list[float], list[float]]:
    """Returns mean and std of values from 0 to 1, with the scale factor of the file inside."""
    mean, std = (three(values[key], f'{what}: {key}') for key in ('image_mean', 'image_std'))
    if not values['do_normalize']:
        mean, std = [0.0] * 3, [1.0] * 3
    scale = 255 * values['rescale_factor'] if values['do_rescale'] else 255.0
    if not scale > 0:
        raise ValueError(f'{what}: rescale_factor is {values["rescale_factor"]}; expected above 0')
    return [x / scale for x in mean], [x / scale for x in std]


def three(numbers: Any, what: str) -> list[float]:
    """Returns mean or std as one number for each channel; ValueError if there are others."""
    numbers = [*numbers] if isinstance(numbers, list | tuple) else [numbers] * 3
    if len(numbers) != 3:
        raise ValueError(f'{what} has {len(numbers)} numbers; expected 3, one for each channel')
    return numbers


def written(rule: Mapping[str, Any], *, siglip: bool) -> dict[str, Any]:
    """Returns the `preprocessor_config.json` of a card's `preprocess`.

    Args:
        rule: the card's `preprocess`.
        siglip: whether the model is a SigLIP.

    Raises:
        ValueError: transformers has no such rule.
    """
    size, naflex = rule['size'], rule['resize'] == 'patches'
    square = {'height': size, 'width': size}
    crop = rule['resize'] != 'squash' or rule.get('resize_to') is not None
    name = NAFLEX if naflex else f'{"Siglip" if siglip else "CLIP"}ImageProcessor'
    for own, how in _RESAMPLING.items():
        name = own if how == rule.get('resampling') else name
    squashes = name != 'CLIPImageProcessor'
    if rule['resize'] == 'longest' or (squashes and crop and not naflex):
        raise ValueError(
            f'the layout huggingface cannot hold this model: {name} has no '
            f'preprocess.resize {rule["resize"]!r}'
        )
    to = rule.get('resize_to') or size
    height, width = [to, to] if isinstance(to, int) else to
    squash = {'height': height, 'width': width}
    if naflex:
        geometry = {'patch_size': rule['patch_size'], 'max_num_patches': rule['max_patches']}
    else:
        geometry = {'size': {'shortest_edge': to} if rule['resize'] == 'shortest' else squash}
    return {
        'image_processor_type': name,
        'do_convert_rgb': True,
        'do_resize': rule['resize'] != 'none',
        **geometry,
        'resample': {ours: number for number, ours in RESAMPLE.items()}[rule['interpolation']],
        **({} if squashes else {'do_center_crop': crop, 'crop_size': square}),
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': rule['mean'],
        'image_std': rule['std'],
    }
