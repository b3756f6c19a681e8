"""Text encoders with fixed positions: the encoder of NLLB (arXiv 2207.04672), a translation model,
and that of TIPS (arXiv 2410.16512).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup
from clip_jax.models import capture
from clip_jax.models.layers import (
    Embedding,
    Norm,
    Transformer,
    TransformerConfig,
    check_rates,
    check_sizes,
    example_keys,
)
from clip_jax.models.text import _padded

VARIANTS: dict[str, dict[str, int]] = {
    '600M': {'width': 1024, 'depth': 12, 'heads': 16, 'mlp_dim': 4096},
    '1.3B': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 8192},
}
LOGICAL_AXES = {'token_embedding/embedding': ('vocab', 'width')}
POOLS = ('mean', 'cls')
NUMBERINGS = ('text', 'all')


class Encoder(nn.Module):
    """NLLB's encoder: token ids int32 [B, L] -> features [B, width]; padding is masked.

    Attributes:
        vocab_size: the number of token ids.
        context_length: the number of tokens of a text.
        width: features of a token, a multiple of 2.
        pad_id: the padding token.
        numbering: the positions of tokens. 'text': counted from pad_id + 1 without padding, which
            has none (NLLB); 'all': 0, 1, 2, … (TIPS).
        pool: what the output is. 'mean': the average of tokens that are not padding; 'cls': the
            first token's features (that of the language, in NLLB's texts).
        depth, heads, mlp_dim, activation, norm_eps, dropout, remat, scan, attention: see
            layers.TransformerConfig.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    pad_id: int
    numbering: str = 'text'
    pool: str = 'cls'
    activation: str = 'relu'
    norm_eps: float = 1e-5
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        lookup.check(self.pool, POOLS, what='models/text/nllb: pool')
        lookup.check(self.numbering, NUMBERINGS, what='models/text/nllb: numbering')
        check_sizes(
            'models/text/nllb',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        if self.width % 2 or self.width < 4:
            raise ValueError(
                f'models/text/nllb: width is {self.width}; expected an even number of at least 4, '
                'for the sines and cosines of positions'
            )
        check_rates('models/text/nllb', dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        is_text = tokens != self.pad_id
        # Times the root of the width, the embeddings have the size of the positions.
        embedding = Embedding(
            self.vocab_size, self.width, std=self.width**-0.5, name='token_embedding', **types
        )
        x = embedding(tokens) * math.sqrt(self.width)
        x = x + self._places(is_text).astype(x.dtype)
        keys = None
        if train and self.dropout:
            keys = example_keys(self.make_rng('dropout'), example_index, tokens.shape[0])
        x = _padded.dropout(x, self.dropout, keys, self.depth)
        transformer = Transformer(TransformerConfig.of(self), name='transformer')
        every = self.pool == 'mean' or capture.wanted(self, capture.FEATURES)
        x = transformer(x, _padded.mask(is_text), keys, None if every else 0)
        x = Norm(epsilon=self.norm_eps, name='post_norm', **types)(x)
        capture.keep(self, 'tokens', x)
        return _padded.mean(x, is_text) if self.pool == 'mean' else x[:, 0]

    def _places(self, is_text: jax.Array) -> jax.Array:
        """Embeds the positions of tokens: bool [B, L] -> float32 [B or 1, L, width]."""
        if self.numbering == 'all':
            return sines(jnp.arange(is_text.shape[1])[None], self.width)
        places = sines(_padded.positions(is_text, self.pad_id), self.width)
        return jnp.where(is_text[..., None], places, 0)


def sines(places: jax.Array, width: int) -> jax.Array:
    """Returns fixed embeddings of positions: int32 [...] -> float32 [..., width].

    Wavelengths are from 2 pi to 20,000 pi tokens; all sines come before all cosines.

    Args:
        places: positions.
        width: features, a multiple of 2.

    Source: Attention Is All You Need (arXiv 1706.03762), section 3.5.
    """
    frequency = jnp.exp(jnp.linspace(0, -math.log(10_000), width // 2))
    angles = places[..., None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
