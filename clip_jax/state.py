"""What training carries from step to step, and how it comes to lie on the devices."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.models import clip


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes or needs: step number, parameters, variables without
    gradients, optimizer state, seed of the random keys.
    """

    step: jax.Array  # int32 []
    params: dict
    buffers: dict  # the other collections of variables: batch_stats of a ResNet, none of a ViT
    opt_state: optax.OptState
    rng: jax.Array  # uint32 [2]: key data, since a checkpoint holds plain arrays only

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
    """Initialises model and optimizer, directly in place on every device of the mesh.

    The model begins with `variables`, which are used up, or without them with random numbers.
    """

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
        )

    init = jax.jit(init, out_shardings=sharding.replicated(mesh), donate_argnums=1)
    return init(jax.random.key(seed), variables)


def count(params: dict) -> int:
    """Number of parameters in a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
