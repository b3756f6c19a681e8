"""CLIP: two encoders, their projections into one space, and a learned temperature."""

import dataclasses
import functools
import importlib
import inspect
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

    Parameters are under `image`, `text`, `image_projection`, `text_projection`, `logit_scale`,
    `logit_bias` and `decoder`.

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
        decoder: the caption decoder, see models/decoder.py; None: there is none.
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
    decoder: nn.Module | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if self.embed_dim < 1:
            raise ValueError(f'embed_dim is {self.embed_dim}; expected at least 1')
        lookup.check(self.image_proj, PROJECTIONS, what='models/clip: image_proj')
        lookup.check(self.text_proj, PROJECTIONS, what='models/clip: text_proj')
        if not self.towers:
            raise ValueError('models/clip: image and text are None; expected at least one encoder')
        if self.decoder is not None:
            _check_decoder(self.decoder, self.image, self.text)
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
        self.image_projection = _projection(self, self.image_proj)
        self.text_projection = _projection(self, self.text_proj)
        if len(self.towers) < 2:
            return
        self.logit_scale = self._scalar('logit_scale', self.init_logit_scale)
        if self.init_logit_bias is not None:
            self.logit_bias = self._scalar('logit_bias', self.init_logit_bias)

    def _scalar(self, name: str, init: float) -> jax.Array:
        return self.param(name, nn.initializers.constant(init), (), jnp.float32)

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

    def example_inputs(
        self, count: int, *, max_patches: int | None = None, patch_size: int | None = None
    ) -> tuple[Any, Any]:
        """Returns the shapes of a batch of images and tokens, as preprocessing makes them; None for
        those of an encoder that the model has not.

        Args:
            count: the number of images and of texts.
            max_patches: patches of an image, for an encoder that takes images of any size.
            patch_size: height and width of these patches, in pixels.
        """
        images: Any = None
        if hasattr(self.image, 'example_images'):
            images = self.image.example_images(count, max_patches, patch_size)
        elif self.image is not None:
            size = self.image.image_size
            images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
        if self.text is None:
            return images, None
        return images, jax.ShapeDtypeStruct((count, self.text.context_length), jnp.int32)

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
        texts, of_texts = _flat(tokens, example_index)
        text = self.encode_text(texts, train=of_text, example_index=of_texts)
        image, text = l2_normalize(image), l2_normalize(text)
        if self.decoder is not None and self.is_initializing():
            self.caption_logits(images, texts)
        return image, text.reshape(*tokens.shape[:-1], -1), *self.scale_and_bias()

    def image_tokens(self, images: jax.Array) -> jax.Array:
        """Returns what the decoder reads of images [B, H, W, 3]: [B, N, width]."""
        return self.image(images, all_tokens=True)[1]

    def caption_logits(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Returns the logits of the next token after each one of captions.

        Args:
            images: float [B, H, W, 3], normalized by mean and std.
            tokens: token ids, int32 [B, L].

        Returns:
            float32 [B, L, vocab_size].
        """
        decoder = self.captioner()
        inputs = tokens
        if decoder.inputs == 'text':
            _, inputs = self.text(tokens, all_tokens=True)
        return decoder(inputs, self.image_tokens(images))

    def next_token_logits(
        self, tokens: jax.Array, image_tokens: jax.Array, index: jax.Array
    ) -> jax.Array:
        """Returns the logits of the token after the one at a position.

        The collection `cache` must be mutable and keeps what was computed for earlier positions.

        Args:
            tokens: token ids, int32 [B, context_length]; those after `index` do not count.
            image_tokens: what `image_tokens` returned.
            index: the position, int32 []; 0 in the first call, then 1, 2, …

        Returns:
            float32 [B, vocab_size].
        """
        decoder = self.captioner()
        inputs = tokens if decoder.inputs == 'tokens' else self.text(tokens, index=index)
        return decoder(inputs, image_tokens, index=index)[:, 0]

    def captioner(self) -> Any:
        """Returns the decoder; ValueError if there is none."""
        if self.decoder is None:
            raise ValueError(
                'this model has no caption decoder (model.decoder); expected one that has, such as '
                'CoCa'
            )
        return self.decoder


def captioned(
    model: CLIP,
    images: jax.Array,
    tokens: jax.Array,
    *,
    train: bool = False,
    locked: tuple[str, ...] = (),
    example_index: jax.Array | None = None,
    parallel: float = 0.0,
    contrastive: bool = True,
) -> tuple[jax.Array, ...]:
    """Computes what a contrastive loss and a captioning loss need.

    Args:
        images, tokens, train, locked, example_index: as in a call of the model. Of several
            texts of an image, the first is its caption.
        parallel: share of the captions that are predicted in parallel.
        contrastive: whether embeddings are computed.

    Returns:
        L2-normalized embeddings of images and texts, if `contrastive`, as a call returns them;
        then the decoder's caption_sums, float32 [B, 3].
    """
    decoder = model.captioner()
    of_image, of_text = (train and tower not in locked for tower in ('image', 'text'))
    image, seen = model.image(images, train=of_image, example_index=example_index, all_tokens=True)
    captions = tokens if tokens.ndim == 2 else tokens[:, 0]
    inputs, embeddings = captions, ()
    if contrastive or decoder.inputs == 'text':
        texts, of_texts = _flat(tokens if contrastive else captions, example_index)
        how = {'train': of_text, 'example_index': of_texts}
        if decoder.inputs == 'tokens':
            text = model.text(texts, **how)
        else:
            text, inputs = model.text(texts, all_tokens=True, **how)
            inputs = inputs.reshape(len(images), -1, *inputs.shape[1:])[:, 0]
        text = text.reshape(*tokens.shape[:-1], -1) if contrastive else text
        embeddings = (model.image_projection(image), model.text_projection(text))
    masked = None
    if train and parallel:
        keys = layers.example_keys(model.make_rng('dropout'), example_index, len(images))
        masked = jax.vmap(lambda key: jax.random.bernoulli(key, parallel))(keys)
    logits = decoder(inputs, seen, masked=masked, train=train, example_index=example_index)
    sums = decoder.caption_sums(logits, captions)
    return (*map(l2_normalize, embeddings if contrastive else ()), sums)


def _flat(tokens: jax.Array, example_index: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Returns tokens [B, L] or [B, K, L] as [B * K, L], and the index of each text."""
    *shape, length = tokens.shape
    if example_index is not None and len(shape) == 2:
        # Every text has random numbers of its own.
        example_index = (example_index[:, None] * shape[1] + jnp.arange(shape[1])).reshape(-1)
    return tokens.reshape(-1, length), example_index


def _check_decoder(decoder: nn.Module, image: nn.Module, text: nn.Module) -> None:
    """Raises ValueError if encoders do not give what a caption decoder reads."""
    for tower, encoder in (('image', image), ('text', text)):
        if tower == 'text' and decoder.inputs == 'tokens':
            continue
        if 'all_tokens' not in inspect.signature(type(encoder).__call__).parameters:
            raise ValueError(
                f'models/decoder: the {tower} encoder {type(encoder).__module__} does not return '
                "its tokens (all_tokens); choose vit and transformer, or the decoder's inputs "
                "'tokens' for another text encoder"
            )
    if getattr(image, 'pool', '') == 'queries' and image.pool_queries < 2:
        raise ValueError('models/decoder: image.pool_queries is 1; expected 2 or more')
    if decoder.inputs == 'text':
        if not text.causal:
            raise ValueError(
                "models/decoder: inputs 'text' need a causal text encoder; set text.causal"
            )
        for name in ('width', 'vocab_size', 'context_length'):
            ours, its = getattr(decoder, name), getattr(text, name)
            if ours != its:
                raise ValueError(
                    f"models/decoder: {name} is {ours} and the text encoder's is {its}; inputs "
                    "'text' need equal ones"
                )


def _projection(model: CLIP, kind: str) -> Callable[[jax.Array], jax.Array]:
    types = {'dtype': model.dtype, 'param_dtype': model.param_dtype}
    if kind == 'none':
        return functools.partial(_unprojected, model.embed_dim)
    if kind in ('mlp', 'wide_mlp'):
        return MlpProjection(model.embed_dim, kind == 'wide_mlp', **types)
    return _dense(model.embed_dim, bias=kind == 'biased', **types)


def _unprojected(embed_dim: int, features: jax.Array) -> jax.Array:
    if features.shape[-1] != embed_dim:
        raise ValueError(
            f'models/clip: embed_dim is {embed_dim}; without a projection it must be the number of '
            f'features of the encoder, {features.shape[-1]}'
        )
    return features


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


def _modules(model: CLIP) -> dict[str, nn.Module]:
    """The encoders, and the decoder if there is one, by their fields."""
    decoder = {} if model.decoder is None else {'decoder': model.decoder}
    return {**model.towers, **decoder}


def logical_axes(model: CLIP) -> sharding.LogicalAxes:
    """Returns the function that names the axes of a model's parameters, for sharding.of_tree.

    It reads LOGICAL_AXES of the module that defines each encoder, then that of models/layers.py.
    """
    encoders = {
        name: getattr(importlib.import_module(type(encoder).__module__), 'LOGICAL_AXES', {})
        for name, encoder in _modules(model).items()
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
        **execution: fields of EXECUTION, for the encoders and the decoder that have them.

    Raises:
        ValueError: an encoder is unknown or cannot be imported, or a field is wrong.
    """
    types = {'dtype': jnp.dtype(dtype), 'param_dtype': jnp.dtype('float32')}

    def module(make: type[nn.Module], fields: Mapping[str, Any]) -> nn.Module:
        given = {k: v for k, v in fields.items() if v is not None and k != 'name'}
        known = {field.name for field in dataclasses.fields(make)}
        how = {k: v for k, v in execution.items() if k in known}
        return make(**given, **how, **types)

    parts: dict[str, Any] = {
        tower: module(
            lookup.module(f'models.{tower}', fields[tower]['name'], 'Encoder').Encoder,
            fields[tower],
        )
        if fields[tower] is not None
        else None
        for tower in ('image', 'text')
    }
    if fields.get('decoder'):
        make = lookup.module('models', 'decoder', 'Decoder').Decoder
        parts['decoder'] = module(make, fields['decoder'])
    return CLIP(**{**fields, **parts}, **types)


def to_card(model: CLIP) -> dict[str, Any]:
    """Returns a card's `model` with every field; `from_card` makes an equal model of it."""
    encoders = {
        name: {
            'name': type(encoder).__module__.removeprefix(f'clip_jax.models.{name}.'),
            **_fields(encoder),
        }
        for name, encoder in model.towers.items()
    }
    decoder = {} if model.decoder is None else {'decoder': _fields(model.decoder)}
    fields = {k: v for k, v in _fields(model).items() if k != 'decoder'}
    return {**fields, **encoders, **decoder}


def _fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a module that define what it computes."""
    names = [field.name for field in dataclasses.fields(module)]
    values = {n: getattr(module, n) for n in names}
    rest = ('parent', 'name', 'dtype', 'param_dtype', *EXECUTION)
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items() if n not in rest}


def init(model: CLIP, key: jax.Array) -> dict[str, Any]:
    """Initializes the variables of a model: `params`, and `batch_stats` if it has a ResNet."""
    example = model.example_inputs(1)
    inputs = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32 if x.dtype == jnp.uint8 else x.dtype),
        [x for x in example if x is not None],
    )
    method = '__call__' if len(model.towers) == 2 else f'encode_{next(iter(model.towers))}'
    # Without jit, each operation is compiled on its own.
    return jax.jit(functools.partial(model.init, method=method))(key, *inputs)


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
