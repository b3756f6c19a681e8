"""Stochastic gradient descent with momentum."""

import optax


def create(
    decay: optax.GradientTransformation,
    rate: optax.GradientTransformation,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Makes SGD with decoupled weight decay (arXiv 1711.05101, algorithm 1).

    Args:
        decay: adds weight decay.
        rate: multiplies by minus the learning rate.
        momentum: decay of the sum of gradients; 0: none is kept.
        nesterov: whether the momentum is Nesterov's.
        moment_dtype: dtype in which the sum is stored; None: that of the parameter.
    """
    if nesterov and not momentum:
        raise ValueError('optimizers/sgd: nesterov without momentum; expected momentum above 0')
    trace = optax.trace(momentum, nesterov=nesterov, accumulator_dtype=moment_dtype)
    return optax.chain(trace if momentum else optax.identity(), decay, rate)
