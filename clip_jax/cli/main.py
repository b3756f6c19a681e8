"""The command line: `clip-jax train | eval | embed | convert | checkpoint | data | plan | plot`.

The only file with flags; everything else can be imported.
"""

import argparse
import ast
import functools
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import WARNING, LogRecord
from typing import TYPE_CHECKING, Any

from absl import logging

import clip_jax
from clip_jax import lookup
from clip_jax.runtime import environment

if TYPE_CHECKING:
    from etils import epath
    from ml_collections import ConfigDict

SPEC = 'tfds:NAME/SPLIT, tars:GLOB, table:FILE or folder:DIR'
EXAMPLES = {
    'train': """\
examples:
  clip-jax train --config=configs/quickstart.py --workdir=runs/quickstart
  clip-jax train --config=configs/quickstart.py --workdir=runs/longer --config.total_steps=2000
  clip-jax train --config=configs/quickstart.py --workdir=runs/two --coordinator=localhost:8476 \\
      --processes=2 --process=0   # and the same with --process=1 in another terminal
An interrupted run goes on at its last checkpoint when the same command is given again.""",
    'eval': """\
examples:
  clip-jax eval zeroshot --model=runs/quickstart --data=tfds:shapes_captions/test_heldout \\
      --templates=shapes
  clip-jax eval retrieval --model=runs/flickr8k --data='tars:flickr8k/val-*.tar' \\
      --out=report.json
  clip-jax eval retrieval --data=embeddings:embedded/flickr8k
  clip-jax eval suite --suite=experiments/suites/clip27.py --model=runs/a --model=runs/b \\
      --out=suites/a-and-b
  clip-jax eval linear_probe --model=runs/flickr8k --data=folder:pets/test \\
      --train=folder:pets/train --save=probe.npz
Options of the eval itself are given as --option=value:
  zeroshot      --templates=NAME or FILE   --classes=all, present or FILE   --key=ENTRY of JSON
  linear_probe  --train=SPEC   --validation=SPEC   --features=pre_projection or embedding   --C=X
                --metric=accuracy, mean_per_class, map_11_point or roc_auc   --max_iterations=N
                --save=FILE
  fewshot       as linear_probe, without --save   --shots=1,2,4   --seeds=N
Those of the data source are given as --data.option=value, other values of a suite's page as
--suite.key=value. --dtype=auto computes in bfloat16 on accelerators and in float32 on CPU; reports
say in what. Of embeddings, --model may be left out. A suite goes on where it was stopped; its exit
code is 0 if something ran and nothing failed.""",
    'embed': """\
examples:
  clip-jax embed --model=runs/flickr8k --data='tars:flickr8k/*.tar' --out=embedded/flickr8k
  clip-jax embed --model=ViT-B-32.pt --data=folder:photographs --out=embedded/mine --dtype=float16
  clip-jax embed --model=runs/flickr8k --data=tfds:mnist/train --out=embedded/mnist \\
      --features=pre_projection
Options of the data source are given as --data.option=value. Interrupted, the same command goes on.
Evaluations take the folder as --data=embeddings:DIR, clip_jax.search(DIR, text) looks into it.""",
    'convert': """\
examples:
  clip-jax convert runs/quickstart exported --layout=open_clip
  clip-jax convert ViT-B-32.pt clip-vit-base-patch32 --layout=huggingface
SRC is a run directory, a checkpoint in it, or what OpenAI, open_clip, Hugging Face's transformers
or big_vision published; which one is seen from its content. What was written is read back and
compared.""",
    'checkpoint': """\
examples:
  clip-jax checkpoint list runs/quickstart
  clip-jax checkpoint verify runs/quickstart
  clip-jax checkpoint verify gs://BUCKET/b16/checkpoints/12000 --sampled
list compares names and sizes, verify reads every byte. The exit code of verify is 0 if all steps
are whole, 1 otherwise.""",
    'data': """\
examples:
  clip-jax data inspect 'tars:flickr8k/train-*.tar' --out=looked
  clip-jax data verify table:pairs.parquet --out=bad.jsonl
  clip-jax data import 'tars:flickr8k/train-*.tar' prepared --name=flickr8k --size=256
clip-jax data import --help and the like say more.""",
    'data inspect': """\
examples:
  clip-jax data inspect 'tars:flickr8k/train-*.tar'
  clip-jax data inspect folder:photographs --sample=500 --out=looked
  clip-jax data inspect table:pairs.csv --text_key=title
Options of the source are given as --option=value. --out gets inspect.json, histograms.png and
contact_sheet.png.""",
    'data verify': """\
examples:
  clip-jax data verify 'tars:flickr8k/*.tar'
  clip-jax data verify table:pairs.parquet --out=bad.jsonl --no-decode
Options of the source are given as --option=value. The exit code is 0 if all that lies
there can be used, 1 otherwise. A label does in place of a caption, though training needs
captions; files of other kinds among images do not count.""",
    'data import': """\
examples:
  clip-jax data import 'tars:flickr8k/train-*.tar' prepared --name=flickr8k
  clip-jax data import 'tars:flickr8k/val-*.tar' prepared --name=flickr8k --split=val
  clip-jax data import table:pairs.parquet prepared --name=pairs --size=256 --workers=16
  clip-jax data import 'tars:/shared/*.tar' /shared/prepared --name=web \\
      --beam-runner=DirectRunner --beam.direct_running_mode=multi_processing
Options of the source are given as --option=value, those of the runner as --beam.option=value.
Interrupted, the same command goes on. Training reads the set with
--config.data.train=tfds:NAME/SPLIT --config.data.options.tfds.data_dir=DIR.""",
    'plan': """\
examples:
  clip-jax plan --config=configs/clip_vit_b32.py --topology=v5e:16x16
  clip-jax plan --config=configs/clip_vit_l14.py --topology=v5p:4x4x4 --search --out=plan.json
  clip-jax plan --config=configs/quickstart.py --topology=local:8 --config.batch_size=1024
TPU topologies need libtpu (pip install -e '.[tpu]') and no TPU. The exit code is 0 if it fits.""",
    'plot': """\
examples:
  clip-jax plot --workdir=runs/quickstart
  clip-jax plot --workdir=runs/a --workdir=runs/b --out=compare.html
  clip-jax plot --report=pets.json --report=flowers.json --out=reports.html
A page is one file of HTML with the pictures in it.""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 wrong input (one line says what), 2 wrong usage, 130
    Ctrl-C.
    """
    args, rest = _parser().parse_known_args(arguments)
    if not os.environ.get('CLIP_JAX_TRACEBACK'):
        logging.set_verbosity(logging.INFO)
        logging.get_absl_logger().addFilter(_is_for_users)
    try:
        sys.exit(COMMANDS[args.command](args, rest))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    except Exception as error:
        code = 1
        if multihost := sys.modules.get('clip_jax.runtime.multihost'):
            multihost.exit_if_peer_lost(error)
        if os.environ.get('CLIP_JAX_TRACEBACK') or not isinstance(error, (ValueError, OSError)):
            traceback.print_exc()
        else:
            print(f'clip-jax {args.command}:', *str(error).split(), file=sys.stderr)
    if multihost := sys.modules.get('clip_jax.runtime.multihost'):
        multihost.exit_together(code)  # others may wait for this process
    sys.exit(code)


def _is_for_users(record: LogRecord) -> bool:
    """Whether a line of the log is shown: all of clip_jax, and warnings of others. Not of orbax,
    which logs, with tracebacks, what it raises as well.
    """
    if record.pathname.startswith(os.path.dirname(clip_jax.__file__)):
        return True
    return record.levelno >= WARNING and 'orbax' not in record.pathname


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='clip-jax',
        description='CLIP in JAX and Flax: train, evaluate, look.',
        epilog='CLIP_JAX_TRACEBACK=1 shows where an error comes from.',
        allow_abbrev=False,
    )
    parser.add_argument('--version', action='version', version=clip_jax.__version__)
    commands = parser.add_subparsers(
        dest='command',
        required=True,
        metavar=' | '.join(name for name in EXAMPLES if ' ' not in name),
    )

    def command(name: str, text: str, parent: Any = commands) -> argparse.ArgumentParser:
        return parent.add_parser(
            name.split()[-1],
            help=text,
            description=text,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    train = command('train', 'train a model from a config file, or go on where its run stopped')
    train.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a page of configs/')
    train.add_argument('--workdir', required=True, metavar='DIR', help='the run directory')
    train.add_argument(
        '--config.KEY', metavar='VALUE', help='another value for a key, as --config.batch_size=64'
    )
    _process_flags(train)
    evaluate = command('eval', 'score a model on a data set, or several on many')
    evaluate.add_argument(
        'name', metavar='NAME', help='zeroshot, retrieval, linear_probe, fewshot or suite'
    )
    evaluate.add_argument(
        '--model',
        action='append',
        metavar='PATH',
        help='a run directory or any known checkpoint; of a suite, any number of them',
    )
    evaluate.add_argument('--data', metavar='SPEC', help=f'{SPEC}; or embeddings:DIR')
    evaluate.add_argument('--suite', metavar='FILE[:ARG]', help='a page of experiments/suites')
    evaluate.add_argument(
        '--dtype',
        default='auto',
        metavar='TYPE',
        help='the type of arithmetic: auto (default), float32 or bfloat16',
    )
    evaluate.add_argument(
        '--out', metavar='FILE', help='where to write the report as JSON; of a suite, a folder'
    )
    _embed_parser(command)
    convert = command('convert', 'write a checkpoint in the layout of another library')
    convert.add_argument('src', metavar='SRC', help='a run directory or any known checkpoint')
    convert.add_argument('dst', metavar='DST', help='the new folder')
    convert.add_argument(
        '--layout', required=True, metavar='NAME', help='open_clip, huggingface or big_vision'
    )
    kept = command('checkpoint', 'what checkpoints there are, and whether they are whole')
    kept.add_argument('action', choices=('list', 'verify'), metavar='list | verify')
    kept.add_argument('path', metavar='PATH', help='a run directory, or one checkpoint in it')
    kept.add_argument(
        '--sampled', action='store_true', help='verify: read some of the large files, not all'
    )
    _data_parsers(command)
    plan = command('plan', 'compile a config for devices that are not there: does it fit?')
    plan.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a page of configs/')
    plan.add_argument(
        '--topology',
        required=True,
        metavar='NAME',
        help='as v5e:16x16, v6e:16x16, v5p:4x4x4, or local[:N] for N simulated CPU devices',
    )
    plan.add_argument('--search', action='store_true', help='look for the largest batch that fits')
    plan.add_argument('--out', metavar='FILE', help='where to write the plan as JSON')
    plan.add_argument(
        '--config.KEY', metavar='VALUE', help='another value for a key, as --config.batch_size=64'
    )
    plot = command('plot', 'draw the figures of a run, and a page of it or of several compared')
    plot.add_argument(
        '--workdir', action='append', metavar='DIR', help='a run directory; several are compared'
    )
    plot.add_argument(
        '--report', action='append', metavar='FILE', help='of clip-jax eval, for the page; several'
    )
    plot.add_argument(
        '--out', metavar='PAGE.html', help='the page (default, of one run: DIR/plots/index.html)'
    )
    return parser


def _process_flags(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group('several processes, one a host')
    several.add_argument(
        '--distributed',
        action='store_true',
        help='on a TPU pod slice, under SLURM or Open MPI: they find each other',
    )
    several.add_argument('--coordinator', metavar='HOST:PORT', help='elsewhere: of process 0')
    several.add_argument('--processes', type=int, metavar='N', help='how many there are')
    several.add_argument('--process', type=int, metavar='I', help='which one this is, from 0')
    several.add_argument(
        '--distributed-timeout',
        type=int,
        default=300,
        metavar='SECONDS',
        help='how long to wait for the others at the start (default: 300)',
    )


def _embed_parser(command: Callable[..., argparse.ArgumentParser]) -> None:
    embed = command('embed', 'write the embeddings of a data set to a folder')
    embed.add_argument(
        '--model', required=True, metavar='PATH', help='a run directory or any known checkpoint'
    )
    embed.add_argument('--data', required=True, metavar='SPEC', help=SPEC)
    embed.add_argument('--out', required=True, metavar='DIR', help='the folder')
    embed.add_argument(
        '--features',
        default='embedding',
        metavar='NAME',
        help='embedding (default): L2-normalized; pre_projection: for linear probes',
    )
    embed.add_argument(
        '--dtype', default='float32', help='of the files: float32 (default) or float16'
    )
    embed.add_argument(
        '--shard-size',
        type=int,
        default=8192,
        metavar='N',
        help='records in a shard; an interruption costs those begun (default: 8192)',
    )
    embed.add_argument(
        '--batch-size',
        type=int,
        default=128,
        metavar='N',
        help='images that a device computes at a time (default: 128)',
    )
    embed.add_argument(
        '--max-bad-fraction',
        type=float,
        default=0.05,
        metavar='SHARE',
        help='of records that cannot be used, above which it stops (default: 0.05)',
    )
    embed.add_argument(
        '--workers', type=int, metavar='N', help='threads that read (default: one a processor)'
    )
    _process_flags(embed)


def _data_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
    data = command('data', 'look at a data set, check it, or make a TFDS data set of it')
    actions = data.add_subparsers(dest='action', required=True, metavar='inspect | verify | import')
    inspect = command('data inspect', 'numbers and pictures of a data set', actions)
    inspect.add_argument('spec', metavar='SPEC', help=SPEC)
    inspect.add_argument('--out', metavar='DIR', help='a new folder for numbers and figures')
    inspect.add_argument(
        '--sample',
        type=int,
        default=2000,
        metavar='N',
        help='look at N records, evenly spread (default: 2000)',
    )
    verify = command('data verify', 'read all of a data set and list what cannot be used', actions)
    verify.add_argument('spec', metavar='SPEC', help=SPEC)
    verify.add_argument('--out', metavar='FILE', help='where to list all, one JSON a line')
    verify.add_argument(
        '--decode',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='without, images are judged by their headers alone',
    )
    write = command('data import', 'write a data set as TFDS reads it (ArrayRecord)', actions)
    write.add_argument('spec', metavar='SPEC', help=SPEC)
    write.add_argument('dir', metavar='DIR', help='where data sets lie; TFDS: data_dir')
    write.add_argument('--name', required=True, help='of the data set')
    write.add_argument('--split', default='train', help='its part (default: train)')
    write.add_argument(
        '--size',
        type=int,
        default=0,
        metavar='N',
        help='make images smaller whose shorter side is above N pixels (default: copy all bytes)',
    )
    write.add_argument(
        '--quality', type=int, default=95, metavar='Q', help='of JPEGs made so (default: 95)'
    )
    write.add_argument(
        '--decode', action='store_true', help='decode all images, to leave out damaged ones'
    )
    write.add_argument(
        '--shard-size',
        type=int,
        default=10_000,
        metavar='N',
        help='records a file (default: 10000)',
    )
    write.add_argument('--beam-runner', metavar='NAME', help='let Apache Beam write the files')
    for action in inspect, verify, write:
        action.add_argument(
            '--workers', type=int, metavar='N', help='threads (default: one a processor)'
        )


def read_config(arguments: Sequence[str], flag: str = 'config') -> 'ConfigDict':
    """Reads `--config=FILE[:ARG]`, then any `--config.key=value`: a locked ConfigDict. The file is
    Python, and is run. `flag` is another name for `config`.
    """
    from absl import flags
    from ml_collections import config_flags

    def parse(arguments: Sequence[str]) -> 'ConfigDict':
        values, program = flags.FlagValues(), ['clip-jax', *arguments]
        config_flags.DEFINE_config_file(flag, flag_values=values, sys_argv=program)
        values(program)
        return values[flag].value

    page, *changes = arguments
    file = pathlib.Path(page.removeprefix(f'--{flag}=').partition(':')[0])
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob('*.py')) if file.parent.is_dir() else []
        raise ValueError(
            f'--{flag}: there is no file {file}; found beside it: {", ".join(near) or "nothing"}'
        )
    sys.path.insert(0, str(file.parent.absolute()))  # a config starts from its neighbor `default`
    try:
        config = parse([page])
    except Exception as error:  # the file is a program: anything can go wrong in it
        raise ValueError(f'--{flag}: {file}: {type(error).__name__}: {_end(error)}') from error
    else:
        for change in changes:
            _check_key(change.partition('=')[0], config)
        try:
            return parse(arguments)
        except (flags.Error, LookupError, TypeError) as error:
            raise ValueError(f'--{flag}: {_end(error)}') from error
    finally:
        sys.path.pop(0)


def _check_key(flag: str, config: Any) -> None:
    """ValueError if a flag such as --config.model.image.width names no key of the config."""
    parent, *keys = flag.split('.')
    for key in keys:
        if '[' in key or not hasattr(config, 'keys'):
            return  # an item of a list
        config = config[lookup.check(key, config.keys(), what=parent)]
        parent += f'.{key}'


def _end(error: Exception) -> str:
    """The last line of an error: what stands before it is what led there."""
    return str(error).strip().splitlines()[-1]


def _train(args: argparse.Namespace, rest: Sequence[str]) -> int:
    _check_changes(rest)
    environment.keep_freed_memory()
    config = read_config([f'--config={args.config}', *rest])
    _connect(args)
    from clip_jax.runtime.preemption import SIGTERM, Preempted
    from clip_jax.training import loop

    try:
        loop.train(config, args.workdir)
    except Preempted as preempted:
        # After SIGTERM the machine is needed: what was asked for is done.
        return 0 if preempted.signal == SIGTERM else preempted.signal
    return 0


def _connect(args: argparse.Namespace) -> None:
    """Connects the processes of a run, if there are several."""
    explicit = args.coordinator, args.processes, args.process
    given = [x is not None for x in explicit]
    if any(given) and (args.distributed or not all(given)):
        raise ValueError(
            '--coordinator, --processes and --process belong together, without --distributed'
        )
    if args.distributed:
        import jax

        try:
            jax.distributed.initialize(initialization_timeout=args.distributed_timeout)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f'--distributed: {_end(error)}; expected a TPU pod slice, SLURM or Open MPI, or '
                '--coordinator, --processes and --process instead'
            ) from error
    elif all(given):
        from clip_jax.runtime import multihost

        multihost.initialize(*explicit, timeout=args.distributed_timeout)


