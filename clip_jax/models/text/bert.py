"""BERT (arXiv 1810.04805), RoBERTa (arXiv 1907.11692) and XLM-R (arXiv 1911.02116) as encoders of
texts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup
from clip_jax.models import attention, capture
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

_BASE = {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072}
_LARGE = {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096}
_OF_BERT = {'max_positions': 512, 'token_types': 2, 'norm_eps': 1e-12, 'numbering': 'all'}
_OF_ROBERTA = {'max_positions': 514}
VARIANTS: dict[str, dict[str, int | float | str]] = {
    'bert-base': {**_BASE, **_OF_BERT},
    'bert-large': {**_LARGE, **_OF_BERT},
    'roberta-base': {**_BASE, **_OF_ROBERTA},
    'roberta-large': {**_LARGE, **_OF_ROBERTA},
}
LOGICAL_AXES = {
    'token_embedding/embedding': ('vocab', 'width'),
    'position_embedding/embedding': ('length', 'width'),
    'type_embedding': (None, 'width'),
    'pooler/kernel': ('width', 'embed'),
}
POOLS = ('mean', 'cls', 'cls_dense')
NUMBERINGS = ('text', 'all')


class Encoder(nn.Module):
    """BERT's transformer: token ids int32 [B, L] -> features [B, width]; padding is masked.

    Attributes:
        vocab_size: the number of token ids.
        context_length: the number of tokens of a text.
        width: features of a token.
        pad_id: the padding token.
        max_positions: rows of the table of position embeddings; 0: as many as are needed.
        token_types: rows of the table of token types; texts are of the first.
        numbering: which row of the table of positions a token has. 'text': counted from pad_id + 1
            without padding (RoBERTa, XLM-R); 'all': 0, 1, 2, … (BERT).
        pool: what the output is. 'mean': the average of tokens that are not padding; 'cls': the
            first token's features; 'cls_dense': these, after a layer with tanh (BERT's pooler).
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
    max_positions: int = 0
    token_types: int = 1
    numbering: str = 'text'
    pool: str = 'mean'
    activation: str = 'gelu'
    norm_eps: float = 1e-5
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    norm_after = True  # of layers.TransformerConfig

    def __post_init__(self):
        lookup.check(self.pool, POOLS, what='models/text/bert: pool')
        lookup.check(self.numbering, NUMBERINGS, what='models/text/bert: numbering')
        needed = self.context_length + (self.pad_id + 1 if self.numbering == 'text' else 0)
        self.max_positions = self.max_positions or needed
        if self.max_positions < needed:
            raise ValueError(
                f'models/text/bert: max_positions is {self.max_positions}; texts of '
                f'{self.context_length} tokens need {needed}'
            )
        check_sizes(
            'models/text/bert',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            token_types=self.token_types,
        )
        check_rates('models/text/bert', dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        is_text = tokens != self.pad_id
        keys = None
        if train and self.dropout:
            keys = example_keys(self.make_rng('dropout'), example_index, tokens.shape[0])
        x = self._embedded(tokens, is_text)
        x = _padded.dropout(x, self.dropout, keys, self.depth)
        transformer = Transformer(TransformerConfig.of(self), name='transformer')
        every = self.pool == 'mean' or capture.wanted(self, capture.FEATURES)
        first: attention.Position | None = None if every else 0
        x = transformer(x, _padded.mask(is_text), keys, first)
        capture.keep(self, 'tokens', x)
        if self.pool == 'mean':
            return _padded.mean(x, is_text)
        x = x[:, 0]
        if self.pool == 'cls':
            return x
        init = nn.initializers.normal(0.02)
        return jnp.tanh(nn.Dense(self.width, kernel_init=init, name='pooler', **types)(x))

    def _embedded(self, tokens: jax.Array, is_text: jax.Array) -> jax.Array:
        """Embeds tokens, their positions and their type: [B, L] -> [B, L, width]."""
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        if tokens.shape[1] > self.context_length:
            raise ValueError(
                f'models/text/bert: texts of {tokens.shape[1]} tokens; expected at most '
                f'context_length, {self.context_length}'
            )
        embedding = nn.initializers.normal(0.02)
        x = Embedding(self.vocab_size, self.width, std=0.02, name='token_embedding', **types)(
            tokens
        )
        shape = (self.token_types, self.width)
        of_type = self.param('type_embedding', embedding, shape, self.param_dtype)[0]
        if self.numbering == 'text':
            places = _padded.positions(is_text, self.pad_id)
        else:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        table = Embedding(
            self.max_positions, self.width, std=0.02, name='position_embedding', **types
        )
        x = x + of_type.astype(x.dtype) + table(places)
        return Norm(epsilon=self.norm_eps, name='pre_norm', **types)(x)
