"""`load(path)`: from a run directory or any published checkpoint to a model that embeds images and
texts and classifies.
"""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax import build, checkpoint, convert, lookup, prompts, sharding, tokenizers
from clip_jax.data.transforms import Preprocess, normalise
from clip_jax.models import clip
from clip_jax.models.clip import CLIP, shapes, unit

FEATURES = ('embedding', 'trunk')


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

    def encode_image(self, images: Any, *, features: str = 'embedding') -> np.ndarray:
        """Embeds images (PIL images, paths, encoded bytes, uint8 arrays [H, W, 3]; one or many):
        unit rows [N, D], float32.

        `features` 'trunk' gives the image encoder's rows before the projection [N, width], not of
        unit length: what linear probes take (arXiv 2103.00020, appendix A.3).
        """
        lookup.check(features, FEATURES, what='encode_image: features')
        many = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not many and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        forward = functools.partial(
            _image_rows,
            model=self.model,
            mean=tuple(self.preprocess.mean),
            std=tuple(self.preprocess.std),
            features=features,
            where=sharding.replicated(self.mesh),
        )
        if not len(images):
            size = self.preprocess.size
            image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
            width = jax.eval_shape(forward, self.variables, image).shape[1]
            return np.zeros((0, width), np.float32)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return self._rows(
                forward, images, lambda x: np.stack(list(pool.map(self.preprocess, x)))
            )

    def encode_text(self, texts: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """Embeds texts, or their tokens, int [N, L]: unit rows [N, D], float32."""
        where = sharding.replicated(self.mesh)
        forward = functools.partial(_text_rows, model=self.model, where=where)
        if isinstance(texts, np.ndarray) and np.issubdtype(texts.dtype, np.integer):
            return self._rows(forward, texts, lambda tokens: tokens.astype(np.int32))
        if self.tokenizer is None:
            raise ValueError(
                'this model has no tokenizer, since no file of one lay beside its weights; put it '
                'there and load again (tokenizer.json, or a SentencePiece model as spiece.model), '
                'or give tokens, int [N, L]'
            )
        texts = [texts] if isinstance(texts, str) else texts
        return self._rows(forward, texts, self.tokenizer)

    def classify(
        self, images: Any, labels: Sequence[str], *, templates: str | Sequence[str] = 'plain'
    ) -> np.ndarray:
        """Probability of each label for each image: float32 [N, len(labels)], rows sum to 1.

        `templates`: a prompt set's name, or templates such as 'a photo of a {}.'.
        """
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f'labels {labels!r}: expected a list of at least one name')
        classes = prompts.class_vectors(self.encode_text, labels, prompts.templates(templates))
        scale = np.exp(np.asarray(self.variables['params']['logit_scale'], np.float32))
        logits = scale * self.encode_image(images) @ classes.T
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    def _rows(self, forward: Callable, items: Sequence, prepare: Callable) -> np.ndarray:
        """Embeds items batch by batch; each is padded to one of a few sizes, so that few are
        compiled.
        """
        rows = []
        for start in range(0, len(items), self.batch_size):
            inputs = prepare(items[start : start + self.batch_size])
            padding = _bucket(len(inputs), self.mesh.size) - len(inputs)
            padded = np.pad(inputs, [(0, padding)] + [(0, 0)] * (inputs.ndim - 1))
            # Every host has the whole of it and gives its devices their part.
            padded = jax.make_array_from_callback(
                padded.shape, sharding.over_batch(self.mesh), padded.__getitem__
            )
            embedded = forward(self.variables, padded)
            rows.append(np.asarray(embedded)[: len(inputs)])
        return np.concatenate(rows) if rows else np.zeros((0, self.model.embed_dim), np.float32)


def _bucket(n: int, devices: int) -> int:
    """The smallest power of two times the number of devices that holds n rows."""
    size = devices
    while size < n:
        size *= 2
    return size


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
    images = normalise(images, mean, std)
    if features == 'trunk':
        rows = model.apply(variables, images, method=lambda model, x: model.image(x))
        rows = rows.astype(jnp.float32)
    else:
        rows = unit(model.apply(variables, images, method='encode_image'))
    return jax.lax.with_sharding_constraint(rows, where)


@functools.partial(jax.jit, static_argnames=('model', 'where'))
def _text_rows(variables, tokens, *, model: CLIP, where: jax.sharding.Sharding) -> jax.Array:
    rows = model.apply(variables, tokens, method='encode_text')
    return jax.lax.with_sharding_constraint(unit(rows), where)


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


def read(
    path: str | pathlib.Path, mesh: Mesh | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads card and variables of a run directory, one checkpoint in it, or a file or folder of any
    known foreign layout, told apart by content; the variables may lie on the mesh already.

    ValueError if there is no checkpoint at `path`, or one that is not whole.
    """
    place = pathlib.Path(path).expanduser()
    if place.exists() and (layout := convert.layout_of(place)):
        return convert.read(place, layout)
    try:
        folder = checkpoint.find(path)
    except ValueError as error:
        raise ValueError(f'{error}. Published checkpoints are {convert.EXPECTED}') from None
    mesh = mesh or sharding.make_mesh(jax.devices()[:1])
    card = checkpoint.read_about(folder)['card']
    return card, checkpoint.read_variables(folder, shapes(clip.from_card(card['model'])), mesh)


def load(
    path: str | pathlib.Path, *, dtype: str = 'float32', image_size: int | None = None
) -> Clip:
    """Loads a model from a run directory (its newest checkpoint), one checkpoint in it, or a file
    or folder of OpenAI, open_clip, Hugging Face or big_vision.

    `dtype` is the type of arithmetic: 'float32', 'bfloat16', or 'auto' (bfloat16 on accelerators).
    `image_size` (pixels) makes it a model for other images: its positions are interpolated.
    ValueError if there is no checkpoint at `path`, or one that is not whole or not supported.
    """
    mesh = sharding.make_mesh()
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
