"""The layers that both encoders are made of: attention, MLP, residual block, transformer."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


def check_sizes(what: str, activation: str, *, width: int, heads: int, **others: int) -> None:
    """Raises ValueError for a size below 1, a width that does not divide into heads, or an unknown
    activation.
    """
    lookup.check(activation, ACTIVATIONS, what=f'{what}: activation')
    for name, size in {'width': width, 'heads': heads, **others}.items():
        if size < 1:
            raise ValueError(f'{what}: {name} is {size}; expected at least 1')
    if width % heads:
        raise ValueError(f'{what}: width {width} is not a multiple of heads {heads}')


class Norm(nn.LayerNorm):
    """Layer normalisation with float32 statistics, variance as the mean square deviation.

    Flax's faster E[x^2] - E[x]^2 loses digits, and published checkpoints were trained with the
    other.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, width] -> [B, L, width].

    `mask`: bool [B, 1, L or 1, L], from whom (rows) to whom one may look, beside `causal`.
    """

    heads: int
    causal: bool
    in_std: float
    out_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        qkv = nn.DenseGeneral(
            (3, self.heads, width // self.heads),
            kernel_init=nn.initializers.normal(self.in_std),
            name='qkv',
            **types,
        )(x)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        x = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=self.causal)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=nn.initializers.normal(self.out_std),
            name='out',
            **types,
        )(x)


class Mlp(nn.Module):
    """Two dense layers with an activation between: [..., width] -> [..., width]."""

    mlp_dim: int
    activation: str
    in_std: float
    out_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        normal = nn.initializers.normal
        width = x.shape[-1]
        x = dense(self.mlp_dim, kernel_init=normal(self.in_std), name='in')(x)
        x = ACTIVATIONS[self.activation](x)
        return dense(width, kernel_init=normal(self.out_std), name='out')(x)


class Transformer(nn.Module):
    """Pre-norm residual blocks: [B, L, width] -> [B, L, width]; `mask` as in Attention.

    Initial standard deviations are those of CLIP's released code: width^-1/2 into attention, (2
    width)^-1/2 into the MLP, and width^-1/2 (2 depth)^-1/2 out of both, so that the residual stream
    does not grow with depth.
    """

    depth: int
    heads: int
    mlp_dim: int
    activation: str = 'gelu'
    causal: bool = False
    norm_eps: float = 1e-5
    layer_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.depth):
            x = Block(
                heads=self.heads,
                mlp_dim=self.mlp_dim,
                activation=self.activation,
                causal=self.causal,
                norm_eps=self.norm_eps,
                layer_scale=self.layer_scale,
                out_std=(2 * self.depth * x.shape[-1]) ** -0.5,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f'block_{i}',
            )(x, mask)
        return x


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    A `layer_scale` other than 0 is the initial value of factors, one a feature, of both summands
    (LayerScale, arXiv 2103.17239, section 2).
    """

    heads: int
    mlp_dim: int
    activation: str
    causal: bool
    norm_eps: float
    layer_scale: float
    out_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        norm = functools.partial(Norm, epsilon=self.norm_eps, **types)
        y = norm(name='attention_norm')(x)
        y = Attention(
            heads=self.heads,
            causal=self.causal,
            in_std=width**-0.5,
            out_std=self.out_std,
            name='attention',
            **types,
        )(y, mask)
        x = x + self._scaled(y, 'attention_scale')
        y = norm(name='mlp_norm')(x)
        y = Mlp(
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            in_std=(2 * width) ** -0.5,
            out_std=self.out_std,
            name='mlp',
            **types,
        )(y)
        return x + self._scaled(y, 'mlp_scale')

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return x
        init = nn.initializers.constant(self.layer_scale)
        return x * self.param(name, init, x.shape[-1:], self.param_dtype).astype(x.dtype)
