"""A `Clip`: a model that embeds and classifies images and texts; `load` makes one."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from clip_jax import prompts, sharding, tokenizers
from clip_jax.data import inputs
from clip_jax.data.patches import stacked
from clip_jax.data.preprocess import Preprocess, normalize
from clip_jax.data.tools.scan import in_order
from clip_jax.models import captions, inference, matryoshka
from clip_jax.models.clip import CLIP
from clip_jax.models.features import check as check_features
from clip_jax.models.features import image_features, text_features
from clip_jax.places import naming
from clip_jax.runtime import atomic, checksums, environment

STEP = 0  # the number of the checkpoint that `write` writes
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
        preprocess: any image -> uint8 [size, size, 3], or Patches for a NaFlex model; None if there
            is only a text tower.
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
        self.model.check_has('image')
        return dataclasses.replace(self, preprocess=dataclasses.replace(self.preprocess, **changes))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the model into a new folder, which `clip_jax.load` and every command read.

        `clip-jax convert` makes checkpoints for other programs of it. The folder must not exist; it
        appears only when it is complete.
        """
        write(pathlib.Path(folder).expanduser(), self.card, self.variables)

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Normalizes preprocessed images, values from 0 to 255, [..., 3] -> float32 [..., 3]."""
        return normalize(pixels, self.preprocess.mean, self.preprocess.std)

    def encode_image(
        self, images: Any, *, features: str = 'embedding', dim: int | None = None
    ) -> np.ndarray:
        """Embeds one image or a sequence of images.

        Threads read and preprocess the images ahead of the devices.

        Args:
            images: PIL images, paths, encoded bytes or uint8 arrays [H, W, 3], of NumPy, JAX or
                another library; a sequence or a Series of these, a single one, or one uint8 array
                [N, H, W, 3]. A generator is read batch by batch.
            features: 'embedding', L2-normalized; 'pre_projection', the image encoder's output
                before the projection; 'patches', 'block:N' or 'attention:N', see
                `models.features.image_features`.
            dim: only the first coordinates of embeddings, L2-normalized again (Matryoshka).

        Returns:
            float32 [N, *feature_shape(features)], or [N, dim].

        Raises:
            ValueError: an image cannot be read, `features` or `dim` is wrong, or the call is inside
                jit.
        """
        self.model.check_has('image')
        matryoshka.check(dim, self.model.embed_dim, features=features)
        if isinstance(images, Iterator):
            encode = functools.partial(self.encode_image, features=features, dim=dim)
            parts = [encode(some) for some in groups(images, self.batch_size)]
            return np.concatenate(parts or [encode([])])
        embedded = list(self.encode_batches(_prepared(self, images), features=features))
        if not embedded:
            shape = (dim,) if dim else self.feature_shape(features)
            return np.zeros((0, *shape), np.float32)
        return matryoshka.first(np.concatenate(embedded), dim)

    def caption(self, images: Any, **options: Any) -> list[str]:
        """Writes a caption for each image, with a model that has a caption decoder (CoCa).

        Args:
            images: as in `encode_image`.
            **options: fields of models.generate.Generation, such as method='beam', and `seed`.

        Raises:
            ValueError: no decoder, no tokenizer, a wrong option or an unreadable image.
        """
        return captions.caption(self, _prepared(self, images), **options)

    def encode_batches(
        self, batches: Iterable[Any], *, features: str = 'embedding'
    ) -> Iterator[np.ndarray]:
        """Embeds batches of preprocessed images; the devices compute one batch ahead.

        Args:
            batches: uint8 arrays [B, size, size, 3], or Patches as `preprocess` makes them; B may
                differ from batch to batch.
            features: as in `encode_image`.

        Yields:
            float32 [B, *feature_shape(features)] for each batch.
        """
        return _embedded(self, _forward(self, features), batches, 'encode_image')

    def feature_shape(self, features: str = 'embedding') -> tuple[int, ...]:
        """Returns the shape of one image's features, (embed_dim,) of embeddings."""
        self.model.check_has('image')
        images, _ = self.model.example_inputs(1)
        return jax.eval_shape(_forward(self, features), self.variables, images).shape[1:]

    def text_feature_shape(self, features: str = 'embedding') -> tuple[int, ...]:
        """Returns the shape of one text's features, (embed_dim,) of embeddings."""
        self.model.check_has('text')
        tokens = jax.ShapeDtypeStruct((1, self.model.text.context_length), np.int32)
        return jax.eval_shape(_forward_texts(self, features), self.variables, tokens).shape[1:]

    def encode_text(
        self,
        texts: str | Iterable[str] | np.ndarray,
        *,
        features: str = 'embedding',
        dim: int | None = None,
    ) -> np.ndarray:
        """Embeds texts or tokens.

        Args:
            texts: one text; a sequence, generator or Series of texts; or their tokens, int [N, L].
            features: 'embedding', L2-normalized; 'pre_projection', 'tokens', 'block:N' or
                'attention:N', see `models.features.text_features`.
            dim: as in `encode_image`.

        Returns:
            float32 [N, D], or [N, ...] of other features.

        Raises:
            ValueError: a text is not a str, the model has no tokenizer, `features` or `dim` is
                wrong, or the call is inside jit.
        """
        self.model.check_has('text')
        matryoshka.check(dim, self.model.embed_dim, features=features)
        texts = inputs.texts(texts)
        forward = _forward_texts(self, features)
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
        found = list(_embedded(self, forward, batches, 'encode_text'))
        if not found:
            found.append(np.zeros((0, *self.text_feature_shape(features)), np.float32))
        return matryoshka.first(np.concatenate(found), dim)

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
        sigmoid = inference.is_sigmoid(activation, params)
        classes = _class_embeddings(self, inputs.names(labels), prompts.templates(templates))
        return inference.probabilities(self.encode_image(images), classes, params, sigmoid=sigmoid)


