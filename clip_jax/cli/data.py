"""`clip-jax data`: inspects, verifies, imports and curates data sets."""

import argparse
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.cli import _console, _curate, _flags, _help

SUMMARY = 'inspect, verify, filter or deduplicate a data set, or import it into TFDS'
ACTIONS = ('inspect', 'verify', 'filter', 'duplicates', 'import')
EXAMPLES = """\
examples:
  clip-jax data inspect 'tars:flickr8k/train-*.tar' --out=inspected
  clip-jax data verify table:pairs.parquet --out=bad.jsonl
  clip-jax data import 'tars:flickr8k/train-*.tar' prepared --name=flickr8k --size=256
  clip-jax data filter embeddings:embedded/web --keep=0.3 --out=filtered
See also clip-jax data inspect --help, and so on."""
INSPECT = 'statistics and sample images of a data set'
INSPECT_EXAMPLES = """\
examples:
  clip-jax data inspect 'tars:flickr8k/train-*.tar'
  clip-jax data inspect folder:photographs --sample=500 --out=inspected
  clip-jax data inspect table:pairs.csv --text_key=title
Options of the source are given as --option=value. inspect.json, histograms.png and
contact_sheet.png are written to --out."""
VERIFY = 'read every record of a data set and list the bad ones'
VERIFY_EXAMPLES = """\
examples:
  clip-jax data verify 'tars:flickr8k/*.tar'
  clip-jax data verify table:pairs.parquet --out=bad.jsonl --no-decode
Options of the source are given as --option=value. The exit code is 0 if every record is usable, 1
otherwise. A record needs a caption or a label, though training needs captions; files that are not
images are ignored."""
IMPORT = 'write a data set in the format of TFDS (ArrayRecord)'
IMPORT_EXAMPLES = """\
examples:
  clip-jax data import 'tars:flickr8k/train-*.tar' prepared --name=flickr8k
  clip-jax data import 'tars:flickr8k/val-*.tar' prepared --name=flickr8k --split=val
  clip-jax data import table:pairs.parquet prepared --name=pairs --size=256 --threads=16
  clip-jax data import 'tars:/shared/*.tar' /shared/prepared --name=web \\
      --beam-runner=DirectRunner --beam.direct_running_mode=multi_processing
Options of the source are given as --option=value, those of the runner as --beam.option=value.
The same command resumes an interrupted import. To train on the data set, give
--config.data.train=tfds:NAME/SPLIT --config.data.options.tfds.data_dir=DIR."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser of `clip-jax`."""
    data = _flags.add_command(commands, 'data', SUMMARY, EXAMPLES)
    actions = data.add_subparsers(dest='action', required=True, metavar=' | '.join(ACTIONS))
    add_action = functools.partial(_flags.add_command, actions, details=_details)
    inspect = add_action('inspect', INSPECT, INSPECT_EXAMPLES)
    verify = add_action('verify', VERIFY, VERIFY_EXAMPLES)
    write = add_action('import', IMPORT, IMPORT_EXAMPLES)
    keep = add_action('filter', _curate.FILTER, _curate.FILTER_EXAMPLES)
    _curate.add_duplicates(
        _flags.add_command(actions, 'duplicates', _curate.DUPLICATES, _curate.DUPLICATES_EXAMPLES)
    )
    for action in inspect, verify, write, keep:
        action.add_argument('spec', metavar='SPEC', help=_flags.SPEC)
    inspect.add_argument('--out', metavar='DIR', help='a new folder for statistics and figures')
    inspect.add_argument(
        '--sample',
        type=int,
        default=2000,
        metavar='N',
        help='inspect N evenly spaced records (default: 2000)',
    )
    verify.add_argument('--out', metavar='FILE', help='list all bad records in this JSONL file')
    verify.add_argument(
        '--decode',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='decode every image (default), or read only image headers',
    )
    _add_import(write)
    _curate.add_filter(keep)
    for action in inspect, verify, write, keep:
        _flags.add_max_pixels(action)
        _flags.add_threads(action)


