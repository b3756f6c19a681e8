"""Compiles the train step of a config for a topology that this machine does not have: does it fit,
and what does it cost?

TPU topologies are compiled by libtpu (extra `tpu`), which needs no TPU.
"""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import build, lookup, sharding
from clip_jax.data import preprocess
from clip_jax.models import clip, layers
from clip_jax.step import state, train_step
from clip_jax.training import config_schema, hlo, setup


class Chip(NamedTuple):
    """Figures of Google's Cloud TPU documentation (cloud.google.com/tpu/docs, system architecture).

    The clock is the one at which the matrix units reach the peak.
    """

    hbm_gib: float
    peak_tflops: float  # dense bfloat16
    clock_ghz: float


CHIPS = {
    'v4': Chip(32, 275, 1.05),
    'v5e': Chip(16, 197, 1.5),
    'v5p': Chip(95, 459, 1.75),
    'v6e': Chip(32, 918, 1.75),
}


# Cycles of a kernel for 1,024 logits: the compiler's static schedules for v5e at 197 tokens, heads
# of 64. It is a little faster on v6e, slower with fewer tokens.
KERNEL_CYCLES = {'short_attention': 9.5, 'short_attention_backward': 21}


@dataclasses.dataclass
class Tokens:
    """The sizes of a tokenizer whose vocabulary has not been trained yet."""

    vocab_size: int
    context_length: int
    eot_id: int = 2


class Planned(NamedTuple):
    """The devices of a topology by name."""

    name: str
    devices: list
    chip: Chip | None  # None: the local backend


def topology(name: str) -> Planned:
    """Returns the devices of a topology.

    Args:
        name: a TPU topology such as `v5e:16x16`, or `local` for the devices of this machine, of
            which XLA_FLAGS can simulate several.

    Raises:
        ValueError: there is no such topology, or libtpu is not installed.
    """
    kind, _, shape = name.partition(':')
    if kind == 'local':
        return Planned(name, jax.devices(), None)
    lookup.check(kind, [*CHIPS, 'local'], what='--topology')
    if not re.fullmatch(r'\d+(x\d+){1,2}', shape):
        raise ValueError(f'--topology is {name!r}; expected for instance {kind}:4x4')
    try:
        # A v4 chip has two cores, which programs see as one device.
        cores = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
        found = topologies.get_topology_desc(name, 'tpu', **cores).devices
    except Exception as error:  # libtpu and JAX raise several kinds
        text = str(error).splitlines()[0]
        raise ValueError(
            f"--topology {name}: {text}. It needs libtpu: pip install 'clipax[tpu]'; "
            'v5e and v6e have two dimensions, v4 and v5p three, multiples of 4 or the small slices'
        ) from error
    return Planned(name, list(found), CHIPS[kind])


def plan(config: ConfigDict, planned: Planned) -> dict[str, Any]:
    """Compiles the train step of a config for a topology.

    Returns:
        The report, JSON types: sizes, memory in MiB per device, TFLOPs per step over all devices,
        collectives, and the compiler's estimate of seconds. `fits` says whether a device has enough
        memory.
    """
    # On this machine, 'auto' would be float32.
    on_chip = planned.chip and config.model.dtype == 'auto'
    step = step_of(config, planned.devices, 'bfloat16' if on_chip else config.model.dtype)
    began = time.monotonic()
    with jax.set_mesh(step.mesh):
        traced = jax.jit(step.function, donate_argnums=0).trace(step.state, step.batch)
        program, refused = None, ''
        try:
            program = traced.lower().compile()
        except Exception as error:
            if not hlo.is_out_of_memory(error):
                raise
            refused = str(error)
    devices = len(planned.devices)
    model_flops = 3 * forward_flops(step.model, config.batch_size)
    by_type = hlo.flops(traced.jaxpr.jaxpr)
    report = {
        'topology': planned.name,
        'devices': devices,
        'mesh': dict(step.mesh.shape),
        'batch_size': config.batch_size,
        'per_device': config.batch_size // devices,
        'microbatches': config.microbatches,
        'remat': config.model.remat,
        'loss': ', '.join(filter(None, [config.loss.name, config.loss.get('implementation')])),
        'parameters': state.count_parameters(step.state.params),
        'compile_seconds': round(time.monotonic() - began, 1),
        'memory_mib': {
            'parameters': _local_mib(step.state.params),
            'optimizer': _local_mib(step.state.opt_state),
            'batch': _local_mib(step.batch),
        },
        'model_tflop': model_flops / 1e12,
        'step_tflop': sum(by_type.values()) / 1e12,
        'tflop_by_type': {dtype: count / 1e12 for dtype, count in by_type.items()},
    }
    if planned.chip:
        report['hbm_mib'] = planned.chip.hbm_gib * 1024
        fastest = model_flops / devices / (planned.chip.peak_tflops * 1e12)
        report['seconds_at_peak'] = fastest
    if program is None:
        return {**report, 'fits': False, 'needs_mib': _refused_mib(refused, report)}
    return {**report, **_of_program(program, report, planned.chip)}


