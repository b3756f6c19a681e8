"""LAMB."""

import optax


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Makes LAMB (arXiv 1904.00962, algorithm 2), Adam with a trust ratio for each tensor.

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    return optax.chain(adam, decay, optax.scale_by_trust_ratio(), rate)
