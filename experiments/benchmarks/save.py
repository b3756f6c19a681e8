r"""What do asynchronous checkpoints cost? The same steps with a save in the middle and without.

    python experiments/benchmarks/save.py --config=configs/quickstart.py --every=50

Takes turns of `every` steps of the config's real train step on random input, one with a save that
begins after its first step and one without, in the same process. Prints a row of Markdown: medians
of all steps, of the turns, and the seconds for which a save itself lets training wait.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--config', required=True)
    parser.add_argument('--every', type=int, default=50, help='steps from save to save')
    parser.add_argument('--turns', type=int, default=7, help='pairs of turns')
    parser.add_argument('--workdir', type=pathlib.Path, help='default: a temporary folder')
    args, changes = parser.parse_known_args()

    import jax
    from train_step import prepared

    from clip_jax import checkpoint
    from clip_jax.cli import config_file
    from clip_jax.planning import abstract_step

    config = config_file.read(args.config, changes)
    step = abstract_step.step_of(config, jax.devices(), config.model.dtype)
    current, batch, program, _ = prepared(step)
    size = sum(x.nbytes for x in jax.tree.leaves(current))
    seconds, turns, blocked, total = {True: [], False: []}, {True: [], False: []}, [], 0
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = checkpoint.Checkpoints(args.workdir or scratch, keep=1)
        with contextlib.closing(checkpoints):
            for turn in range(2 * args.turns + 2):
                saving = turn % 2 == 0
                took = []
                for i in range(args.every):
                    begin = time.perf_counter()
                    current, numbers = program(current, batch)
                    jax.block_until_ready((current, numbers))
                    total += 1
                    if saving and i == 0:
                        before = time.perf_counter()
                        checkpoints.save(total, current, {})
                        if turn > 1:
                            blocked.append(time.perf_counter() - before)
                    took.append(time.perf_counter() - begin)
                if turn > 1:  # the first two do not count
                    seconds[saving] += took
                    turns[saving].append(sum(took))
                    print(f'{saving=} {turns[saving][-1]:.3f} s', file=sys.stderr, flush=True)
    ratios = [x / y for x, y in zip(turns[True], turns[False], strict=True)]
    with_save, without = (statistics.median(seconds[x]) for x in (True, False))
    print(
        '| config | batch | state, MB | ms a step without | with | ratio | complete turns, ratio | '
        'blocked by a save, ms |'
    )
    print('|---|---|---|---|---|---|---|---|')
    print(
        f'| `{pathlib.Path(args.config).name}` | {config.batch_size} | {size / 1e6:.0f} | '
        f'{1e3 * without:.1f} | {1e3 * with_save:.1f} | {with_save / without:.3f} | '
        f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | '
        f'{1e3 * statistics.median(blocked):.0f} (at most {1e3 * max(blocked):.0f}) |'
    )


if __name__ == '__main__':
    main()
