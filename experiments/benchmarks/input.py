r"""Images a second of the input by stage on one core, and from source to batch with all of them.

    python experiments/benchmarks/input.py --data='tars:shards/train-*.tar'
    python experiments/benchmarks/input.py --data='tars:shards/train-*.tar' --resize=512x384 --torch

--resize encodes the pictures again at another size first, into temporary tar shards, so that any
data can stand for files of that size. Stages are pinned to one core and take turns, with Pillow's
bicubic filter among them; numbers are medians over --repeats turns, with the slowest and fastest,
and ratios are medians of those within a turn. --torch reads the same shards with WebDataset into
PyTorch's DataLoader, decodes with Pillow and crops with torchvision, where these are installed.
"""

import argparse
import glob
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from clip_jax.data import augment, pipeline
from clip_jax.data.augment import Augment
from clip_jax.data.image import upright
from clip_jax.data.sources import Source, open_source
from clip_jax.runtime import environment
from clip_jax.tokenizers import bpe

JITTER = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1}
SHARDS = 8
PILLOW, CUT = 'decode, crop and resize, Pillow', 'read header, draw crop, decode and resize'


def write_shards(source: Source, folder: str, size: tuple[int, int], quality: int, n: int) -> str:
    """Encodes n pictures again at (width, height), as tar shards; returns their SPEC."""
    for shard in range(SHARDS):
        with tarfile.open(f'{folder}/{shard:05d}.tar', 'w') as tar:
            for i in range(shard, n, SHARDS):
                example = source[i]
                image = Image.fromarray(upright.decode(example['image']))
                file = io.BytesIO()
                image.resize(size, Image.Resampling.LANCZOS).save(file, 'JPEG', quality=quality)
                texts = '\n'.join(example['texts']).encode()
                for name, data in ((f'{i:06d}.jpg', file.getvalue()), (f'{i:06d}.txt', texts)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f'tars:{folder}/*.tar'


def pillow(data: bytes, box: augment.Box, size: int) -> np.ndarray:
    """What torchvision does with a JPEG: decode all, cut out, resize with an antialiased filter."""
    image = Image.open(io.BytesIO(data)).convert('RGB')
    left, top, width, height = box
    part = image.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def stages(source: Source, n: int, size: int, scale: tuple) -> dict[str, Callable[[int], Any]]:
    """What can be done with record i, by name."""
    rng = np.random.default_rng(0)
    examples = [source[i] for i in range(n)]
    data = [example['image'] for example in examples]
    shapes = [upright.measure(one) for one in data]
    done = [pillow(data[0], augment.random_box(rng, *shapes[0]), size)] * n
    tokenizer = bpe.Tokenizer()

    def draw(i: int) -> augment.Box:
        return augment.random_box(rng, *shapes[i], scale=scale)

    return {
        'read': lambda i: source[i],
        'measure': lambda i: upright.measure(data[i]),
        'decode, Pillow': lambda i: Image.open(io.BytesIO(data[i])).convert('RGB'),
        'decode': lambda i: upright.decode(data[i]),
        PILLOW: lambda i: pillow(data[i], draw(i), size),
        CUT: lambda i: upright.measure(data[i]) and augment.resized_crop(data[i], draw(i), size),
        'color jitter': lambda i: augment.color_jitter(done[i], rng, **JITTER),
        'tokenize': lambda i: tokenizer(examples[i]['texts'][:1]),
    }


def difference(source: Source, n: int, size: int, scale: tuple) -> np.ndarray:
    """How far our parts of pictures are from Pillow's, in 255ths, for each of n records."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(n):
        data = source[i]['image']
        box = augment.random_box(rng, *upright.measure(data), scale=scale)
        ours = augment.resized_crop(data, box, size).astype(int)
        found.append(np.abs(ours - pillow(data, box, size)).mean())
    return np.array(found)


def rate(run: Callable[[int], Any], n: int, seconds: float) -> float:
    """Runs over the records again and again for so long; returns how many a second."""
    start = time.perf_counter()
    for count in itertools.count(1):
        run(count % n)
        if (passed := time.perf_counter() - start) >= seconds:
            return count / passed


def batch_rate(batches: Iterator, batch: int, seconds: float, warm: int) -> float:
    """Rows a second of an iterator, after so many batches that were made ahead."""
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        if (passed := time.perf_counter() - start) >= seconds:
            return count * batch / passed


def ours(source: Source, threads: int, args: argparse.Namespace) -> float:
    """Rows a second of training's own iterator."""
    batches = pipeline.train_iterator(
        source,
        bpe.Tokenizer(),
        batch_size=args.batch,
        seed=0,
        image_size=args.size,
        augment=Augment(crop_scale=tuple(args.crop_scale), flip=0.5),
        num_threads=threads,
    )
    try:
        return batch_rate(batches, args.batch, args.seconds, threads + 4)
    finally:
        batches.close()


def in_torch(spec: str, workers: int, args: argparse.Namespace) -> float:
    """Rows a second of the same shards through WebDataset, torchvision and DataLoader."""
    import torch
    import torchvision.transforms as vision
    import webdataset

    tokenizer = bpe.Tokenizer()
    transform = vision.Compose(
        [
            vision.RandomResizedCrop(
                args.size, tuple(args.crop_scale), interpolation=vision.InterpolationMode.BICUBIC
            ),
            vision.RandomHorizontalFlip(),
            vision.PILToTensor(),  # uint8, as ours: normalized on the device
        ]
    )
    shards = sorted(glob.glob(spec.removeprefix('tars:')))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).repeat()
    dataset = dataset.decode('pilrgb').to_tuple('jpg', 'txt')
    dataset = dataset.map_tuple(transform, lambda text: tokenizer(text.splitlines()[:1])[0])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch, num_workers=workers, persistent_workers=False
    )
    return batch_rate(iter(loader), args.batch, args.seconds, 2 * workers + 4)


