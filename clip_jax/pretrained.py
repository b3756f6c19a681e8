"""`load(path)` makes a `Clip` of a run directory or of any published checkpoint.

A `Clip` embeds images and texts and classifies images.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import build, checkpoint, convert, lookup, prompts, sharding, tokenizers
from clip_jax.data import inputs
from clip_jax.data.preprocess import Preprocess, normalize
from clip_jax.data.tools.scan import in_order
from clip_jax.models import clip, matryoshka
from clip_jax.models.clip import CLIP, l2_normalize, shapes
from clip_jax.places import resolve

FEATURES = ('embedding', 'pre_projection')
AVERAGE = '#average'  # after a path: the average of the weights
ACTIVATIONS = ('auto', 'softmax', 'sigmoid')
THREADS = min(32, (os.cpu_count() or 1) + 4)  # more than cores, since they also wait for I/O
KNOWN_CLASSES = 64  # size of the cache of class embeddings, in lists of classes
AHEAD = 2  # batches of images that are prefetched while the devices compute


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model with its variables, tokenizer and preprocessing; `load` makes one.

    Attributes:
        model: the Flax module.
        variables: what `model.apply` takes: `{'params': …}`, for a ResNet also `batch_stats`.
        card: the model card: architecture, preprocessing and tokenizer, as JSON values.
        tokenizer: texts -> tokens, int32 [N, L]; None if the checkpoint has no tokenizer files.
        preprocess: any image -> uint8 [size, size, 3].
        mesh: the devices that embed; batches are sharded over them, parameters are replicated.
        batch_size: images or texts per forward pass, over all devices.
        on_batch: called before each batch, in the caller's thread.
    """

    model: CLIP
    variables: dict[str, Any]
    card: dict[str, Any]
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None
    preprocess: Preprocess
    mesh: Mesh
    batch_size: int = 256
    on_batch: Callable[[], Any] | None = None
    _known_classes: dict[tuple, np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def with_preprocess(self, **changes: Any) -> 'Clip':
        """Returns the same model with other fields of `preprocess`, such as `max_pixels`."""
        return dataclasses.replace(self, preprocess=dataclasses.replace(self.preprocess, **changes))

    def encode_image(
        self, images: Any, *, features: str = 'embedding', dim: int | None = None
    ) -> np.ndarray:
        """Embeds one image or a sequence of images.

        Threads read and preprocess the images ahead of the devices.

        Args:
            images: PIL images, paths, encoded bytes or uint8 arrays [H, W, 3], of NumPy, JAX or
                another library; a sequence or a Series of these, a single one, or one uint8 array
                [N, H, W, 3]. A generator is read batch by batch.
            features: 'embedding', L2-normalized; or 'pre_projection', the image encoder's output
                before the projection, not normalized.
            dim: only the first coordinates of embeddings, L2-normalized again (Matryoshka).

        Returns:
            float32 [N, feature_dim(features)], or [N, dim].

        Raises:
            ValueError: an image cannot be read, `features` or `dim` is wrong, or the call is inside
                jit.
        """
        matryoshka.check(dim, self.model.embed_dim, features=features)
        if isinstance(images, Iterator):
            encode = functools.partial(self.encode_image, features=features, dim=dim)
            parts = [encode(some) for some in groups(images, self.batch_size)]
            return np.concatenate(parts or [encode([])])
        images = inputs.images(images)
        prepared = in_order(
            lambda i: self.preprocess(inputs.image(images[i])),
            0,
            len(images),
            threads=THREADS,
            ahead=AHEAD * self.batch_size,
        )
        with contextlib.closing(prepared):
            batches = map(np.stack, groups(prepared, self.batch_size))
            embedded = list(self.encode_batches(batches, features=features))
        if not embedded:
            return np.zeros((0, dim or self.feature_dim(features)), np.float32)
        return matryoshka.first(np.concatenate(embedded), dim)

    def encode_batches(
        self, batches: Iterable[np.ndarray], *, features: str = 'embedding'
    ) -> Iterator[np.ndarray]:
        """Embeds batches of preprocessed images; the devices compute one batch ahead.

        Args:
            batches: uint8 arrays [B, size, size, 3]; B may differ from batch to batch.
            features: 'embedding' or 'pre_projection', as in `encode_image`.

        Yields:
            float32 [B, feature_dim(features)] for each batch.
        """
        return self._embedded(_forward(self, features), batches, 'encode_image')

    def feature_dim(self, features: str = 'embedding') -> int:
        """Returns the size of one image's features, 'embedding' or 'pre_projection'."""
        size = self.preprocess.size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        return jax.eval_shape(_forward(self, features), self.variables, image).shape[1]

    def encode_text(
        self, texts: str | Iterable[str] | np.ndarray, *, dim: int | None = None
    ) -> np.ndarray:
        """Embeds texts or tokens.

        Args:
            texts: one text; a sequence, generator or Series of texts; or their tokens, int [N, L].
            dim: as in `encode_image`.

        Returns:
            float32 [N, D], L2-normalized.

        Raises:
            ValueError: a text is not a str, the model has no tokenizer, or the call is inside jit.
        """
        matryoshka.check(dim, self.model.embed_dim)
        texts = inputs.texts(texts)
        where = sharding.replicated(self.mesh)
        forward = functools.partial(_text_embeddings, model=self.model, where=where)
        if isinstance(texts, np.ndarray):
            tokenizer = functools.partial(np.asarray, dtype=np.int32)
        elif self.tokenizer is None:
            raise ValueError(
                'this model has no tokenizer, since no tokenizer file was found next to its '
                'weights; add one (tokenizer.json, or a SentencePiece model as spiece.model) and '
                'load again, or give tokens, int [N, L]'
            )
        else:
            tokenizer = self.tokenizer
        batches = (
            # pyrefly: ignore[bad-argument-type]  # an array of texts is a sequence of them too
            tokenizer(texts[start : start + self.batch_size])
            for start in range(0, len(texts), self.batch_size)
        )
        empty = np.zeros((0, self.model.embed_dim), np.float32)
        rows = np.concatenate([empty, *self._embedded(forward, batches, 'encode_text')])
        return matryoshka.first(rows, dim)

    def classify(
        self,
        images: Any,
        labels: Iterable[str],
        *,
        templates: prompts.Given = 'plain',
        activation: str = 'auto',
    ) -> np.ndarray:
        """Classifies images zero-shot: a softmax or sigmoid of the scaled cosine similarities.

        Args:
            images: as in `encode_image`.
            labels: the names of the classes.
            templates: the name of a prompt set, one or several templates such as
                'a photo of a {}.' or `lambda c: f'a photo of a {c}.'`, or the prompts of each
                class; a class embedding is the normalized mean over its prompts.
            activation: 'softmax': the labels exclude each other, so that the probabilities of an
                image sum to 1. 'sigmoid': each label has a probability of its own, also none or
                several of them apply; this needs the logit bias of a model trained with the sigmoid
                loss (SigLIP). 'auto': 'sigmoid' if the model has a logit bias, else 'softmax'.

        Returns:
            float32 [N, len(labels)]: the probabilities of the labels.

        Raises:
            ValueError: an empty or wrong list of labels, unknown templates, unreadable images, or
                'sigmoid' with a model that has no logit bias.

        Source: Radford et al. 2021, section 3.1; Zhai et al. 2023, section 3.2.
        """
        params = self.variables['params']
        sigmoid = _is_sigmoid(activation, params)
        classes = self._class_embeddings(inputs.names(labels), prompts.templates(templates))
        return _probabilities(self.encode_image(images), classes, params, sigmoid=sigmoid)

    def _class_embeddings(
        self, labels: tuple[str, ...], templates: prompts.Templates
    ) -> np.ndarray:
        """Returns float32 [classes, D], cached for the last KNOWN_CLASSES lists of classes."""
        prompts.check_classes(labels, templates)
        key = tuple(tuple(prompts.filled(label, templates)) for label in labels)
        found = self._known_classes.pop(key, None)
        if found is None:
            found = prompts.class_embeddings(self.encode_text, labels, templates)
        self._known_classes[key] = found  # the most recently used comes last
        if len(self._known_classes) > KNOWN_CLASSES:
            del self._known_classes[next(iter(self._known_classes))]
        return found

    def _embedded(
        self, forward: Callable, batches: Iterable[np.ndarray], method: str
    ) -> Iterator[np.ndarray]:
        """Yields the output for each batch; batches are padded to a few sizes to limit recompiles.

        A batch is dispatched before the previous one's output is fetched.
        """
        waiting = collections.deque()
        for batch in batches:
            if self.on_batch:
                self.on_batch()
            embedded = forward(self.variables, _sharded(batch, self.batch_size, self.mesh))
            inputs.check_concrete(embedded, method)
            waiting.append((embedded, len(batch)))
            if len(waiting) > 1:
                embedded, count = waiting.popleft()
                yield np.asarray(embedded)[:count]
        for embedded, count in waiting:
            yield np.asarray(embedded)[:count]


def _forward(clip: Clip, features: str) -> Callable:
    """The compiled function of variables and images that gives these features."""
    return functools.partial(
        _image_features,
        model=clip.model,
        mean=tuple(clip.preprocess.mean),
        std=tuple(clip.preprocess.std),
        features=lookup.check(features, FEATURES, what='features'),
        where=sharding.replicated(clip.mesh),
    )


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items; the last one may be shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def _sharded(batch: np.ndarray, batch_size: int, mesh: Mesh) -> jax.Array:
    """Pads a batch and shards it over the devices."""
    padding = _bucket(len(batch), batch_size, mesh.size) - len(batch)
    if padding:
        batch = np.pad(batch, [(0, padding)] + [(0, 0)] * (batch.ndim - 1))
    # Every process has the full batch and passes its devices their shards.
    return jax.make_array_from_callback(batch.shape, sharding.over_batch(mesh), batch.__getitem__)


def _bucket(n: int, most: int, devices: int) -> int:
    """Returns the size to pad n examples to: the devices times a power of two, up to `most`."""
    size = devices
    while size < n:
        size *= 2
    return min(size, -(-max(n, most) // devices) * devices)


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'features', 'where'))
def _image_features(
    variables,
    images,
    *,
    model: CLIP,
    mean: tuple,
    std: tuple,
    features: str,
    where: jax.sharding.Sharding,
) -> jax.Array:
    images = normalize(images, mean, std)
    if features == 'pre_projection':
        found = cast(jax.Array, model.apply(variables, images, method=_pre_projection))
        found = found.astype(np.float32)
    else:
        found = cast(jax.Array, model.apply(variables, images, method='encode_image'))
        found = l2_normalize(found)
    return jax.lax.with_sharding_constraint(found, where)


def _pre_projection(model: CLIP, images: jax.Array) -> jax.Array:
    return model.image(images)


@functools.partial(jax.jit, static_argnames=('model', 'where'))
def _text_embeddings(variables, tokens, *, model: CLIP, where: jax.sharding.Sharding) -> jax.Array:
    embeddings = cast(jax.Array, model.apply(variables, tokens, method='encode_text'))
    return jax.lax.with_sharding_constraint(l2_normalize(embeddings), where)


def _is_sigmoid(activation: str, params: Mapping[str, Any]) -> bool:
    """Whether `classify` applies a sigmoid to the logits of a model; ValueError if it cannot."""
    lookup.check(activation, ACTIVATIONS, what='activation')
    if activation == 'sigmoid' and 'logit_bias' not in params:
        raise ValueError(
            "activation is 'sigmoid', but this model has no logit bias, since its loss was a "
            "softmax; expected 'softmax' or 'auto'"
        )
    return activation != 'softmax' and 'logit_bias' in params


def _probabilities(
    images: np.ndarray, classes: np.ndarray, params: Mapping[str, Any], *, sigmoid: bool
) -> np.ndarray:
    """The softmax or sigmoid of the scaled cosine similarities, float32 [N, classes]."""
    logits = np.exp(np.asarray(params['logit_scale'], np.float32)) * images @ classes.T
    if sigmoid:
        return np.asarray(jax.nn.sigmoid(logits + np.asarray(params['logit_bias'], np.float32)))
    return np.asarray(jax.nn.softmax(logits, axis=-1))


def _check_tokenizer(tokenizer: Any, text: Any) -> None:
    """Raises a ValueError if a tokenizer's tokens do not fit a text encoder."""
    for name in ('vocab_size', 'context_length'):
        ours, its = getattr(tokenizer, name), getattr(text, name)
        if ours > its:
            raise ValueError(
                f"the tokenizer's {name} is {ours:,} and the model's {its:,}: the tokenizer does "
                'not belong to this model'
            )
    if text.eot_id not in (None, tokenizer.eot_id):
        raise ValueError(
            f"the tokenizer's eot_id is {tokenizer.eot_id} and the model pools at eot_id "
            f'{text.eot_id}: the tokenizer does not belong to this model'
        )


def from_card(card: dict[str, Any], variables: dict, model: CLIP, mesh: Mesh) -> Clip:
    """Joins a model and its variables with the tokenizer and the preprocessing of its card.

    Args:
        card: the model card, with `tokenizer` (None if there is none) and `preprocess`.
        variables: the model's variables, on the devices of `mesh`.
        model: the model of `card['model']`.
        mesh: the devices that embed.

    Returns:
        The `Clip`.

    Raises:
        ValueError: the tokenizer cannot be made, or does not belong to the model.
    """
    tokenizer = card['tokenizer'] and tokenizers.from_card(card['tokenizer'])
    if tokenizer:
        _check_tokenizer(tokenizer, model.text)
    return Clip(
        model=model,
        variables=variables,
        card=card,
        tokenizer=tokenizer,
        preprocess=Preprocess.from_card(card['preprocess']),
        mesh=mesh,
    )


def find(path: str | pathlib.Path) -> tuple[Any, str]:
    """Finds a checkpoint without loading it.

    Args:
        path: as for `load`.

    Returns:
        The checkpoint's path, and its published layout (a name in convert/), '' for our own.

    Raises:
        ValueError: there is no checkpoint at `path`.
    """
    average, path = averaged(path), str(path).removesuffix(AVERAGE)
    if remote := resolve.found(path):
        path = str(remote.path)
    place = pathlib.Path(path).expanduser()
    if place.exists() and (layout := convert.layout_of(place)):
        if average:
            raise ValueError(f'{path}{AVERAGE}: a published checkpoint has no average')
        return place, layout
    try:
        return checkpoint.find(path), ''
    except ValueError as error:
        if place.exists() and (hint := convert.hint(place)):
            raise ValueError(f'{place}: no checkpoint; {hint}') from None
        raise ValueError(
            f'{error}. Published checkpoints are {convert.EXPECTED}; those that `clip-jax models` '
            f'lists are downloaded by name, and others as hf://OWNER/NAME{resolve.hint(path)}'
        ) from None


def averaged(path: str | pathlib.Path) -> bool:
    """Whether a path names the average of a run's weights (`config.ema`)."""
    return str(path).endswith(AVERAGE)


def read(
    path: str | pathlib.Path, mesh: Mesh | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the card and the variables of a checkpoint.

    Args:
        path: as for `load`; the layout is detected by content.
        mesh: the devices that our own checkpoints are restored to, the first device by default.

    Returns:
        The model card, and the variables: on the mesh for our own checkpoints, NumPy arrays for
        published ones.

    Raises:
        ValueError: there is no checkpoint at `path`, it is incomplete or corrupt, or its card names
            a module that cannot be imported.
    """
    folder, layout = find(path)
    if layout:
        return convert.read(folder, layout)
    mesh = mesh or sharding.make_mesh(jax.devices()[:1])
    card = checkpoint.read_about(folder)['card']
    build.check_importable(folder, card)
    variables = checkpoint.read_variables(folder, shapes(clip.from_card(card['model'])), mesh)
    if averaged(path):
        variables = checkpoint.read_average(folder, variables, mesh)
    return card, variables


def load(
    path: str | pathlib.Path,
    *,
    dtype: str = 'float32',
    image_size: int | None = None,
    mesh: Mesh | None = None,
) -> Clip:
    """Loads a model.

    Args:
        path: a run directory (its newest checkpoint is loaded), one checkpoint of a run, or a file
            or folder as OpenAI, open_clip, Hugging Face or big_vision publish them. `#average`
            after a run or its checkpoint loads the average of its weights (`config.ema`).
        dtype: the compute dtype: 'float32', 'bfloat16', or 'auto' (bfloat16 on accelerators).
            Parameters stay float32.
        image_size: another image size in pixels; position embeddings are interpolated.
        mesh: the devices that embed; by default all devices of all processes.

    Returns:
        The `Clip`.

    Raises:
        ValueError: there is no checkpoint at `path`, it is incomplete, corrupt or not supported, or
            its card names a module (an encoder, a tokenizer) that cannot be imported.
    """
    mesh = mesh or sharding.make_mesh()
    card, variables = read(path, mesh)
    if image_size is not None:
        card, variables = with_image_size(card, variables, image_size)
    model = build.model(card['model'], dtype)
    try:
        return from_card(card, on_devices(variables, mesh), model, mesh)
    except ValueError as error:  # of the tokenizer, which knows no path
        raise ValueError(f'{path}: {error}') from error


def with_image_size(
    card: dict[str, Any], variables: dict[str, Any], image_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the card and the variables of the same model for another image size.

    Args:
        card: the model card.
        variables: the model's variables.
        image_size: the new image size in pixels; position embeddings are interpolated.

    Raises:
        ValueError: the image encoder does not work at that size.
    """
    model, variables = clip.with_image_size(card['model'], variables, image_size)
    preprocess = {**card['preprocess'], 'size': image_size}
    return {**card, 'model': model, 'preprocess': preprocess}, variables


def on_devices(variables: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Replicates variables on all devices of a mesh.

    `variables` is emptied and each host array is freed once it is copied, so that host memory never
    holds the model twice.
    """
    leaves, tree = jax.tree.flatten(variables)
    variables.clear()
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.block_until_ready(jax.device_put(leaf, sharding.replicated(mesh)))
    return jax.tree.unflatten(tree, leaves)
