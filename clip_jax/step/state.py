"""TrainState and its sharded initialization."""

import dataclasses
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.models import clip
from clip_jax.step import lora, projections, skip_updates
from clip_jax.step.optimizer import Optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes or needs.

    Attributes:
        step: int32 []; batches seen, including those whose update was skipped.
        params: float32 parameters: those of the model, and projections (see projections.py).
        buffers: the other collections of variables; `batch_stats` of a ResNet, none of a ViT.
        opt_state: the optimizer's state.
        ema: the moving average of the trained parameters; {} without one.
        teachers: the variables of models that the student learns from, by name; {} without any.
            Checkpoints do not have them.
        rng: uint32 [2], the data of the random key: a checkpoint has plain arrays only.
        skip_state: the state of skip_updates.
    """

    step: jax.Array
    params: dict
    buffers: dict
    opt_state: optax.OptState
    ema: dict
    rng: jax.Array
    skip_state: skip_updates.SkipState
    teachers: dict = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict:
        """The variables of `model.apply`: its own `params` and the buffers."""
        return {'params': projections.split(self.params)[0], **self.buffers}


def create(
    model: clip.CLIP,
    optimizer: Optimizer,
    *,
    seed: int,
    mesh: Mesh,
    variables: dict | None = None,
    shard_optimizer: bool = False,
    averaged: bool = False,
    projected: projections.Sizes | None = None,
) -> TrainState:
    """Initializes model and optimizer under jit, so that every array is created sharded.

    Args:
        model: the model.
        optimizer: the optimizer.
        seed: of the initialization and of dropout.
        mesh: the device mesh.
        variables: the model's initial variables, and adapters as `lora` among the parameters
            (donated); None: random ones without adapters.
        shard_optimizer: whether the optimizer's state is sharded over `data` too.
        averaged: whether the state has a moving average of the parameters.
        projected: the teachers to which embeddings are projected, with sizes.

    Returns:
        The state at step 0, sharded over the mesh.
    """
    init, key, shardings = _init(
        model, optimizer, seed, mesh, variables, shard_optimizer, averaged, projected or {}
    )
    return jax.jit(init, out_shardings=shardings, donate_argnums=1)(key, variables)


def _init(
    model: clip.CLIP,
    optimizer: Optimizer,
    seed: int,
    mesh: Mesh,
    variables: dict | None,
    shard_optimizer: bool,
    averaged: bool,
    projected: projections.Sizes,
) -> tuple[Callable[[jax.Array, dict | None], TrainState], jax.Array, TrainState]:
    """Returns the function that makes a state, its random key, and the state's shardings."""

    def init(key: jax.Array, variables: dict | None) -> TrainState:
        params_key, step_key = jax.random.split(key)
        buffers = clip.init(model, params_key) if variables is None else dict(variables)
        params = buffers.pop('params') | projections.init(projected, params_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            buffers=buffers,
            opt_state=optimizer.init(params),
            # A copy: an array cannot be donated twice.
            ema=jax.tree.map(jnp.copy, optimizer.split(params)[0]) if averaged else {},
            rng=jax.random.key_data(step_key),
            skip_state=skip_updates.init(),
        )

    key = jax.random.key(seed)
    axes = lora.logical_axes(projections.logical_axes(clip.logical_axes(model)))
    shapes = jax.eval_shape(init, key, variables)
    opt_state = sharding.of_tree(
        shapes.opt_state, mesh, optimizer_axes(axes), over_data=shard_optimizer
    )
    # Without the optimizer's state: factored moments have fewer axes than their parameters.
    others = sharding.of_tree(dataclasses.replace(shapes, opt_state=()), mesh, axes)
    shardings = dataclasses.replace(others, opt_state=opt_state)
    return init, key, shardings


def optimizer_axes(axes: sharding.LogicalAxes) -> sharding.LogicalAxes:
    """Returns the logical axes of an optimizer's state from those of the parameters.

    A moment has the axes of its parameter; what has others, as a factored moment, is replicated.
    """

    def of_state(path: str, ndim: int) -> tuple[str | None, ...]:
        found = axes(path, ndim)
        return tuple(found) if len(found) == ndim else (None,) * ndim

    return of_state


def abstract_state(
    model: clip.CLIP,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    variables: dict | None = None,
    shard_optimizer: bool = False,
    averaged: bool = False,
    projected: projections.Sizes | None = None,
) -> TrainState:
    """Returns the shapes, dtypes and shardings that `create` gives a new state; `variables` are
    shapes too.
    """
    init, key, shardings = _init(
        model, optimizer, 0, mesh, variables, shard_optimizer, averaged, projected or {}
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(init, key, variables),
        shardings,
    )


def count_parameters(params: dict) -> int:
    """Returns the number of parameters in a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