def spread(values: Sequence[float]) -> str:
    return f'{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})'


def turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The rates of every run, which take turns."""
    rates = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            rates[name].append(run())
    return rates


def ratio(rates: dict[str, list[float]], name: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))


def per_core(source: Source, n: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Prints the table of stages; pins this process to one core meanwhile."""
    runs = {
        name: lambda run=run: rate(run, n, args.seconds / 2)
        for name, run in stages(source, n, args.size, tuple(args.crop_scale)).items()
    }
    pinned = hasattr(os, 'sched_setaffinity')
    cores = os.sched_getaffinity(0) if pinned else set()
    if pinned:
        os.sched_setaffinity(0, {max(cores)})
    try:
        rates = turns(runs, args.repeats)
    finally:
        if pinned:
            os.sched_setaffinity(0, cores)
    print('| stage | images a second on one core | microseconds | times Pillow |')
    print('|---|---|---|---|')
    for name, values in rates.items():
        other = {'decode': 'decode, Pillow', CUT: PILLOW}.get(name)
        times = f'{ratio(rates, name, other):.2f}' if other else ''
        print(f'| {name} | {spread(values)} | {1e6 / statistics.median(values):,.1f} | {times} |')
    return rates


def in_all(source: Source, spec: str, one: float, args: argparse.Namespace) -> None:
    """Prints the table of source to batch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    runs = {
        f'train_iterator, {threads} threads': lambda threads=threads: ours(source, threads, args)
        for threads in range(1, cores + 1)
    }
    best = f'train_iterator, {cores} threads'
    if args.torch:
        runs['torch'] = lambda: in_torch(spec, cores, args)
    rates = turns(runs, args.repeats)
    print(f'\n| source to batch of {args.batch} | images a second | / cores x cut | times torch |')
    print('|---|---|---|---|')
    for name, values in rates.items():
        share = statistics.median(values) / one / cores
        times = f'{ratio(rates, name, "torch"):.2f}' if args.torch and name == best else ''
        label = f'DataLoader, WebDataset, {cores} workers' if name == 'torch' else name
        print(f'| {label} | {spread(values)} | {share:.2f} | {times} |')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', required=True, help='a SPEC with captions')
    parser.add_argument('--size', type=int, default=224, help='of the images in a batch')
    parser.add_argument('--resize', metavar='WxH', help='encode the pictures again at this size')
    parser.add_argument('--quality', type=int, default=90, help='of JPEGs with --resize')
    parser.add_argument('--crop-scale', type=float, nargs=2, default=(0.9, 1.0))
    parser.add_argument('--records', type=int, default=2000, help='at most so many are used')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--seconds', type=float, default=2.0, help='of a measurement')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--torch', action='store_true', help='compare; tar shards only')
    args = parser.parse_args()
    if args.torch and not args.resize and not args.data.startswith('tars:'):
        parser.error(f'--torch reads tar shards, --data is {args.data}; add --resize to make some')
    cv2.setNumThreads(0)
    environment.keep_freed_memory()  # as clip-jax train does
    source, spec = open_source(args.data), args.data
    n = min(args.records, len(source))
    with tempfile.TemporaryDirectory() as folder:
        if args.resize:
            width, height = map(int, args.resize.split('x'))
            spec = write_shards(source, folder, (width, height), args.quality, n)
            source = open_source(spec)
        length = statistics.mean(len(source[i]['image']) for i in range(n))
        height, width = upright.measure(source[0]['image'])
        print(f'{n:,} images, {width} x {height}, {length / 1e3:,.1f} kB, to {args.size}\n')
        rates = per_core(source, n, args)
        apart = difference(source, min(n, 500), args.size, tuple(args.crop_scale))
        print(
            f'\nMean difference of cut to Pillow {apart.mean():.2f} / 255, worst {apart.max():.2f}'
        )
        in_all(source, spec, statistics.median(rates[CUT]), args)


if __name__ == '__main__':
    main()
