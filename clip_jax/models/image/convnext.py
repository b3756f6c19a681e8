"""ConvNeXt (arXiv 2201.03545): a convolutional network with the proportions of a transformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding
from clip_jax.models import capture, on_cpu
from clip_jax.models.image_layers import patches
from clip_jax.models.layers import REMAT, Mlp, Norm, check_rates, example_keys

# A ConvNet for the 2020s, section 3 and appendix A; XXL is open_clip's, which calls B, L and XXL
# convnext_base, convnext_large and convnext_xxlarge.
VARIANTS: dict[str, dict[str, Any]] = {
    'T': {'widths': (96, 192, 384, 768), 'depths': (3, 3, 9, 3)},
    'S': {'widths': (96, 192, 384, 768), 'depths': (3, 3, 27, 3)},
    'B': {'widths': (128, 256, 512, 1024), 'depths': (3, 3, 27, 3)},
    'L': {'widths': (192, 384, 768, 1536), 'depths': (3, 3, 27, 3)},
    'XL': {'widths': (256, 512, 1024, 2048), 'depths': (3, 3, 27, 3)},
    'XXL': {'widths': (384, 768, 1536, 3072), 'depths': (3, 4, 30, 3), 'norm_eps': 1e-5},
}
LOGICAL_AXES = {
    '(stem|downsample|depthwise)/kernel': ('pixels', 'pixels', 'channels', 'width'),
}
STEM = 4  # stride of the stem, in pixels
STRIDE = 32  # total stride, in pixels
KERNEL = 7  # height and width of the depthwise convolutions
MLP_RATIO = 4
STD = 0.02  # initial standard deviation of kernels


class Encoder(nn.Module):
    """ConvNeXt: images float [B, H, W, 3] -> features [B, widths[-1]], pooled, then normalized.

    Attributes:
        image_size: height and width of images, in pixels; pixels on the right and at the bottom
            that are not a multiple of 32 are dropped.
        widths: features of the stages.
        depths: the numbers of blocks of the stages.
        norm_eps: added to the variance in layer norms.
        layer_scale: initial value of the learned factor for each feature of a block's branch.
        drop_path: stochastic depth, the rate at which the branch of the last block is dropped in
            training; that of earlier blocks grows linearly from 0 (arXiv 1603.09382, section 3).
        remat: rematerialization policy, a key of layers.REMAT.
    """

    image_size: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    norm_eps: float = 1e-6
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        what = 'models/image/convnext'
        self.widths, self.depths = tuple(self.widths), tuple(self.depths)  # JSON has no tuples
        for name, sizes in {'widths': self.widths, 'depths': self.depths}.items():
            if len(sizes) != 4 or min(sizes) < 1:
                raise ValueError(f'{what}: {name} are {sizes}; expected 4 numbers of at least 1')
        if self.image_size < STRIDE:
            raise ValueError(f'{what}: image_size is {self.image_size}; expected at least {STRIDE}')
        if not 0 < self.norm_eps < 1:
            raise ValueError(f'{what}: norm_eps is {self.norm_eps}; expected between 0 and 1')
        check_rates(what, drop_path=self.drop_path)
        super().__post_init__()

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns parameters for another image size, which are the same."""
        del image_size
        return params

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        lookup.check(self.remat, REMAT, what='models/image/convnext: remat')
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        keys = None
        if train and self.drop_path:
            keys = example_keys(self.make_rng('dropout'), example_index, images.shape[0])
        x = Patches(self.widths[0], STEM, name='stem', **types)(images)
        x = Norm(epsilon=self.norm_eps, name='stem_norm', **types)(x)
        before = 0
        for i, depth in enumerate(self.depths):
            stage = Stage(
                width=self.widths[i],
                rates=tuple(self._rate(before + j) for j in range(depth)),
                first=before,
                norm_eps=self.norm_eps,
                layer_scale=self.layer_scale,
                remat=self.remat,
                name=f'stage_{i + 1}',
                **types,
            )
            x = stage(x, keys)
            before += depth
        capture.keep(self, 'patches', x)
        return Norm(epsilon=self.norm_eps, name='post_norm', **types)(x.mean(axis=(1, 2)))

    def _rate(self, block: int) -> float:
        return self.drop_path * block / max(sum(self.depths) - 1, 1)


class Patches(nn.Module):
    """A convolution whose stride is the size of its kernel: [B, H, W, C] ->
    [B, H/size, W/size, width].
    """

    width: int
    size: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        shape = (self.size, self.size, channels, self.width)
        kernel = self.param('kernel', nn.initializers.normal(STD), shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.width,), self.param_dtype)
        x = patches(x.astype(self.dtype), self.size)
        axes = ((2, 3, 4), (0, 1, 2)), ((), ())
        x = on_cpu.dot_general(x, kernel.astype(self.dtype), axes) + bias.astype(self.dtype)
        return x.reshape(batch, height // self.size, width // self.size, self.width)


class Stage(nn.Module):
    """Blocks of one width, after a norm and patches of 2 x 2 unless it is the first stage:
    [B, H, W, C] -> [B, H/2, W/2, width].

    Attributes:
        width: features of the blocks.
        rates: of dropping the branch of each block.
        first: the number of blocks before, in all stages.
        norm_eps, layer_scale, remat: see Encoder.
    """

    width: int
    rates: tuple[float, ...]
    first: int
    norm_eps: float
    layer_scale: float
    remat: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        if self.first:
            x = Norm(epsilon=self.norm_eps, name='norm', **types)(x)
            x = Patches(self.width, 2, name='downsample', **types)(x)
        block = Block
        if self.remat != 'none':
            block = nn.remat(Block, policy=REMAT[self.remat])
        for i, rate in enumerate(self.rates):
            own = None
            if keys is not None:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, self.first + i)
            x = block(rate, self.norm_eps, self.layer_scale, name=f'block_{i}', **types)(x, own)
        return x


class Block(nn.Module):
    """x + scale * mlp(norm(depthwise convolution of x)); [B, H, W, C].

    Attributes:
        rate: of dropping the branch of an example, for which there are keys [B].
        norm_eps, layer_scale: see Encoder.
    """

    rate: float
    norm_eps: float
    layer_scale: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        batch, height, width, channels = x.shape
        x = sharding.constrain(x, 'batch', None, None, 'features')
        y = Depthwise(name='depthwise', **types)(x)
        y = Norm(epsilon=self.norm_eps, name='norm', **types)(y)
        mlp = Mlp(
            mlp_dim=MLP_RATIO * channels,
            activation='gelu',
            in_std=STD,
            out_std=STD,
            name='mlp',
            **types,
        )
        y = mlp(y.reshape(batch, height * width, channels)).reshape(x.shape)
        init = nn.initializers.constant(self.layer_scale)
        y = y * self.param('scale', init, (channels,), self.param_dtype).astype(y.dtype)
        if self.rate and keys is not None:
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate))(keys)
            y = jnp.where(kept[:, None, None, None], y / (1 - self.rate), 0)
        return x + y


class Depthwise(nn.Module):
    """A convolution of each feature on its own, with zeros around the image: [B, H, W, C]."""

    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (KERNEL, KERNEL, 1, channels)
        kernel = self.param('kernel', nn.initializers.normal(STD), shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (channels,), self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        form = on_cpu.depthwise if on_cpu.here() else depthwise
        return form(x, kernel) + bias.astype(self.dtype)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each feature: [B, H, W, C] with [height, width, 1, C] -> [B, H, W, C]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )
