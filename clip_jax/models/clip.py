"""CLIP: two encoders, a projection each into one space, and the learned temperature (arXiv
2103.00020, figure 3).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup

INIT_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)  # kept by the optimizer after each update (section 2.5)
EXECUTION = ('remat', 'scan', 'attention')  # fields that are no part of a model's card
PROJECTIONS = ('linear', 'biased', 'none')


class CLIP(nn.Module):
    """Maps images and texts to vectors of `embed_dim` numbers whose cosine says how well they
    match.

    `image` and `text` are encoders (see models/image and models/text). Their rows are projected
    without a bias ('linear'), with one ('biased': texts in SigLIP, images behind a ResNet), or not
    at all ('none': images in SigLIP). `init_logit_bias` is None for losses without a bias.
    Parameters lie under `image`, `text`, `image_projection`, `text_projection`, `logit_scale` and
    `logit_bias`.
    """

    image: nn.Module
    text: nn.Module
    embed_dim: int
    image_proj: str = 'linear'
    text_proj: str = 'linear'
    init_logit_scale: float = INIT_LOGIT_SCALE
    init_logit_bias: float | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if self.embed_dim < 1:
            raise ValueError(f'embed_dim is {self.embed_dim}; expected at least 1')
        lookup.check(self.image_proj, PROJECTIONS, what='models/clip: image_proj')
        lookup.check(self.text_proj, PROJECTIONS, what='models/clip: text_proj')
        super().__post_init__()

    def setup(self):
        self.image_projection = self._projection(self.image_proj)
        self.text_projection = self._projection(self.text_proj)
        self.logit_scale = self._number('logit_scale', self.init_logit_scale)
        if self.init_logit_bias is not None:
            self.logit_bias = self._number('logit_bias', self.init_logit_bias)

    def _number(self, name: str, init: float) -> jax.Array:
        return self.param(name, nn.initializers.constant(init), (), jnp.float32)

    def _projection(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        if kind == 'none':
            return self._as_wide
        return nn.Dense(
            self.embed_dim,
            use_bias=kind == 'biased',
            # Standard deviation width^-0.5, as in OpenAI's released code.
            kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def _as_wide(self, rows: jax.Array) -> jax.Array:
        if rows.shape[-1] != self.embed_dim:
            raise ValueError(
                f'models/clip: without a projection the encoder must be embed_dim '
                f'{self.embed_dim} wide, not {rows.shape[-1]}'
            )
        return rows

    def encode_image(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        """Embeds normalized images [B, H, W, 3]: rows [B, embed_dim], not yet of unit length."""
        return self.image_projection(self.image(images, train=train, example_index=example_index))

    def encode_text(
        self, tokens: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        """Embeds token ids [B, L]: rows [B, embed_dim], not yet of unit length."""
        return self.text_projection(self.text(tokens, train=train, example_index=example_index))

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns the similarities' scale, and their bias or None."""
        bias = None if self.init_logit_bias is None else self.logit_bias
        return jnp.exp(self.logit_scale), bias

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        *,
        train: bool = False,
        example_index: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Returns image rows and text rows of unit length, the similarities' scale, and their bias
        or None.

        In training `example_index`, int32 [B], are the pairs' numbers in the global batch, on
        which what is dropped of them depends; without them, 0, 1, 2, …
        """
        image = unit(self.encode_image(images, train=train, example_index=example_index))
        text = unit(self.encode_text(tokens, train=train, example_index=example_index))
        return image, text, *self.scale_and_bias()


def unit(rows: jax.Array) -> jax.Array:
    """Scales rows [..., D] to length 1, in float32; a zero row stays zero."""
    rows = rows.astype(jnp.float32)
    square = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def from_card(fields: Mapping[str, Any], dtype: Any = jnp.float32, **execution: str | bool) -> CLIP:
    """Makes the model that a card's `model` describes; parameters are float32, arithmetic `dtype`.

    Fields that are not given, or None, are the encoders' defaults. `execution` are those of
    EXECUTION, for the encoders that have them: they change how, not what, is computed.
    """
    types = {'dtype': jnp.dtype(dtype), 'param_dtype': jnp.dtype('float32')}

    def encoder(folder: str, fields: Mapping[str, Any]) -> nn.Module:
        given = {k: v for k, v in fields.items() if v is not None and k != 'name'}
        module = lookup.module(folder, fields['name']).Encoder
        known = {field.name for field in dataclasses.fields(module)}
        how = {k: v for k, v in execution.items() if k in known}
        return module(**given, **how, **types)

    towers = {
        'image': encoder('models.image', fields['image']),
        'text': encoder('models.text', fields['text']),
    }
    return CLIP(**{**fields, **towers}, **types)


def to_card(model: CLIP) -> dict[str, Any]:
    """Returns a card's `model` with every field: what `from_card` makes the same model of."""
    towers = {
        name: {'name': type(tower).__module__.rpartition('.')[2], **_fields(tower)}
        for name, tower in (('image', model.image), ('text', model.text))
    }
    return {**_fields(model), **towers}


def _fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a module that say what it computes."""
    names = [field.name for field in dataclasses.fields(module)]
    values = {n: getattr(module, n) for n in names}
    rest = ('parent', 'name', 'dtype', 'param_dtype', *EXECUTION)
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items() if n not in rest}


def init(model: CLIP, key: jax.Array) -> dict[str, Any]:
    """Initializes the variables of a model: `{'params': …}`, with a ResNet also `batch_stats`."""
    size, length = model.image.image_size, model.text.context_length
    images, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
    return jax.jit(model.init)(key, images, tokens)  # else each operation is compiled by itself


def shapes(model: CLIP) -> dict[str, Any]:
    """Returns shapes and types of all variables of a model, without making them."""
    return jax.eval_shape(functools.partial(init, model), jax.random.key(0))


def with_image_size(
    fields: Mapping[str, Any], variables: Mapping[str, Any], image_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a card's `model` and its variables for images of another size, in pixels."""
    image = from_card(fields).image
    params = variables['params']
    params = {**params, 'image': image.with_image_size(params['image'], image_size)}
    fields = {**fields, 'image': {**fields['image'], 'image_size': image_size}}
    from_card(fields)  # raises for a size that cannot be
    return fields, {**variables, 'params': params}
