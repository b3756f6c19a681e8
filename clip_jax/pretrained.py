"""`load(path)`: from a run directory or any published checkpoint to a model that embeds images and
texts and classifies.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import build, checkpoint, convert, lookup, prompts, sharding, tokenizers
from clip_jax.data.preprocess import Preprocess, normalize
from clip_jax.data.tools.scan import in_order
from clip_jax.models import clip
from clip_jax.models.clip import CLIP, l2_normalize, shapes

FEATURES = ('embedding', 'pre_projection')
THREADS = min(32, (os.cpu_count() or 1) + 4)  # they also wait for disks and networks
KNOWN_CLASSES = 64  # lists of classes whose embeddings a model keeps
AHEAD = 2  # batches of images that are prepared while devices work on others


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model with everything that its use needs.

    `variables` is what `model.apply` takes: `{'params': …}`, with a ResNet also `batch_stats`;
    `card` describes architecture, preprocessing and tokenizer.
    """

    model: CLIP
    variables: dict[str, Any]
    card: dict[str, Any]
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None  # None: no file of it was found
    preprocess: Preprocess
    mesh: Mesh
    batch_size: int = 256
    on_batch: Callable[[], Any] | None = None  # called before each batch, in the caller's thread
    _known_classes: dict[tuple, np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def encode_image(self, images: Any, *, features: str = 'embedding') -> np.ndarray:
        """Embeds images (PIL images, paths, encoded bytes, uint8 arrays [H, W, 3]; one or many):
        unit rows [N, D]; of the features 'pre_projection', the image encoder's rows before the
        projection, [N, width], not of unit length.

        Threads take the images from their sequence and prepare them ahead of the devices.
        """
        many = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not many and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        prepared = in_order(
            lambda i: self.preprocess(images[i]),
            0,
            len(images),
            threads=THREADS,
            ahead=AHEAD * self.batch_size,
        )
        with contextlib.closing(prepared):
            batches = map(np.stack, groups(prepared, self.batch_size))
            rows = list(self.encode_batches(batches, features=features))
        return np.concatenate(rows) if rows else np.zeros((0, self.width(features)), np.float32)

    def encode_batches(
        self, batches: Iterable[np.ndarray], *, features: str = 'embedding'
    ) -> Iterator[np.ndarray]:
        """Yields the rows of one batch of prepared images, uint8 [B, size, size, 3], after the
        other; devices are already at the next.
        """
        return self._rows(self._forward(features), batches)

    def width(self, features: str = 'embedding') -> int:
        """The numbers in a row of these features."""
        size = self.preprocess.size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        return jax.eval_shape(self._forward(features), self.variables, image).shape[1]

    def _forward(self, features: str) -> Callable:
        return functools.partial(
            _image_rows,
            model=self.model,
            mean=tuple(self.preprocess.mean),
            std=tuple(self.preprocess.std),
            features=lookup.check(features, FEATURES, what='features'),
            where=sharding.replicated(self.mesh),
        )

    def encode_text(self, texts: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """Embeds texts, or their tokens, int [N, L]: unit rows [N, D], float32."""
        where = sharding.replicated(self.mesh)
        forward = functools.partial(_text_rows, model=self.model, where=where)
        if isinstance(texts, np.ndarray) and np.issubdtype(texts.dtype, np.integer):
            tokenizer = functools.partial(np.asarray, dtype=np.int32)
        elif self.tokenizer is None:
            raise ValueError(
                'this model has no tokenizer, since no file of one lay beside its weights; put it '
                'there and load again (tokenizer.json, or a SentencePiece model as spiece.model), '
                'or give tokens, int [N, L]'
            )
        else:
            texts, tokenizer = [texts] if isinstance(texts, str) else texts, self.tokenizer
        batches = (
            tokenizer(texts[start : start + self.batch_size])
            for start in range(0, len(texts), self.batch_size)
        )
        none = np.zeros((0, self.model.embed_dim), np.float32)
        return np.concatenate([none, *self._rows(forward, batches)])

    def classify(
        self, images: Any, labels: Sequence[str], *, templates: str | Sequence[str] = 'plain'
    ) -> np.ndarray:
        """Probability of each label for each image: float32 [N, len(labels)], rows sum to 1.

        `templates`: a prompt set's name, or templates such as 'a photo of a {}.'.
        """
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f'labels {labels!r}: expected a list of at least one name')
        classes = self._class_embeddings(tuple(labels), prompts.templates(templates))
        scale = np.exp(np.asarray(self.variables['params']['logit_scale'], np.float32))
        logits = scale * self.encode_image(images) @ classes.T
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    def _class_embeddings(
        self, labels: tuple[str, ...], templates: prompts.Templates
    ) -> np.ndarray:
        """Embeds classes, or returns what they were at one of the last calls."""
        prompts.check_classes(labels, templates)
        key = tuple(tuple(prompts.filled(label, templates)) for label in labels)
        found = self._known_classes.pop(key, None)
        if found is None:
            found = prompts.class_embeddings(self.encode_text, labels, templates)
        self._known_classes[key] = found  # the last used come last
        if len(self._known_classes) > KNOWN_CLASSES:
            del self._known_classes[next(iter(self._known_classes))]
        return found

    def _rows(self, forward: Callable, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the rows of each batch, padded to one of a few sizes, so that few are compiled.

        The devices get a batch before the rows of the one before it are taken from them.
        """
        waiting = collections.deque()
        for inputs in batches:
            if self.on_batch:
                self.on_batch()
            waiting.append((forward(self.variables, self._on_devices(inputs)), len(inputs)))
            if len(waiting) > 1:
                embedded, count = waiting.popleft()
                yield np.asarray(embedded)[:count]
        for embedded, count in waiting:
            yield np.asarray(embedded)[:count]

    def _on_devices(self, inputs: np.ndarray) -> jax.Array:
        padding = _bucket(len(inputs), self.batch_size, self.mesh.size) - len(inputs)
        if padding:
            inputs = np.pad(inputs, [(0, padding)] + [(0, 0)] * (inputs.ndim - 1))
        # Every host has the whole of it and gives its devices their part.
        return jax.make_array_from_callback(
            inputs.shape, sharding.over_batch(self.mesh), inputs.__getitem__
        )


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items, the last with what is left."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def _bucket(n: int, most: int, devices: int) -> int:
    """The smallest power of two times the number of devices that holds n rows; no more than are
    needed for `most`.
    """
    size = devices
    while size < n:
        size *= 2
    return min(size, -(-max(n, most) // devices) * devices)


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'features', 'where'))
def _image_rows(
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
        rows = model.apply(variables, images, method=_pre_projection).astype(np.float32)
    else:
        rows = l2_normalize(model.apply(variables, images, method='encode_image'))
    return jax.lax.with_sharding_constraint(rows, where)


def _pre_projection(model: CLIP, images: jax.Array) -> jax.Array:
    return model.image(images)


@functools.partial(jax.jit, static_argnames=('model', 'where'))
def _text_rows(variables, tokens, *, model: CLIP, where: jax.sharding.Sharding) -> jax.Array:
    rows = model.apply(variables, tokens, method='encode_text')
    return jax.lax.with_sharding_constraint(l2_normalize(rows), where)


def _check_tokenizer(tokenizer: Any, text: Any) -> None:
    """ValueError if a text encoder cannot read what a tokenizer writes."""
    for name in ('vocab_size', 'context_length'):
        ours, its = getattr(tokenizer, name), getattr(text, name)
        if ours > its:
            raise ValueError(
                f"the tokenizer's {name} is {ours:,} and the model's {its:,}: "
                'they do not belong together'
            )
    if text.eot_id not in (None, tokenizer.eot_id):
        raise ValueError(
            f'the tokenizer ends texts with token {tokenizer.eot_id}, and the model reads them at '
            f'token {text.eot_id}: they do not belong together'
        )


def from_card(card: dict[str, Any], variables: dict, model: CLIP, mesh: Mesh) -> Clip:
    """Joins a model and its variables with the tokenizer and the preprocessing that the card
    describes.
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
    """Returns where the checkpoint lies that `path` names, and its foreign layout, '' for our own;
    nothing is loaded. ValueError if there is none.
    """
    place = pathlib.Path(path).expanduser()
    if place.exists() and (layout := convert.layout_of(place)):
        return place, layout
    try:
        return checkpoint.find(path), ''
    except ValueError as error:
        raise ValueError(f'{error}. Published checkpoints are {convert.EXPECTED}') from None


def read(
    path: str | pathlib.Path, mesh: Mesh | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads card and variables of a run directory, one checkpoint in it, or a file or folder of any
    known foreign layout, told apart by content; the variables may lie on the mesh already.

    ValueError if there is no checkpoint at `path`, or one that is not whole.
    """
    folder, layout = find(path)
    if layout:
        return convert.read(folder, layout)
    mesh = mesh or sharding.make_mesh(jax.devices()[:1])
    card = checkpoint.read_about(folder)['card']
    return card, checkpoint.read_variables(folder, shapes(clip.from_card(card['model'])), mesh)


def load(
    path: str | pathlib.Path,
    *,
    dtype: str = 'float32',
    image_size: int | None = None,
    mesh: Mesh | None = None,
) -> Clip:
    """Loads a model from a run directory (its newest checkpoint), one checkpoint in it, or a file
    or folder of OpenAI, open_clip, Hugging Face or big_vision.

    `dtype` is the type of arithmetic: 'float32', 'bfloat16', or 'auto' (bfloat16 on accelerators).
    `image_size` (pixels) makes it a model for other images: its positions are interpolated.
    `mesh` are the devices that it uses, by default all of all hosts.
    ValueError if there is no checkpoint at `path`, or one that is not whole or not supported.
    """
    mesh = mesh or sharding.make_mesh()
    card, variables = read(path, mesh)
    if image_size is not None:
        card, variables = with_image_size(card, variables, image_size)
    model = build.model(card['model'], dtype)
    return from_card(card, on_devices(variables, mesh), model, mesh)


def with_image_size(
    card: dict[str, Any], variables: dict[str, Any], image_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns card and variables of the same model for images of another size."""
    model, variables = clip.with_image_size(card['model'], variables, image_size)
    preprocess = {**card['preprocess'], 'size': image_size}
    return {**card, 'model': model, 'preprocess': preprocess}, variables


def on_devices(variables: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Copies variables onto every device, and frees each array here as soon as it is there."""
    leaves, tree = jax.tree.flatten(variables)
    variables.clear()
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.block_until_ready(jax.device_put(leaf, sharding.replicated(mesh)))
    return jax.tree.unflatten(tree, leaves)


def fingerprint(variables: dict[str, Any]) -> str:
    """Returns 32 hexadecimal digits that differ for any other parameters: of their names, types,
    shapes and bytes.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        digest.update(f'{name} {array.dtype} {array.shape};'.encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:32]