def _eval(args: argparse.Namespace, rest: Sequence[str]) -> int:
    lookup.check(args.name, [*lookup.names('evals'), 'suite'], what='evals')
    if args.name == 'suite':
        return _suite(args, rest)
    models = args.model or []
    if not args.data or args.suite or len(models) > 1:
        raise ValueError(
            f'{args.name}: expected --data=SPEC, one --model=PATH and no --suite; several models '
            'and lines are a matter of clip-jax eval suite'
        )
    options, source_options = _options(rest)
    out = _out(args)
    from clip_jax import build, pretrained
    from clip_jax.evaluation import encoders
    from clip_jax.reports import files

    build.check_dtype(args.dtype)
    if out:
        files.check(out)
    began = time.monotonic()
    of_kind = _of_kinds(args.data, source_options, 'data.')
    evaluate = build.evaluation(args.name, options, of_kind, embeddings=True)
    source = build.source(args.data, of_kind, embeddings=True)
    model = models[0] if models else None
    sources = [source, *evaluate.sources.values()]
    encoders.check_model(model, sources)
    clip = pretrained.load(model, dtype=args.dtype) if model else None
    encode_image, encode_text = encoders.encoders_for(
        clip, sources, path=model or '', dtype=args.dtype
    )
    report = {'model': model, 'data': args.data, 'data_options': source_options, 'options': options}
    report |= evaluate(encode_image, encode_text, source)
    report |= encoders.provenance(encoders.model_used(clip, encode_text), sources)
    report |= {'seconds': time.monotonic() - began, 'versions': environment.versions()}
    for key, value in report.items():
        if isinstance(value, (int, float)):
            digits = ',' if isinstance(value, int) else '.4f' if 1e-3 <= value <= 1 else '.4g'
            print(f'{key:28} {value:{digits}}')
    if 'C' in report.get('fit', {}):
        print(f'{"C":28} {report["fit"]["C"]:.4g}')
    if missing := report.get('classes_without_images'):
        print('left out, as no image has them:', _text(missing))
    if 'probe' in report:
        print(f'probe: {report["probe"]}')
    if out:
        path, *figures = files.write(report, out, build.image_loader(of_kind))
        print(f'report: {path}')
        if figures:
            print(f'figures in {figures[0].parent}: {", ".join(p.name for p in figures)}')
    return 0


