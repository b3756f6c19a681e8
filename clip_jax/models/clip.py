"""CLIP: two encoders, a projection each into one space, and the learned temperature (arXiv
2103.00020, figure 3).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

INIT_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)  # kept by the optimizer after each update (section 2.5)


class CLIP(nn.Module):
    """Maps images and texts to vectors of `embed_dim` numbers whose cosine says how well they
    match.

    `image` and `text` are encoders (see models/image and models/text). Parameters lie under
    `image`, `text`, `image_projection`, `text_projection` and `logit_scale`.
    """

    image: nn.Module
    text: nn.Module
    embed_dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if self.embed_dim < 1:
            raise ValueError(f'embed_dim is {self.embed_dim}; expected at least 1')
        super().__post_init__()

    def setup(self):
        self.image_projection = self._projection(self.image.width)
        self.text_projection = self._projection(self.text.width)
        self.logit_scale = self.param(
            'logit_scale', nn.initializers.constant(INIT_LOGIT_SCALE), (), jnp.float32
        )

    def _projection(self, width: int) -> nn.Dense:
        return nn.Dense(
            self.embed_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(width**-0.5),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def encode_image(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds normalised images [B, H, W, 3]: rows [B, embed_dim], not yet of unit length."""
        return self.image_projection(self.image(images, train=train))

    def encode_text(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds token ids [B, L]: rows [B, embed_dim], not yet of unit length."""
        return self.text_projection(self.text(tokens, train=train))

    def __call__(
        self, images: jax.Array, tokens: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Returns image rows and text rows of unit length, the similarities' scale, and their bias
        (none).
        """
        image = unit(self.encode_image(images, train=train))
        text = unit(self.encode_text(tokens, train=train))
        return image, text, jnp.exp(self.logit_scale), None


def unit(rows: jax.Array) -> jax.Array:
    """Scales rows [..., D] to length 1, in float32; a zero row stays zero."""
    rows = rows.astype(jnp.float32)
    square = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
