"""Lion."""

import optax


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Makes Lion (arXiv 2302.06675, algorithm 2), the sign of an interpolated momentum.

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate; a tenth to a third of AdamW's.
        b1: weight of the momentum in the update.
        b2: decay of the momentum.
        moment_dtype: dtype in which the momentum is stored; None: that of the parameter.
    """
    return optax.chain(optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=moment_dtype), decay, rate)