def _suite(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if args.data or not args.suite or not args.model:
        raise ValueError('suite: expected --suite=FILE, at least one --model=PATH, and no --data')
    _check_changes(rest, 'suite')
    out = _out(args)
    if out and out.exists() and not out.is_dir():
        raise ValueError(f'--out: {out} is a file; a suite writes a folder')
    page = read_config([f'--suite={args.suite}', *rest], 'suite')
    from clip_jax import build
    from clip_jax.evaluation import suite
    from clip_jax.runtime import atomic

    if out:
        atomic.check_place(out / 'suite.json', '--out')
    build.check_dtype(args.dtype)
    say = functools.partial(print, file=sys.stderr, flush=True)
    table, fine = suite.run(page.to_dict(), args.model, out, say=say, dtype=args.dtype)
    print(suite.markdown(table), end='', flush=True)
    if out:
        suite.write(table, out)
        print(f'in {out}: suite.json, suite.md, and a folder of reports for each checkpoint')
    return 0 if fine else 1


def _embed(args: argparse.Namespace, rest: Sequence[str]) -> int:
    options, source_options = _options(rest)
    for name in options:
        raise ValueError(f'there is no flag --{name}; options of the data are --data.{name}=value')
    environment.keep_freed_memory()
    _connect(args)
    from clip_jax import build
    from clip_jax.embeddings import embed
    from clip_jax.runtime import multihost

    how = embed.Options(
        features=args.features,
        dtype=args.dtype,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        max_bad_fraction=args.max_bad_fraction,
        threads=os.cpu_count() if args.workers is None else args.workers,
    )
    of_kind = _of_kinds(args.data, source_options, 'data.')
    source = multihost.primary_first(lambda: build.source(args.data, of_kind))
    summary = embed.run(
        args.model, source, args.out, how, spec=args.data, spec_options=source_options
    )
    if multihost.is_primary():
        _say({'data': args.data, **summary})
        print(f'in {args.out}: use it as --data=embeddings:{args.out}')
    return 0


def _of_kinds(
    spec: str, options: Mapping[str, Any], prefix: str = ''
) -> dict[str, Mapping[str, Any]]:
    """Options by the kind of source that SPEC names; ValueError for some where it is a mixture of
    several kinds.
    """
    from clip_jax.data import sources

    kinds = sources.kinds(spec)
    if options and len(kinds) > 1:
        name = next(iter(options))
        raise ValueError(f'--{prefix}{name}: SPEC names several kinds of sources; of which?')
    return dict.fromkeys(kinds, options)


def _out(args: argparse.Namespace) -> pathlib.Path | None:
    """The place that --out names; ValueError if it is not on this machine."""
    if not args.out:
        return None
    from clip_jax.runtime import atomic

    atomic.check_local(args.out, '--out')
    return pathlib.Path(args.out).expanduser()


def _options(rest: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads `--option=value` and `--data.option=value`."""
    options, source_options = {}, {}
    for key, value in _assignments(rest):
        of_source = key.startswith('data.')
        (source_options if of_source else options)[key.removeprefix('data.')] = value
    return options, source_options


def _assignments(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Reads `--key=value` …; a value that is a Python literal (number, list, …) is one, else a
    string.
    """
    for argument in arguments:
        key, equals, value = argument.partition('=')
        if not key.startswith('--') or not equals:
            raise ValueError(f'there is no flag {argument!r}; expected --option=value')
        try:
            yield key[2:], ast.literal_eval(value)
        except (ValueError, SyntaxError):
            yield key[2:], value


def _convert(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise ValueError(f'there is no flag {rest[0]!r}')
    from clip_jax import convert, pretrained
    from clip_jax.step import state

    convert.check_layout(args.layout)  # before anything large is read
    folder = pathlib.Path(args.dst)
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    card, variables = pretrained.read(args.src)
    table, changed = convert.write(folder, args.layout, card, variables)
    print(table)
    print(
        f'{state.count_parameters(variables):,} numbers; read back, they are equal to the last bit'
    )
    for line in changed:
        print('different:', line)
    print(f'in {folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
    return 0


def _checkpoint(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest or (args.sampled and args.action == 'list'):
        raise ValueError(f'there is no flag {[*rest, "--sampled"][0]!r}')
    from clip_jax import checkpoint

    contents = 'none' if args.action == 'list' else 'sampled' if args.sampled else 'all'
    sound = {'none': 'complete', 'sampled': 'whole, as far as read', 'all': 'whole'}[contents]
    asked = checkpoint.absolute(args.path)
    numbers: dict[int | None, str] | None = None
    newest, wrong = '', 0
    for entry in checkpoint.entries(asked, contents=contents):
        if numbers is None:
            numbers = _numbers_by_step(entry.path.parent.parent / 'metrics.jsonl')
        if entry.step is None and entry.path != asked:
            what = 'no step: set aside, or left by a process that was killed'
        elif entry.troubles:
            what, wrong = 'NOT WHOLE', wrong + 1
        else:
            name = entry.path.name if entry.step is None else f'step {entry.step:,}'
            what, newest = sound, newest or name
        when = time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.written))
        print(f'{entry.path.name:>12}  {when}  {entry.bytes / 1e6:12,.1f} MB  {what}')
        shown = numbers.get(entry.step)
        for line in (*entry.troubles[:8], *([shown] if shown else [])):
            print(f'{"":14}{line}')
    print('newest that is whole:', newest or 'none')
    return 1 if wrong and args.action == 'verify' else 0


def _numbers_by_step(path: 'epath.Path') -> dict[int | None, str]:
    """Loss and scores of each step of a run, for people; none where they cannot be read, which says
    nothing about the checkpoints.
    """
    from clip_jax import metrics

    rows: dict[int, dict[str, float]] = {}
    try:
        for row in metrics.read_jsonl(path) if path.exists() else ():
            rows.setdefault(row['step'], {}).update(row)
    except (ValueError, OSError) as error:
        print(f'numbers of the steps are left out: {error}', file=sys.stderr)
    return {
        step: ', '.join(
            f'{k} {v:.4g}' for k, v in row.items() if k == 'loss' or metrics.is_score(k)
        )
        for step, row in rows.items()
    }


def _data(args: argparse.Namespace, rest: Sequence[str]) -> int:
    options, beam_options = {}, {}
    for key, value in _assignments(rest):
        of_beam = args.action == 'import' and key.startswith('beam.')
        (beam_options if of_beam else options)[key.removeprefix('beam.')] = value
    threads = os.cpu_count() if args.workers is None else args.workers
    if threads < 1:
        raise ValueError(f'--workers is {threads}; expected at least 1')
    from clip_jax import build
    from clip_jax.data import sources

    weights = {weight for weight, _ in sources.split(args.spec)}
    if args.action == 'import' and len(weights) > 1:
        raise ValueError(f'{args.spec}: weights belong to training; import writes each record once')
    open_source = functools.partial(build.source, args.spec, _of_kinds(args.spec, options))
    if args.action == 'import':
        return _import(args, open_source, options, beam_options, threads)
    out = _out(args)
    if out and out.exists():
        raise ValueError(f'--out: {out} exists; name a new one')
    if args.action == 'inspect':
        return _inspect(args, open_source(), out, threads)
    from clip_jax.data.tools import inspection

    report = inspection.verify(
        open_source(), decode=args.decode, threads=threads, out=out, say=print
    )
    _say({'data': args.spec, **report})
    return 0 if report['all_usable'] else 1


def _inspect(args: argparse.Namespace, source: Any, out: pathlib.Path | None, threads: int) -> int:
    from clip_jax.data.tools import inspection

    report, values, pictures = inspection.inspect(source, sample=args.sample, threads=threads)
    report = {'data': args.spec, 'threads': threads, **report}
    _say(report)
    if out:
        from clip_jax.reports import dataset, drawing

        out.mkdir(parents=True)
        (out / 'inspect.json').write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
        dataset.write(out, report, values, pictures, drawing.STYLE)
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
        raise ValueError('--beam.OPTION: expected --beam-runner too, as --beam-runner=DirectRunner')
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
    )
    beam = (args.beam_runner, beam_options) if args.beam_runner else None
    summary = importer.run(job, threads=threads, beam=beam)
    _say({'data': args.spec, **summary})
    print(
        f'train on it: --config.data.train=tfds:{args.name}/{args.split} '
        f'--config.data.options.tfds.data_dir={args.dir}'
    )
    return 0


def _say(report: Mapping[str, Any]) -> None:
    for key, value in report.items():
        print(f'{key:20} {_text(value)}')


def _text(value: Any) -> str:
    """A value of a report in one line, its numbers rounded."""
    if isinstance(value, Mapping):
        return '; '.join(f'{key} {_text(x)}' for key, x in value.items()) or 'none'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_text, value)) or 'none'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:,}' if type(value) is int else str(value)


