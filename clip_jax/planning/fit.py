"""What fits: the largest batch, or the change of a config that saves enough memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clip_jax import lookup
from clip_jax.models import layers
from clip_jax.planning import abstract_step, plan, tables, topologies
from clip_jax.planning.topologies import Planned


def search(config: ConfigDict, planned: Planned, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the plan of the largest batch that fits, a power of two times the config's."""

    def of(size: int) -> dict[str, Any]:
        report = plan.plan(_changed(config, {'batch_size': size}), planned)
        say(f'batch_size {size}: {tables.verdict(report)}')
        return report

    size, least = config.batch_size, config.microbatches * len(planned.devices)
    best = of(size)
    if best['fits']:
        while (larger := of(2 * best['batch_size']))['fits']:
            best = larger
    while not best['fits']:
        if size // 2 < least:
            raise ValueError(f'no batch fits: with {size} pairs it needs {best["needs_mib"]} MiB')
        size //= 2
        if size % least:
            raise ValueError(f'batch_size {size} is not a multiple of {least}')
        best = of(size)
    return best


def remedies(config: ConfigDict, devices: int) -> Iterator[dict[str, Any]]:
    """Changes of a config that save memory, cheapest first; none undoes what the config has.

    First those that keep the sharding of the parameters, then the same with parameters and
    optimizer state sharded over all devices.
    """
    # How long a copy to the host and back takes is not known.
    strongest = [x for x in layers.REMAT if x in (config.model.remat, 'none', 'dots', 'full')]
    implementation = config.loss.get('implementation')
    implementations = getattr(lookup.module('losses', config.loss.name), 'IMPLEMENTATIONS', ())
    mesh: dict[str, Any] = {}
    while True:
        # Tiles take less memory than the matrix, and no more time.
        loss = {'loss.implementation': 'gather'} if implementation == 'dense' else {}
        changes = {**mesh, **loss}
        if changes:
            yield changes
        for remat in strongest[strongest.index(config.model.remat) + 1 :]:
            changes = {**mesh, **loss, 'model.remat': remat}
            yield changes
        for parts in (2, 4, 8):
            if parts > config.microbatches and config.batch_size % (parts * devices) == 0:
                changes = {**changes, 'microbatches': parts}
                yield changes
        if implementation != 'ring' and 'ring' in implementations:
            yield {**changes, 'loss.implementation': 'ring'}
        if mesh or config.mesh.fsdp * config.mesh.tensor >= devices:
            return
        mesh = {'mesh.fsdp': devices // config.mesh.tensor}


def remedy(
    config: ConfigDict, planned: Planned, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns the first changes with which a config fits, and its plan; None if there are none."""
    devices = len(planned.devices)
    for changes in remedies(config, devices):
        changed = _changed(config, changes)
        if not _parameters_fit(changed, planned):
            continue
        report = plan.plan(changed, planned)
        say(f'{as_flags(changes)}: {tables.verdict(report)}')
        if report['fits']:
            return changes, report
    return None


def _parameters_fit(config: ConfigDict, planned: Planned) -> bool:
    """Whether parameters, gradients and optimizer state alone fit; known without compiling."""
    if not planned.chip:
        return True
    state = abstract_step.step_of(config, planned.devices, 'bfloat16', read=planned.read).state
    held = state.params, state.params, state.opt_state, state.teachers
    needs = sum(map(abstract_step.local_mib, held))
    return needs < planned.chip.hbm_gib * 1024


def as_flags(changes: dict[str, Any]) -> str:
    return ' '.join(f'--config.{name}={value}' for name, value in changes.items())


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def run(
    config: ConfigDict,
    name: str,
    *,
    largest: bool,
    say: Callable[[str], None],
    schedules: str | None = None,
    read: Callable[[str], tuple[dict, dict]] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Plans a config for a topology and prints the result with `say`.

    Args:
        largest: whether to search for the largest batch that fits.
        schedules: the folder into which libtpu writes schedules; they are estimated with, if given.
        read: path -> the card of a checkpoint and the shapes of its variables, for teachers.

    Returns:
        The report, and whether it fits.
    """
    planned = topologies.topology(name, config.mesh.slices or 1)._replace(read=read)
    if schedules:
        planned = planned._replace(schedules=Path(schedules))
    if largest and not planned.chip:
        raise ValueError(
            f'--search: how much memory {name} has is not known; name one of TPUs or GPUs'
        )
    report = search(config, planned, say) if largest else plan.plan(config, planned)
    say(tables.table(report))
    if report['fits']:
        return report, True
    found = remedy(config, planned, say)
    if found:
        changes, better = found
        report['remedy'] = {'config': changes, 'plan': better}
        say(f'it fits with {as_flags(changes)}\n{tables.table(better)}')
    else:
        say('no recomputation or accumulation makes it fit; expected more devices or a smaller one')
    return report, False
