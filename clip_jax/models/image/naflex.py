"""Vision Transformer for images of any aspect ratio: NaFlex of SigLIP 2 (arXiv 2502.14786).

It combines patches of several sizes (FlexiViT, arXiv 2212.08013) with the native aspect ratio
(NaViT, arXiv 2307.06304).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.data.patches import Patches
from clip_jax.models import capture, on_cpu, positions
from clip_jax.models.image_layers import AttentionPool
from clip_jax.models.layers import (
    Norm,
    Transformer,
    TransformerConfig,
    check_rates,
    check_sizes,
    example_keys,
)

# SigLIP 2 (arXiv 2502.14786), section 2.4.2: the same sizes as at fixed resolution.
VARIANTS: dict[str, dict[str, int]] = {
    'B': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
    'So400m': {'width': 1152, 'depth': 27, 'heads': 16, 'mlp_dim': 4304},
}
LOGICAL_AXES = {
    'patch_embedding/kernel': ('pixels', 'pixels', 'channels', 'width'),
    'position_embedding': ('length', 'width'),
    'probe': ('length', 'width'),
}


class Encoder(nn.Module):
    """NaFlex: patches of images of any aspect ratio -> features [B, width].

    Padding is hidden from attention and pooling. Position embeddings are interpolated to the grid
    of each image, and the patch embedding to the size of the patches.

    Attributes:
        image_size: height and width, in pixels, of the square image whose patches have the learned
            position embeddings as they are.
        patch_size: height and width, in pixels, of the patches of the patch embedding.
        width: features of a token.
        depth, heads, mlp_dim, activation, norm_eps, layer_scale, dropout, remat, scan, attention:
            see layers.TransformerConfig.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = 'gelu_tanh'
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    attention: str = 'xla'
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_sizes(
            'models/image/naflex',
            self.activation,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        check_rates('models/image/naflex', dropout=self.dropout)
        if self.image_size % self.patch_size:
            raise ValueError(
                f'models/image/naflex: image_size is {self.image_size}; expected a multiple of '
                f'patch_size {self.patch_size}'
            )
        super().__post_init__()

    @property
    def grid(self) -> int:
        """The number of learned positions along each axis."""
        return self.image_size // self.patch_size

    def example_images(
        self, count: int, max_patches: int | None, patch_size: int | None
    ) -> Patches:
        """Returns the shapes of a batch of images; the defaults are those of the positions."""
        most, size = max_patches or self.grid**2, patch_size or self.patch_size
        pixels = jax.ShapeDtypeStruct((count, most, size, size, 3), jnp.uint8)
        return Patches(pixels, jax.ShapeDtypeStruct((count, 2), jnp.int32))

    @property
    def preprocess(self) -> dict[str, str | int]:
        """Fields of data.preprocess.Preprocess for a new model."""
        sizes = {'patch_size': self.patch_size, 'max_patches': self.grid**2}
        return {'resize': 'patches', 'interpolation': 'bilinear', **sizes}

    def with_image_size(self, params: dict, image_size: int) -> dict:
        """Returns the parameters as they are; ValueError for another image size."""
        if image_size != self.image_size:
            raise ValueError(
                f'models/image/naflex: image_size is {image_size}; expected {self.image_size}, the '
                'size of its positions. It takes images of any size: give max_patches instead'
            )
        return params

    @nn.compact
    def __call__(
        self, images: Patches, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        if not isinstance(images, Patches):
            raise ValueError(
                f'models/image/naflex: found images {images.shape}; expected data.patches.Patches, '
                'as the preprocessing of this model makes them'
            )
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        x = PatchEmbedding(self.patch_size, self.width, name='patch_embedding', **types)(
            images.pixels
        )
        table = self.param(
            'position_embedding',
            nn.initializers.normal(self.width**-0.5),
            (self.grid**2, self.width),
            self.param_dtype,
        )
        x = x + positions.interpolated(table, images.grid, x.shape[1]).astype(x.dtype)
        keys = None
        if train and self.dropout:
            keys = example_keys(self.make_rng('dropout'), example_index, x.shape[0])
        shown = jnp.arange(x.shape[1]) < images.grid.prod(axis=1, keepdims=True)
        mask = shown[:, None, None]
        x = Transformer(TransformerConfig.of(self), name='transformer')(x, mask, keys)
        x = Norm(epsilon=self.norm_eps, name='post_norm', **types)(x)
        capture.keep(self, 'patches', x)
        return AttentionPool(
            self.heads,
            self.mlp_dim,
            self.activation,
            self.norm_eps,
            self.dtype,
            self.param_dtype,
            name='attention_pool',
        )(x, mask)


class PatchEmbedding(nn.Module):
    """A dense layer over patches of any size: [B, L, size, size, 3] -> [B, L, width].

    Attributes:
        size: height and width of the patches that the kernel is for, in pixels. For others it is
            resized (see `resized_kernel`).
        width: features of a token.
    """

    size: int
    width: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.width)
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param('kernel', init, shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.width,), self.param_dtype)
        kernel = resized_kernel(kernel, x.shape[-2])
        x, kernel, bias = (value.astype(self.dtype) for value in (x, kernel, bias))
        dimensions = (((2, 3, 4), (0, 1, 2)), ((), ()))
        return on_cpu.dot_general(x, kernel, dimensions) + bias


def resized_kernel(kernel: jax.Array, size: int) -> jax.Array:
    """Resizes the kernel of a patch embedding to patches of another size.

    A larger patch then has the embedding that the patch it was resized from has with the kernel
    itself; for smaller patches this holds in the least squares sense.

    Args:
        kernel: [old, old, channels, width].
        size: height and width of the patches.

    Source: FlexiViT (arXiv 2212.08013), section 3.4, the pseudo-inverse of the resize.
    """
    old = kernel.shape[0]
    if size == old:
        return kernel
    # The resize is separable, and so is its pseudo-inverse.
    inverse = jnp.asarray(np.linalg.pinv(_resize_matrix(old, size).T), jnp.float32)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    resized = product('ai,bj,ijcw->abcw', inverse, inverse, kernel.astype(jnp.float32))
    return resized.astype(kernel.dtype)


def _resize_matrix(old: int, new: int) -> np.ndarray:
    """The bilinear resize of a side without antialiasing, as a matrix [new, old]."""
    center = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(np.arange(old) - center[:, None]), 0)
