"""Layers that both encoders use: attention, MLP, residual block, transformer."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding
from clip_jax.models import cudnn_attention, on_cpu, on_gpu, short_attention, splash_attention
from clip_jax.models.activations import gelu
from clip_jax.models.attention import ATTENTION, Attention, Position, token

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': gelu,
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    'relu': nn.relu,
}

# The end of a parameter's path -> its logical axes; sharding.RULES maps these to mesh axes. The
# modules of encoders have tables for their own parameters (see models/clip.logical_axes).
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    'attention/qkv/kernel': ('width', 'qkv', 'heads', 'head_dim'),
    'attention/qkv/bias': ('qkv', 'heads', 'head_dim'),
    '(query|key|value)/kernel': ('width', 'heads', 'head_dim'),
    '(query|key|value)/bias': ('heads', 'head_dim'),
    'attention/(query|value)_bias': ('heads', 'head_dim'),
    'attention/out/kernel': ('heads', 'head_dim', 'width'),
    'mlp/gate/kernel': ('width', 'mlp'),
    'mlp/in/kernel': ('width', 'mlp'),
    'mlp/out/kernel': ('mlp', 'width'),
}


def _dots(primitive: Any, *inputs: Any, **params: Any) -> bool:
    policies, kernels = jax.checkpoint_policies, (short_attention.NAME, splash_attention.NAME)
    return (
        primitive.name == cudnn_attention.FORWARD
        or policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params)
        or policies.save_only_these_names(*kernels)(primitive, *inputs, **params)
    )


def _offload(primitive: Any, *inputs: Any, **params: Any) -> Any:
    if primitive.name == cudnn_attention.FORWARD:
        return True  # in the device's memory
    policies, where = jax.checkpoint_policies, ('device', 'pinned_host')
    if primitive.name == 'name':
        policy = policies.save_and_offload_only_these_names(
            # JAX offloads nothing that is inside of a jitted function, as JAX's kernel is.
            names_which_can_be_saved=(splash_attention.NAME,),
            names_which_can_be_offloaded=(short_attention.NAME,),
            offload_src=where[0],
            offload_dst=where[1],
        )
    else:
        policy = policies.offload_dot_with_no_batch_dims(*where)
    return policy(primitive, *inputs, **params)


# Rematerialization policies: which activations of a block are saved for the backward pass.
REMAT: dict[str, Callable | None] = {
    'none': None,  # all
    'dots': _dots,  # outputs of dense layers, and of attention kernels
    'offload': _offload,  # as dots, in the memory of the host
    'full': jax.checkpoint_policies.nothing_saveable,  # only the block's input
}


def logical_axes(
    path: str, ndim: int, table: Mapping[str, tuple[str, ...]] = LOGICAL_AXES
) -> tuple[str | None, ...]:
    """Looks up the logical axes of a parameter, or of its moments in an optimizer's state.

    Args:
        path: its path in the tree, with slashes between names.
        ndim: its number of axes.
        table: regular expression for one or more names at the end of a path -> logical axes.

    Returns:
        One name for each axis. Scalars and vectors are not sharded: None for each axis.

    Raises:
        ValueError: no entry of the table matches.
    """
    if ndim < 2:
        return (None,) * ndim
    for end, axes in table.items():
        if re.search(f'(^|/)({end})$', path):
            return axes
    raise ValueError(
        f'sharding: no logical axes for the parameter {path} with {ndim} axes; add it to '
        "LOGICAL_AXES in its encoder's module"
    )


def cast(params: Any, dtype: Any, logical_axes: sharding.LogicalAxes) -> Any:
    """Casts kernels and embeddings to the compute dtype once, before the all-gather.

    Args:
        params: a tree of float32 parameters.
        dtype: the compute dtype.
        logical_axes: names their axes, see models/clip.logical_axes.

    Returns:
        The tree with the same sharding; scalars and vectors stay float32.
    """
    params = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
    return sharding.constrain_tree(params, logical_axes)


def example_keys(key: jax.Array, example_index: jax.Array | None, count: int) -> jax.Array:
    """Returns a random key for each example, so that its dropout does not depend on the batch's
    sharding or on microbatches.

    Args:
        key: the key of the step.
        example_index: int32 [count], the examples' positions in the global batch; None: 0, 1, 2, …
        count: the number of examples.

    Returns:
        Keys [count].
    """
    index = jnp.arange(count) if example_index is None else example_index
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Applies dropout (Srivastava et al. 2014) with a random key for each example.

    Args:
        x: activations [B, ...].
        rate: probability that a value is set to 0; the others are divided by 1 - rate.
        keys: random keys [B]; None: no dropout, as in evaluation.
    """
    if not rate or keys is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def check_sizes(
    what: str, activation: str, *, width: int, heads: int, norm_eps: float = 1e-5, **others: int
) -> None:
    """Raises ValueError for a size below 1, a width that is not a multiple of `heads`, an epsilon
    that is not between 0 and 1, or an unknown activation.
    """
    lookup.check(activation, ACTIVATIONS, what=f'{what}: activation')
    for name, size in {'width': width, 'heads': heads, **others}.items():
        if isinstance(size, bool) or size < 1:
            raise ValueError(f'{what}: {name} is {size}; expected at least 1')
    if width % heads:
        raise ValueError(f'{what}: width {width} is not a multiple of heads {heads}')
    if not 0 < norm_eps < 1:
        raise ValueError(f'{what}: norm_eps is {norm_eps}; expected a number between 0 and 1')


