"""Vision Transformers with rotary positions, gated MLPs and norms inside of blocks: EVA-CLIP (arXiv
2303.15389), which has them from EVA-02 (arXiv 2303.11331) on, the Perception Encoder (PE, arXiv
2504.13181), DINOv2 (arXiv 2304.07193) and DINOv3 (arXiv 2508.10104).
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import lookup, sharding
from clip_jax.models import capture, on_cpu, positions
from clip_jax.models.attention import attend, keep_weights, token
from clip_jax.models.image_layers import AttentionPool, patch_dense, patches, prepended
from clip_jax.models.layers import (
    Mlp,
    Norm,
    Transformer,
    TransformerConfig,
    check_sizes,
    layer_scaled,
)

_EVA02: dict[str, Any] = {
    'mlp': 'swiglu',
    'inner_norm': True,
    'rope': 'rows_first',
    'rope_grid': 16,
}


def _pe(rope_grid: int, rope_offset: float = 1.0) -> dict[str, Any]:
    """The fields that are the same in all Perception Encoders, and two that differ."""
    return {
        'pool': 'map',
        'pool_heads': 8,
        'pre_norm': True,
        'key_bias': True,
        'norm_eps': 1e-5,
        'rope': 'columns_first',
        'rope_grid': rope_grid,
        'rope_offset': rope_offset,
    }


# EVA-CLIP, table 1, and Perception Encoder, table 3; sizes as in timm.
VARIANTS: dict[str, dict[str, Any]] = {
    'EVA01-g': {'width': 1408, 'depth': 40, 'heads': 16, 'mlp_dim': 6144},
    'EVA02-B': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 2048, **_EVA02},
    'EVA02-L': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 2730, **_EVA02},
    'EVA02-E': {'width': 1792, 'depth': 64, 'heads': 16, 'mlp_dim': 15360, 'post_norm': True},
    'PE-T': {
        'width': 192,
        'depth': 12,
        'heads': 3,
        'mlp_dim': 768,
        **_pe(24),
    },
    'PE-S': {
        'width': 384,
        'depth': 12,
        'heads': 6,
        'mlp_dim': 1536,
        **_pe(24),
    },
    'PE-B': {
        'width': 768,
        'depth': 12,
        'heads': 12,
        'mlp_dim': 3072,
        **_pe(14),
    },
    'PE-L': {
        'width': 1024,
        'depth': 24,
        'heads': 16,
        'mlp_dim': 4096,
        **_pe(24),
    },
    'PE-G': {
        'width': 1536,
        'depth': 50,
        'heads': 16,
        'mlp_dim': 8960,
        'class_token': False,
        **_pe(32, 0.0),
    },
}
LOGICAL_AXES = {
    'patch_embedding/kernel': ('pixels', 'pixels', 'channels', 'width'),
    'position_embedding': ('length', 'width'),
    'register_embedding': ('length', 'width'),
    'probe': ('length', 'width'),
}
POOLS = ('cls', 'map')
ROPE = ('none', 'rows_first', 'columns_first', 'centered')
MLPS = ('gelu', 'swiglu')
STD = 0.02  # initial standard deviation of kernels and embeddings


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """The fields of a block; see Encoder."""

    mlp: str = 'gelu'
    inner_norm: bool = False
    key_bias: bool = False
    query_bias: bool = True
    post_norm: bool = False
    rope: str = 'none'
    rope_grid: int = 0
    rope_offset: float = 0.0
    rope_base: float = 10_000.0
    grid: int = 0
    tokens: int = 1


class Encoder(nn.Module):
    """ViT: images float [B, H, W, 3] -> features [B, width].

    Attributes:
        image_size: height and width of images, in pixels.
        patch_size: height and width of patches, in pixels.
        width: features of a token.
        pool: 'cls': the class token; 'map': attention pooling over all tokens with one learned
            query (arXiv 2106.04560, section 3.1).
        pool_heads: attention heads of the pool 'map'.
        class_token: whether there is a class token.
        registers: learned tokens between the class token and the patches, which nothing reads
            (Vision Transformers Need Registers, arXiv 2309.16588).
        learned_positions: whether there are learned position embeddings too.
        pre_norm: whether there is a layer norm before the first block; then the patch embedding
            has no bias.
        mlp: 'gelu', two layers with a GELU, or 'swiglu' (arXiv 2002.05202), whose `mlp_dim` is that
            of the gate and of what it multiplies.
        inner_norm: whether there are layer norms before the output projections of attention and
            MLP (sub-LN, arXiv 2303.11331, section 2).
        key_bias: whether keys have a bias, as queries and values have.
        query_bias: whether queries and values have a bias although keys have none.
        post_norm: whether the norms of a block come after its branches instead of before.
        rope: rotary positions of patches (RoFormer, arXiv 2104.09864, in two dimensions): 'none',
            or 'rows_first', or 'columns_first': which of the two numbers rotates the first half; or
            'centered', as rows_first, but the image is from -2 pi to 2 pi whatever its size
            (DINOv3, section 3.2).
        rope_grid: the number of patches along a side that positions are scaled to, so that models
            take other image sizes; 0: that of `image_size`.
        rope_offset: added to the numbers of rows and columns.
        rope_base: of the wavelengths of rotary positions.
        depth, heads, mlp_dim, norm_eps, layer_scale, remat, scan, attention: see
            layers.TransformerConfig.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    pool: str = 'cls'
    pool_heads: int | None = None
    class_token: bool = True
    registers: int = 0
    learned_positions: bool = True
    pre_norm: bool = False
    mlp: str = 'gelu'
    inner_norm: bool = False
    key_bias: bool = False
    query_bias: bool = True
    post_norm: bool = False
    rope: str = 'none'
    rope_grid: int = 0
    rope_offset: float = 0.0
    rope_base: float = 10_000.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        what = 'models/image/rope_vit'
        lookup.check(self.pool, POOLS, what=f'{what}: pool')
        lookup.check(self.rope, ROPE, what=f'{what}: rope')
        lookup.check(self.mlp, MLPS, what=f'{what}: mlp')
        check_sizes(
            what,
            'gelu',
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        if self.pool == 'map':
            check_sizes(f'{what}: pool_', 'gelu', width=self.width, heads=self.pool_heads or 0)
        if self.pool == 'cls' and not self.class_token:
            raise ValueError(f"{what}: pool 'cls' needs the class token; class_token is false")
        if self.rope != 'none' and self.width // self.heads % 4:
            raise ValueError(
                f'{what}: heads have {self.width // self.heads} features; rotary positions need a '
                'multiple of 4'
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f'{what}: image_size {self.image_size} is smaller than patch_size {self.patch_size}'
            )
        super().__post_init__()

    @property
    def grid(self) -> int:
        """The number of patches along each side of an image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """The number of tokens before those of the patches."""
        return self.class_token + self.registers

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns parameters for another image size: position embeddings are interpolated."""
        if not self.learned_positions:
            return params
        grid, tokens = image_size // self.patch_size, int(self.class_token)
        table = positions.resized(params['position_embedding'], grid, tokens=tokens)
        return {**params, 'position_embedding': table}

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        del train, example_index  # no dropout
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        embedding = nn.initializers.normal(STD)
        x = patch_dense(
            self.width,
            bias=not self.pre_norm,
            kernel_init=embedding,
            name='patch_embedding',
            **types,
        )(patches(images, self.patch_size))
        if self.class_token:
            first = self.param('class_embedding', embedding, (self.width,), self.param_dtype)
            x = prepended(first, x)
        if self.learned_positions:
            table = self.param('position_embedding', embedding, x.shape[1:], self.param_dtype)
            x = x + table.astype(x.dtype)
        if self.registers:
            shape = (self.registers, self.width)
            more = self.param('register_embedding', embedding, shape, self.param_dtype)
            more = jnp.broadcast_to(more.astype(x.dtype), (x.shape[0], *shape))
            at = int(self.class_token)
            x = jnp.concatenate([x[:, :at], more, x[:, at:]], axis=1)
        norm = functools.partial(Norm, epsilon=self.norm_eps, **types)
        if self.pre_norm:
            x = norm(name='pre_norm')(x)
        every = self.pool != 'cls' or capture.wanted(self, capture.FEATURES)
        position = None if every else 0
        x = Transformer(Config.of(self), Block, name='transformer')(x, position=position)
        x = norm(name='post_norm')(x)
        capture.keep(self, 'patches', x[:, self.tokens :])
        if self.pool == 'cls':
            return x[:, 0]
        assert self.pool_heads  # as was checked
        return AttentionPool(
            self.pool_heads, 4 * self.width, 'gelu', self.norm_eps, name='attention_pool', **types
        )(x)


class Block(nn.Module):
    """A block of layers.Transformer with the choices of Config: [B, L, width]."""

    config: Config
    out_std: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        position: int | jax.Array | None = None,
    ) -> jax.Array:
        del mask, keys  # neither masks nor dropout
        config = self.config
        x = on_cpu.computed_once(sharding.constrain(x, 'batch', 'length', 'features'))
        attention = Attention(config, self.out_std, name='attention')
        mlp: Any
        if config.mlp == 'gelu':
            mlp = Mlp(config.mlp_dim, 'gelu', STD, self.out_std, name='mlp', **config.types)
        else:
            mlp = GatedMlp(config, self.out_std, name='mlp')
        for name, branch in (('attention', attention), ('mlp', mlp)):
            norm = Norm(epsilon=config.norm_eps, name=f'{name}_norm', **config.types)
            y = norm(branch(x)) if config.post_norm else branch(norm(x))
            x = on_cpu.computed_once(x + layer_scaled(self, y, f'{name}_scale'))
        return x if position is None else token(x, position)


