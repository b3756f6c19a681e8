"""Images a second through `clip-jax embed`, next to those of the bare jitted encoder.

    python experiments/benchmarks/embed.py
    python experiments/benchmarks/embed.py --preset=ViT-B-32 --images=8192 --batch=256

Random weights; random images of the model's size, as arrays in memory, so that input keeps up. The
bare encoder is called with one batch that is already on the device. `one after the other` prepares
a batch, computes it, then fetches its embeddings. `embed` goes from records to files, files
included. All alternate; numbers are medians over --repeats turns, with the slowest and fastest, and
ratios are medians of those within a turn. The bare encoder runs before and after the others in each
turn, and counts as the mean of both. Where the device is the CPU, CPU time says more on a busy
machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from etils import epath

from clip_jax import build, pretrained, sharding
from clip_jax.embeddings import embed
from clip_jax.models import clip as models
from clip_jax.pretrained import Clip
from clip_jax.runtime import environment
from clip_jax.tokenizers import bpe

# The model of configs/quickstart.py, for which everything but the encoder counts most.
QUICKSTART = {
    'embed_dim': 128,
    'image': {
        'image_size': 32,
        'patch_size': 8,
        'width': 128,
        'depth': 4,
        'heads': 4,
        'mlp_dim': 512,
        'pool': 'cls',
        'positions': 'sincos2d',
        'pre_norm': False,
    },
    'text': {'width': 64, 'depth': 2, 'heads': 2, 'mlp_dim': 256},
}


class Memory:
    """Random images of one size, with labels."""

    label_names, skipped = [], {}

    def __init__(self, count: int, size: int):
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (64, size, size, 3), np.uint8)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict:
        return {'image': self._images[i % 64], 'label': i % 10}

    def where(self, i: int) -> str:
        return f'image {i}'


def model(published: str, batch: int) -> Clip:
    """A model with random weights on all devices."""
    tokenizer, mesh = bpe.Tokenizer(), sharding.make_mesh()
    config = {'preset': published, 'image': {}, 'text': {}} if published else QUICKSTART
    architecture = build.architecture(config, tokenizer)
    module = build.model(architecture, 'auto')
    variables = jax.device_put(models.init(module, jax.random.key(0)), sharding.replicated(mesh))
    preprocess = build.preprocess({}, module.image.image_size)
    size = batch * mesh.size
    return Clip(module, variables, {}, tokenizer, preprocess, mesh, batch_size=size)


def on_devices(clip: Clip, images: np.ndarray) -> jax.Array:
    """A whole batch, sharded."""
    return jax.device_put(images, sharding.over_batch(clip.mesh))


def bare(clip: Clip, source: Memory) -> None:
    """Calls the jitted encoder with one batch again and again."""
    images = np.stack([source[i]['image'] for i in range(clip.batch_size)])
    forward, batch = pretrained._forward(clip, 'embedding'), on_devices(clip, images)
    for _ in range(0, len(source), clip.batch_size):
        rows = forward(clip.variables, batch)
    jax.block_until_ready(rows)


def in_turn(clip: Clip, source: Memory, threads: int) -> None:
    """Prepares and computes one batch after the other."""
    forward = pretrained._forward(clip, 'embedding')
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), clip.batch_size):
            places = range(start, min(start + clip.batch_size, len(source)))
            images = np.stack(list(pool.map(lambda i: clip.preprocess(source[i]['image']), places)))
            np.asarray(forward(clip.variables, on_devices(clip, images)))


def through_embed(clip: Clip, source: Memory, options: embed.Options) -> None:
    """Writes a folder of embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {'captions': 'stored'}
        job = embed.EmbedJob('', clip, source, epath.Path(folder), options, settings)
        embed.write_shards(job, range(job.shards))


def measure(run: Callable[[], None], count: int) -> tuple[float, float]:
    """Returns images a second, and images a second of this process's CPU time."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return count / (time.perf_counter() - start), count / (time.process_time() - used)


def spread(values: Sequence[float]) -> str:
    digits = 1 if min(values) > 2 else 2
    numbers = (statistics.median(values), min(values), max(values))
    return '{:,.{d}f} ({:,.{d}f} to {:,.{d}f})'.format(*numbers, d=digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--preset', default='', help="as ViT-B-32 (default: quickstart's model)")
    parser.add_argument('--images', type=int, default=8192)
    parser.add_argument('--batch', type=int, default=128, help='images a device')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    environment.keep_freed_memory()  # as the command does
    clip = model(args.preset, args.batch)
    source = Memory(args.images, clip.preprocess.size)
    options = embed.Options(batch_size=args.batch, threads=args.threads)
    runs = {
        'bare encoder': lambda: bare(clip, source),
        'one after the other': lambda: in_turn(clip, source, args.threads),
        'embed': lambda: through_embed(clip, source, options),
        'bare encoder again': lambda: bare(clip, source),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    bare(clip, source)  # compiles
    for _ in range(args.repeats):
        for name, run in runs.items():
            found[name].append(measure(run, args.images))
    both = found['bare encoder'], found.pop('bare encoder again')
    found['bare encoder'] = [tuple(np.mean(pair, axis=0)) for pair in zip(*both, strict=True)]
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    name = args.preset or 'quickstart'
    print(f'\n{name}, {args.images} images, {args.batch} a batch, {device}')
    print('\n| | images a second | of the bare encoder | the same by CPU time |')
    print('|---|---|---|---|')
    for name, values in found.items():
        wall, used = (np.array(values) / np.array(found['bare encoder'])).T
        print(f'| {name} | {spread([x for x, _ in values])} | {spread(wall)} | {spread(used)} |')


if __name__ == '__main__':
    main()
