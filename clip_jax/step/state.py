"""What training carries from step to step, and how it comes to lie on the devices."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.models import clip, layers
from clip_jax.step import skip_updates


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes or needs: step number, parameters, variables without
    gradients, optimizer state, seed of the random keys, the skip rule's state.
    """

    step: jax.Array  # int32 []: batches seen, those included whose update was not made
    params: dict
    buffers: dict  # the other collections of variables: batch_stats of a ResNet, none of a ViT
    opt_state: optax.OptState
    rng: jax.Array  # uint32 [2]: key data, since a checkpoint holds plain arrays only
    skip_state: skip_updates.SkipState

    @property
    def variables(self) -> dict:
        """What `model.apply` takes: `{'params': …}` and the buffers."""
        return {'params': self.params, **self.buffers}


def create(
    model: clip.CLIP,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh,
    variables: dict | None = None,
) -> TrainState:
    """Initializes model and optimizer, each part directly on the devices where it is to lie.

    The model begins with `variables`, which are used up, or without them with random numbers.
    """

    init, key, shardings = _init(model, optimizer, seed, mesh, variables)
    return jax.jit(init, out_shardings=shardings, donate_argnums=1)(key, variables)


def _init(
    model: clip.CLIP,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    variables: dict | None,
) -> tuple[Callable[[jax.Array, dict | None], TrainState], jax.Array, TrainState]:
    """The function that makes a state, its key, and where what it makes is to lie."""

    def init(key: jax.Array, variables: dict | None) -> TrainState:
        params_key, step_key = jax.random.split(key)
        buffers = clip.init(model, params_key) if variables is None else dict(variables)
        params = buffers.pop('params')
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            buffers=buffers,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(step_key),
            skip_state=skip_updates.init(),
        )

    key = jax.random.key(seed)
    shardings = sharding.of_tree(jax.eval_shape(init, key, variables), mesh, layers.logical_axes)
    return init, key, shardings


def abstract_state(
    model: clip.CLIP, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns shapes, types and places of a new state, without making it."""
    init, key, shardings = _init(model, optimizer, 0, mesh, None)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(init, key, None),
        shardings,
    )


def count_parameters(params: dict) -> int:
    """Number of parameters in a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
