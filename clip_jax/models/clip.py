"""CLIP: two encoders, their projections into one space, and a learned temperature."""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import lookup, sharding
from clip_jax.models import layers
from clip_jax.models.activations import gelu

INIT_LOGIT_SCALE = math.log(1 / 0.07)
# Fields that change how, not what, is computed; they are not part of a model's card.
EXECUTION = ('remat', 'scan', 'attention')
PROJECTIONS = ('linear', 'biased', 'mlp', 'wide_mlp', 'none')
LOGICAL_AXES = {
    '(image|text)_projection/kernel': ('width', 'embed'),
    '(image|text)_projection/in/kernel': ('width', 'mlp'),
    '(image|text)_projection/out/kernel': ('mlp', 'width'),
}


class CLIP(nn.Module):
    """CLIP: embeds images and texts in one space, where cosine similarity says how well they match.

    Parameters are under `image`, `text`, `image_projection`, `text_projection`, `logit_scale` and
    `logit_bias`.

    Attributes:
        image: the image encoder, see models/image; None: the model has only a text tower, without
            `logit_scale`.
        text: the text encoder, see models/text; None: the model has only an image tower.
        embed_dim: features of the shared space.
        image_proj: projection of image features. 'linear': without a bias; 'biased': with a bias,
            as after OpenAI's ResNets; 'mlp': two layers without biases and GELU between them, as
            after open_clip's RoBERTa; 'wide_mlp': with 2 * embed_dim features between them, and a
            bias in the first, as after open_clip's ConvNeXt-L; 'none': the encoder's features are
            the embedding, as in SigLIP.
        text_proj: projection of text features; 'biased' in SigLIP.
        init_logit_scale: initial log inverse temperature.
        init_logit_bias: initial logit bias; None for losses without one.
        dtype: the compute dtype.
        param_dtype: the dtype of the parameters.

    Source: Learning Transferable Visual Models From Natural Language Supervision (arXiv
    2103.00020), figure 3.
    """

    image: Any  # a module or None
    text: Any
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
        if not self.towers:
            raise ValueError('models/clip: image and text are None; expected at least one encoder')
        super().__post_init__()

    @property
    def towers(self) -> dict[str, Any]:
        """The encoders that the model has, by 'image' and 'text'."""
        both = {'image': self.image, 'text': self.text}
        return {name: encoder for name, encoder in both.items() if encoder is not None}

    def check_has(self, tower: str) -> None:
        """Raises a ValueError if the model has no encoder of that name, 'image' or 'text'."""
        if tower not in self.towers:
            raise ValueError(
                f'this model has no {tower} encoder, only the other one; load a checkpoint that '
                'has both, or train the missing one (config.init_towers)'
            )

    def setup(self):
        self.image_projection = self._projection(self.image_proj)
        self.text_projection = self._projection(self.text_proj)
        if len(self.towers) < 2:
            return
        self.logit_scale = self._scalar('logit_scale', self.init_logit_scale)
        if self.init_logit_bias is not None:
            self.logit_bias = self._scalar('logit_bias', self.init_logit_bias)

    def _scalar(self, name: str, init: float) -> jax.Array:
        return self.param(name, nn.initializers.constant(init), (), jnp.float32)

    def _projection(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        if kind == 'none':
            return self._unprojected
        if kind in ('mlp', 'wide_mlp'):
            return MlpProjection(self.embed_dim, kind == 'wide_mlp', **types)
        return _dense(self.embed_dim, bias=kind == 'biased', **types)

    def _unprojected(self, features: jax.Array) -> jax.Array:
        if features.shape[-1] != self.embed_dim:
            raise ValueError(
                f'models/clip: embed_dim is {self.embed_dim}; without a projection it must be the '
                f'number of features of the encoder, {features.shape[-1]}'
            )
        return features

    def encode_image(
        self, images: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        """Embeds images [B, H, W, 3], normalized by mean and std: [B, embed_dim], before L2
        normalization.
        """
        self.check_has('image')
        return self.image_projection(self.image(images, train=train, example_index=example_index))

    def encode_text(
        self, tokens: jax.Array, *, train: bool = False, example_index: jax.Array | None = None
    ) -> jax.Array:
        """Embeds token ids, int32 [B, L]: [B, embed_dim], before L2 normalization."""
        self.check_has('text')
        return self.text_projection(self.text(tokens, train=train, example_index=example_index))

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns the factor exp(logit_scale) of the similarities, [], and the bias, [] or None."""
        bias = None if self.init_logit_bias is None else self.logit_bias
        return jnp.exp(self.logit_scale), bias

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        *,
        train: bool = False,
        locked: tuple[str, ...] = (),
        example_index: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Computes what a loss needs.

        Args:
            images: float [B, H, W, 3], normalized by mean and std.
            tokens: token ids, int32 [B, L], or of K texts of each image, int32 [B, K, L].
            train: whether dropout is on and running statistics are updated.
            locked: the towers, 'image' or 'text', for which `train` does not hold.
            example_index: int32 [B], positions in the global batch, on which random numbers for an
                example depend; None: 0, 1, 2, …

        Returns:
            L2-normalized embeddings of images and texts, float32 [B, embed_dim] each, or of texts
            [B, K, embed_dim]; the factor of their similarities, float32 [], and the logit bias,
            float32 [] or None.
        """
        of_image, of_text = (train and tower not in locked for tower in ('image', 'text'))
        image = self.encode_image(images, train=of_image, example_index=example_index)
        *shape, length = tokens.shape
        if example_index is not None and len(shape) == 2:
            # Every text has random numbers of its own.
            example_index = (example_index[:, None] * shape[1] + jnp.arange(shape[1])).reshape(-1)
        texts = tokens.reshape(-1, length)
        text = self.encode_text(texts, train=of_text, example_index=example_index)
        image, text = l2_normalize(image), l2_normalize(text)
        return image, text.reshape(*shape, -1), *self.scale_and_bias()


def _dense(features: int, *, bias: bool, **rest: Any) -> nn.Dense:
    # Standard deviation width^-0.5, as in OpenAI's released code.
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    return nn.Dense(features, use_bias=bias, kernel_init=init, **rest)


class MlpProjection(nn.Module):
    """Two layers with GELU between them: [..., width] -> [..., embed_dim].

    Attributes:
        embed_dim: features of the output.
        wide: whether there are 2 * embed_dim features between them, and a bias in the first layer;
            else they are halfway between width and embed_dim.
    """

    embed_dim: int
    wide: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        hidden = 2 * self.embed_dim if self.wide else (x.shape[-1] + self.embed_dim) // 2
        x = gelu(_dense(hidden, bias=self.wide, name='in', **types)(x))
        return _dense(self.embed_dim, bias=False, name='out', **types)(x)


def l2_normalize(x: jax.Array) -> jax.Array:
    """L2-normalizes vectors [..., D] in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def logical_axes(model: CLIP) -> sharding.LogicalAxes:
    """Returns the function that names the axes of a model's parameters, for sharding.of_tree.

    It reads LOGICAL_AXES of the module that defines each encoder, then that of models/layers.py.
    """
    encoders = {
        name: getattr(importlib.import_module(type(encoder).__module__), 'LOGICAL_AXES', {})
        for name, encoder in model.towers.items()
    }

    def axes(path: str, ndim: int) -> tuple[str | None, ...]:
        # An optimizer's state has the same names after a prefix.
        encoder = next((name for name in path.split('/') if name in encoders), None)
        own = encoders[encoder] if encoder else LOGICAL_AXES
        return layers.logical_axes(path, ndim, {**own, **layers.LOGICAL_AXES})

    return axes


def from_card(fields: Mapping[str, Any], dtype: Any = jnp.float32, **execution: str | bool) -> CLIP:
    """Makes the model of a card.

    Args:
        fields: the card's `model`. Fields that are missing or None are the defaults of the
            encoders.
        dtype: the compute dtype; parameters are float32.
        **execution: fields of EXECUTION, for the encoders that have them.

    Raises:
        ValueError: an encoder is unknown or cannot be imported, or a field is wrong.
    """
    types = {'dtype': jnp.dtype(dtype), 'param_dtype': jnp.dtype('float32')}

    def encoder(folder: str, fields: Mapping[str, Any] | None) -> nn.Module | None:
        if fields is None:
            return None
        given = {k: v for k, v in fields.items() if v is not None and k != 'name'}
        make = lookup.module(folder, fields['name'], 'Encoder').Encoder
        known = {field.name for field in dataclasses.fields(make)}
        how = {k: v for k, v in execution.items() if k in known}
        return make(**given, **how, **types)

    encoders: dict[str, Any] = {
        'image': encoder('models.image', fields['image']),
        'text': encoder('models.text', fields['text']),
    }
    return CLIP(**{**fields, **encoders}, **types)


def to_card(model: CLIP) -> dict[str, Any]:
    """Returns a card's `model` with every field; `from_card` makes an equal model of it."""
    encoders = {
        name: {
            'name': type(encoder).__module__.removeprefix(f'clip_jax.models.{name}.'),
            **_fields(encoder),
        }
        for name, encoder in model.towers.items()
    }
    return {**_fields(model), **encoders}


def _fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a module that define what it computes."""
    names = [field.name for field in dataclasses.fields(module)]
    values = {n: getattr(module, n) for n in names}
    rest = ('parent', 'name', 'dtype', 'param_dtype', *EXECUTION)
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items() if n not in rest}


def init(model: CLIP, key: jax.Array) -> dict[str, Any]:
    """Initializes the variables of a model: `params`, and `batch_stats` if it has a ResNet."""
    inputs: dict[str, jax.Array] = {}
    if model.image is not None:
        inputs['image'] = jnp.zeros((1, *[model.image.image_size] * 2, 3))
    if model.text is not None:
        inputs['text'] = jnp.zeros((1, model.text.context_length), jnp.int32)
    method = '__call__' if len(inputs) == 2 else f'encode_{next(iter(inputs))}'
    # Without jit, each operation is compiled on its own.
    make = functools.partial(model.init, method=method)
    return jax.jit(make)(key, *inputs.values())


def shapes(model: CLIP) -> dict[str, Any]:
    """Returns the shapes and dtypes of a model's variables, without initializing them."""
    return jax.eval_shape(functools.partial(init, model), jax.random.key(0))


def with_image_size(
    fields: Mapping[str, Any], variables: Mapping[str, Any], image_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adapts a model to another image size.

    Args:
        fields: a card's `model`.
        variables: the model's variables; they are not changed.
        image_size: height and width of images, in pixels.

    Returns:
        The fields and variables for that size: only position embeddings differ.

    Raises:
        ValueError: the encoder cannot take images of this size.
    """
    model = from_card(fields)
    model.check_has('image')
    image = model.image
    params = variables['params']
    params = {**params, 'image': image.with_image_size(params['image'], image_size)}
    fields = {**fields, 'image': {**fields['image'], 'image_size': image_size}}
    from_card(fields)  # raises for an impossible size
    return fields, {**variables, 'params': params}