def _refused_mib(reason: str, report: dict[str, Any]) -> float | None:
    """MiB that a device would need, from the compiler's error; None if it does not say."""
    found = re.search(r'(Used|temporaries \() ?([\d.]+)([MG])', reason)
    if not found:
        return None
    size = float(found[2]) * (1024 if found[3] == 'G' else 1)
    # Temporaries are needed in addition to the arguments.
    return size if found[1] == 'Used' else size + sum(report['memory_mib'].values())


def _of_program(program: Any, report: dict[str, Any], chip: Chip | None) -> dict[str, Any]:
    """Memory, estimated seconds and collectives of a compiled program, on one device."""
    memory = program.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    kinds = {
        **report['memory_mib'],
        'scratch': memory.temp_size_in_bytes / hlo.MIB,
        'program': memory.generated_code_size_in_bytes / hlo.MIB,
    }
    text = program.as_text()
    found = {
        'fits': total / hlo.MIB <= report.get('hbm_mib', float('inf')),
        'needs_mib': total / hlo.MIB,
        'memory_mib': kinds,
        # The body of a loop counts once here.
        'bytes_accessed': (program.cost_analysis() or {}).get('bytes accessed'),
        'collectives': hlo.collectives(text),
    }
    if chip:
        # The compiler's own seconds count a loop once, and can even be negative then.
        found['kernels'] = hlo.kernels(text)
        cycles = sum(
            KERNEL_CYCLES.get(name, 0) * kernel['transcendentals'] / 1024
            for name, kernel in found['kernels'].items()
        )
        found['kernel_seconds'] = cycles / (chip.clock_ghz * 1e9)
        found['compiler_seconds'] = hlo.cycles(text) / (chip.clock_ghz * 1e9)
        found['compiler_seconds'] += found['kernel_seconds']
        found['mfu'] = report['seconds_at_peak'] / found['compiler_seconds']
    return found


class Step(NamedTuple):
    """The train step of a config with its parts, and its abstract arguments with shardings."""

    function: Callable
    model: clip.CLIP
    optimizer: optax.GradientTransformation
    mesh: Mesh
    state: state.TrainState
    batch: dict[str, Any]


def step_of(config: ConfigDict, devices: list, dtype: str) -> Step:
    """Builds the train step of a config for devices, real or not; no array is created."""
    config_schema.check(config)
    mesh = sharding.make_mesh(devices, **config.mesh)
    setup.check_batch(config.batch_size, config.microbatches, mesh)
    card = _architecture(config)
    model = build.model(card, dtype, **build.execution(config.model))
    optimizer, _ = build.optimizer(config.optimizer, config.total_steps)
    function = train_step.bind_step(
        model,
        build.loss(config.loss, mesh),
        optimizer,
        mean=preprocess.CLIP_MEAN,
        std=preprocess.CLIP_STD,
        microbatches=config.microbatches,
        spike=config.skip_updates.loss_spike_std,
    )
    shapes = state.abstract_state(model, optimizer, mesh)
    return Step(function, model, optimizer, mesh, shapes, _batch(config, card, mesh))


def _architecture(config: ConfigDict) -> dict[str, Any]:
    if config.init_from:
        raise ValueError('init_from: a plan is of the architecture that config.model describes')
    tokens = config.tokenizer
    if tokens.name == 'sentencepiece' and not tokens.path:
        if tokens.vocab_size is None:
            raise ValueError('tokenizer sentencepiece: vocab_size must be given')
        tokenizer = Tokens(tokens.vocab_size, tokens.context_length)
    else:
        # pyrefly: ignore[bad-argument-type]  # only a new vocabulary is trained on captions
        tokenizer = build.tokenizer(tokens, ())
    return build.architecture(config.model, tokenizer, loss=config.loss.name)


def _batch(config: ConfigDict, card: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    size, length = card['image']['image_size'], card['text']['context_length']
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.over_batch(mesh))
    return {
        'image': rows((config.batch_size, size, size, 3), jnp.uint8),
        'tokens': rows((config.batch_size, length), jnp.int32),
    }


def _local_mib(tree: Any) -> float:
    """MiB of a tree of shapes on one device."""
    sizes = [
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    ]
    return sum(sizes) / hlo.MIB