def _details(args: argparse.Namespace) -> str:
    """The part of the help that depends on the data."""
    if args.spec:
        return _help.source_options(_flags.kinds(args.spec), '--')
    return f'kinds of sources (SPEC --help lists the options):\n{_help.plugins("data.sources")}'


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('dir', metavar='DIR', help='the folder of data sets (data_dir of TFDS)')
    parser.add_argument('--name', required=True, help='the name of the data set')
    parser.add_argument('--split', default='train', help='the split (default: train)')
    parser.add_argument(
        '--size',
        type=int,
        default=0,
        metavar='N',
        help='downsample images whose shorter side exceeds N pixels (default: copy all bytes)',
    )
    parser.add_argument(
        '--quality',
        type=int,
        default=95,
        metavar='Q',
        help='JPEG quality of downsampled images (default: 95)',
    )
    parser.add_argument(
        '--decode', action='store_true', help='decode every image, to skip corrupt ones'
    )
    parser.add_argument(
        '--shard-size',
        type=int,
        default=10_000,
        metavar='N',
        help='records per file (default: 10000)',
    )
    parser.add_argument('--beam-runner', metavar='NAME', help='write with Apache Beam')


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs one of ACTIONS; returns the exit code."""
    if args.action == 'filter':
        return _curate.run_filter(args, rest, _embed)
    if args.action == 'duplicates':
        return _curate.run_duplicates(args, rest)
    options, beam_options = _flags.split_options(rest, 'beam')
    if args.action != 'import':
        options |= {f'beam.{key}': value for key, value in beam_options.items()}
    threads = _flags.threads(args)
    from clip_jax import build
    from clip_jax.data import sources

    weights = {weight for weight, _ in sources.split(args.spec)}
    if args.action == 'import' and len(weights) > 1:
        raise ValueError(f'{args.spec}: weights are for training; import writes each record once')
    of_kind = _flags.by_kind(args.spec, options)
    open_source = functools.partial(build.source, args.spec, of_kind)
    if args.action == 'import':
        return _import(args, open_source, options, beam_options, threads)
    out = _flags.local_path(args.out)
    if out and out.exists():
        raise ValueError(f'--out: {out} exists; name a new one')
    if args.action == 'inspect':
        return _inspect(args, open_source(), out, threads)
    from clip_jax.data.tools import inspection

    report = inspection.verify(
        open_source(),
        decode=args.decode,
        threads=threads,
        out=out,
        say=print,
        **_flags.image_options(args),
    )
    _console.show({'data': args.spec, **report})
    return 0 if report['all_usable'] else 1


def _inspect(args: argparse.Namespace, source: Any, out: pathlib.Path | None, threads: int) -> int:
    from clip_jax.data.tools import inspection

    report, values, pictures = inspection.inspect(
        source, sample=args.sample, threads=threads, **_flags.image_options(args)
    )
    report = {'data': args.spec, 'threads': threads, **report}
    _console.show(report)
    if out:
        from clip_jax.reports import dataset
        from clip_jax.runtime import atomic

        with atomic.new_folder(out) as folder:
            atomic.write_json(folder / 'inspect.json', report)
            dataset.write(folder, report, values, pictures)
        print(f'in {out}: {", ".join(sorted(p.name for p in out.iterdir()))}')
    return 0


def _import(
    args: argparse.Namespace,
    open_source: Callable[[], Any],
    options: dict[str, Any],
    beam_options: dict[str, Any],
    threads: int,
) -> int:
    if beam_options and not args.beam_runner:
        raise ValueError(
            '--beam.OPTION: expected --beam-runner too, such as --beam-runner=DirectRunner'
        )
    from clip_jax.data.tools import importer

    job = importer.ImportJob(
        open_source,
        spec=args.spec,
        options=options,
        directory=args.dir,
        name=args.name,
        split=args.split,
        size=args.size,
        quality=args.quality,
        shard_size=args.shard_size,
        decode=args.decode,
        **_flags.image_options(args),
    )
    beam = (args.beam_runner, beam_options) if args.beam_runner else None
    summary = importer.run(job, threads=threads, beam=beam)
    _console.show({'data': args.spec, **summary})
    print(
        f'train on it: --config.data.train=tfds:{args.name}/{args.split} '
        f'--config.data.options.tfds.data_dir={args.dir}'
    )
    return 0


def _embed(args: argparse.Namespace, of_kind: Mapping[str, Any], folder: Any) -> None:
    """Embeds what is missing of the data into a folder."""
    from clip_jax.runtime import environment, preemption

    environment.keep_freed_memory()
    preemption.release()  # killed at any moment, the same command resumes
    from clip_jax import build
    from clip_jax.data import sources
    from clip_jax.embeddings import embed
    from clip_jax.runtime import multihost

    given = {name: getattr(args, name) for name in ('dtype', 'batch_size') if getattr(args, name)}
    given |= _flags.image_options(args)
    how = embed.Options(threads=_flags.threads(args), text_features='embedding', **given)
    options = of_kind[sources.option_key(args.spec)]
    source = multihost.primary_first(lambda: build.source(args.spec, of_kind))
    model = _flags.named(args.model, args)
    embed.run(model, source, str(folder), how, spec=args.spec, spec_options=options)