def _plot(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise ValueError(f'there is no flag {rest[0]!r}')
    workdirs, given = ([*map(os.path.expanduser, x or ())] for x in (args.workdir, args.report))
    out = _out(args)
    if not workdirs and not given:
        raise ValueError('expected --workdir=DIR, or --report=FILE and --out=PAGE.html')
    if not out and len(workdirs) != 1:
        raise ValueError('--out: expected a page to write, as --out=compare.html')
    if out and (out.suffix != '.html' or out.exists()):
        raise ValueError(f'--out: {out}: expected a new name that ends in .html')
    from etils import epath

    from clip_jax import build
    from clip_jax.reports import drawing, html_report
    from clip_jax.runtime import atomic

    if out:
        atomic.check_place(out, '--out')
    runs = html_report.read_runs(workdirs)
    sections = [html_report.report_file_section(path) for path in given]
    if len(runs) == 1:
        workdir = epath.Path(workdirs[0])
        load_images = build.image_loader(runs[0].config['data']['options'])
        figures = drawing.write_run(workdir, load_images)
        for path in (path for paths in figures.values() for path in paths):
            print(path)
        text = html_report.run_page(runs[0], figures, drawing.reports(workdir / 'evals'), sections)
        out = out or workdir / 'plots' / 'index.html'
    else:
        text = html_report.compare_page(runs, sections)
    atomic.write(out, text)
    print(out)
    return 0


def _plan(args: argparse.Namespace, rest: Sequence[str]) -> int:
    _check_changes(rest)
    kind, _, count = args.topology.partition(':')
    out = _out(args)
    if out and out.exists():
        raise ValueError(f'--out: {out} exists; name a new file')
    # Before JAX is imported: the program is compiled here, whatever devices there are, and libtpu
    # is not to look for a TPU, nor to print that it found none, nor to be alone on this machine.
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-1',  # of a host that is not there
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }
    if kind == 'local' and count:
        if not count.isdigit() or not int(count):
            raise ValueError(f'--topology is {args.topology!r}; expected local:N')
        flags = f'--xla_force_host_platform_device_count={count}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
    config = read_config([f'--config={args.config}', *rest])
    from clip_jax.training import plan

    report, fits = plan.run(config, args.topology, largest=args.search, say=print)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plan.as_json(report))
        print(f'plan: {out}')
    return 0 if fits else 1


def _check_changes(rest: Sequence[str], flag: str = 'config') -> None:
    for argument in rest:
        if not argument.startswith(f'--{flag}.') or '=' not in argument:
            raise ValueError(f'there is no flag {argument!r}; expected --{flag}.key=value')


COMMANDS = {
    'train': _train,
    'eval': _eval,
    'embed': _embed,
    'convert': _convert,
    'checkpoint': _checkpoint,
    'data': _data,
    'plan': _plan,
    'plot': _plot,
}
