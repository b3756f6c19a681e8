"""Parts that several image encoders share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models import on_cpu
from clip_jax.models.layers import Mlp, Norm


class AttentionPool(nn.Module):
    """Attention pooling with one learned query, then an MLP: [B, L, width] -> [B, width].

    `mask`, bool [B, 1, 1, L], hides the tokens where it is False.
    """

    heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        probe = self.param('probe', nn.initializers.xavier_uniform(), (1, width), self.param_dtype)
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, width))
        attention: Any = nn.MultiHeadDotProductAttention(self.heads, name='attention', **types)
        x = attention(probe, x, mask=mask)
        y = Norm(epsilon=self.norm_eps, name='norm', **types)(x)
        mlp = Mlp(
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            in_std=(2 * width) ** -0.5,
            out_std=(2 * width) ** -0.5,
            name='mlp',
            **types,
        )
        return (x + mlp(y))[:, 0]


def patches(images: jax.Array, size: int) -> jax.Array:
    """Splits images into patches, row by row: [B, H, W, C] -> [B, H/size * W/size, size, size, C].

    Pixels on the right and at the bottom that do not fill a patch are dropped, as the convolutions
    of published models do: SigLIP's So400m/14 sees 378 of 384 pixels.
    """
    # A dense layer over patches equals the strided convolution of the papers; its gradient is much
    # faster on CPU.
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    images = images[:, : rows * size, : columns * size]
    x = images.reshape(batch, rows, size, columns, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size, size, channels)


def patch_dense(
    features: int,
    *,
    bias: bool,
    kernel_init: Any = nn.initializers.lecun_normal(),
    **rest: Any,
) -> nn.DenseGeneral:
    """Returns a dense layer over patches: [..., size, size, C] -> [..., features]."""
    return nn.DenseGeneral(
        features,
        axis=(-3, -2, -1),
        use_bias=bias,
        kernel_init=kernel_init,
        dot_general=on_cpu.dot_general,
        **rest,
    )


def prepended(token: jax.Array, x: jax.Array) -> jax.Array:
    """Puts one token [width] before those of each image: [B, L, width] -> [B, L + 1, width]."""
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([token, x], axis=1)
