"""`clip-jax data filter` and `duplicates`: which records of a data set are kept."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.cli import _console, _flags

FILTER = 'keep the records whose captions fit their images best, by the CLIP score of a model'
FILTER_EXAMPLES = """\
examples:
  clip-jax data filter 'tars:web/*.tar' --model=runs/flickr8k --keep=0.3 --out=filtered
  clip-jax data filter embeddings:embedded/web --min-score=0.28 --out=filtered
  clip-jax data filter 'tars:web/*.tar' --within=a/kept.parquet --within=b/kept.parquet --out=both
Options of the source are given as --option=value. The same command resumes an interrupted one.
kept.parquet, filter.json and scores.png are written to --out; train on the list with
--config.data.train=kept:filtered/kept.parquet"""
DUPLICATES = 'leave near-duplicates out, and what is in evaluation sets, by embeddings'
DUPLICATES_EXAMPLES = """\
examples:
  clip-jax data duplicates embeddings:embedded/web --out=unique
  clip-jax data duplicates embeddings:embedded/web --threshold=0.9 --out=unique \\
      --within=filtered/kept.parquet --against=embeddings:embedded/imagenet
Of each group of near-duplicates the first record is kept. The same command resumes an interrupted
one. kept.parquet, duplicates.parquet (what is left out, and why), duplicates.json and pairs.png are
written to --out; train on the list with --config.data.train=kept:unique/kept.parquet"""
# (arguments, options of the source by kind, folder): embeds the data into the folder.
Embed = Callable[[argparse.Namespace, Mapping[str, Any], Any], None]
EMBED_FLAGS = ('model_name', 'dtype', 'batch_size', 'max_pixels', 'threads')


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `clip-jax data filter`."""
    parser.add_argument('--out', required=True, metavar='DIR', help='the folder to write')
    parser.add_argument(
        '--min-score', type=float, metavar='X', help='keep records with at least this cosine'
    )
    parser.add_argument(
        '--keep',
        type=float,
        metavar='SHARE',
        help='keep this share of the scored records, those with the highest scores',
    )
    parser.add_argument(
        '--captions',
        default='',
        metavar='HOW',
        help='the score of several captions: their mean (default), the best, or of the first',
    )
    _add_within(parser, 'only records that this list keeps; may be given several times')
    parser.add_argument(
        '--model',
        default='',
        metavar='PATH',
        help='a run directory or a checkpoint; not with embeddings:DIR, which has scores',
    )
    _flags.add_model_name(parser)
    parser.add_argument('--dtype', metavar='TYPE', help='compute dtype, as of clip-jax embed')
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='images per device and batch (default: 128)'
    )
    _flags.add_processes(parser)


