"""The layers that both encoders are made of: attention, MLP, residual block, transformer."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}

# The end of a parameter's path -> what its axes are; sharding.RULES says where these lie.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    'attention/qkv/kernel': ('width', 'qkv', 'heads', 'head_dim'),
    'attention/qkv/bias': ('qkv', 'heads', 'head_dim'),
    '(query|key|value)/kernel': ('width', 'heads', 'head_dim'),
    '(query|key|value)/bias': ('heads', 'head_dim'),
    'attention/out/kernel': ('heads', 'head_dim', 'width'),
    'mlp/in/kernel': ('width', 'mlp'),
    'mlp/out/kernel': ('mlp', 'width'),
    'patch_embedding/kernel': ('pixels', 'pixels', 'channels', 'width'),
    r'conv(_\d+)?/kernel': ('pixels', 'pixels', 'channels', 'width'),
    'token_embedding/embedding': ('vocab', 'width'),
    'position_embedding': ('length', 'width'),
    'probe': ('length', 'width'),
    '_projection/kernel': ('width', 'embed'),
}
# What the backward pass finds again of a block's forward pass, and what it has to compute anew.
REMAT: dict[str, Callable | None] = {
    'none': None,  # everything is kept
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # dense layers' outputs are
    'full': jax.checkpoint_policies.nothing_saveable,  # a block's input alone
}
ATTENTION = ('xla', 'cudnn')


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Names the axes of a parameter, or of its part of an optimizer's state; vectors have none."""
    if ndim < 2:
        return (None,) * ndim
    for end, words in LOGICAL_AXES.items():
        if re.search(f'{end}$', path):
            return words
    raise ValueError(f'models/layers: AXES has no row for the parameter {path} with {ndim} axes')


def cast(params: Any, dtype: Any) -> Any:
    """Rounds kernels and embeddings to the type of arithmetic, once, before they travel."""
    cast = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
    return sharding.constrain_tree(cast, logical_axes)


def row_keys(key: jax.Array, example_index: jax.Array | None, count: int) -> jax.Array:
    """Random keys, one a row of a batch of `count`: what a row draws depends on its number alone,
    which is its place where no `example_index` is given.
    """
    index = jnp.arange(count) if example_index is None else example_index
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Sets a share of the numbers of each row to 0 and enlarges the others; `keys`: one a row."""
    if not rate or keys is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


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


def check_shares(what: str, **shares: float) -> None:
    """Raises ValueError for a share that is to be left out and is not from 0 to below 1."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f'{what}: {name} {share} is not from 0 to below 1')


class Norm(nn.LayerNorm):
    """Layer normalization with float32 statistics, variance as the mean square deviation.

    Flax's faster E[x^2] - E[x]^2 loses digits, and published checkpoints were trained with the
    other.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False


class Embedding(nn.Module):
    """A learned row for each of `size` ids: int32 [...] -> [..., width]."""

    size: int
    width: int
    std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init, shape = nn.initializers.normal(self.std), (self.size, self.width)
        table = self.param('embedding', init, shape, self.param_dtype).astype(self.dtype)
        # Rows are looked up in, and their gradients added into, a whole table: of one dealt out
        # over its width, the compiler would move the batch to where the table lies.
        return jnp.take(sharding.constrain(table, 'vocab', 'features'), ids, axis=0)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    implementation: str = 'xla',
) -> jax.Array:
    """Scaled dot-product attention (arXiv 1706.03762, section 3.2.1): [B, L, heads, head_dim] each,
    `mask` as in Attention.

    Products take the inputs' type, backward too, where JAX's own would multiply by float32 numbers;
    logits and softmax are float32.
    """
    if implementation == 'cudnn':
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation='cudnn'
        )
    logits = _logits(query, key) * query.shape[-1] ** -0.5
    if causal:
        seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = seen if mask is None else mask & seen
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


@jax.custom_vjp
def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)


def _logits_backward(inputs: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple:
    query, key = inputs
    slope = slope.astype(query.dtype)
    to_query = jnp.einsum('bhqk,bkhd->bqhd', slope, key)
    return to_query, jnp.einsum('bhqk,bqhd->bkhd', slope, query)


_logits.defvjp(lambda query, key: (_logits(query, key), (query, key)), _logits_backward)


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, width] -> [B, L, width].

    `mask`: bool [B, 1, L or 1, L], from whom (rows) to whom one may look, beside `causal`.
    """

    heads: int
    causal: bool
    in_std: float
    out_std: float
    implementation: str
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
        qkv = sharding.constrain(qkv, 'batch', 'length', 'qkv', 'heads', 'head_dim')
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        x = attend(query, key, value, mask, causal=self.causal, implementation=self.implementation)
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
        x = ACTIVATIONS[self.activation](sharding.constrain(x, 'batch', 'length', 'mlp'))
        return dense(width, kernel_init=normal(self.out_std), name='out')(x)


