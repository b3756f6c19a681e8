"""What training carries from step to step, and how it comes to lie on the devices."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from clip_jax import sharding


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes or needs: step number, parameters, optimizer state, seed of
    the random keys.
    """

    step: jax.Array  # int32 []
    params: dict
    opt_state: optax.OptState
    rng: jax.Array  # uint32 [2]: key data, since a checkpoint holds plain arrays only


def initial_params(model: nn.Module, key: jax.Array) -> dict:
    """Initialises the parameters of a CLIP model."""
    size, length = model.image.image_size, model.text.context_length
    images = jnp.zeros((1, size, size, 3))
    return model.init(key, images, jnp.zeros((1, length), jnp.int32))['params']


def create(
    model: nn.Module, optimizer: optax.GradientTransformation, *, seed: int, mesh: Mesh
) -> TrainState:
    """Initialises model and optimizer, directly in place on every device of the mesh."""

    def init(key: jax.Array) -> TrainState:
        params_key, step_key = jax.random.split(key)
        params = initial_params(model, params_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(step_key),
        )

    return jax.jit(init, out_shardings=sharding.replicated(mesh))(jax.random.key(seed))


def count(params: dict) -> int:
    """Number of parameters in a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