def add_duplicates(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `clip-jax data duplicates`."""
    parser.add_argument(
        'spec', metavar='embeddings:DIR', help='the embeddings of the data, of clip-jax embed'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='the folder to write')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.95,
        metavar='X',
        help='the least cosine similarity of near-duplicates (default: 0.95)',
    )
    parser.add_argument(
        '--against',
        action='append',
        default=[],
        metavar='embeddings:DIR',
        help='also leave out what is in this evaluation set; may be given several times',
    )
    parser.add_argument(
        '--within-set',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='compare the data with themselves (default), or with the evaluation sets only',
    )
    _add_within(parser, 'look only at records that this list keeps; may be given several times')
    parser.add_argument(
        '--block-size',
        type=int,
        default=65_536,
        metavar='N',
        help='rows per block; an interruption loses unfinished blocks (default: 65536)',
    )
    _flags.add_processes(parser)


def _add_within(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument('--within', action='append', default=[], metavar='FILE', help=text)


def run_filter(args: argparse.Namespace, rest: Sequence[str], embed: Embed) -> int:
    """Filters; returns the exit code. `embed` writes the embeddings that are missing."""
    of_kind = _flags.by_kind(args.spec, dict(_flags.assignments(rest)))
    _flags.connect(args)
    from clip_jax.data import kept_list
    from clip_jax.embeddings import filter
    from clip_jax.runtime import multihost

    rule = filter.Rule(args.min_score, args.keep, args.captions, args.within)
    kept_list.check_spec(args.spec)
    stored = args.spec.startswith('embeddings:')
    _check_model(args, rule.scored, stored)
    settings = {'data': args.spec, 'data_options': dict(of_kind), 'model': args.model}
    settings |= rule.settings
    folder = filter.check_folder(args.out, settings)
    if rule.scored and not stored:
        embed(args, of_kind, folder / filter.EMBEDDED)

    def write() -> dict[str, Any]:
        from clip_jax import build
        from clip_jax.data.embedding_store import Embeddings

        spec = f'embeddings:{folder / filter.EMBEDDED}' if args.model else args.spec
        source = build.source(spec, of_kind, embeddings=True)
        if rule.scored and isinstance(source, Embeddings):
            return filter.of_embeddings(source, rule, folder, settings)
        return filter.of_lists(filter.describe(source, spec, of_kind), rule, folder, settings)

    report = multihost.run_on_primary(write)
    if multihost.is_primary():
        _show(args, report, folder)
    return 0


def _check_model(args: argparse.Namespace, scored: bool, stored: bool) -> None:
    """ValueError if the flags of the model do not fit the data and the rule."""
    if scored and not stored and not args.model:
        raise ValueError(
            '--model must be given, which scores the records; or filter embeddings:DIR of '
            'clip-jax embed'
        )
    given = [name for name in ('model', *EMBED_FLAGS) if getattr(args, name)]
    if given and (stored or not scored):
        why = 'embeddings:DIR has the embeddings' if stored else 'no record is scored'
        raise ValueError(f'--{given[0].replace("_", "-")}: {why}; leave it out')


def _show(args: argparse.Namespace, report: Mapping[str, Any], folder: Any) -> None:
    from clip_jax.embeddings import filter

    shown = {k: v for k, v in report.items() if k not in ('settings', 'histogram', 'counts')}
    _console.show({'data': args.spec, **report['counts'], **shown})
    if 'histogram' in report:
        from clip_jax.reports import curation

        curation.scores(report, folder / filter.PICTURE, title=args.spec)
    print(f'in {folder}: train on it with --config.data.train=kept:{folder / filter.KEPT}')


def run_duplicates(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Finds near-duplicates; returns the exit code."""
    _flags.refuse(rest, 'data duplicates')
    _flags.connect(args)
    from clip_jax.runtime import preemption

    preemption.release()  # killed at any moment, the same command resumes
    from clip_jax.embeddings import deduplicate, duplicates
    from clip_jax.runtime import multihost

    options = duplicates.Options(args.threshold, args.within_set, args.block_size)
    source, *against = [_stored(spec) for spec in (args.spec, *args.against)]
    primary = multihost.is_primary()
    report = deduplicate.run(
        source,
        args.out,
        options,
        against=against,
        within=args.within,
        say=_console.show if primary else lambda plan: None,
    )
    if primary:
        _draw_pairs(args, report, [source, *against])
        shown = {k: v for k, v in report.items() if k not in ('counts', 'examples', 'data')}
        _console.show({'data': args.spec, **report['counts'], **shown})
        path = f'{args.out.rstrip("/")}/{deduplicate.KEPT}'
        print(f'in {args.out}: train on it with --config.data.train=kept:{path}')
    return 0


def _stored(spec: str) -> Any:
    """Opens a folder of embeddings; ValueError for any other SPEC."""
    if not spec.startswith('embeddings:'):
        raise ValueError(
            f'{spec}: expected embeddings:DIR, which clip-jax embed --data={spec} writes'
        )
    from clip_jax import build

    return build.source(spec, {}, embeddings=True)


def _draw_pairs(args: argparse.Namespace, report: Mapping[str, Any], stored: Sequence[Any]) -> None:
    """Draws the examples of a report; a set whose images are not there any more is left out."""
    from absl import logging

    from clip_jax import build
    from clip_jax.data.image.upright import decode
    from clip_jax.embeddings import deduplicate
    from clip_jax.reports import curation

    found, opened = [], {}
    for example in report['examples']:
        images, names = [], []
        try:
            for number, record in ((0, example['record']), (example['set'], example['other'])):
                if number not in opened:
                    opened[number] = build.source(*stored[number].embedded)
                images.append(decode(opened[number][record]['image']))
                names.append(f'{"evaluation set, " if number else ""}record {record:,}')
        except (ValueError, OSError, IndexError) as error:
            logging.warning('a pair is left out of the figure: %s', error)
            continue
        removed, other = images
        note = ', by way of others' if example['cosine'] < report['threshold'] else ''
        about = example['cosine'], (names[0], names[1]), note
        found.append(curation.Pair(removed, other, *about))
    if found:
        counts = report['counts']
        subtitle = (
            f'{len(found)} of {counts["compared"] - counts["kept"]:,} records that are left out, '
            'from the least to the most similar: each beside what it duplicates'
        )
        path = os.path.expanduser(f'{args.out}/{deduplicate.PICTURE}')
        curation.pairs(found, path, title=f'Near-duplicates in {args.spec}', subtitle=subtitle)