def check_rates(what: str, **rates: float) -> None:
    """Raises ValueError for a dropout rate outside of [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f'{what}: {name} is {rate}; expected at least 0 and less than 1')


class Norm(nn.LayerNorm):
    """Layer normalization with float32 statistics and the variance E[(x - E[x])^2].

    Flax's default, E[x^2] - E[x]^2, is faster but loses precision, and published checkpoints were
    not trained with it.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        as_it_is, bits = x.dtype == self.dtype, 8 * x.dtype.itemsize
        if as_it_is and bits == 16 and sharding.platform() in ('gpu', 'cuda'):
            form = on_gpu.layer_norm
        elif as_it_is and bits == 32 and on_cpu.here():
            form = on_cpu.layer_norm
        else:
            return super().__call__(x)
        scale = self.param('scale', self.scale_init, x.shape[-1:], self.param_dtype)
        bias = self.param('bias', self.bias_init, x.shape[-1:], self.param_dtype)
        return form(x, scale, bias, self.epsilon)


class Embedding(nn.Module):
    """An embedding table: ids int32 [...] -> embeddings [..., width].

    Attributes:
        size: the number of ids.
        width: features of an embedding.
        std: initial standard deviation.
    """

    size: int
    width: int
    std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init, shape = nn.initializers.normal(self.std), (self.size, self.width)
        table = self.param('embedding', init, shape, self.param_dtype).astype(self.dtype)
        # All-gather the table before the lookup (and the scatter-add of its gradient). With a table
        # sharded over its width, the compiler would reshard the batch instead.
        return jnp.take(sharding.constrain(table, 'vocab', 'features'), ids, axis=0)


class Mlp(nn.Module):
    """Two dense layers with an activation between them: [..., width] -> [..., width].

    Attributes:
        mlp_dim: hidden features.
        activation: a key of ACTIVATIONS.
        in_std: initial standard deviation of the first layer.
        out_std: initial standard deviation of the second layer.
    """

    mlp_dim: int
    activation: str
    in_std: float
    out_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        dense = functools.partial(nn.Dense, dot_general=on_cpu.dot_general, **types)
        normal = nn.initializers.normal
        width = x.shape[-1]
        x = dense(self.mlp_dim, kernel_init=normal(self.in_std), name='in')(x)
        x = ACTIVATIONS[self.activation](sharding.constrain(x, 'batch', 'length', 'mlp'))
        return dense(width, kernel_init=normal(self.out_std), name='out')(x)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The fields of a transformer; encoders have fields of the same names.

    Attributes:
        depth: the number of blocks.
        heads: attention heads of a block.
        mlp_dim: hidden features of a block's MLP.
        activation: a key of ACTIVATIONS.
        causal: whether tokens attend only to earlier ones and to themselves.
        norm_eps: added to the variance in layer norms.
        norm_after: whether a layer norm comes after each residual sum, as in BERT, instead of
            before each branch.
        layer_scale: if not 0, the initial value of a learned factor for each feature of a branch's
            output (LayerScale, arXiv 2103.17239, section 2).
        dropout: dropout rate of a branch's output.
        remat: rematerialization policy, a key of REMAT.
        scan: whether to scan over the blocks, so that only one is compiled.
        attention: implementation of attention, see `attend`.
        dtype: the compute dtype.
        param_dtype: the dtype of the parameters.
    """

    depth: int
    heads: int
    mlp_dim: int
    activation: str = 'gelu'
    causal: bool = False
    norm_eps: float = 1e-5
    norm_after: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @classmethod
    def of(cls, encoder: nn.Module) -> 'TransformerConfig':
        """Reads the fields from an encoder's own; what it does not have keeps the default."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(encoder, name) for name in names if hasattr(encoder, name)})

    @property
    def types(self) -> dict[str, Any]:
        """The two dtypes, as keyword arguments of a Flax module."""
        return {'dtype': self.dtype, 'param_dtype': self.param_dtype}


