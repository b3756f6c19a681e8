"""CLIP's text encoder: a transformer, causal and read at the end-of-text token in CLIP (arXiv
2103.00020, section 2.4), neither of both in SigLIP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup
from clip_jax.models.layers import Norm, Transformer, check_sizes

# The text towers of CLIP's tables 18 and 19, by the image encoder that they were trained with, and,
# last two, those of open_clip's ViT-H/14 (also g/14) and ViT-bigG/14 (arXiv 2212.07143).
VARIANTS: dict[str, dict[str, int]] = {
    'B': {'width': 512, 'depth': 12, 'heads': 8, 'mlp_dim': 2048},
    'L': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'RN50': {'width': 512, 'depth': 12, 'heads': 8, 'mlp_dim': 2048},
    'RN50x4': {'width': 640, 'depth': 12, 'heads': 10, 'mlp_dim': 2560},
    'RN50x16': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'RN50x64': {'width': 1024, 'depth': 12, 'heads': 16, 'mlp_dim': 4096},
    'H': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
    'G': {'width': 1280, 'depth': 32, 'heads': 20, 'mlp_dim': 5120},
}


POOLS = ('eot', 'argmax', 'last')


class Encoder(nn.Module):
    """Transformer over tokens: int32 [B, L] -> [B, width].

    `pool`: which row is read: 'eot' at the first `eot_id`, 'argmax' at the first largest id, as in
    OpenAI's code, where that is the end of the text; 'last' the last one, padding or not, so that
    all rows must have the `context_length` of training (SigLIP, arXiv 2303.15343). `layer_scale`:
    see layers.Block.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    eot_id: int | None = None
    pool: str = 'eot'
    causal: bool = True
    activation: str = 'gelu'
    norm_eps: float = 1e-5
    layer_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        lookup.check(self.pool, POOLS, what='models/text/transformer: pool')
        if self.pool == 'eot' and self.eot_id is None:
            raise ValueError("models/text/transformer: pool 'eot' needs the tokenizer's eot_id")
        check_sizes(
            'models/text/transformer',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        x = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            name='token_embedding',
            **types,
        )(tokens)
        positions = self.param(
            'position_embedding',
            nn.initializers.normal(0.01),
            (self.context_length, self.width),
            self.param_dtype,
        )
        if self.pool == 'last' and tokens.shape[1] != self.context_length:
            raise ValueError(
                f"models/text/transformer: pool 'last' reads rows of {self.context_length} tokens, "
                f'these have {tokens.shape[1]}; pad them'
            )
        x = x + positions[: tokens.shape[1]].astype(x.dtype)
        x = Transformer(
            depth=self.depth,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            causal=self.causal,
            norm_eps=self.norm_eps,
            layer_scale=self.layer_scale,
            name='transformer',
            **types,
        )(x)
        if self.pool == 'last':
            x = x[:, -1]
        else:
            end = jnp.argmax(tokens == self.eot_id if self.pool == 'eot' else tokens, axis=1)
            x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return Norm(epsilon=self.norm_eps, name='post_norm', **types)(x)
