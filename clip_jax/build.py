"""Makes objects from a config: models, losses, optimizers, tokenizers, data."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax import lookup
from clip_jax.data import sources
from clip_jax.data.captions import Captions
from clip_jax.data.embedding_store import Embeddings
from clip_jax.data.errors import BadRecord
from clip_jax.data.image.opening import MAX_PIXELS
from clip_jax.data.image.upright import decode
from clip_jax.data.preprocess import Preprocess, card_fields
from clip_jax.data.sources import Source, open_source
from clip_jax.models import attention, clip, decoder, layers, presets
from clip_jax.runtime import atomic
from clip_jax.step import optimizer as step_optimizer
from clip_jax.step import rules, schedules

TOKENIZER_CAPTIONS = 1_000_000  # a vocabulary does not improve with more
# Defaults of fields that neither the config nor its preset sets.
IMAGE = {'name': 'vit', 'image_size': 224}
TEXT = {'name': 'transformer'}
# Fields that stay when a config replaces the encoder of its preset by another one.
TOKENS = ('vocab_size', 'context_length', 'eot_id', 'pad_id')
SHARED = ('image_size', *TOKENS)
# The first parameters of every loss; see losses/__init__.py.
LOSS_INPUTS = ('image', 'text', 'scale', 'bias')


def given(options: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """Returns the options that are set (not None), except those in `without`."""
    return {k: v for k, v in options.items() if v is not None and k not in without}


def bind(
    function: Callable,
    options: Mapping[str, Any],
    *,
    what: str,
    own: int = 0,
    reserved: Iterable[str] = (),
    passed: Mapping[str, Any] | None = None,
) -> Callable:
    """Binds options to a plug-in's function, checked by its signature.

    Args:
        function: the function of a plug-in.
        options: its options by name, as a config has them.
        what: what a message calls the plug-in.
        own: the number of its first parameters that the program passes.
        reserved: names of other parameters that the program passes.
        passed: what the program passes to a function that has a parameter of that name.

    Returns:
        The function without the parameters that `options` and `passed` set.

    Raises:
        ValueError: an option that the function does not have, or a required one that is not given.
    """
    parameters = list(inspect.signature(function).parameters.values())[own:]
    passed = passed or {}
    reserved = {*reserved, *passed}
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in reserved
    ]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in options:
            lookup.check(name, [p.name for p in named], what=f'{what}: option')
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f'{what}: {", ".join(missing)} must be given')
    given = {p.name: passed[p.name] for p in parameters if p.name in passed}
    return functools.partial(function, **options, **given)


def source(
    spec: str, options: Mapping[str, Mapping[str, Any]], *, embeddings: bool = False
) -> Source:
    """Opens the data set that a SPEC, or a mixture of several, names; `options` holds those of each
    kind of source.

    ValueError for a folder of embeddings, unless the caller can do without images.
    """
    _check_images(spec, embeddings)
    parts = [
        (weight, open_source(one, **given(options.get(sources.option_key(one), {}))))
        for weight, one in sources.split(spec)
    ]
    weights, opened = zip(*parts, strict=True)
    return opened[0] if len(opened) == 1 else sources.Mixture(opened, weights)


def source_options(
    spec: str, options: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the options of each kind of source, with `own` for the kinds that a SPEC names."""
    if not isinstance(own, Mapping):
        raise ValueError(
            f'{spec}: the options of its source are {own!r}; expected names and values, such as '
            "{'text_key': ('caption',)}"
        )
    merged = {kind: dict(given) for kind, given in options.items()}
    for kind in sources.kinds(spec):
        key = sources.option_key(kind)
        merged[key] = {**merged.get(key, {}), **own}
    return merged


def _check_images(spec: str, embeddings: bool) -> None:
    specs = [one for _, one in sources.split(spec)]
    if any(one.startswith('embeddings:') for one in specs) and not (embeddings and specs[1:] == []):
        raise ValueError(
            f'data {spec!r}: a folder of embeddings has no images; it stands, alone, only where '
            'clip-jax eval takes a SPEC. Give the data that was embedded'
        )


