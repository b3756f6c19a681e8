"""Metric writers: one file = one place that the numbers of a training run are written to.

`metrics.jsonl` is always written, since a resumed run reads it. Other writers are plug-ins that a
config names, `c.writers.NAME = ConfigDict({'type': TYPE, ...options})`, where TYPE is a file of
this folder or the import path of a module of your own. A plug-in defines

    create(workdir, *, resume_step, config, **options) -> Writer

Training passes the run directory, the step that the run resumes from (-1 for a new run), and the
config as a dict. A writer must drop or
hide what it wrote for later steps, so that a step that is trained twice is shown once. Further
parameters are the options of the config; those without a default must be set there.

Method names are those of clu's MetricWriter, so that its writers can be used as well.
"""

from clip_jax.metrics._console import Progress, duration
from clip_jax.metrics._jsonl import JsonlWriter, read_jsonl
from clip_jax.metrics._writer import MultiWriter, Writer, to_python

__all__ = [
    'JsonlWriter',
    'MultiWriter',
    'Progress',
    'Writer',
    'duration',
    'read_jsonl',
    'to_python',
]
