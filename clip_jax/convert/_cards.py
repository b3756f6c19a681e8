"""Model cards: made from a layout's config, and checked before export."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clip_jax.convert import _table
from clip_jax.convert._table import Row
from clip_jax.models import clip, positions
from clip_jax.runtime.foreign_arrays import Array

HALF = (0.5, 0.5, 0.5)
# Fields that only training needs: a layout may lack them.
OF_TRAINING = ('patch_dropout', 'init_logit_scale', 'init_logit_bias')


_LEAST = 8  # arrays of a block of any encoder
# What JAX, NumPy and Python raise for sizes of other types, negative ones and huge ones.
_IMPOSSIBLE = (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def understood(what: str) -> Iterator[None]:
    """Turns errors while a config or shapes are interpreted into a ValueError that names `what`."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f'{what}: {error.args[0]} is missing') from error
    except _IMPOSSIBLE as error:
        if what in str(error):
            raise
        raise ValueError(f'{what}: a value of an unexpected kind ({error})') from error


def complete(
    fields: Mapping[str, Any],
    rows: Callable[[Mapping[str, Any]], Iterable[Row]],
    theirs: Mapping[str, Array],
    *,
    what: str,
    image_size: str = 'image_size',
    ignored: Callable[[str], bool] = lambda name: False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Completes an architecture and converts its parameters.

    Args:
        fields: the fields of the architecture that the layout's config gives.
        rows: makes the name table of a complete architecture.
        theirs: the checkpoint's arrays by name.
        what: the file; error messages start with it.
        image_size: what the layout calls the image size.
        ignored: whether an array of that name is no parameter.

    Returns:
        The card's `model` with every field, and our variables.

    Raises:
        ValueError: the architecture is impossible, or the arrays do not fit it.
    """
    try:
        model = clip.from_card(fields)
        card = clip.to_card(model)
        _check_sizes(card, theirs)
        like = clip.shapes(model)
    except _IMPOSSIBLE as error:
        raise ValueError(f'{what}: an impossible architecture: {error}') from error
    table = list(rows(card))
    _check_image_size(card, table, theirs, what=what, name=image_size)
    return card, _table.read(table, theirs, like, what=what, ignored=ignored)


def _check_sizes(card: Mapping[str, Any], theirs: Mapping[str, Array]) -> None:
    """Raises a ValueError for sizes that the arrays cannot have, before the model is traced."""
    total = sum(math.prod(array.shape) for array in theirs.values())
    for tower in ('image', 'text', 'decoder'):
        fields = card.get(tower)
        if fields is None:
            continue
        depths = fields['depths'] if 'depths' in fields else [fields['depth']]
        if sum(depths) * _LEAST > len(theirs):
            raise ValueError(
                f'{tower}: {sum(depths):,} blocks, but the weights are only {len(theirs):,} arrays'
            )
    for name, value in _table.flat(card).items():
        if type(value) is int and value > total and not name.endswith('_id'):
            raise ValueError(f'{name} is {value:,}, but the weights are only {total:,} numbers')
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{name} is {value}; expected a finite number')


def _check_image_size(
    card: Mapping[str, Any], table: list[Row], theirs: Mapping[str, Array], *, what: str, name: str
) -> None:
    """Raises a ValueError that names both sizes if the weights are of another image size."""
    image = card['image']
    if image is None:
        return
    paths = [f'params/image/{x}position_embedding' for x in ('', 'attention_pool/')]
    places = [row.theirs[0] for row in table if row.ours[0] in paths]
    if not places or places[0] not in theirs:
        return
    patch = image.get('patch_size', 32)  # a ResNet downsamples by 32
    grid, extra = image['image_size'] // patch, int(image.get('class_token', 'depths' in image))
    extra *= image.get('class_position', True)
    count = math.prod(theirs[places[0]].shape[:-1])
    found = math.isqrt(max(count - extra, 0))
    if found and found != grid and found**2 + extra == count:
        raise ValueError(
            f'{what}: the weights are for images of {found * patch} pixels ({found} x {found} '
            f'patches), but {name} is {image["image_size"]}; set it to {found * patch}'
        )


def check_expressible(model: Mapping[str, Any], written: Mapping[str, Any], layout: str) -> None:
    """Raises a ValueError if the exported config `written` does not describe `model` exactly."""
    ours, theirs = (_that_counts(clip.to_card(clip.from_card(x))) for x in (model, written))
    wrong = [
        f'{name} {ours.get(name)!r} (it would be {theirs.get(name)!r})'
        for name in sorted({**ours, **theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if wrong:
        raise ValueError(
            f'the layout {layout} cannot hold this model: it has no {", ".join(wrong)}'
        )


def _that_counts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an architecture that change its outputs, flattened."""
    fields = {k: v for k, v in _table.flat(model).items() if k.split('/')[-1] not in OF_TRAINING}
    return {**fields, 'logit_bias': model['init_logit_bias'] is not None}


def learned_positions(
    model: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the same model with fixed image positions turned into learned ones, for export."""
    image = model['image']
    if image is None or image.get('positions', 'learned') == 'learned':
        return dict(model), dict(variables)
    table = positions.sincos2d(image['image_size'] // image['patch_size'], image['width'])
    table = jnp.pad(table, ((int(image['class_token']), 0), (0, 0)))
    params = dict(variables['params'])
    params['image'] = {**params['image'], 'position_embedding': np.asarray(table)}
    model = {**model, 'image': {**image, 'positions': 'learned'}}
    return model, {**variables, 'params': params}
