"""Compiles the train step of a config for a topology that this machine does not have: does it fit,
and what does it cost?

TPU topologies are compiled by libtpu (extra `tpu`), which needs no TPU, GPUs by JAX's CUDA plugin
(extra `plan-gpu`), which needs no GPU.
"""

import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from clip_jax.planning import abstract_step, estimates, gpu_program, hlo, links, schedules
from clip_jax.planning import program as programs
from clip_jax.planning.abstract_step import local_mib
from clip_jax.planning.topologies import Planned
from clip_jax.runtime import messages
from clip_jax.step import state


def plan(config: ConfigDict, planned: Planned) -> dict[str, Any]:
    """Compiles the train step of a config for a topology.

    Returns:
        The report, JSON types: sizes, memory in MiB per device, TFLOPs per step over all devices,
        collectives, estimates of seconds. `fits` says whether a device has enough memory.
    """
    # On this machine, 'auto' would be float32.
    on_chip = planned.chip and config.model.dtype == 'auto'
    step = abstract_step.step_of(
        config,
        planned.devices,
        'bfloat16' if on_chip else config.model.dtype,
        read=planned.read,
    )
    began = time.monotonic()
    with jax.set_mesh(step.mesh):
        traced = step.jitted().trace(step.state, step.batch)
        program, refused = None, ''
        try:
            if planned.schedules:
                schedules.clear(planned.schedules)
            program = traced.lower().compile()
        except Exception as error:
            if not messages.is_out_of_memory(error):
                raise
            refused = str(error)
    devices = len(planned.devices)
    model_flops = 3 * abstract_step.forward_flops(step.model, step.batch['image'])
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
            'parameters': local_mib(step.state.params),
            'optimizer': local_mib(step.state.opt_state),
            **({'teachers': local_mib(step.state.teachers)} if step.state.teachers else {}),
            'batch': local_mib(step.batch),
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
    return {**report, **_of_program(program, report, planned)}


def _refused_mib(reason: str, report: dict[str, Any]) -> float | None:
    """MiB that a device would need, from the compiler's error; None if it does not say."""
    found = re.search(r'(Used|temporaries \() ?([\d.]+)([MG])', reason)
    if not found:
        return None
    size = float(found[2]) * (1024 if found[3] == 'G' else 1)
    # Temporaries are needed in addition to the arguments.
    return size if found[1] == 'Used' else size + sum(report['memory_mib'].values())


def _of_program(program: Any, report: dict[str, Any], planned: Planned) -> dict[str, Any]:
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
    found: dict[str, Any] = {
        'fits': total / hlo.MIB <= report.get('hbm_mib', float('inf')),
        'needs_mib': total / hlo.MIB,
        'memory_mib': kinds,
        # The body of a loop counts once here.
        'bytes_accessed': (program.cost_analysis() or {}).get('bytes accessed'),
        'collectives': hlo.collectives(text),
    }
    read, slices = programs.read(text), report['mesh']['slices']
    found['overlapped'] = links.overlapped(read)
    if slices > 1:
        found['over_slices'] = links.over_slices(read, slices, report['devices'])
    if planned.chip:
        cycles = schedules.read(planned.schedules) if planned.schedules else None
        found |= {'kernels': hlo.kernels(text), **estimates.of(text, planned.chip, cycles)}
        if planned.chip.is_gpu:
            found['gpu_kernels'] = gpu_program.kernels(text, planned.chip)
        at_peak = report['seconds_at_peak']
        found['mfu'] = {name: at_peak / value for name, value in found['seconds'].items()}
    return found
