"""Model cards: made from a layout's config, and checked before export."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clip_jax.convert import _table
from clip_jax.convert._table import Array, Row
from clip_jax.models import clip, positions

HALF = (0.5, 0.5, 0.5)
# Fields that only training needs: a layout may lack them.
OF_TRAINING = ('patch_dropout', 'init_logit_scale', 'init_logit_bias')


@contextlib.contextmanager
def understood(what: str) -> Iterator[None]:
    """Turns errors while a config or shapes are interpreted into a ValueError that names `what`."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f'{what}: {error.args[0]} is missing') from error
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        if what in str(error):
            raise
        raise ValueError(f'{what}: a value of an unexpected kind ({error})') from error


def complete(
    fields: Mapping[str, Any],
    rows: Callable[[Mapping[str, Any]], Iterable[Row]],
    theirs: Mapping[str, Array],
    *,
    what: str,
    ignored: Callable[[str], bool] = lambda name: False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Completes an architecture and converts its parameters.

    Args:
        fields: the fields of the architecture that the layout's config gives.
        rows: makes the name table of a complete architecture.
        theirs: the checkpoint's arrays by name.
        what: the file; error messages start with it.
        ignored: whether an array of that name is no parameter.

    Returns:
        The card's `model` with every field, and our variables.

    Raises:
        ValueError: the architecture is impossible, or the arrays do not fit it.
    """
    try:
        model = clip.from_card(fields)
        card, like = clip.to_card(model), clip.shapes(model)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{what}: an impossible architecture: {error}') from error
    return card, _table.read(rows(card), theirs, like, what=what, ignored=ignored)


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
    if image.get('positions', 'learned') == 'learned':
        return dict(model), dict(variables)
    table = positions.sincos2d(image['image_size'] // image['patch_size'], image['width'])
    table = jnp.pad(table, ((int(image['class_token']), 0), (0, 0)))
    params = dict(variables['params'])
    params['image'] = {**params['image'], 'position_embedding': np.asarray(table)}
    model = {**model, 'image': {**image, 'positions': 'learned'}}
    return model, {**variables, 'params': params}
