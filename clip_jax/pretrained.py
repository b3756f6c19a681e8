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
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import build, checkpoint, convert, lookup, prompts, sharding, tokenizers
from clip_jax.data import inputs
from clip_jax.data.preprocess import Preprocess
from clip_jax.data.tools.scan import in_order
from clip_jax.models import clip, inference, matryoshka
from clip_jax.models.clip import CLIP, shapes
from clip_jax.models.fingerprint import fingerprint
from clip_jax.places import naming, resolve
from clip_jax.step import lora
from clip_jax.step.rules import LORA

FEATURES = ('embedding', 'pre_projection')
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
        preprocess: any image -> uint8 [size, size, 3]; None if there is only a text tower.
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
        self.model.check_has('image')
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
        image = jax.ShapeDtypeStruct((1, *[self.preprocess.size] * 2, 3), np.uint8)
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
        self.model.check_has('text')
        matryoshka.check(dim, self.model.embed_dim)
        texts = inputs.texts(texts)
        where = sharding.replicated(self.mesh)
        forward = functools.partial(inference.text_embeddings, model=self.model, where=where)
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
        sigmoid = inference.is_sigmoid(activation, params)
        classes = self._class_embeddings(inputs.names(labels), prompts.templates(templates))
        return inference.probabilities(self.encode_image(images), classes, params, sigmoid=sigmoid)

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
            embedded = forward(self.variables, inference.sharded(batch, self.batch_size, self.mesh))
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
        inference.image_features,
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


def _check_tokenizer(tokenizer: Any, text: Any) -> None:
    """Raises a ValueError if a tokenizer's tokens do not fit a text encoder."""
    for name in ('vocab_size', 'context_length'):
        ours, its = getattr(tokenizer, name), getattr(text, name)
        if ours > its:
            raise ValueError(
                f"the tokenizer's {name} is {ours:,} and the model's {its:,}: the tokenizer does "
                'not belong to this model'
            )
    if (eot_id := getattr(text, 'eot_id', None)) not in (None, tokenizer.eot_id):
        raise ValueError(
            f"the tokenizer's eot_id is {tokenizer.eot_id} and the model pools at eot_id "
            f'{eot_id}: the tokenizer does not belong to this model'
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
        # pyrefly: ignore[bad-argument-type]  # None of a text tower alone, which takes no images
        preprocess=card['preprocess'] and Preprocess.from_card(card['preprocess']),
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
    path, average, base = naming.parts(path)
    path, name = naming.bare(path)
    if remote := resolve.found(path):
        path = str(remote.path)
    place = pathlib.Path(path).expanduser()
    layout = f'{convert.BARE}{name}' if name else place.exists() and convert.layout_of(place)
    if layout:
        if average:
            raise ValueError(f'{path}{naming.AVERAGE}: a published checkpoint has no average')
        if base:
            raise ValueError(f'{path}{naming.BASE}{base}: a published checkpoint has no adapters')
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


def located(path: str | pathlib.Path) -> str:
    """Returns a name for a checkpoint that holds anywhere: its absolute path, or its address with
    the revision.
    """
    place = find(path)[0]
    return resolve.pinned(path) or f'{checkpoint.absolute(place)}{naming.split(path)[1]}'


def read(
    path: str | pathlib.Path, mesh: Mesh | None = None, *, adapters: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the card and the variables of a checkpoint; adapters are merged (config.lora).

    Args:
        path: as for `load`; the layout is detected by content.
        mesh: the devices that our own checkpoints are restored to, the first device by default.
        adapters: whether it may be a run with adapters.

    Returns:
        The model card, and the variables: on the mesh for our own checkpoints, NumPy arrays for
        published ones.

    Raises:
        ValueError: there is no checkpoint at `path`, it is incomplete or corrupt, or its card names
            a module that cannot be imported; or the base of its adapters is not where it was, or
            is another model.
    """
    folder, layout = find(path)
    if layout:
        return convert.read(folder, layout)
    mesh = mesh or sharding.make_mesh(jax.devices()[:1])
    card = checkpoint.read_about(folder)['card']
    build.check_importable(folder, card)
    _, average, base = naming.parts(path)
    of_run = lora.of_card(card.pop(LORA, None), f'{folder}: lora of its card')
    if of_run and not adapters:
        raise ValueError(
            f'{path}: has adapters of another model itself; expected a whole model, as '
            'clip-jax convert writes it of this run'
        )
    if base and not of_run:
        raise ValueError(f'{path}: has no adapters, so that it has no base')
    model = clip.from_card(card['model'])
    if not of_run:
        variables = checkpoint.read_variables(folder, shapes(model), mesh)
    else:
        places = [base] if base else lora.bases(of_run, folder.parent.parent)
        hint = f'{naming.parts(path)[0]}{naming.AVERAGE if average else ""}{naming.BASE}PATH'
        variables = read_base(card, of_run, places, mesh, hint)
        adapted = lora.resolve(of_run, variables['params'], clip.logical_axes(model))
        assert adapted  # a card has `lora` only if there are some
        variables['params'][LORA] = adapted.zeros()
        variables = checkpoint.read_trained(folder, variables, mesh)
    if average:
        variables = checkpoint.read_average(folder, variables, mesh)
    return card, lora.merged(variables, of_run or {})


def read_base(
    card: Mapping[str, Any], of_run: Mapping[str, Any], places: list[str], mesh: Mesh, hint: str
) -> dict[str, Any]:
    """Reads the variables of the model that has the adapters of a run.

    Args:
        card: the card of the run.
        of_run: its `lora`.
        places: where the model may be.
        mesh: the device mesh, on every device of which they are replicated.
        hint: how a user names another place.

    Raises:
        ValueError: it is at none of these places, or it is another model there.
    """
    others = []
    for place in dict.fromkeys(places):
        alone = naming.parts(place)[0]
        if not (resolve.is_address(alone) or checkpoint.absolute(alone).exists()):
            continue
        of_base, variables = read(place, mesh, adapters=False)
        found = fingerprint(variables)
        if found == of_run['fingerprint']:
            size = card['model']['image']['image_size']
            _, variables = clip.with_image_size(of_base['model'], variables, size)
            return on_devices(variables, mesh)
        others.append(f'{place} is another model (fingerprint {found[:8]})')
    raise ValueError(
        f'the base of the adapters, {of_run["base"]} (fingerprint {of_run["fingerprint"][:8]}), is '
        f'not at {" or ".join(dict.fromkeys(places))}{"; " if others else ""}{"; ".join(others)}. '
        f'Put it back, or name where it is: {hint}'
    )


def load(
    path: str | pathlib.Path,
    *,
    model: str = '',
    dtype: str = 'float32',
    image_size: int | None = None,
    mesh: Mesh | None = None,
) -> Clip:
    """Loads a model.

    Args:
        path: a run directory (its newest checkpoint is loaded), one checkpoint of a run, or a file
            or folder as OpenAI, open_clip, Hugging Face, big_vision or OpenVision publish them; or
            a published name or an address, see `clip_jax.places`. `#average` after a run or its
            checkpoint loads the average of its weights (`config.ema`). Adapters are merged into
            their base (`config.lora`); `#base=PATH` at the end says where that is, if it was moved.
        model: the architecture of weights without settings, as open_clip or OpenVision names it
            ('ViT-L-14'); the same as `#model=ViT-L-14` after the path.
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
    card, variables = read(f'{path}{naming.MODEL}{model}' if model else path, mesh)
    if image_size is not None:
        card, variables = with_image_size(card, variables, image_size)
    built = build.model(card['model'], dtype)
    try:
        return from_card(card, on_devices(variables, mesh), built, mesh)
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