class Transformer(nn.Module):
    """Pre-norm residual blocks: [B, L, width] -> [B, L, width]; `mask` as in Attention.

    Initial standard deviations are those of CLIP's released code: width^-1/2 into attention, (2
    width)^-1/2 into the MLP, and width^-1/2 (2 depth)^-1/2 out of both, so that the residual stream
    does not grow with depth. With `keys`, one a row, a share `dropout` of each branch's outputs is
    left out. `remat` (see REMAT) and `scan`, one compiled block for all, save memory and time of
    compilation and change neither parameters nor results.
    """

    depth: int
    heads: int
    mlp_dim: int
    activation: str = 'gelu'
    causal: bool = False
    norm_eps: float = 1e-5
    layer_scale: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        lookup.check(self.remat, REMAT, what='models/layers: remat')
        lookup.check(self.attention, ATTENTION, what='models/layers: attention')
        fields = {
            'heads': self.heads,
            'mlp_dim': self.mlp_dim,
            'activation': self.activation,
            'causal': self.causal,
            'norm_eps': self.norm_eps,
            'layer_scale': self.layer_scale,
            'dropout': self.dropout,
            'attention': self.attention,
            'out_std': (2 * self.depth * x.shape[-1]) ** -0.5,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
        }
        if self.scan and not self.is_initializing():
            return self._scanned(Block(**fields, parent=None), x, mask, keys)
        block = Block
        if self.remat != 'none':
            block = nn.remat(Block, policy=REMAT[self.remat])
        for i in range(self.depth):
            x = block(**fields, name=f'block_{i}')(x, mask, _fold_in(keys, i))
        return x

    def _scanned(
        self, block: 'Block', x: jax.Array, mask: jax.Array | None, keys: jax.Array | None
    ) -> jax.Array:
        """Stacks the blocks' parameters and loops over them."""
        params = self.variables['params']
        blocks = [params[f'block_{i}'] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)
        stacked = sharding.constrain_tree(
            stacked, lambda path, n: ('layers', *logical_axes(path, n - 1))
        )

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            params, i = layer
            return block.apply({'params': params}, x, mask, _fold_in(keys, i)), None

        if self.remat != 'none':
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, jnp.arange(self.depth)))[0]


def _fold_in(keys: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


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
    dropout: float
    attention: str
    out_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        width = x.shape[-1]
        x = sharding.constrain(x, 'batch', 'length', 'features')
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        norm = functools.partial(Norm, epsilon=self.norm_eps, **types)
        y = norm(name='attention_norm')(x)
        y = Attention(
            heads=self.heads,
            causal=self.causal,
            in_std=width**-0.5,
            out_std=self.out_std,
            implementation=self.attention,
            name='attention',
            **types,
        )(y, mask)
        x = x + dropout(self._scaled(y, 'attention_scale'), self.dropout, _fold_in(keys, 0))
        y = norm(name='mlp_norm')(x)
        y = Mlp(
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            in_std=(2 * width) ** -0.5,
            out_std=self.out_std,
            name='mlp',
            **types,
        )(y)
        return x + dropout(self._scaled(y, 'mlp_scale'), self.dropout, _fold_in(keys, 1))

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return x
        init = nn.initializers.constant(self.layer_scale)
        return x * self.param(name, init, x.shape[-1:], self.param_dtype).astype(x.dtype)
