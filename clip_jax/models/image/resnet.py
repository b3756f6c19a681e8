"""CLIP's ResNet (arXiv 2103.00020, section 2.4): three convolutions at the stem, average pools in
place of strides (ResNet-D, arXiv 1812.01187), and attention in place of the last average pool.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding
from clip_jax.models import positions
from clip_jax.models.layers import REMAT, attend

# CLIP (arXiv 2103.00020), tables 18 and 19; their width is that of the rows that come out, 32 times
# the one here.
VARIANTS: dict[str, dict[str, Any]] = {
    'RN50': {'image_size': 224, 'width': 64, 'depths': (3, 4, 6, 3), 'heads': 32},
    'RN101': {'image_size': 224, 'width': 64, 'depths': (3, 4, 23, 3), 'heads': 32},
    'RN50x4': {'image_size': 288, 'width': 80, 'depths': (4, 6, 10, 6), 'heads': 40},
    'RN50x16': {'image_size': 384, 'width': 96, 'depths': (6, 8, 18, 8), 'heads': 48},
    'RN50x64': {'image_size': 448, 'width': 128, 'depths': (3, 15, 36, 10), 'heads': 64},
}
STAGES = 4
STRIDE = 32  # pixels, from one place of the last stage to the next
EXPANSION = 4  # a bottleneck's output is so many times as wide as its middle


class Encoder(nn.Module):
    """ResNet: float [B, H, W, 3] -> [B, 32 * width].

    `width` is that of the stem and of the first stage's bottlenecks, `depths` are the numbers of
    blocks of the four stages, `heads` belong to the attention pool. Its output projection is the
    CLIP model's `image_projection`, with a bias in OpenAI's models. Names are numbered as theirs:
    `layer1.0.conv1` is `stage_1/block_0/conv_1`.
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
        self.depths = tuple(self.depths)  # a card that was read from JSON has a list
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
            raise ValueError(f'{what}: width {self.width} is odd; the stem begins with half of it')
        rows = EXPANSION * 2 ** (STAGES - 1) * self.width
        if rows % self.heads:
            raise ValueError(
                f'{what}: 32 * width, which is {rows}, is not a multiple of heads {self.heads}'
            )
        super().__post_init__()

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns parameters for images of another size; of the others only positions change."""
        pool = params['attention_pool']
        table = positions.resized(pool['position_embedding'], image_size // STRIDE, tokens=1)
        return {**params, 'attention_pool': {**pool, 'position_embedding': table}}

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        del example_index  # nothing here is random
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
        return AttentionPool(self.heads, name='attention_pool', **types)(x)


class Stem(nn.Module):
    """Three convolutions, the first with stride 2, and a pool: [B, H, W, 3] -> [B, H/4, W/4,
    width].
    """

    width: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype)
        half = self.width // 2
        # For stride 2 the default padding, 'SAME', would leave out the left and upper edges.
        x = conv(half, (3, 3), strides=2, padding=1, name='conv_1')(x)
        x = nn.relu(norm(name='norm_1')(x, train=train))
        x = conv(half, (3, 3), name='conv_2')(x)
        x = nn.relu(norm(name='norm_2')(x, train=train))
        x = conv(self.width, (3, 3), name='conv_3')(x)
        x = nn.relu(norm(name='norm_3')(x, train=train))
        return average_pool(x, 2)


class Stage(nn.Module):
    """Bottlenecks, the first with a stride: [B, H, W, C] -> [B, H/stride, W/stride, 4 * width]."""

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
    """x + convolutions of x: [B, H, W, C] -> [B, H/stride, W/stride, 4 * width].

    The stride is an average pool, on both paths.
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
        # A block begins as the identity, as in OpenAI's code.
        y = norm(scale_init=nn.initializers.zeros, name='norm_3')(y, train=train)
        if self.stride > 1 or x.shape[-1] != wide:
            x = conv(wide, (1, 1), name='downsample_conv')(average_pool(x, self.stride))
            x = norm(name='downsample_norm')(x, train=train)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Attends to all places with their mean as the one query: [B, H, W, C] -> [B, C]."""

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
    """Convolution without a bias, with the initial values of torch's: uniform, at most
    fan_in^-1/2.
    """

    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(
        1 / 3, 'fan_in', 'uniform'
    )


class BatchNorm(nn.Module):
    """Batch normalization (arXiv 1502.03167) over all axes but the last, in float32.

    In training by mean and variance of the batch, else by their running averages: `mean` and `var`
    of the collection `batch_stats`, which training updates. In a jitted program arrays are whole,
    however many devices they are split over, and so the batch is the global one.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9  # what stays of a running average at a step; torch calls 0.1 so
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (width,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (width,))
        scale = self.param('scale', self.scale_init, (width,))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        # What comes out of a convolution lies as its batch, wherever the kernel lies.
        x = sharding.constrain(x, 'batch', *[None] * (x.ndim - 2), 'features').astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                self._update(running_mean, mean)
                # The unbiased variance, as in torch, so that a training continued from published
                # weights keeps their meaning; Flax's own BatchNorm takes the biased one, which is
                # too small by 1/count of values: much, where a small batch ends in 1 x 1 places.
                count = x.size // width
                self._update(running_var, var * (count / max(count - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        x = (x - mean) * (scale / jnp.sqrt(var + self.epsilon)) + bias
        return x.astype(self.dtype)

    def _update(self, running: nn.Variable, value: jax.Array) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * value


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages squares of size x size places: [B, H, W, C] -> [B, H/size, W/size, C]."""
    return nn.avg_pool(x, (size, size), (size, size)) if size > 1 else x
