"""Attention: the layer, and the implementations among which it chooses."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import sharding
from clip_jax.models import (
    attention_choice,
    capture,
    cudnn_attention,
    on_cpu,
    short_attention,
    splash_attention,
)
from clip_jax.models.short_attention import Place

ATTENTION = ('auto', 'xla', 'short', 'splash', 'cudnn')
Position = int | jax.Array  # of a token: the same for all rows of a batch, or int32 [B]
CACHE = 'cache'  # the collection of keys and values of earlier tokens; see `generating`
KERNELS = {'tpu': 'short', 'gpu': 'cudnn', 'cuda': 'cudnn'}  # by the kind of device


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    implementation: str = 'xla',
) -> jax.Array:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(head_dim)) V.

    Matrix products use the inputs' dtype in the backward pass too, where those of
    jax.nn.dot_product_attention multiply by float32 gradients; logits and softmax are float32.

    Args:
        query: [B, Lq, heads, head_dim].
        key: [B, Lk, heads, head_dim].
        value: [B, Lk, heads, head_dim].
        mask: bool, broadcastable to [B, heads, Lq, Lk]; True: the query attends to the key.
        causal: whether a query attends only to keys at its own and earlier positions.
        implementation: 'xla'; 'short' for the kernel of short_attention; 'splash' for those of
            splash_attention; 'cudnn' for flash attention on CUDA GPUs; 'auto': 'short' on TPU,
            'splash' for more tokens than it takes, and 'cudnn' on GPU if they take the inputs,
            else 'xla'.

    Returns:
        [B, Lq, heads, head_dim].

    Raises:
        ValueError: the implementation is not for these inputs or this device.

    Source: Attention Is All You Need (arXiv 1706.03762), section 3.2.1.
    """
    implementation, place = _choose(implementation, query, key, value, mask)
    return _attend(implementation, place, query, key, value, mask, causal=causal)


def _attend(
    implementation: str,
    place: Place,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    causal: bool,
) -> jax.Array:
    if implementation == 'short':
        qkv = jnp.stack([x.reshape(*x.shape[:2], -1) for x in (query, key, value)])
        size = query.shape[-1]
        bias = jnp.zeros_like(qkv, shape=(3, qkv.shape[-1]))
        x = short_attention.attend(place, qkv, bias, mask, head_dim=size, causal=causal)
        return x.reshape(query.shape)
    if implementation == 'splash':
        shown = None if mask is None else short_attention.of_keys(mask, query.shape[:2])
        return splash_attention.attend(*place, query, key, value, shown, causal=causal)
    if implementation == 'cudnn':
        return cudnn_attention.attend(query, key, value, mask, causal=causal)
    return _plain(query, key, value, mask, causal=causal)


def _plain(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool
) -> jax.Array:
    # XLA's CPU backend makes slow copies for products whose batch and heads do not come first.
    heads_first = on_cpu.here()
    if heads_first:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    weights = _weights(heads_first, query, key, mask, causal=causal).astype(value.dtype)
    if heads_first:
        return jnp.einsum('bhqk,bhkd->bhqd', weights, value).swapaxes(1, 2)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def _weights(
    heads_first: bool,
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None,
    *,
    causal: bool,
) -> jax.Array:
    """softmax(Q K^T / sqrt(head_dim)) of queries and keys [B, L, heads, head_dim], or [B, heads, L,
    head_dim] if `heads_first`: float32 [B, heads, Lq, Lk].
    """
    logits = _logits(heads_first, query, key) * query.shape[-1] ** -0.5
    if causal:
        lower = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = lower if mask is None else mask & lower
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits)


def keep_weights(
    module: nn.Module,
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
) -> None:
    """Stores the attention weights, float32 [B, heads, Lq, Lk], for whoever captures them.

    Args:
        module: the attention layer.
        query, key, mask, causal: as in `attend`.
    """
    if capture.wanted(module, capture.ATTENTION):
        weights = _weights(False, query, key, mask, causal=causal)
        module.sow(capture.ATTENTION, 'weights', weights)


