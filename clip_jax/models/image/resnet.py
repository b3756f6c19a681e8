"""CLIP's ResNet (arXiv 2103.00020, section 2.4): a stem of three convolutions, average pooling
instead of strides (ResNet-D, arXiv 1812.01187), and attention pooling.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding
from clip_jax.models import capture, positions
from clip_jax.models.attention import attend
from clip_jax.models.batch_norm import BatchNorm
from clip_jax.models.layers import REMAT

# CLIP (arXiv 2103.00020), tables 18 and 19. The paper's width is that of the output: 32 times ours.
VARIANTS: dict[str, dict[str, Any]] = {
    'RN50': {'image_size': 224, 'width': 64, 'depths': (3, 4, 6, 3), 'heads': 32},
    'RN101': {'image_size': 224, 'width': 64, 'depths': (3, 4, 23, 3), 'heads': 32},
    'RN50x4': {'image_size': 288, 'width': 80, 'depths': (4, 6, 10, 6), 'heads': 40},
    'RN50x16': {'image_size': 384, 'width': 96, 'depths': (6, 8, 18, 8), 'heads': 48},
    'RN50x64': {'image_size': 448, 'width': 128, 'depths': (3, 15, 36, 10), 'heads': 64},
}
LOGICAL_AXES = {
    r'(downsample_)?conv(_\d+)?/kernel': ('pixels', 'pixels', 'channels', 'width'),
    'position_embedding': ('length', 'width'),
}
STAGES = 4
STRIDE = 32  # total stride, in pixels
EXPANSION = 4  # features of a bottleneck's output / features inside of it


class Encoder(nn.Module):
    """ResNet: images float [B, H, W, 3] -> features [B, 32 * width].

    The output projection of the attention pool is the CLIP model's `image_projection`, which has a
    bias in OpenAI's models. Modules are numbered as in OpenAI's code: `layer1.0.conv1` is
    `stage_1/block_0/conv_1`.

    Attributes:
        image_size: height and width of images, in pixels; a multiple of 32.
        width: features of the stem's output, and inside the bottlenecks of the first stage.
        depths: the numbers of blocks of the four stages.
        heads: attention heads of the pooling.
        remat: rematerialization policy, a key of layers.REMAT.
    """

    image_size: int
    width: int
    depths: tuple[int, ...]
    heads: int
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        what = 'models/image/resnet'
        self.depths = tuple(self.depths)  # JSON has no tuples
        if len(self.depths) != STAGES or min(self.depths) < 1:
            raise ValueError(
                f'{what}: depths are {self.depths}; expected {STAGES} numbers of at least 1'
            )
        sizes = {'image_size': self.image_size, 'width': self.width, 'heads': self.heads}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f'{what}: {name} is {size}; expected at least 1')
        if self.image_size % STRIDE:
            raise ValueError(f'{what}: image_size {self.image_size} is not a multiple of {STRIDE}')
        if self.width % 2:
            raise ValueError(f'{what}: width {self.width} is odd; the stem starts with half of it')
        features = EXPANSION * 2 ** (STAGES - 1) * self.width
        if features % self.heads:
            raise ValueError(
                f'{what}: 32 * width, which is {features}, is not a multiple of heads {self.heads}'
            )
        super().__post_init__()

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns parameters for another image size: position embeddings are interpolated."""
        pool = params['attention_pool']
        table = positions.resized(pool['position_embedding'], image_size // STRIDE, tokens=1)
        return {**params, 'attention_pool': {**pool, 'position_embedding': table}}

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        del example_index  # no dropout
        lookup.check(self.remat, REMAT, what='models/image/resnet: remat')
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        x = Stem(self.width, name='stem', **types)(images, train=train)
        for i, depth in enumerate(self.depths):
            stage = Stage(
                width=self.width * 2**i,
                depth=depth,
                stride=1 if i == 0 else 2,
                remat=self.remat,
                name=f'stage_{i + 1}',
                **types,
            )
            x = stage(x, train=train)
        capture.keep(self, 'patches', x)
        return AttentionPool(self.heads, name='attention_pool', **types)(x)


class Stem(nn.Module):
    """Three convolutions, the first with stride 2, and average pooling: [B, H, W, 3] ->
    [B, H/4, W/4, width].
    """

    width: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype)
        half = self.width // 2
        # With stride 2, padding 'SAME' would not pad the top and left edges as PyTorch does.
        x = conv(half, (3, 3), strides=2, padding=1, name='conv_1')(x)
        x = nn.relu(norm(name='norm_1')(x, train=train))
        x = conv(half, (3, 3), name='conv_2')(x)
        x = nn.relu(norm(name='norm_2')(x, train=train))
        x = conv(self.width, (3, 3), name='conv_3')(x)
        x = nn.relu(norm(name='norm_3')(x, train=train))
        return average_pool(x, 2)


class Stage(nn.Module):
    """Bottlenecks, the first one strided: [B, H, W, C] -> [B, H/stride, W/stride, 4 * width]."""

    width: int
    depth: int
    stride: int
    remat: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        bottleneck = Bottleneck
        if self.remat != 'none':
            bottleneck = nn.remat(Bottleneck, policy=REMAT[self.remat], static_argnums=(2,))
        for i in range(self.depth):
            block = bottleneck(
                width=self.width,
                stride=self.stride if i == 0 else 1,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f'block_{i}',
            )
            x = block(x, train)
        return x


class Bottleneck(nn.Module):
    """Residual bottleneck block: [B, H, W, C] -> [B, H/stride, W/stride, 4 * width].

    The stride is an average pooling on both branches.
    """

    width: int
    stride: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype)
        wide = EXPANSION * self.width
        y = conv(self.width, (1, 1), name='conv_1')(x)
        y = nn.relu(norm(name='norm_1')(y, train=train))
        y = conv(self.width, (3, 3), name='conv_2')(y)
        y = nn.relu(norm(name='norm_2')(y, train=train))
        y = conv(wide, (1, 1), name='conv_3')(average_pool(y, self.stride))
        # The block is the identity at initialization, as in OpenAI's code.
        y = norm(scale_init=nn.initializers.zeros, name='norm_3')(y, train=train)
        if self.stride > 1 or x.shape[-1] != wide:
            x = conv(wide, (1, 1), name='downsample_conv')(average_pool(x, self.stride))
            x = norm(name='downsample_norm')(x, train=train)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Attention pooling whose query is the mean over all positions: [B, H, W, C] -> [B, C]."""

    heads: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, _, width = x.shape
        init = nn.initializers.normal(width**-0.5)
        project = functools.partial(
            nn.DenseGeneral,
            (self.heads, width // self.heads),
            kernel_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x = x.reshape(batch, -1, width)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        table = self.param('position_embedding', init, x.shape[1:], self.param_dtype)
        x = sharding.constrain(x + table.astype(x.dtype), 'batch', 'length', 'features')
        query = project(name='query')(x[:, :1])
        key, value = project(name='key')(x), project(name='value')(x)
        return attend(query, key, value).reshape(batch, width)


class Conv(nn.Conv):
    """Convolution without a bias, initialized as in PyTorch: uniform within +-fan_in^-1/2."""

    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(
        1 / 3, 'fan_in', 'uniform'
    )


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Average pooling: [B, H, W, C] -> [B, H/size, W/size, C]."""
    return nn.avg_pool(x, (size, size), (size, size)) if size > 1 else x