class Transformer(nn.Module):
    """Transformer without a norm at its end: [B, L, width] -> [B, L, width].

    Initial standard deviations are those of CLIP's released code: width^-1/2 into attention, (2
    width)^-1/2 into the MLP, and (2 depth width)^-1/2 out of both, so that the residual stream does
    not grow with depth. Rematerialization and scan change neither parameters nor results.

    `mask` is as in Attention; `keys` are random keys [B], which turn dropout on. With `position`,
    the result is [B, 1, width], the output at that token; then, without scan, the last block
    computes no others.

    Attributes:
        config: its fields.
        block: the module of a block, with the fields and arguments of Block; None: Block.
    """

    config: TransformerConfig
    block: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        position: Position | None = None,
    ) -> jax.Array:
        config = self.config
        lookup.check(config.remat, REMAT, what='models/layers: remat')
        lookup.check(config.attention, ATTENTION, what='models/layers: attention')
        out_std = (2 * config.depth * x.shape[-1]) ** -0.5
        block = self.block or Block
        if config.scan and not self.is_initializing():
            x = self._scanned(block(config, out_std, parent=None), x, mask, keys)
            return x if position is None else token(x, position)
        if config.remat != 'none':
            # A number stays one: an array would be gathered by.
            static = (4,) if isinstance(position, int) else ()
            block = nn.remat(block, policy=REMAT[config.remat], static_argnums=static)
        for i in range(config.depth - 1):
            x = block(config, out_std, name=f'block_{i}')(x, mask, _fold_in(keys, i), None)
        last = block(config, out_std, name=f'block_{config.depth - 1}')
        keys = _fold_in(keys, config.depth - 1)
        # Whoever captures the outputs of blocks wants all tokens; dropout draws for all of them.
        if position is not None and (
            self.is_initializing()
            or self.is_mutable_collection('intermediates')
            or (config.dropout and keys is not None)
        ):
            return token(last(x, mask, keys, None), position)
        return last(x, mask, keys, position)

    def _scanned(
        self, block: nn.Module, x: jax.Array, mask: jax.Array | None, keys: jax.Array | None
    ) -> jax.Array:
        """Stacks the blocks' parameters and scans over them."""
        params = self.variables['params']
        blocks = [params[f'block_{i}'] for i in range(self.config.depth)]
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)
        stacked = sharding.constrain_tree(
            stacked, lambda path, n: ('layers', *logical_axes(path, n - 1))
        )

        def body(x: jax.Array, layer: tuple) -> tuple[Any, None]:
            params, i = layer
            return block.apply({'params': params}, x, mask, _fold_in(keys, i)), None

        if self.config.remat != 'none':
            body = jax.checkpoint(body, policy=REMAT[self.config.remat], prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, jnp.arange(self.config.depth)))[0]


def _fold_in(keys: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _norms(config: TransformerConfig) -> tuple[Callable, Callable]:
    """Returns what is done, (name, x) -> x, before a branch and after its residual sum."""

    def norm(name: str, x: jax.Array) -> jax.Array:
        return Norm(epsilon=config.norm_eps, name=name, **config.types)(x)

    def nothing(name: str, x: jax.Array) -> jax.Array:
        return x

    return (nothing, norm) if config.norm_after else (norm, nothing)


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + mlp(norm(x)); [B, L, width].

    With `norm_after` it is norm(x + attention(x)), then norm(x + mlp(x)). `mask`, `keys` and
    `position` are as in Transformer.
    """

    config: TransformerConfig
    out_std: float  # initial standard deviation of the last layer of both branches

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        position: Position | None = None,
    ) -> jax.Array:
        config, width = self.config, x.shape[-1]
        x = sharding.constrain(x, 'batch', 'length', 'features')
        before, after = _norms(config)
        x = on_cpu.computed_once(x)
        y = before('attention_norm', x)
        y = Attention(
            heads=config.heads,
            causal=config.causal,
            in_std=width**-0.5,
            out_std=self.out_std,
            implementation=config.attention,
            name='attention',
            **config.types,
        )(y, mask, position)
        x = x if position is None else token(x, position)
        y = scaled(self, y, 'attention_scale')
        x = x + dropout(y, config.dropout, _fold_in(keys, 0))
        x = on_cpu.computed_once(after('attention_norm', x))
        y = before('mlp_norm', x)
        y = Mlp(
            mlp_dim=config.mlp_dim,
            activation=config.activation,
            in_std=(2 * width) ** -0.5,
            out_std=self.out_std,
            name='mlp',
            **config.types,
        )(y)
        x = x + dropout(scaled(self, y, 'mlp_scale'), config.dropout, _fold_in(keys, 1))
        return after('mlp_norm', x)


def scaled(block: Any, x: jax.Array, name: str) -> jax.Array:
    """Multiplies a branch's output by its LayerScale, a parameter of the block, if it has one."""
    config = block.config
    if not config.layer_scale:
        return x
    init = nn.initializers.constant(config.layer_scale)
    return x * block.param(name, init, x.shape[-1:], config.param_dtype).astype(x.dtype)
