"""What a new run begins with: its card, and random numbers or the variables of a checkpoint."""

import json
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import build, checkpoint, pretrained, tokenizers
from clip_jax.models import clip
from clip_jax.runtime import multihost


def begin(config: ConfigDict, source: Any, mesh: Mesh) -> tuple[dict[str, Any], dict | None]:
    """Returns the card of a new run, and the variables that it begins with; None: random ones."""
    if not config.init_from:
        # A vocabulary is trained once.
        return multihost.run_on_primary(lambda: _card(config, source, {})), None
    there, variables = pretrained.read(config.init_from, mesh)
    card = _card(config, source, there)
    size = card['model']['image']['image_size']
    _, variables = clip.with_image_size(there['model'], variables, size)
    wrong = checkpoint.differences(variables, clip.shapes(clip.from_card(card['model'])))
    if wrong:
        raise ValueError(
            f'init_from {config.init_from}: its parameters are not those that config.model '
            f'describes: {checkpoint.first_of(wrong)}. Set in config.model only what changes no '
            'parameter, and the image_size'
        )
    return card, pretrained.on_devices(variables, mesh)


def _card(config: ConfigDict, source: Any, init: dict[str, Any]) -> dict[str, Any]:
    """The card of a run; `init` is that of the checkpoint that it begins from, {} without one."""
    tokenizer = (
        tokenizers.from_card(init['tokenizer'])
        if init.get('tokenizer')
        else build.tokenizer(config.tokenizer, source)
    )
    architecture = build.architecture(
        config.model, tokenizer, init.get('model'), loss=config.loss.name
    )
    image_size = architecture['image']['image_size']
    preprocess = build.preprocess(config.preprocess, image_size, init.get('preprocess'))
    card = {'model': architecture, 'preprocess': preprocess.card, 'tokenizer': tokenizer.card}
    return json.loads(json.dumps(card))  # as it will be read back: tuples are lists
