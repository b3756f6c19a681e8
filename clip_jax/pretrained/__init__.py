"""`load(path)` makes a `Clip` of a run directory or of any published checkpoint."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax import build, checkpoint, convert, sharding
from clip_jax.models import clip
from clip_jax.models.clip import shapes
from clip_jax.models.fingerprint import fingerprint
from clip_jax.places import naming, resolve
from clip_jax.pretrained import loaded
from clip_jax.pretrained.loaded import Clip
from clip_jax.step import lora
from clip_jax.step.rules import LORA


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
        return loaded.from_card(card, on_devices(variables, mesh), built, mesh)
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
