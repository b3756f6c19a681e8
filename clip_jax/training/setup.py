"""From a config to all parts of a run. Nothing is written here, and nothing is left open."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import build, checkpoint, lookup, pretrained, sharding, tokenizers
from clip_jax.data import budgets, examples, pipeline, sources
from clip_jax.data.sources import Source
from clip_jax.data.stored_embeddings import StoredEmbeddings
from clip_jax.evaluation import evaluate
from clip_jax.evaluation.evaluate import Evaluation
from clip_jax.models import clip
from clip_jax.models.captions import start_id
from clip_jax.places import naming
from clip_jax.pretrained import Clip, loaded
from clip_jax.runtime import multihost
from clip_jax.runtime.messages import Failures
from clip_jax.step import captions, compiler_options, ema, lora, projections, rules, state
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.rules import LORA
from clip_jax.step.state import TrainState
from clip_jax.step.train_step import bind_step, with_stop
from clip_jax.training import adapters, config_schema, profile, stages, teachers


class Saved(NamedTuple):
    """A model and the shapes of its state, as a checkpoint has them."""

    model: clip.CLIP
    state: TrainState


class Parts(NamedTuple):
    """The parts of a run, as its config describes them."""

    mesh: Mesh
    step: Callable  # jitted: (state, batch, stop flags) -> (state, metrics)
    state: TrainState  # a new one; replaced by that of a checkpoint when the run resumes
    optimizer: Optimizer
    source: Source  # the training data
    batches: pipeline.TrainIterator  # this host's batches of it
    clip: Clip  # the model with its card, tokenizer and preprocessing, without variables
    evals: dict[str, Evaluation]  # by name, with its data open
    writers: list[Callable]  # (workdir, *, resume_step, config) -> metric writer
    resumes: bool  # whether the run directory has a checkpoint
    start: str  # what a new run starts from: a checkpoint, '' for nothing
    saved: Saved | None  # the state to restore, if it is of another image size


def prepare(config: ConfigDict, workdir: Any, stage: stages.Stage | None = None) -> Parts:
    """Builds all parts of a run.

    Args:
        config: the training config, as configs/default.py describes it, without stages.
        stage: the stage that it is of.
        workdir: the run directory, an absolute epath.Path. Its newest valid checkpoint, if there is
            one, provides the card; otherwise `config.init_from` or the config itself does.

    Returns:
        The parts. All processes call this together.

    Raises:
        ValueError: a value of the config, the data or a checkpoint is not usable.
    """
    stages.check_none(config)
    config_schema.check(config)
    _check_counts(config)
    writers = build.writers(config.writers)
    mesh = sharding.make_mesh(**build.given(config.mesh, 'shard_optimizer'))
    sharding.check_batch(config.batch_size, config.microbatches, mesh)
    options = compiler_options.parse(config.compiler_options, mesh.local_devices[0], mesh.size)
    average = ema.make(**config.ema)
    loss = build.loss(
        config.loss,
        mesh,
        captions=config.data.captions_per_image,
        hard_negatives=config.data.hard_negatives,
    )
    how = _how(config)
    source, evals = multihost.primary_first(lambda: _open_data(config))
    begun = _begun(config, workdir, source, mesh, stage)
    execution = build.execution(config.model)
    model = build.model(begun.card['model'], config.model.dtype, **execution)
    card, variables, params = adapters.added(config, begun.card, begun.variables, model, mesh)
    taught = teachers.prepare(config.distillation, config.model.dtype, card, mesh, pretrained.read)
    of_captions = captions.make(config.captioning, model, teachers=taught.teachers is not None)
    params = params | projections.shapes(taught.projected)
    optimizer = build.optimizer(config.optimizer, params, config.total_steps)
    # Without variables: they change, and a second copy would stay on the devices.
    model_clip = loaded.from_card(card, {}, model, mesh)
    model_clip = model_clip.with_preprocess(max_pixels=config.data.max_pixels)
    if of_captions:
        start_id(model_clip.tokenizer)
    batches = _batches(config, source, model_clip, taught.stored, how)
    step = bind_step(
        model,
        loss,
        optimizer,
        mean=model_clip.preprocess.mean,
        std=model_clip.preprocess.std,
        microbatches=config.microbatches,
        spike=config.skip_updates.loss_spike_std,
        shard_optimizer=config.mesh.shard_optimizer,
        average=average,
        captions_per_image=config.data.captions_per_image,
        teachers=taught.teachers,
        lora_scales=lora.scales(card.get(LORA, {})),
        captioning=of_captions,
    )
    create = {
        'mesh': mesh,
        'shard_optimizer': config.mesh.shard_optimizer,
        'averaged': average is not None,
        'projected': taught.projected,
    }
    saved = None
    if old_card := _of_other_size(begun.before, card, optimizer):
        old = build.model(old_card['model'], config.model.dtype, **execution)
        saved = Saved(old, state.abstract_state(old, optimizer, **create))
    return Parts(
        mesh=mesh,
        step=jax.jit(with_stop(step), donate_argnums=0, compiler_options=options),
        state=dataclasses.replace(
            state.create(model, optimizer, seed=config.seed, variables=variables, **create),
            teachers=taught.variables,
        ),
        optimizer=optimizer,
        source=source,
        batches=batches,
        clip=model_clip,
        evals=evals,
        writers=writers,
        resumes=begun.resumes,
        start=begun.start,
        saved=saved,
    )


class _Begun(NamedTuple):
    """What a run begins or resumes with."""

    card: dict[str, Any]
    variables: dict[str, Any] | None  # None: random ones, or those of the checkpoint
    start: str  # see Parts
    resumes: bool
    before: dict[str, Any] | None  # the card of the state that is restored, None for a new state


def _begun(
    config: ConfigDict, workdir: Any, source: Source, mesh: Mesh, stage: stages.Stage | None
) -> _Begun:
    newest = checkpoint.newest_about(workdir)  # not from card.json, which has no checksum
    if newest:
        before = newest[1]['card']
        card = stage.adapted(before) if stage else before
        return _Begun(card, _base_again(config, card, workdir, mesh), '', True, before)
    start, before = find_start(config), None
    card, variables = initial_variables(config, start, source, mesh, workdir)
    if config.init_state == 'all':
        before = checkpoint.read_about(epath.Path(start))['card']
    card = stage.adapted(card) if stage else card
    return _Begun(card, variables, start, False, before)


def _of_other_size(
    before: dict[str, Any] | None, card: dict[str, Any], optimizer: Optimizer
) -> dict[str, Any] | None:
    """Returns the card of the state that is restored if positions in it are interpolated."""
    if before is None:
        return None
    old, new = (x['model']['image']['image_size'] for x in (before, card))
    if old == new:
        return None
    if LORA not in card:
        return before
    # The checkpoint has only what is trained; the base is interpolated as it is read.
    trained = [x for x, how in optimizer.settings.items() if how.trained and 'position' in x]
    if trained:
        raise ValueError(
            f'stages: image_size changes from {old} to {new}, and {trained[0]} is trained beside '
            'adapters; expected it frozen, or one image_size'
        )
    return None


def _how(config: ConfigDict) -> dict[str, Any]:
    """How examples are made; a ValueError before anything is opened."""
    return {
        'augment': examples.Augment(**config.data.augment),
        'filter': examples.Filter(**config.data.filter),
        'captions': build.captions(config.data),
    }


def _batches(
    config: ConfigDict,
    source: Source,
    clip: Clip,
    stored: dict[str, StoredEmbeddings],
    how: dict[str, Any],
) -> pipeline.TrainIterator:
    """This host's batches of the training data."""
    assert clip.tokenizer is not None  # a run's card has one
    return pipeline.train_iterator(
        source,
        clip.tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        image_size=clip.preprocess.size,
        budgets=budgets.of_model(
            clip.model.image,
            config.seed,
            config.data.budgets,
            config.data.patch_sizes,
            clip.preprocess.max_patches,
        ),
        stored=stored,
        max_pixels=config.data.max_pixels,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        **how,
    )


