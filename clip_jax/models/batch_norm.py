"""Batch normalization, for encoders with convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import sharding


class BatchNorm(nn.Module):
    """Batch normalization (arXiv 1502.03167) over all axes but the last, in float32.

    In training it uses the statistics of the batch and updates the running averages `mean` and
    `var` of the collection `batch_stats`; in evaluation it uses the running averages. Under jit
    arrays are global, so this is synchronized batch norm on any mesh.

    Attributes:
        epsilon: added to the variance.
        momentum: decay of the running averages at a step; PyTorch calls 1 - momentum so.
        scale_init: initializer of the scale.
        dtype: the output's dtype.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (width,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (width,))
        scale = self.param('scale', self.scale_init, (width,))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        # Shard the convolution's output by batch, however its kernel is sharded.
        x = sharding.constrain(x, 'batch', *[None] * (x.ndim - 2), 'features').astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                self._update(running_mean, mean)
                # The unbiased variance, as in PyTorch, so that running averages mean the same when
                # training continues from published weights. Flax's BatchNorm takes the biased one,
                # which is much smaller where a small batch has few positions.
                count = x.size // width
                self._update(running_var, var * (count / max(count - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        x = (x - mean) * (scale / jnp.sqrt(var + self.epsilon)) + bias
        return x.astype(self.dtype)

    def _update(self, running: nn.Variable, value: jax.Array) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * value
