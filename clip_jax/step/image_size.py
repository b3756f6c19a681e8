"""The state of a run for images of another size: only what belongs to positions changes."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax import sharding
from clip_jax.models import clip
from clip_jax.step import rules
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.state import TrainState

# (path, array) -> the array for the other size, None if it is not one of positions.
Resize = Callable[[str, jax.Array], jax.Array | None]


def resized(
    state: TrainState, like: TrainState, model: clip.CLIP, optimizer: Optimizer, image_size: int
) -> TrainState:
    """Interpolates positions in the parameters, their average and the optimizer's state.

    What has the shape of a parameter is interpolated as the parameter is. If it has no negative
    number, as second moments, it is also held between the smallest and the largest of its numbers:
    bicubic interpolation overshoots. Adafactor's factored second moments are multiplied out before,
    and factored again. Whatever else of the optimizer's state has another shape afterwards starts
    anew. The losses that spikes are compared with are forgotten: those of other images differ.

    Args:
        state: a state of `model` (donated).
        like: the shapes and shardings of the state for the other size.
        model: the model of the state.
        optimizer: the optimizer for the other size.
        image_size: the other height and width of images, in pixels.
    """
    shardings = jax.tree.map(lambda x: x.sharding, like)

    def convert(state: TrainState) -> TrainState:
        resize = _resizer(state.params, model, image_size)
        params = _over(resize, state.params)
        opt_state = jax.tree.map_with_path(
            lambda path, x, new: _moment(resize, sharding.path_name(path), x, new),
            state.opt_state,
            optimizer.init(params),
            is_leaf=_is_factored,
        )
        losses = jnp.full_like(state.skip_state['losses'], jnp.inf)
        return dataclasses.replace(
            state,
            params=params,
            ema=_over(resize, state.ema),
            opt_state=opt_state,
            skip_state={**state.skip_state, 'losses': losses},
        )

    with warnings.catch_warnings():
        # Of course no array of the other size can take the place of an old one.
        warnings.filterwarnings('ignore', 'Some donated buffers were not usable')
        return jax.jit(convert, out_shardings=shardings, donate_argnums=0)(state)


def _resizer(params: dict, model: clip.CLIP, image_size: int) -> Resize:
    """Returns a function that interpolates an array that has path and shape of positions."""
    fields, before = clip.to_card(model), rules.paths(params)

    def with_size(params: dict) -> dict:
        return clip.with_image_size(fields, {'params': params}, image_size)[1]['params']

    after = rules.paths(jax.eval_shape(with_size, params))
    positions = [name for name, x in after.items() if x.shape != before[name].shape]

    def resize(name: str, x: jax.Array) -> jax.Array | None:
        found = next((p for p in positions if f'/{name}'.endswith(f'/{p}')), None)
        if found is None or x.shape != before[found].shape:
            return None
        put = rules.update(params, _nested(found, x.astype(jnp.float32)))
        return rules.paths(with_size(put))[found].astype(x.dtype)

    return resize


def _nested(path: str, leaf: Any) -> dict:
    for name in reversed(path.split('/')):
        leaf = {name: leaf}
    return leaf


def _over(resize: Resize, tree: Any) -> Any:
    def one(path: tuple, x: jax.Array) -> jax.Array:
        found = resize(sharding.path_name(path), x)
        return x if found is None else found

    return jax.tree.map_with_path(one, tree)


def _is_factored(x: Any) -> bool:
    return isinstance(x, optax.FactoredState)


def _moment(resize: Resize, name: str, x: Any, new: Any) -> Any:
    """A part of the optimizer's state for the other size; `new` is what a new state has there."""
    if _is_factored(x):
        return _factored(resize, x, new)
    found = resize(name, x)
    if found is not None:
        return _bounded(found, x)
    return x if x.shape == new.shape else new


def _bounded(found: jax.Array, before: jax.Array) -> jax.Array:
    least, most = jnp.min(before), jnp.max(before)
    return jnp.where(least >= 0, jnp.clip(found, least, most), found)


def _factored(
    resize: Resize, state: optax.FactoredState, new: optax.FactoredState
) -> optax.FactoredState:
    """Adafactor's second moments: means over rows and columns, or whole where a side is short."""

    def one(path: tuple, *parts: jax.Array) -> tuple[jax.Array, ...]:
        name, (row, col, v), wanted = sharding.path_name(path), parts[:3], parts[3:]
        if row.ndim > 1:  # of a tensor that is no matrix
            return row, col, v
        whole = v
        if row.shape != (1,) or col.shape != (1,):
            whole = row[:, None] * col / jnp.maximum(jnp.mean(row), jnp.finfo(row.dtype).tiny)
        found = resize(name, whole)
        if found is None:  # rows are the shorter axis
            found = resize(name, whole := whole.T)
        if found is None:
            return row, col, v
        found = _bounded(found, whole)
        if wanted[2].shape == found.shape:
            return wanted[0], wanted[1], found
        longer = 1 if found.shape[0] <= found.shape[1] else 0
        return jnp.mean(found, longer), jnp.mean(found, 1 - longer), wanted[2]

    trees = (state.v_row, state.v_col, state.v, new.v_row, new.v_col, new.v)
    made = jax.tree.map_with_path(one, *trees)
    parts = jax.tree.transpose(jax.tree.structure(state.v), jax.tree.structure((0, 0, 0)), made)
    return state._replace(v_row=parts[0], v_col=parts[1], v=parts[2])