def initial_variables(
    config: ConfigDict, start: str, source: Source, mesh: Mesh, workdir: Any
) -> tuple[dict[str, Any], dict | None]:
    """Returns the card of a new run, and the variables of the checkpoint `start` on the devices, or
    None for random ones.
    """
    if not start:
        # A vocabulary is trained once.
        return multihost.run_on_primary(lambda: _card(config, source, {})), None
    adapted = adapters.wanted(config)
    init_card, variables = pretrained.read(start, mesh, adapters=not adapted)
    for tower in config.init_towers:
        if init_card['model'][tower] is None:
            (other,) = {*rules.TOWERS} - {tower}
            raise ValueError(
                f'init_from {config.init_from} has no {tower} encoder; to train a new one, set '
                f"init_towers to ('{other}',)"
            )
    if 'text' in config.init_towers:
        card = _card(config, source, init_card)
    else:  # whose vocabulary may be trained
        card = multihost.run_on_primary(lambda: _card(config, source, init_card))
    if adapted:
        card[LORA] = adapters.base(start, variables, workdir)
    if 'image' in config.init_towers:
        size = card['model']['image']['image_size']
        _, variables = clip.with_image_size(init_card['model'], variables, size)
    if len(config.init_towers) < 2:
        variables = _with_new(config, card, variables)
    wrong = checkpoint.differences(variables, clip.shapes(clip.from_card(card['model'])))
    if wrong:
        raise Failures(
            f'init_from {config.init_from}: set in config.model only what changes no parameter, '
            'and the image_size; its parameters are not those that config.model describes',
            wrong,
        )
    return card, pretrained.on_devices(variables, mesh)


