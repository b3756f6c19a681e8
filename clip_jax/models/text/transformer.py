"""Text transformers of CLIP (causal, pooled at the end-of-text token; arXiv 2103.00020, section
2.4), SigLIP (bidirectional, pooled at the last token; arXiv 2303.15343) and CoCa.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from clip_jax import lookup
from clip_jax.models import capture
from clip_jax.models.attention import token
from clip_jax.models.layers import (
    Embedding,
    Norm,
    Transformer,
    TransformerConfig,
    check_rates,
    check_sizes,
    example_keys,
)

VARIANTS: dict[str, dict[str, int]] = {
    # CLIP's tables 18 and 19, named after the image encoder that they were trained with.
    'B': {'width': 512, 'depth': 12, 'heads': 8, 'mlp_dim': 2048},
    'L': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'RN50': {'width': 512, 'depth': 12, 'heads': 8, 'mlp_dim': 2048},
    'RN50x4': {'width': 640, 'depth': 12, 'heads': 10, 'mlp_dim': 2560},
    'RN50x16': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'RN50x64': {'width': 1024, 'depth': 12, 'heads': 16, 'mlp_dim': 4096},
    # open_clip's, of ViT-S (and -alt), H and g, bigG, e (arXiv 2212.07143 and model_configs).
    'XS': {'width': 256, 'depth': 10, 'heads': 4, 'mlp_dim': 1024},
    'S': {'width': 384, 'depth': 12, 'heads': 6, 'mlp_dim': 1536},
    'H': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
    'PE-G': {'width': 1280, 'depth': 24, 'heads': 20, 'mlp_dim': 5120},
    'G': {'width': 1280, 'depth': 32, 'heads': 20, 'mlp_dim': 5120},
    'e': {'width': 1280, 'depth': 36, 'heads': 20, 'mlp_dim': 5120},
    # SigLIP's (arXiv 2303.15343), of the same size as its image encoders.
    'siglip-B': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'siglip-L': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
    'So400m': {'width': 1152, 'depth': 27, 'heads': 16, 'mlp_dim': 4304},
}
LOGICAL_AXES = {
    'token_embedding/embedding': ('vocab', 'width'),
    'position_embedding': ('length', 'width'),
}
POOLS = ('eot', 'argmax', 'last', 'cls')


class Encoder(nn.Module):
    """Text transformer: token ids int32 [B, L] -> features [B, width].

    Attributes:
        vocab_size: the number of token ids.
        context_length: the number of positions.
        width: features of a token.
        eot_id: the end-of-text token, for the pool 'eot'.
        pad_id: the padding token, which the pool 'cls' masks.
        pool: the token whose features are the output. 'eot': the first end-of-text token; 'argmax':
            the first largest id, as in OpenAI's code, where that is the end-of-text token; 'last':
            the last one, padding or not, so that L must be `context_length` (SigLIP, arXiv
            2303.15343); 'cls': a class token after the text, with padding masked (CoCa, arXiv
            2205.01917).
        depth, heads, mlp_dim, causal, activation, norm_eps, layer_scale, dropout, remat, scan,
            attention: see layers.TransformerConfig.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    eot_id: int | None = None
    pad_id: int = 0
    pool: str = 'eot'
    causal: bool = True
    activation: str = 'gelu'
    norm_eps: float = 1e-5
    layer_scale: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        lookup.check(self.pool, POOLS, what='models/text/transformer: pool')
        if self.pool == 'eot' and self.eot_id is None:
            raise ValueError("models/text/transformer: pool 'eot' needs the tokenizer's eot_id")
        if self.pool != 'eot':
            self.eot_id = None  # not used
        if self.pool != 'cls':
            self.pad_id = 0  # not used
        check_sizes(
            'models/text/transformer',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        check_rates('models/text/transformer', dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
        all_tokens: bool = False,
        index: jax.Array | None = None,
    ) -> Any:
        """Encodes texts.

        Args:
            tokens: token ids, int32 [B, L].
            train: whether dropout is on.
            example_index: see CLIP.
            all_tokens: whether to return the features of all tokens too, for a caption decoder.
            index: int32 [], a position: only the token there is encoded, with the keys and values
                of the earlier ones in the collection `cache`, which must be mutable.

        Returns:
            Features [B, width]; with `all_tokens` also those of the tokens, [B, L, width]; with
            `index` only those of that token, [B, 1, width].
        """
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        of_class = self.pool == 'cls'
        if self.pool in ('last', 'cls') and tokens.shape[1] != self.context_length:
            raise ValueError(
                f'models/text/transformer: pool {self.pool!r} needs texts of {self.context_length} '
                f'tokens, these have {tokens.shape[1]}; pad them'
            )
        small, mask = nn.initializers.normal(0.01), None
        embed = Embedding(self.vocab_size, self.width, std=0.02, name='token_embedding', **types)
        transformer = Transformer(TransformerConfig.of(self), name='transformer')
        norm = Norm(epsilon=self.norm_eps, name='post_norm', **types)
        last: Any = None
        if of_class:
            last = self.param('class_embedding', small, (self.width,), self.param_dtype)
            mask = padding_mask(tokens != self.pad_id)
        length = self.context_length + of_class
        positions = self.param('position_embedding', small, (length, self.width), self.param_dtype)
        if index is not None:
            x = embed(lax.dynamic_slice_in_dim(tokens, index, 1, axis=1))
            x = x + lax.dynamic_slice_in_dim(positions, index, 1).astype(x.dtype)
            earlier = (jnp.arange(tokens.shape[1]) <= index)[None, None, None]
            mask = earlier if mask is None else mask[..., : tokens.shape[1]] & earlier
            x = transformer(x, mask)
            return x if of_class else norm(x)
        x = embed(tokens)
        if of_class:
            last = jnp.broadcast_to(last.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([x, last], axis=1)
        x = x + positions[: x.shape[1]].astype(x.dtype)
        keys = None
        if train and self.dropout:
            keys = example_keys(self.make_rng('dropout'), example_index, x.shape[0])
        if self.pool in ('last', 'cls'):
            position = x.shape[1] - 1
        else:
            position = jnp.argmax(tokens == self.eot_id if self.pool == 'eot' else tokens, axis=1)
        if not all_tokens and not capture.wanted(self, capture.FEATURES):
            return norm(transformer(x, mask, keys, position)[:, 0])
        x = transformer(x, mask, keys)
        # As in open_clip, the norm at the end is of the class token alone.
        features = x[:, :-1] if of_class else norm(x)
        pooled = norm(token(x, position)) if of_class else token(features, position)
        capture.keep(self, 'tokens', features)
        return (pooled[:, 0], features) if all_tokens else pooled[:, 0]


def padding_mask(is_text: jax.Array) -> jax.Array:
    """Returns the mask of the pool 'cls', which hides padding: bool [B, 1, 1, L + 1].

    As in open_clip, with which published models were trained, the mask is shifted by one: position
    k is visible where token k - 1 is text.

    Args:
        is_text: bool [B, L]; False: padding. The class token comes after these tokens.
    """
    class_token = jnp.ones((is_text.shape[0], 1), bool)
    return jnp.concatenate([class_token, is_text], axis=1)[:, None, None]