class Attention(nn.Module):
    """Self-attention with rotary positions: [B, L, width] -> [B, L, width]."""

    config: Config
    out_std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, width = self.config, x.shape[-1]
        shape = (config.heads, width // config.heads)
        qkv = nn.DenseGeneral(
            (3, *shape),
            use_bias=config.key_bias,
            kernel_init=nn.initializers.normal(STD),
            dot_general=on_cpu.dot_general,
            name='qkv',
            **config.types,
        )(x)
        qkv = sharding.constrain(qkv, 'batch', 'length', 'qkv', 'heads', 'head_dim')
        query, key, value = (qkv[:, :, i] for i in range(3))
        if config.query_bias and not config.key_bias:
            query, value = (
                y + self._bias(name, shape).astype(y.dtype)
                for name, y in (('query_bias', query), ('value_bias', value))
            )
        if config.rope != 'none':
            query, key = rotate(query, config), rotate(key, config)
        wanted = 'xla' if self.is_initializing() else config.attention
        keep_weights(self, query, key)
        x = attend(query, key, value, implementation=wanted)
        if config.inner_norm:
            norm = Norm(epsilon=config.norm_eps, name='norm', **config.types)
            x = norm(x.reshape(*x.shape[:2], width)).reshape(x.shape)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=nn.initializers.normal(self.out_std),
            dot_general=on_cpu.dot_general,
            name='out',
            **config.types,
        )(x)

    def _bias(self, name: str, shape: tuple[int, int]) -> jax.Array:
        return self.param(name, nn.initializers.zeros, shape, self.config.param_dtype)