def _with_new(
    config: ConfigDict, card: dict[str, Any], variables: dict[str, Any]
) -> dict[str, Any]:
    """Returns variables of which `init_towers` are given, and the others are random."""
    model = clip.from_card(card['model'])
    found = jax.device_get(clip.init(model, jax.random.key(config.seed)))
    for tower in config.init_towers:
        for kind in {*found, *variables}:
            found.setdefault(kind, {}).pop(tower, None)
            if tower in variables.get(kind, {}):
                found[kind][tower] = variables[kind][tower]
    return {kind: tree for kind, tree in found.items() if tree}


def find_start(config: ConfigDict) -> str:
    """The checkpoint that a new run starts from, '' for none. For the whole state of a run it is
    that of one step: a run that still trains writes others meanwhile.
    """
    lookup.check(config.init_state, ('weights', 'all'), what='init_state')
    towers = tuple(config.init_towers)
    if towers not in (('image',), ('text',), rules.TOWERS):
        raise ValueError(
            f"init_towers is {towers}; expected ('image', 'text'), ('image',) or ('text',)"
        )
    if len(towers) < 2 and (adapters.wanted(config) or config.init_state == 'all'):
        raise ValueError(
            f'init_towers is {towers}, which has neither adapters (lora) nor init_state all; '
            "expected ('image', 'text')"
        )
    if len(towers) < 2 and not config.init_from:
        raise ValueError(f'init_towers is {towers}, which needs init_from, a checkpoint with it')
    if adapters.wanted(config):
        return pretrained.located(config.init_from)
    if config.init_state == 'weights':
        return config.init_from or ''
    if not config.init_from:
        raise ValueError('init_state is all, which needs init_from, a run or its checkpoint')
    folder, layout = pretrained.find(config.init_from)
    if layout or naming.averaged(config.init_from):
        raise ValueError(
            f'init_state is all, and init_from {config.init_from} has only weights; expected a '
            'run of clip_jax or its checkpoint'
        )
    return str(folder)


def _base_again(
    config: ConfigDict, card: dict[str, Any], workdir: Any, mesh: Mesh
) -> dict[str, Any] | None:
    """The variables of the model that has the adapters of a run that resumes, None without any."""
    if LORA not in card:
        return None
    places = [*lora.bases(card[LORA], workdir), config.init_from]
    return pretrained.read_base(card, card[LORA], places, mesh, '--config.init_from=PATH')


def _card(config: ConfigDict, source: Source, init: dict[str, Any]) -> dict[str, Any]:
    """The card of a run; `init` is the card of the checkpoint `init_from`, {} without one."""
    kept = config.init_towers if init else ()
    tokenizer = (
        tokenizers.from_card(init['tokenizer'])
        if 'text' in kept and init['tokenizer']
        else build.tokenizer(config.tokenizer, source)
    )
    architecture = build.architecture(
        config.model,
        tokenizer,
        init['model'] if len(kept) == 2 else None,
        loss=config.loss.name,
        towers={tower: init['model'][tower] for tower in kept},
    )
    image_size = architecture['image']['image_size']
    base = init['preprocess'] if 'image' in kept else None
    if base is None:
        base = getattr(clip.from_card(architecture).image, 'preprocess', None)
    preprocess = build.preprocess(config.preprocess, image_size, base)
    card = {'model': architecture, 'preprocess': preprocess.card, 'tokenizer': tokenizer.card}
    return json.loads(json.dumps(card))  # as it will be read back: tuples are lists


def _open_data(config: ConfigDict) -> tuple[Source, dict[str, Evaluation]]:
    """The training data, and the evaluations with theirs."""
    options = config.data.options.to_dict()
    sources.check(config.data.train)  # before the data of an evaluation is drawn or downloaded
    evals = {}
    for name, entry in config.evals.items():
        for key in ('type', 'data'):
            lookup.check(key, entry, what=f'config.evals.{name}')
        own = build.given(entry.to_dict(), 'type', 'data', 'source')
        of_data = build.source_options(entry.data, options, entry.to_dict().get('source') or {})
        evals[name] = evaluate.prepare(entry.type, own, entry.data, of_data)
    return build.source(config.data.train, options), evals


def _check_counts(config: ConfigDict) -> None:
    counts = {name: config[name] for name in ('batch_size', 'microbatches', 'log_every')}
    skip_updates = config.skip_updates
    counts |= {'eval_every': config.eval_every}
    counts |= {'data.captions_per_image': config.data.captions_per_image}
    counts |= {'skip_updates.max_consecutive': skip_updates.max_consecutive}
    counts |= {f'checkpoint.{name}': config.checkpoint[name] for name in ('every', 'keep')}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f'{name} is {count}; expected at least 1')
    for name in ('keep_every', 'keep_best'):
        if config.checkpoint[name] < 0:
            raise ValueError(f'checkpoint.{name} is {config.checkpoint[name]}; expected 0 or more')
    if skip_updates.loss_spike_std < 0:
        raise ValueError(
            f'skip_updates.loss_spike_std is {skip_updates.loss_spike_std}; expected 0 or more'
        )
    lookup.check(config.checkpoint.verify, ('all', 'sampled'), what='checkpoint.verify')
    profile.check(config.profile, config.total_steps)