def _choose(
    wanted: str, query: Any, key: Any, value: Any, mask: jax.Array | None
) -> tuple[str, Place]:
    """Returns the implementation for arrays, or for shapes and dtypes, and where it runs."""
    spec = sharding.place(query.shape, 'batch', 'length', 'heads', 'head_dim')
    place = Place(spec, sharding.platform())
    kernel, device = KERNELS.get(place.platform), place.platform
    if wanted == 'cudnn' != kernel:
        raise ValueError(f'model.attention cudnn needs a CUDA GPU; JAX runs on {device}')
    if kernel == 'short' and query.shape[1] > short_attention.LENGTHS[1]:
        kernel = 'splash'
    name = kernel if wanted == 'auto' else wanted
    if name is None or name == 'xla':
        reason = '' if wanted == 'xla' else f'there is no kernel for {device}'
        attention_choice.note('xla', reason, query)
        return 'xla', place
    if name == 'short':
        refusal = short_attention.refusal(place, query, key, value, mask)
    elif name == 'splash':
        refusal = splash_attention.refusal(query)
        refusal = refusal or short_attention.wrong_inputs(query, key, value, mask)
    else:
        refusal = cudnn_attention.refusal(query)
    if refusal and wanted != 'auto':
        raise ValueError(f'model.attention {name}: {refusal}; choose auto or xla')
    implementation = 'xla' if refusal else name
    reason = f'{name}: {refusal}' if refusal else f'on {device}'
    attention_choice.note(implementation, reason if wanted == 'auto' else '', query)
    return implementation, place


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logits(heads_first: bool, query: jax.Array, key: jax.Array) -> jax.Array:
    form = 'bhqd,bhkd->bhqk' if heads_first else 'bqhd,bkhd->bhqk'
    return jnp.einsum(form, query, key, preferred_element_type=jnp.float32)