def image_loader(
    options: Mapping[str, Mapping[str, Any]], *, max_pixels: int = MAX_PIXELS, remote: bool = True
) -> Callable[[str, list[int]], list]:
    """Returns a function (SPEC, indices) -> decoded images uint8 [H, W, 3], for the figures.

    Args:
        options: the options of each kind of source.
        max_pixels: encoded images with more are refused.
        remote: whether data at an address are read; else they raise ValueError.
    """

    def opened(spec: str, options: Mapping[str, Mapping[str, Any]], **kinds: bool) -> Any:
        if not remote and atomic.is_remote(spec):
            raise ValueError('it is at an address; give --fetch to read its images from there')
        return source(spec, options, **kinds)

    def load_images(spec: str, indices: list[int]) -> list:
        data = opened(spec, options, embeddings=True)
        if isinstance(data, Embeddings):  # the images are where they were
            indices = [data.record(i)['record'] for i in indices]
            data = opened(*data.embedded)
        return [decode(data[i]['image'], max_pixels=max_pixels) for i in indices]

    return load_images


def tokenizer(config: Mapping[str, Any], train_source: Source) -> Any:
    """Makes the tokenizer of a config.

    Args:
        config: `name`, a file of tokenizers/ or an import path, and options of its `create`.
        train_source: the training data; a new vocabulary is trained on its captions.

    Raises:
        ValueError: there is no such tokenizer, or an option is unknown, missing or wrong.
    """

    def captions() -> Iterator[str]:
        seen = 0
        step = max(1, len(train_source) // TOKENIZER_CAPTIONS)
        for i in range(0, len(train_source), step):
            try:
                texts = train_source[i].get('texts', [])
            except BadRecord:  # training counts it
                continue
            yield from texts
            seen += len(texts)
            if seen >= TOKENIZER_CAPTIONS:
                return

    create = lookup.module('tokenizers', config['name'], 'create', 'Tokenizer').create
    what = f'tokenizer {config["name"]}'
    return bind(create, given(config, 'name'), what=what, own=1)(captions())


def captions(data: Mapping[str, Any]) -> Captions:
    """Returns how a config's `data` chooses captions; ValueError if a value is impossible."""
    return Captions(
        rule=data['caption'],
        fields=dict(data['caption_fields']),
        negative_fields=tuple(data['negative_fields']),
        negatives=data['hard_negatives'],
        count=data['captions_per_image'],
    )


def architecture(
    config: Mapping[str, Any],
    tokenizer: Any,
    base: Mapping[str, Any] | None = None,
    *,
    loss: str = 'softmax',
    towers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Resolves a config's model to the complete fields of both encoders, the `model` of a card.

    Args:
        config: the config's `model`. Its fields override those of `base`.
        tokenizer: the tokenizer, for the vocabulary of the text encoder.
        base: the `model` of the checkpoint that training starts from. None: that of the preset that
            the config names, for this tokenizer and with the loss's initial scale and bias.
        loss: the name of the loss.
        towers: encoders that replace those of the preset, by 'image' and 'text'.

    Raises:
        ValueError: a name or a field is unknown, or a required field is missing.
    """
    if base is None:
        base = presets.architecture(config['preset']) if config.get('preset') else {}
        of_tokenizer = {x: getattr(tokenizer, x) for x in TOKENS if hasattr(tokenizer, x)}
        base = {**base, 'text': {**base.get('text', {}), **of_tokenizer}}
        base |= {**initial_scale_and_bias(loss), **(towers or {})}
    fields = {
        **base,
        **given(config, 'preset', 'dtype', 'decoder', *clip.EXECUTION),
        'image': _fields('models.image', config['image'], {**IMAGE, **base.get('image', {})}),
        'text': _fields('models.text', config['text'], {**TEXT, **base['text']}),
    }
    own = {**(base.get('decoder') or {}), **given(config.get('decoder') or {})}
    fields['decoder'] = decoder.fields(own, fields['text'])
    if 'embed_dim' not in fields:
        raise ValueError('model: embed_dim must be given, or a preset that sets it')
    return clip.to_card(clip.from_card(fields))


def _fields(folder: str, config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an encoder: those of `base`, of a variant, then the config's own values."""
    name = config.get('name') or base['name']
    module = lookup.module(folder, name, 'Encoder')
    what, variants = lookup.label(folder, name), getattr(module, 'VARIANTS', {})
    rest = ('parent', 'dtype', 'param_dtype')
    known = {f.name: f for f in dataclasses.fields(module.Encoder) if f.name not in rest}
    if name == base['name']:
        fields = {k: v for k, v in base.items() if k in known or k not in SHARED}
    else:
        fields = {k: base[k] for k in SHARED if k in base and k in known}
    if config.get('variant'):
        size, _, patch = config['variant'].partition('/')
        fields |= variants[lookup.check(size, variants, what=f'{what}: variant')]
        if patch:
            if not patch.isdigit():
                raise ValueError(f'{what}: variant {config["variant"]!r}: expected SIZE/PATCH_SIZE')
            fields['patch_size'] = int(patch)
    fields |= {**given(config, 'variant'), 'name': name}
    for field in fields:
        lookup.check(field, known, what=f'{what}: field')
    missing = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in fields]
    if missing:
        hint = f', or a variant that sets them: {", ".join(variants)}' if variants else ''
        raise ValueError(f'{what}: {", ".join(missing)} must be given{hint}')
    return fields


def check_importable(folder: Any, card: dict[str, Any]) -> None:
    """ValueError if the card of a checkpoint names a module of another package that is not here."""
    for plugins, fields in (
        ('models.image', card['model']['image']),
        ('models.text', card['model']['text']),
        ('tokenizers', card['tokenizer']),
    ):
        if fields and '.' in fields['name']:
            try:
                lookup.module(plugins, fields['name'])
            except ValueError as error:
                raise ValueError(f'{folder}: its card names a plug-in. {error}') from error


def execution(config: Mapping[str, Any]) -> dict[str, str | bool]:
    """Returns the fields of a config's model that change how, not what, is computed."""
    return {name: config[name] for name in clip.EXECUTION}


def check_dtype(dtype: str) -> str:
    """Returns a compute dtype's name; ValueError if it is unknown."""
    return lookup.check(dtype, ('auto', 'float32', 'bfloat16'), what='dtype')


def model(
    architecture: Mapping[str, Any], dtype: str = 'auto', **execution: str | bool
) -> clip.CLIP:
    """Makes the model of a card.

    Args:
        architecture: the card's `model`.
        dtype: the compute dtype, 'float32', 'bfloat16', or 'auto': bfloat16 on accelerators and
            float32 on CPU. Parameters are float32.
        **execution: `remat`, `scan` and `attention`, see layers.TransformerConfig.

    Raises:
        ValueError: a name or a field is unknown or wrong.
    """
    check_dtype(dtype)
    lookup.check(execution.get('remat', 'none'), layers.REMAT, what='model.remat')
    lookup.check(execution.get('attention', 'xla'), attention.ATTENTION, what='model.attention')
    if dtype == 'auto':
        dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return clip.from_card(architecture, dtype, **execution)


def loss(
    config: Mapping[str, Any], mesh: Mesh, *, captions: int = 1, hard_negatives: int = 0
) -> Callable:
    """Makes the loss of a config.

    Args:
        config: `name`, a file of losses/ or an import path, and the loss's own options; those that
            are None are not passed, so that the loss's own defaults hold.
        mesh: the device mesh. The batch is sharded over all of its axes.
        captions: the number P of captions of an image in a batch.
        hard_negatives: the number of hard negatives of an image in a batch.

    Returns:
        (image [B, D], text [B, D] or [B, P, D], scale [], bias=None) -> (value, metrics), and with
        hard negatives the keyword argument `negatives`; see losses/__init__.py.

    Raises:
        ValueError: there is no such loss, an option is unknown, missing or wrong, or it cannot take
            several captions or hard negatives.
    """
    module = lookup.module('losses', config['name'], 'loss')
    what, options = lookup.label('losses', config['name']), given(config, 'name')
    parameters = inspect.signature(module.loss).parameters
    if [*parameters][: len(LOSS_INPUTS)] != [*LOSS_INPUTS]:
        raise ValueError(
            f'{what}: loss({", ".join(parameters)}); expected loss({", ".join(LOSS_INPUTS)}, …)'
        )
    choices = getattr(module, 'IMPLEMENTATIONS', None)
    if choices and 'implementation' in options:
        lookup.check(options['implementation'], choices, what=f'{what}: implementation')
    if (captions > 1 or hard_negatives) and 'negatives' not in parameters:
        raise ValueError(
            f'{what}: a batch has {captions} caption(s) and {hard_negatives} hard negative(s) of '
            'each image; the loss takes one caption: it has no parameter negatives. Use softmax or '
            'sigmoid, or add it (see clip_jax/losses/__init__.py)'
        )
    bound = bind(
        module.loss,
        options,
        what=what,
        own=len(LOSS_INPUTS),
        reserved=('mask', 'negatives'),
        passed={'mesh': mesh, 'axis': mesh.axis_names},
    )
    texts = (captions,) if captions > 1 else (), (hard_negatives,) if hard_negatives else ()
    _check_loss(bound, mesh.size, texts, initial_scale_and_bias(config['name']), what)
    return bound


def _check_loss(
    loss: Callable,
    batch_size: int,
    texts: tuple[tuple[int, ...], tuple[int, ...]],
    initial: Mapping[str, float | None],
    what: str,
) -> None:
    """Traces a loss on a small batch, so that wrong options raise before training starts.

    `texts` are the numbers of captions and of hard negatives of an image, () for no such axis.
    """

    def embeddings(*of_image: int) -> jax.ShapeDtypeStruct:
        # Nothing of that size is computed; it must be no less than `dims` of a loss.
        return jax.ShapeDtypeStruct((batch_size, *of_image, 1 << 16), jnp.float32)

    captions, hard_negatives = texts
    number = jax.ShapeDtypeStruct((), jnp.float32)
    bias = None if initial['init_logit_bias'] is None else number
    given = {'negatives': embeddings(*hard_negatives)} if hard_negatives else {}
    returned = jax.eval_shape(loss, embeddings(), embeddings(*captions), number, bias, **given)
    shapes = jax.tree.map(lambda x: x.shape, returned)
    if not (isinstance(shapes, tuple) and len(shapes) == 2 and shapes[0] == ()):
        raise ValueError(f'{what}: loss returns shapes {shapes}; expected (scalar, metrics)')


def initial_scale_and_bias(loss: str) -> dict[str, float | None]:
    """Returns `init_logit_scale` and `init_logit_bias` of a model that is trained with a loss."""
    own = getattr(lookup.module('losses', loss, 'loss'), 'INIT', {})
    default = {'init_logit_scale': clip.INIT_LOGIT_SCALE, 'init_logit_bias': None}
    for name in own:
        lookup.check(name, default, what=f'{lookup.label("losses", loss)}: INIT')
    return {**default, **own}


# Keys of a config's optimizer that are not options of the plug-in.
_COMMON = ('learning_rate', 'warmup_steps', 'schedule', 'weight_decay', 'grad_clip_norm')
_COMMON += ('freeze', 'rules', 'layer_decay', 'name')


def optimizer(
    config: Mapping[str, Any], params: Mapping[str, Any], total_steps: int
) -> step_optimizer.Optimizer:
    """Makes the optimizer of a config.

    Args:
        config: `name`, a file of step/optimizers/ or an import path, what configs/default.py lists
            beside it, and options of that optimizer.
        params: the parameters, or their shapes.
        total_steps: the last step of the learning rate's schedule.

    Raises:
        ValueError: there is no such optimizer or schedule, an option is unknown, missing or wrong,
            or a rule matches nothing.
    """
    peak, warmup_steps = config['learning_rate'], config['warmup_steps']

    def make_schedule(options: Mapping[str, Any]) -> optax.Schedule:
        return schedules.make(
            options, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps
        )

    schedule = make_schedule(config['schedule'])
    name = config['name']
    module = lookup.module('step.optimizers', name, 'create')
    bound = bind(
        module.create,
        given(config, *_COMMON),
        what=lookup.label('step.optimizers', name),
        own=2,
        passed={'schedule': schedule},
    )
    settings = rules.resolve(
        params,
        weight_decay=config['weight_decay'],
        rules=config['rules'],
        freeze=config['freeze'],
        layer_decay=config['layer_decay'],
        schedule=make_schedule,
    )
    late = max(x.unfreeze_at for x in settings.values())
    if late >= total_steps:
        raise ValueError(
            f'optimizer.rules: unfreeze_at is {late}; expected less than total_steps {total_steps}'
        )
    return step_optimizer.make(
        bound,
        settings,
        schedule,
        grad_clip_norm=config['grad_clip_norm'],
        average=getattr(module, 'average', None),
    )


def preprocess(
    config: Mapping[str, Any], image_size: int, base: Mapping[str, Any] | None = None
) -> Preprocess:
    """Makes the evaluation preprocessing of a config.

    Args:
        config: fields of Preprocess; what is None is that of `base`.
        image_size: height and width of the model's images, in pixels.
        base: the `preprocess` of a card; None: OpenAI's.
    """
    for name in config:
        lookup.check(name, card_fields(), what='preprocess: field')
    return Preprocess.from_card({**(base or {}), **given(config), 'size': image_size})


def writers(config: Mapping[str, Mapping[str, Any]]) -> list[Callable]:
    """Checks the metric writers of a config, without opening them.

    Args:
        config: the type and the options of each writer, by a name of the user's choice.

    Returns:
        One function (workdir, *, resume_step, config) -> writer for each of them.

    Raises:
        ValueError: a type that does not exist, or an option that it does not have.
    """
    found = []
    for name, entry in config.items():
        what = f'config.writers.{name}'
        lookup.check('type', entry, what=what)
        create = lookup.module('metrics', entry['type'], 'create').create
        options = given(entry, 'type')
        found.append(bind(create, options, what=what, own=1, reserved=('resume_step', 'config')))
    return found