def _prepared(clip: Clip, images: Any) -> Iterator[Any]:
    """Yields batches of images, read and preprocessed in threads ahead of the devices."""
    images = inputs.images(images)
    prepared = in_order(
        lambda i: clip.preprocess(inputs.image(images[i])),
        0,
        len(images),
        threads=THREADS,
        ahead=AHEAD * clip.batch_size,
    )
    with contextlib.closing(prepared):
        yield from map(stacked, groups(prepared, clip.batch_size))


def _class_embeddings(
    clip: Clip, labels: tuple[str, ...], templates: prompts.Templates
) -> np.ndarray:
    """Returns float32 [classes, D], cached for the last KNOWN_CLASSES lists of classes."""
    prompts.check_classes(labels, templates)
    key = tuple(tuple(prompts.filled(label, templates)) for label in labels)
    found = clip._known_classes.pop(key, None)
    if found is None:
        found = prompts.class_embeddings(clip.encode_text, labels, templates)
    clip._known_classes[key] = found  # the most recently used comes last
    if len(clip._known_classes) > KNOWN_CLASSES:
        del clip._known_classes[next(iter(clip._known_classes))]
    return found


def _embedded(
    clip: Clip, forward: Callable, batches: Iterable[Any], method: str
) -> Iterator[np.ndarray]:
    """Yields the output for each batch; batches are padded to a few sizes to limit recompiles.

    A batch is dispatched before the previous one's output is fetched.
    """
    waiting = collections.deque()
    for batch in batches:
        if clip.on_batch:
            clip.on_batch()
        embedded = forward(clip.variables, inference.sharded(batch, clip.batch_size, clip.mesh))
        inputs.check_concrete(embedded, method)
        waiting.append((embedded, len(batch)))
        if len(waiting) > 1:
            embedded, count = waiting.popleft()
            yield np.asarray(embedded)[:count]
    for embedded, count in waiting:
        yield np.asarray(embedded)[:count]


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'features', 'where'))
def _of_images(
    variables,
    images,
    *,
    model: CLIP,
    mean: tuple,
    std: tuple,
    features: str,
    where: jax.sharding.Sharding,
) -> jax.Array:
    """Returns the features of preprocessed images, float32 [B, ...], with the sharding `where`."""
    found = image_features(model, variables, normalize(images, mean, std), features)
    return jax.lax.with_sharding_constraint(found, where)


@functools.partial(jax.jit, static_argnames=('model', 'features', 'where'))
def _of_texts(
    variables, tokens, *, model: CLIP, features: str, where: jax.sharding.Sharding
) -> jax.Array:
    """Returns the features of tokens, float32 [B, ...], with the sharding `where`."""
    found = text_features(model, variables, tokens, features)
    return jax.lax.with_sharding_constraint(found, where)


def _forward(clip: Clip, features: str) -> Callable:
    """The compiled function of variables and images that gives these features."""
    return functools.partial(
        _of_images,
        model=clip.model,
        mean=tuple(clip.preprocess.mean),
        std=tuple(clip.preprocess.std),
        features=check_features(features, 'image'),
        where=sharding.replicated(clip.mesh),
    )


def _forward_texts(clip: Clip, features: str) -> Callable:
    """The compiled function of variables and tokens that gives these features."""
    return functools.partial(
        _of_texts,
        model=clip.model,
        features=check_features(features, 'text'),
        where=sharding.replicated(clip.mesh),
    )


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items; the last one may be shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def write(folder: pathlib.Path, card: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    """Writes a model, without a state of training, as a new folder that `load` reads.

    Args:
        folder: the folder to create; it appears only when it is complete.
        card: the model card.
        variables: the variables, arrays of NumPy or JAX.

    Raises:
        ValueError: the folder exists.
    """
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    with atomic.new_folder(folder.absolute()) as partial:
        step = epath.Path(partial) / naming.CHECKPOINTS / str(STEP)
        items = {
            'variables': ocp.args.StandardSave(jax.tree.map(jax.numpy.asarray, dict(variables))),
            'about': ocp.args.JsonSave({'card': card, 'versions': environment.versions()}),
        }
        handlers = {
            'variables': ocp.StandardCheckpointHandler(),
            'about': ocp.JsonCheckpointHandler(),
        }
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
            checkpointer.save(step, args=ocp.args.Composite(**items))
        checksums.write(step)
        atomic.write_json(partial / 'card.json', card)


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
        tokenizers.check_fits(tokenizer, model.text)
    return Clip(
        model=model,
        variables=variables,
        card=card,
        tokenizer=tokenizer,
        # pyrefly: ignore[bad-argument-type]  # None of a text tower alone, which takes no images
        preprocess=card['preprocess'] and Preprocess.from_card(card['preprocess']),
        mesh=mesh,
    )
