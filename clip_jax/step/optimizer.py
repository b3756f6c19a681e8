"""The optimizer of a run: a plug-in of step/optimizers between clipping, rules and rates."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from clip_jax.step import rules, updates
from clip_jax.step.rules import Settings


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer of the parameters that are trained; the others have neither gradient nor state.

    Attributes:
        transformation: gradients of the trained parameters -> their updates.
        schedule: step -> learning rate.
        settings: how each parameter is trained.
        average: (opt_state, trained parameters) -> the parameters to evaluate, for an optimizer
            that has others than it trains; else None.
    """

    transformation: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    settings: Settings
    average: Callable[[Any, Any], Any] | None = None

    def split(self, params: Mapping[str, Any]) -> tuple[dict, dict]:
        """Splits parameters into those that are trained and those that are frozen."""
        return rules.split(params, self.settings)

    def init(self, params: Mapping[str, Any]) -> optax.OptState:
        """Returns the state for a tree of all parameters."""
        return self.transformation.init(self.split(params)[0])

    def averaged(self, params: Mapping[str, Any], state: optax.OptState, ema: Any) -> dict | None:
        """Returns the average of the trained parameters, None if there is none.

        Args:
            params: all parameters.
            state: the optimizer's state.
            ema: the moving average, {} without one; it comes before the optimizer's own average.
        """
        if ema or self.average is None:
            return ema or None
        return jax.jit(self.average)(state, self.split(params)[0])

    def locked(self, tower: str) -> bool:
        """Whether all parameters of an encoder, and its adapters, are frozen."""
        return not any(
            x.trained
            for name, x in self.settings.items()
            if rules.adapted(name).startswith(f'{tower}/')
        )

    def active(self, gradients: Any, step: jax.Array) -> Any:
        """Zeroes gradients of parameters that are trained only from a later step on."""
        return updates.hold_back(gradients, self.settings, step)

    def update(
        self, gradients: Any, state: optax.OptState, trained: Any, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, optax.OptState]:
        """Returns the updates of the trained parameters, and the next state.

        Args:
            gradients: of the trained parameters.
            state: the optimizer's state.
            trained: the parameters that are trained.
            step: steps made so far, int32 [].
            **extra: what the transformations may use, such as the norm of the gradients,
                `grad_norm`.
        """
        found, state = self.transformation.update(gradients, state, trained, **extra)
        return updates.hold_back(found, self.settings, step), state


def make(
    create: Callable[..., optax.GradientTransformation],
    settings: Settings,
    schedule: optax.Schedule,
    *,
    grad_clip_norm: float,
    average: Callable[[Any, Any], Any] | None = None,
) -> Optimizer:
    """Puts clipping, weight decay, learning rates and the bound on the logit scale around a method.

    Args:
        create: (decay, rate) -> transformation, `create` of a plug-in with its options bound.
        settings: how each parameter is trained.
        schedule: step -> learning rate.
        grad_clip_norm: maximum global norm of the gradient; 0: not clipped.
        average: see Optimizer.
    """
    chain = optax.chain(
        updates.clip_by_global_norm(grad_clip_norm) if grad_clip_norm else optax.identity(),
        create(updates.add_weight_decay(settings), updates.scale_by_rates(settings, schedule)),
        updates.bound_logit_scale(),
    )
    return Optimizer(optax.with_extra_args_support(chain), schedule, settings, average)