class GatedMlp(nn.Module):
    """SwiGLU: out(silu(gate(x)) * in(x)), with a norm before `out` if `inner_norm`."""

    config: Config
    out_std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, width = self.config, x.shape[-1]
        dense = functools.partial(nn.Dense, dot_general=on_cpu.dot_general, **config.types)
        std = nn.initializers.normal(STD)
        gate = dense(config.mlp_dim, kernel_init=std, name='gate')(x)
        x = nn.silu(gate) * dense(config.mlp_dim, kernel_init=std, name='in')(x)
        x = sharding.constrain(x, 'batch', 'length', 'mlp')
        if config.inner_norm:
            x = Norm(epsilon=config.norm_eps, name='norm', **config.types)(x)
        return dense(width, kernel_init=nn.initializers.normal(self.out_std), name='out')(x)


def rotate(x: jax.Array, config: Config) -> jax.Array:
    """Rotates pairs of features by the positions of patches; [B, L, heads, head_dim]."""
    sine, cosine = rotations(
        x.shape[-1],
        config.grid,
        config.rope_grid,
        config.rope_offset,
        config.rope,
        config.tokens,
        config.rope_base,
    )
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    one, two = pairs[..., 0], pairs[..., 1]
    sine, cosine = sine[:, None], cosine[:, None]
    rotated = jnp.stack([one * cosine - two * sine, two * cosine + one * sine], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


@functools.cache
def rotations(
    head_dim: int,
    grid: int,
    reference: int,
    offset: float,
    order: str,
    tokens: int,
    base: float = 10_000.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sines and cosines of the angles of the pairs of features.

    Args:
        head_dim: features of a head.
        grid: patches along a side.
        reference: patches along a side that positions are scaled to; 0: `grid`.
        offset: added to the numbers of rows and columns.
        order: 'rows_first', 'columns_first' or 'centered'.
        tokens: the number of tokens before the patches, which are not rotated.
        base: of the wavelengths.

    Returns:
        Two arrays, float32 [tokens + grid^2, head_dim / 2].
    """
    numbers = (np.arange(grid, dtype=np.float32) + offset) / grid * (reference or grid)
    if order == 'centered':
        numbers = 2 * np.pi * (2 * (np.arange(grid, dtype=np.float32) + 0.5) / grid - 1)
    bands = 1 / base ** (np.arange(head_dim // 4, dtype=np.float32) / (head_dim // 4))
    angles = numbers.astype(np.float32)[:, None] * bands.astype(np.float32)
    rows = np.broadcast_to(angles[:, None], (grid, grid, head_dim // 4))
    parts = [rows, rows.swapaxes(0, 1)]
    if order == 'columns_first':
        parts.reverse()
    angles = np.concatenate(parts, axis=-1).reshape(grid * grid, head_dim // 2)
    angles = np.concatenate([np.zeros((tokens, head_dim // 2), np.float32), angles])
    return np.sin(angles), np.cos(angles)
