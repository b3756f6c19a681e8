"""Muon for the matrices of the blocks, AdamW for the rest."""

import math
from typing import Any

import jax
import optax
from optax import contrib

from clip_jax import sharding

# The matrices in a block: name -> the axes that are summed over, and those of the output. Queries,
# keys and values, on axis 1 of theirs, are three matrices.
_MATRICES = {
    'attention/qkv': contrib.MuonDimensionNumbers((0,), (2, 3)),
    'attention/out': contrib.MuonDimensionNumbers((0, 1), (2,)),
    'mlp/in': contrib.MuonDimensionNumbers((0,), (1,)),
    'mlp/out': contrib.MuonDimensionNumbers((0,), (1,)),
}


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-6,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Makes Muon (Jordan et al., 2024), which orthogonalizes the momentum of matrices.

    Updates are scaled so that their root mean square is about `rms`, AdamW's usual one: one
    learning rate and weight decay serve both (arXiv 2502.16982, section 2.2).

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        momentum: decay of the matrices' momentum.
        nesterov: whether the momentum is Nesterov's.
        iterations: Newton-Schulz iterations.
        rms: root mean square of an update before the learning rate.
        b1, b2, eps: AdamW's, for all that is no matrix of a block.
        moment_dtype: dtype in which first moments are stored; None: that of the parameter.
    """
    muon = optax.chain(
        contrib.scale_by_muon(
            ns_steps=iterations,
            beta=momentum,
            nesterov=nesterov,
            mu_dtype=moment_dtype,
            weight_dimension_numbers=lambda tree: jax.tree.map_with_path(_dimensions, tree),
        ),
        optax.stateless(lambda updates, params: jax.tree.map_with_path(_scaled(rms), updates)),
    )
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moment_dtype)
    both = optax.partition({'muon': muon, 'adam': adam}, _labels)
    return optax.chain(both, decay, rate)


def _dimensions(path: tuple, x: Any) -> Any:
    """The axes of a block's matrix, None for other parameters."""
    del x
    name = sharding.path_name(path)
    block, _, inside = name.rpartition('/kernel')[0].rpartition('block_')
    return _MATRICES.get(inside.partition('/')[2]) if block else None


def _labels(params: Any) -> Any:
    return jax.tree.map_with_path(lambda p, x: 'muon' if _dimensions(p, x) else 'adam', params)


def _scaled(rms: float) -> Any:
    def one(path: tuple, x: jax.Array) -> jax.Array:
        axes = _dimensions(path, x)
        assert axes is not None
        sides = [math.prod(x.shape[i] for i in side) for side in axes]
        return x * (rms * math.sqrt(max(sides)))

    return one