@_logits.defjvp
def _logits_jvp(heads_first: bool, inputs: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (query, key), (to_query, to_key) = inputs, tangents
    form = 'bhqd,bhkd->bhqk' if heads_first else 'bqhd,bkhd->bhqk'
    # In the dtype of the inputs, so that the products of the transpose, the backward pass, are too.
    tangent = jnp.einsum(form, to_query, key)
    tangent += jnp.einsum(form, query, to_key)
    return _logits(heads_first, query, key), tangent.astype(jnp.float32)


def token(x: jax.Array, position: Position) -> jax.Array:
    """Takes one token of each row: [B, L, width] -> [B, 1, width]."""
    if isinstance(position, int):
        return x[:, position][:, None]
    return jnp.take_along_axis(x, position[:, None, None], axis=1)


def generating(module: nn.Module) -> bool:
    """Whether tokens are generated one by one: the collection CACHE is mutable."""
    return capture.wanted(module, CACHE)


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, width] -> [B, L, width].

    `mask` is a bool array that broadcasts to [B, heads, L (queries), L (keys)]; it is combined with
    the causal mask. With `position` only that token is a query, and the result is [B, 1, width];
    `mask` is then the same for all queries. While tokens are generated one by one, x is the next
    one, [B, 1, width], and `mask` says to which of all positions it attends, the causal mask
    included; the collection `cache` keeps keys and values.

    Attributes:
        heads: the number of attention heads.
        causal: whether tokens attend only to earlier ones and to themselves.
        in_std: initial standard deviation of the query, key and value projections.
        out_std: initial standard deviation of the output projection.
        implementation: see `attend`.
    """

    heads: int
    causal: bool
    in_std: float
    out_std: float
    implementation: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, position: Position | None = None
    ) -> jax.Array:
        width = x.shape[-1]
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        heads = jax.ShapeDtypeStruct((*x.shape[:2], self.heads, width // self.heads), self.dtype)
        # Initialization is compiled for any device, and nothing depends on its result.
        asked = generating(self) or capture.wanted(self, capture.ATTENTION)
        plain = self.is_initializing() or asked
        wanted = 'xla' if plain else self.implementation
        implementation, place = _choose(wanted, heads, heads, heads, mask)
        if position is not None:
            qkv = self.variables['params']['qkv']
            x = _of_token(qkv, x.astype(self.dtype), mask, position, causal=self.causal)
        elif implementation == 'short':
            params = jax.tree.map(lambda p: p.astype(self.dtype), self.variables['params'])
            x = x.astype(self.dtype)
            return short_attention.layer(place, params, x, mask, causal=self.causal)
        else:
            qkv = nn.DenseGeneral(
                (3, self.heads, width // self.heads),
                kernel_init=nn.initializers.normal(self.in_std),
                dot_general=on_cpu.dot_general,
                name='qkv',
                **types,
            )(x)
            query, key, value = _split(qkv, place)
            if generating(self):
                assert mask is not None  # as the docstring says
                key, value = self._appended(key, value, mask.shape[-1])
            causal = self.causal and not generating(self)
            keep_weights(self, query, key, mask, causal=causal)
            x = _attend(implementation, place, query, key, value, mask, causal=causal)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=nn.initializers.normal(self.out_std),
            dot_general=on_cpu.dot_general,
            name='out',
            **types,
        )(x)

    def _appended(
        self, key: jax.Array, value: jax.Array, length: int
    ) -> tuple[jax.Array, jax.Array]:
        """Puts keys and values [B, 1, heads, head_dim] after those of earlier tokens in the cache,
        which has `length` positions; returns all of them.
        """
        index = self.variable(CACHE, 'index', jnp.zeros, (), jnp.int32)
        shape = (key.shape[0], length, *key.shape[2:])
        stored = []
        for name, x in (('key', key), ('value', value)):
            kept = self.variable(CACHE, name, jnp.zeros, shape, x.dtype)
            kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, x, index.value, axis=1)
            stored.append(kept.value)
        index.value += 1
        return stored[0], stored[1]


def _of_token(
    params: dict, x: jax.Array, mask: jax.Array | None, position: Position, *, causal: bool
) -> jax.Array:
    """Attention of one query: [B, L, width] -> [B, 1, heads, head_dim], by the `params` of qkv."""
    kernel, bias = (params[name].astype(x.dtype) for name in ('kernel', 'bias'))
    dimensions = (((2,), (0,)), ((), ()))
    with jax.named_scope('qkv'):  # as the module is called in profiles
        query = on_cpu.dot_general(token(x, position), kernel[:, 0], dimensions) + bias[0]
        key_value = on_cpu.dot_general(x, kernel[:, 1:], dimensions) + bias[1:]
    key_value = sharding.constrain(key_value, 'batch', 'length', 'qkv', 'heads', 'head_dim')
    if causal:
        length = x.shape[1]
        last = jnp.reshape(position % length, (-1, 1, 1, 1))
        earlier = jnp.arange(length) <= last
        mask = earlier if mask is None else mask & earlier
    return _plain(query, key_value[:, :, 0], key_value[:, :, 1], mask, causal=False)


def _split(qkv: jax.Array, place: Place) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits [B, L, 3, heads, head_dim] into queries, keys and values."""
    qkv = sharding.constrain(qkv, 'batch', 'length', 'qkv', 'heads', 'head_dim')
    if KERNELS.get(place.platform) == 'cudnn':
        # XLA would transpose qkv of all blocks of a scan at once, and its gradient twice.
        query, key, value = (qkv[..., i, :, :] for i in range(3))
    else:
        parts = jax.lax.split(on_cpu.gradient_computed_once(qkv), (1, 1, 1), qkv.ndim - 3)
        query, key, value = (part.squeeze(-3) for part in parts)
    return query, key, value
