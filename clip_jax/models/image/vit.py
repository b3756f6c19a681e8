"""Vision Transformer (ViT, arXiv 2010.11929) with the pooling and norms that CLIP models use."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup
from clip_jax.models import capture, positions
from clip_jax.models.activations import gelu
from clip_jax.models.batch_norm import BatchNorm
from clip_jax.models.image_layers import AttentionPool, patch_dense, patches, prepended
from clip_jax.models.layers import (
    Norm,
    Transformer,
    TransformerConfig,
    check_rates,
    check_sizes,
    example_keys,
)

# 'B/16' in a config is the entry 'B' with patch_size 16.
VARIANTS: dict[str, dict[str, int]] = {
    # How to train your ViT (arXiv 2106.10270), table 2; S and Ti first in DeiT (arXiv 2012.12877),
    # table 1.
    'Ti': {'width': 192, 'depth': 12, 'heads': 3, 'mlp_dim': 768},
    'S': {'width': 384, 'depth': 12, 'heads': 6, 'mlp_dim': 1536},
    # open_clip's model_configs, between S and B and above B.
    'M': {'width': 512, 'depth': 12, 'heads': 8, 'mlp_dim': 2048},
    'B+': {'width': 896, 'depth': 12, 'heads': 14, 'mlp_dim': 3584},
    # ViT (arXiv 2010.11929), table 1; B/32, B/16 and L/14 are CLIP's (arXiv 2103.00020), table 19.
    'B': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'L': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
    'H': {'width': 1280, 'depth': 32, 'heads': 16, 'mlp_dim': 5120},
    # Scaling Vision Transformers (arXiv 2106.04560), table 2.
    'g': {'width': 1408, 'depth': 40, 'heads': 16, 'mlp_dim': 6144},
    'G': {'width': 1664, 'depth': 48, 'heads': 16, 'mlp_dim': 8192},
    # Getting ViT in Shape (arXiv 2305.13035), SigLIP 2 (arXiv 2502.14786), PaLI (arXiv 2209.06794).
    'So400m': {'width': 1152, 'depth': 27, 'heads': 16, 'mlp_dim': 4304},
    'giant-opt': {'width': 1536, 'depth': 40, 'heads': 16, 'mlp_dim': 6144},
    'e': {'width': 1792, 'depth': 56, 'heads': 16, 'mlp_dim': 15360},
}
LOGICAL_AXES = {
    '(patch_embedding|stem/conv_[123])/kernel': ('pixels', 'pixels', 'channels', 'width'),
    'position_embedding': ('length', 'width'),
    'probe': ('length', 'width'),
}
POOLS = ('cls', 'mean', 'map', 'queries')
POSITIONS = ('learned', 'sincos2d')
STEMS = ('patches', 'convolutions')


class Encoder(nn.Module):
    """ViT: images float [B, H, W, 3] -> features [B, width].

    Attributes:
        image_size: height and width of images, in pixels.
        patch_size: height and width of patches, in pixels.
        width: features of a token.
        pool: how tokens become one vector. 'cls': the class token; 'mean': the average of the
            patches; 'map': attention pooling with one learned query (Scaling Vision Transformers,
            arXiv 2106.04560, section 3.1); 'queries': attention pooling with the first of
            `pool_queries` learned queries, of which the others belong to a caption decoder (CoCa,
            arXiv 2205.01917, section 3.2).
        pool_queries: the number of queries of the pool 'queries'.
        pool_width: features of the pool 'queries'; then also of the output.
        pool_heads: attention heads of the pool 'queries'.
        class_token: whether there is a class token although the pool does not read it (CLIPA, arXiv
            2305.07017).
        positions: position embeddings, 'learned' or 'sincos2d', fixed sines and cosines of row and
            column, which learn faster on small data (Better plain ViT baselines, arXiv 2205.01580).
        class_position: whether the class token has a learned position embedding too.
        stem: how patches become tokens. 'patches': one linear layer; 'convolutions': three, with
            batch norm (MobileCLIP, arXiv 2311.17049; Early Convolutions Help Transformers See
            Better, arXiv 2106.14881), for which the patch size is a multiple of 4.
        pre_norm: whether there is a layer norm before the first block, as in CLIP.
        norm_after_pool: whether the last layer norm comes after the pooling instead of before it.
        patch_bias: whether the patch embedding has a bias; the last of the convolutions has one.
        patch_dropout: fraction of the patches dropped in training (FLIP, arXiv 2212.00794).
        depth, heads, mlp_dim, activation, norm_eps, layer_scale, dropout, remat, scan, attention:
            see layers.TransformerConfig.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str = 'cls'
    pool_queries: int | None = None
    pool_width: int | None = None
    pool_heads: int | None = None
    class_token: bool = False
    positions: str = 'learned'
    class_position: bool = True
    stem: str = 'patches'
    activation: str = 'gelu'
    pre_norm: bool = True
    norm_after_pool: bool = False
    norm_eps: float = 1e-5
    patch_bias: bool = False
    layer_scale: float = 0.0
    patch_dropout: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        lookup.check(self.pool, POOLS, what='models/image/vit: pool')
        lookup.check(self.positions, POSITIONS, what='models/image/vit: positions')
        lookup.check(self.stem, STEMS, what='models/image/vit: stem')
        # Equal models have equal fields: one token's norm is the same before and after pooling.
        self.class_token = self.class_token or self.pool == 'cls'
        self.norm_after_pool = self.norm_after_pool and self.pool in ('mean', 'map')
        self.patch_bias = self.patch_bias or self.stem == 'convolutions'
        if not self.class_token or self.positions != 'learned':
            self.class_position = True
        check_sizes(
            'models/image/vit',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        if self.pool == 'queries':
            check_sizes(
                'models/image/vit: pool_',
                self.activation,
                width=self.pool_width or 0,
                heads=self.pool_heads or 0,
                queries=self.pool_queries or 0,
            )
        check_rates('models/image/vit', patch_dropout=self.patch_dropout, dropout=self.dropout)
        if self.positions == 'sincos2d' and self.width % 4:
            raise ValueError(
                f'models/image/vit: width is {self.width}; positions sincos2d need a multiple of 4'
            )
        if self.stem == 'convolutions' and (self.patch_size % 4 or self.width % 4):
            raise ValueError(
                f'models/image/vit: patch_size is {self.patch_size} and width {self.width}; the '
                'stem convolutions needs multiples of 4'
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f'models/image/vit: image_size {self.image_size} is smaller than patch_size '
                f'{self.patch_size}'
            )
        super().__post_init__()

    @property
    def grid(self) -> int:
        """The number of patches along each side of an image."""
        return self.image_size // self.patch_size

    @property
    def _class_has_position(self) -> bool:
        return self.class_token and self.class_position

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns parameters for another image size: position embeddings are interpolated."""
        if 'position_embedding' not in params:
            return params
        table, grid = params['position_embedding'], image_size // self.patch_size
        table = positions.resized(table, grid, tokens=int(self._class_has_position))
        return {**params, 'position_embedding': table}

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
        all_tokens: bool = False,
    ) -> Any:
        """Encodes images; with `all_tokens` it also returns what a caption decoder reads: the
        queries after the first, or the patches, [B, N, width].
        """
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        embedding = nn.initializers.normal(self.width**-0.5)
        if self.stem == 'convolutions':
            stem = ConvolutionStem(self.patch_size, self.width, name='stem', **types)
            x = stem(images, train=train)
        else:
            embed = patch_dense(self.width, bias=self.patch_bias, name='patch_embedding', **types)
            x = embed(patches(images, self.patch_size))
        if self.positions == 'sincos2d':
            x = x + positions.sincos2d(self.grid, self.width).astype(x.dtype)

        def positioned(x: jax.Array) -> jax.Array:
            table = self.param('position_embedding', embedding, x.shape[1:], self.param_dtype)
            return x + table.astype(x.dtype)

        tokens = int(self.class_token)
        if not self.class_position:
            x = positioned(x)
        if tokens:
            token = self.param('class_embedding', embedding, (self.width,), self.param_dtype)
            x = prepended(token, x)
        if self.positions == 'learned' and self.class_position:
            x = positioned(x)
        keys = None
        if train and (self.patch_dropout or self.dropout):
            keys = example_keys(self.make_rng('dropout'), example_index, x.shape[0])
        if train and self.patch_dropout:
            assert keys is not None  # made above
            kept = drop_patches(x[:, tokens:], self.patch_dropout, keys)
            x = jnp.concatenate([x[:, :tokens], kept], axis=1)
        if self.pre_norm:
            x = Norm(epsilon=self.norm_eps, name='pre_norm', **types)(x)
        every = all_tokens or self.pool != 'cls' or capture.wanted(self, capture.FEATURES)
        position = None if every else 0
        transformer = Transformer(TransformerConfig.of(self), name='transformer')
        x = transformer(x, keys=keys, position=position)
        norm = Norm(epsilon=self.norm_eps, name='post_norm', **types)
        x = x if self.norm_after_pool or self.pool == 'queries' else norm(x)
        capture.keep(self, 'patches', x[:, tokens:])
        if self.pool == 'queries':
            x = norm(_query_pool(self)(x, all_tokens))
            return (x[:, 0], x[:, 1:]) if all_tokens else x[:, 0]
        pooled = self._pooled(x, tokens)
        pooled = norm(pooled) if self.norm_after_pool else pooled
        return (pooled, x[:, tokens:]) if all_tokens else pooled

    def _pooled(self, x: jax.Array, tokens: int) -> jax.Array:
        """Pools [B, tokens + patches, width] to [B, width]; `tokens`: 1 or 0 class tokens."""
        if self.pool == 'cls':
            return x[:, 0]
        if self.pool == 'mean':
            return x[:, tokens:].mean(axis=1)
        return AttentionPool(
            self.heads,
            self.mlp_dim,
            self.activation,
            self.norm_eps,
            self.dtype,
            self.param_dtype,
            name='attention_pool',
        )(x[:, tokens:])


def _query_pool(encoder: Encoder) -> 'QueryPool':
    assert encoder.pool_queries and encoder.pool_width and encoder.pool_heads  # as was checked
    return QueryPool(
        encoder.pool_queries,
        encoder.pool_width,
        encoder.pool_heads,
        encoder.norm_eps,
        encoder.dtype,
        encoder.param_dtype,
        name='attention_pool',
    )


class ConvolutionStem(nn.Module):
    """Three convolutions without overlap, of size / 4, 2 and 2 pixels: [B, H, W, C] ->
    [B, H/size * W/size, width].
    """

    size: int
    width: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(patch_dense, dtype=self.dtype, param_dtype=self.param_dtype)
        for i, size in ((1, self.size // 4), (2, 2)):
            batch, height, width, _ = x.shape
            x = conv(self.width // 4, bias=False, name=f'conv_{i}')(patches(x, size))
            x = x.reshape(batch, height // size, width // size, -1)
            x = gelu(BatchNorm(dtype=self.dtype, name=f'norm_{i}')(x, train=train))
        return conv(self.width, bias=True, name='conv_3')(patches(x, 2))


class QueryPool(nn.Module):
    """CoCa's attention pooling with all queries, or the first: [B, L, C] -> [B, 1 or N, width]."""

    queries: int
    width: int
    heads: int
    norm_eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, every: bool) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        norm = functools.partial(Norm, epsilon=self.norm_eps, **types)
        shape, count = (self.queries, self.width), self.queries if every else 1
        probe = self.param('probe', nn.initializers.normal(1.0), shape, self.param_dtype)
        query = norm(name='query_norm')(probe[:count].astype(x.dtype))
        query = jnp.broadcast_to(query, (x.shape[0], count, self.width))
        attention: Any = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.width, name='attention', **types
        )
        return attention(query, norm(name='key_norm')(x))


def drop_patches(x: jax.Array, share: float, keys: jax.Array) -> jax.Array:
    """Drops a random subset of each image's patches (FLIP, arXiv 2212.00794).

    Args:
        x: patches [B, L, width].
        share: fraction of the patches to drop.
        keys: random keys [B].

    Returns:
        [B, max(1, round(L * (1 - share))), width]
    """
    length = x.shape[1]
    kept = max(1, round(length * (1 - share)))
    noise = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    _, chosen = jax.lax.top_k(noise, kept)
    return jnp.take_along_axis(x, chosen[:, :, None], axis=1)
