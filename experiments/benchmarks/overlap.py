r"""Does the input keep up with the device? Steps with batches from the pipeline and without.

    python experiments/benchmarks/overlap.py --config=configs/clip_vit_b32.py \
        --config.batch_size=1024 --threads=16

Takes turns of the config's real train step: on one random batch that stays on the device, and on
batches that are read, decoded, cropped, resized, tokenized and transferred meanwhile. The records
are JPEGs in memory, of smooth noise with as many bytes as photographs have.
"""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


class Memory:
    """JPEGs with captions."""

    label_names, skipped = [], {}

    def __init__(self, count: int, width: int, height: int):
        rng = np.random.default_rng(0)
        self._count, self._files = count, []
        for _ in range(64):
            small = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
            file = io.BytesIO()
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            image.save(file, 'JPEG', quality=90)
            self._files.append(file.getvalue())
        self.mean_bytes = sum(map(len, self._files)) / len(self._files)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {'image': self._files[i % 64], 'texts': [f'a photo of number {i}']}

    def where(self, i: int) -> str:
        return f'image {i}'


def seconds_a_step(step: Callable[[], Any], steps: int) -> list[float]:
    """Seconds from step to step, with one in flight as in training."""
    import jax

    found, previous, began = [], None, time.perf_counter()
    for _ in range(steps):
        numbers = step()
        if previous is not None:
            jax.block_until_ready(previous)
            found.append(time.perf_counter() - began)
            began = time.perf_counter()
        previous = numbers
    jax.block_until_ready(previous)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument('--config', required=True)
    parser.add_argument('--steps', type=int, default=20, help='steps in a turn')
    parser.add_argument('--turns', type=int, default=2)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--size', default='512x384', help='of the JPEGs')
    args, changes = parser.parse_known_args()
    import jax
    from train_step import prepared

    from clip_jax import sharding
    from clip_jax.cli import config_file
    from clip_jax.data import pipeline
    from clip_jax.planning import abstract_step
    from clip_jax.tokenizers import bpe

    config = config_file.read(args.config, changes)
    step = abstract_step.step_of(config, jax.devices(), config.model.dtype)
    state, same, program, _ = prepared(step)
    source = Memory(100 * config.batch_size, *map(int, args.size.split('x')))
    batches = pipeline.train_iterator(
        source,
        bpe.Tokenizer(context_length=step.batch['tokens'].shape[1]),
        batch_size=config.batch_size,
        seed=0,
        image_size=step.batch['image'].shape[1],
        num_threads=args.threads,
    )
    found: dict[str, list[float]] = {'one batch on the device': [], 'from the pipeline': []}
    waited = []
    on_devices = pipeline.to_device(batches, sharding.over_batch(step.mesh))

    def run(batch: Any) -> Any:
        nonlocal state
        state, numbers = program(state, batch)
        return numbers

    with contextlib.closing(batches), contextlib.closing(on_devices):
        jax.block_until_ready(run(next(on_devices)))
        for _ in range(args.turns):
            found['one batch on the device'] += seconds_a_step(lambda: run(same), args.steps)
            before, began = on_devices.waited, time.perf_counter()
            found['from the pipeline'] += seconds_a_step(lambda: run(next(on_devices)), args.steps)
            waited.append((on_devices.waited - before) / (time.perf_counter() - began))
    print(f'JAX {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(f'JPEGs {args.size} of {source.mean_bytes / 1e3:.0f} kB, {args.threads} threads\n')
    print('| input | ms a step | pairs/s | time that steps waited for input |\n|---|---|---|---|')
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        share = f'{statistics.median(waited):.1%}' if name == 'from the pipeline' else ''
        print(
            f'| {name} | {middle * 1e3:,.1f} ({min(seconds) * 1e3:,.1f} to '
            f'{max(seconds) * 1e3:,.1f}) | {config.batch_size / middle:,.1f} | {share} |'
        )


if __name__ == '__main__':
    main()