def forward_flops(model: clip.CLIP, batch_size: int) -> int:
    """FLOPs of the forward pass of both encoders for a batch, by the architecture alone."""
    model = clip.from_card(clip.to_card(model))  # a fused attention hides its products
    size, length = model.image.image_size, model.text.context_length
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=True, mutable=['batch_stats']))(
        clip.shapes(model),
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        rngs={'dropout': jax.random.key(0)},
    ).jaxpr
    return batch_size * sum(hlo.flops(jaxpr).values())


def search(config: ConfigDict, planned: Planned, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the plan of the largest batch that fits, a power of two times the config's."""

    def of(size: int) -> dict[str, Any]:
        report = plan(_changed(config, {'batch_size': size}), planned)
        say(f'batch_size {size}: {_verdict(report)}')
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
    strongest = list(layers.REMAT)
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
        report = plan(changed, planned)
        say(f'{_as_flags(changes)}: {_verdict(report)}')
        if report['fits']:
            return changes, report
    return None


def _parameters_fit(config: ConfigDict, planned: Planned) -> bool:
    """Whether parameters, gradients and optimizer state alone fit; known without compiling."""
    if not planned.chip:
        return True
    step = step_of(config, planned.devices, 'bfloat16')
    needs = 2 * _local_mib(step.state.params) + _local_mib(step.state.opt_state)
    return needs < planned.chip.hbm_gib * 1024


def _as_flags(changes: dict[str, Any]) -> str:
    return ' '.join(f'--config.{name}={value}' for name, value in changes.items())


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def _verdict(report: dict[str, Any]) -> str:
    needs = report['needs_mib']
    size = 'more than available' if needs is None else f'{needs / 1024:.2f} GiB'
    of = f' of {report["hbm_mib"] / 1024:.0f} GiB' if 'hbm_mib' in report else ''
    return f'{"fits" if report["fits"] else "does NOT fit"}: {size}{of} a device'


def table(report: dict[str, Any]) -> str:
    """A plan as a text table."""
    mesh = ' x '.join(f'{name} {size}' for name, size in report['mesh'].items())
    rows = [
        ('topology', f'{report["topology"]}, {report["devices"]} devices, mesh {mesh}'),
        ('batch', f'{report["batch_size"]:,} pairs, {report["per_device"]:,} a device'),
        (
            'embedded in',
            f'{report["microbatches"]} part(s), remat {report["remat"]}, loss {report["loss"]}',
        ),
        ('parameters', f'{report["parameters"]:,}'),
        *((f'memory: {k}', f'{v:10,.1f} MiB') for k, v in report['memory_mib'].items()),
        ('verdict', _verdict(report)),
        ('model FLOPs', f'{report["model_tflop"]:,.4g} T a step (3 x forward)'),
        ('all FLOPs', f'{report["step_tflop"]:,.4g} T a step (loss and recomputation included)'),
        *(
            (f'of these {dtype}', f'{count / report["step_tflop"]:.1%}')
            for dtype, count in report['tflop_by_type'].items()
        ),
    ]
    if 'seconds_at_peak' in report:
        rows.append(('at peak', f'{report["seconds_at_peak"]:.3g} s a step'))
    if 'compiler_seconds' in report:
        seconds, mfu = report['compiler_seconds'], report['mfu']
        rows.append(('compiler', f'{seconds:.3g} s a step without collectives, MFU {mfu:.1%}'))
    if report.get('kernels'):
        calls = sum(kernel['count'] for kernel in report['kernels'].values())
        rows.append(('of these kernels', f'{report["kernel_seconds"]:.3g} s in {calls:,} calls'))
    for kind, found in report.get('collectives', {}).items():
        rows.append((kind, f'{found["count"]:,} of {found["mib"]:,.1f} MiB in all'))
    rows.append(('compiled in', f'{report["compile_seconds"]:.0f} s'))
    return '\n'.join(f'{name:22} {text}' for name, text in rows)


def run(
    config: ConfigDict, name: str, *, largest: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """Plans a config for a topology and prints the result with `say`.

    Args:
        largest: whether to search for the largest batch that fits.

    Returns:
        The report, and whether it fits.
    """
    planned = topology(name)
    if largest and not planned.chip:
        raise ValueError(f'--search: how much memory {name} has is not known; name a TPU topology')
    report = search(config, planned, say) if largest else plan(config, planned)
    say(table(report))
    if report['fits']:
        return report, True
    found = remedy(config, planned, say)
    if found:
        changes, better = found
        report['remedy'] = {'config': changes, 'plan': better}
        say(f'it fits with {_as_flags(changes)}\n{table(better)}')
    else:
        say('no recomputation or accumulation makes it fit; expected more devices or a smaller one')
    return report, False


def as_json(report: dict[str, Any]) -> str:
    """A plan as JSON."""
    return json.dumps(report, indent=1) + '\n'
