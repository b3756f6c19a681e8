"""The caption decoder of CoCa (arXiv 2205.01917) and of captioners (CapPa, arXiv 2306.07915)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from clip_jax import lookup, sharding
from clip_jax.models import on_cpu
from clip_jax.models.attention import CACHE, attend, generating
from clip_jax.models.layers import (
    REMAT,
    Block,
    Embedding,
    Mlp,
    Norm,
    TransformerConfig,
    check_rates,
    check_sizes,
    dropout,
    example_keys,
    fold_in,
    layer_scaled,
)

LOGICAL_AXES = {
    'token_embedding/embedding': ('vocab', 'width'),
    'position_embedding': ('length', 'width'),
    'logits/kernel': ('width', 'vocab'),
}
INPUTS = ('text', 'tokens')


class Decoder(nn.Module):
    """Caption decoder: a text and the tokens of an image -> logits of the next tokens.

    Each of its layers is a block with causal self-attention and one with cross-attention to the
    image.

    Attributes:
        vocab_size: the number of token ids.
        context_length: the number of positions.
        width: features of a token.
        inputs: what it reads. 'text': the output of the text encoder at each token, which must be
            causal and of the same width (CoCa); 'tokens': embeddings of its own (CapPa).
        pad_id: the padding token, which is not predicted.
        depth: the number of layers.
        parallel: whether it has a mask token for parallel prediction (CapPa, section 3), which
            needs the inputs 'tokens'.
        heads, mlp_dim, activation, norm_eps, layer_scale, dropout, remat, attention: see
            layers.TransformerConfig.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    inputs: str = 'text'
    pad_id: int = 0
    parallel: bool = False
    activation: str = 'gelu'
    norm_eps: float = 1e-5
    layer_scale: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        what = 'models/decoder'
        lookup.check(self.inputs, INPUTS, what=f'{what}: inputs')
        check_sizes(
            what,
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        check_rates(what, dropout=self.dropout)
        if self.parallel and self.inputs != 'tokens':
            raise ValueError(
                f"{what}: parallel prediction needs inputs 'tokens'; inputs is {self.inputs!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        image: jax.Array,
        *,
        masked: jax.Array | None = None,
        index: jax.Array | None = None,
        train: bool = False,
        example_index: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the next token after each one.

        Args:
            inputs: of 'text' float [B, L, width], of 'tokens' int32 [B, L].
            image: tokens of the image, float [B, N, C].
            masked: bool [B]; where it is True, all inputs are the mask token, and each position
                attends to all others. None: nowhere.
            index: int32 [], a position: only the token there is decoded, with the keys and values
                of the earlier ones in the collection `cache`, which must be mutable. Of the inputs
                'text' only that one is given, [B, 1, width].
            train: whether dropout is on.
            example_index: int32 [B], see CLIP.

        Returns:
            Logits, float32 [B, L, vocab_size], or with `index` [B, 1, vocab_size].
        """
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        x = self._embedded(inputs, masked, index) if self.inputs == 'tokens' else inputs
        keys, causal, mask = None, True, None
        if train and self.dropout:
            keys = example_keys(self.make_rng('dropout'), example_index, x.shape[0])
        if index is not None:
            mask = (jnp.arange(self.context_length) <= index)[None, None, None]
        elif masked is not None:
            lower = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
            causal, mask = False, lower | masked[:, None, None, None]
        config = dataclasses.replace(TransformerConfig.of(self), causal=causal)
        block: Any = Block
        cross: Any = CrossBlock
        if self.remat != 'none':
            block, cross = (nn.remat(x, policy=REMAT[self.remat]) for x in (block, cross))
        out_std = (4 * self.depth * self.width) ** -0.5
        for i in range(self.depth):
            x = block(config, out_std, name=f'block_{i}')(x, mask, fold_in(keys, 2 * i))
            name = f'cross_block_{i}'
            x = cross(config, out_std, name=name)(x, image, fold_in(keys, 2 * i + 1))
        x = Norm(epsilon=self.norm_eps, name='post_norm', **types)(x)
        logits = nn.Dense(
            self.vocab_size,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.width**-0.5),
            dot_general=on_cpu.dot_general,
            name='logits',
            **types,
        )
        return logits(x).astype(jnp.float32)

    def _embedded(
        self, tokens: jax.Array, masked: jax.Array | None, index: jax.Array | None
    ) -> jax.Array:
        """Embeddings with positions of all tokens [B, L], or of the one at `index`."""
        types, small = {'dtype': self.dtype, 'param_dtype': self.param_dtype}, 0.02
        normal = nn.initializers.normal(small)
        if index is not None:
            tokens = lax.dynamic_slice_in_dim(tokens, index, 1, axis=1)
        x = Embedding(self.vocab_size, self.width, std=small, name='token_embedding', **types)(
            tokens
        )
        shape = (self.context_length, self.width)
        positions = self.param('position_embedding', normal, shape, self.param_dtype)
        if self.parallel:
            mask_token = self.param('mask_embedding', normal, (self.width,), self.param_dtype)
            if masked is not None:
                x = jnp.where(masked[:, None, None], mask_token.astype(x.dtype), x)
        start = 0 if index is None else index
        return x + lax.dynamic_slice_in_dim(positions, start, x.shape[1]).astype(x.dtype)

    def caption_sums(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
        """Sums the cross-entropy of captions, see caption_sums."""
        return caption_sums(logits, tokens, self.pad_id)


class CrossBlock(nn.Module):
    """x + attention(norm(x), norm(image)), then x + mlp(norm(x)): [B, L, width].

    `image` is [B, N, C]; `keys` are random keys [B], which turn dropout on.
    """

    config: TransformerConfig
    out_std: float  # initial standard deviation of the last layer of both branches

    @nn.compact
    def __call__(self, x: jax.Array, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        config, width = self.config, x.shape[-1]
        norm = functools.partial(Norm, epsilon=config.norm_eps, **config.types)
        x = sharding.constrain(x, 'batch', 'length', 'features')
        attention = CrossAttention(config, self.out_std, name='attention')
        y = attention(norm(name='attention_norm')(x), norm(name='image_norm')(image))
        x = x + dropout(layer_scaled(self, y, 'attention_scale'), config.dropout, fold_in(keys, 0))
        mlp = Mlp(
            mlp_dim=config.mlp_dim,
            activation=config.activation,
            in_std=(2 * width) ** -0.5,
            out_std=self.out_std,
            name='mlp',
            **config.types,
        )
        y = mlp(norm(name='mlp_norm')(x))
        return x + dropout(layer_scaled(self, y, 'mlp_scale'), config.dropout, fold_in(keys, 1))


class CrossAttention(nn.Module):
    """Multi-head attention of x [B, L, width] to an image [B, N, C]: [B, L, width].

    While captions are generated, the keys and values of the image are computed once.
    """

    config: TransformerConfig
    out_std: float

    @nn.compact
    def __call__(self, x: jax.Array, image: jax.Array) -> jax.Array:
        config, width = self.config, x.shape[-1]

        def heads(name: str, x: jax.Array) -> jax.Array:
            dense = nn.DenseGeneral(
                (config.heads, width // config.heads),
                kernel_init=nn.initializers.normal(x.shape[-1] ** -0.5),
                dot_general=on_cpu.dot_general,
                name=name,
                **config.types,
            )
            return sharding.constrain(dense(x), 'batch', 'length', 'heads', 'head_dim')

        query, names = heads('query', x), ('key', 'value')
        if generating(self) and self.has_variable(CACHE, 'key'):
            key, value = (self.get_variable(CACHE, name) for name in names)
        else:
            key, value = (heads(name, image) for name in names)
            if generating(self):
                self.put_variable(CACHE, 'key', key)
                self.put_variable(CACHE, 'value', value)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=nn.initializers.normal(self.out_std),
            dot_general=on_cpu.dot_general,
            name='out',
            **config.types,
        )(attend(query, key, value))


def fields(own: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any] | None:
    """Completes the fields of a decoder.

    Args:
        own: those that are set.
        text: the fields of the text encoder, which has the same tokens; its sizes are the default.

    Returns:
        The fields; None if none is set.

    Raises:
        ValueError: a field is unknown, or the depth is missing.
    """
    if not own:
        return None
    known = {field.name for field in dataclasses.fields(Decoder)}
    for name in own:
        lookup.check(name, known - {'parent', 'name', 'dtype', 'param_dtype'}, what='model.decoder')
    if 'depth' not in own:
        raise ValueError(f'model.decoder: {", ".join(own)} is set; expected depth too')
    tokens = {x: text[x] for x in ('vocab_size', 'context_length') if x in text}
    sizes = {x: text[x] for x in ('width', 'heads', 'mlp_dim') if x in text}
    return {**sizes, **own, **tokens, 'pad_id': text.get('pad_id') or 0}


def caption_sums(logits: jax.Array, tokens: jax.Array, pad_id: int) -> jax.Array:
    """Sums the cross-entropy of captions, whose padding is left out.

    Args:
        logits: of the next token after each one, float [B, L, vocab].
        tokens: int32 [B, L]; the first one is not predicted.
        pad_id: the padding token.

    Returns:
        float32 [B, 3]: the sum of -log p over the tokens of a caption, their number, and the number
        of those that are the most probable ones.
    """
    logits, labels = logits[:, :-1].astype(jnp.float32), tokens[:, 1:]
    counts = labels != pad_id
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - own
    right = own >= logits.max(axis=-1)
    return jnp.stack([jnp.sum(x, axis=1, where=counts) for x in (loss, counts, right)], axis=1)
