"""A suite over the models between two checkpoints, one for each weight alpha (WiSE-FT)."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax import lookup, pretrained
from clip_jax.evaluation import suite, suite_table
from clip_jax.pretrained import Clip, loaded
from clip_jax.training import interpolation

MODELS = 'models'  # the folder of written models


def run(
    page: Mapping[str, Any],
    a: str,
    b: str,
    count: int,
    workdir: pathlib.Path,
    *,
    say: Callable[[str], None],
    reference: str | None = None,
    save: bool = False,
    dtype: str = 'auto',
    image_options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Evaluates models between two checkpoints; reports that are there are read (see `suite.run`).

    Args:
        page: the suite's config.
        a: path of the checkpoint at alpha 0.
        b: path of the checkpoint at alpha 1.
        count: how many values of alpha, in equal steps with both ends.
        workdir: folder for the reports and the table.
        say: takes a line of progress.
        reference: the task that the others are compared with; None: the first one.
        save: whether each model is written, to `models` in the folder.
        dtype: compute dtype: 'auto', 'float32' or 'bfloat16'.
        image_options: fields of `Preprocess` to change, as for `suite.run`.

    Returns:
        The table of `suite.run`, with `a`, `b`, `alphas` and `reference`; and whether some task ran
        and none failed.

    Raises:
        ValueError: the config is wrong, the checkpoints do not fit each other, or the folder holds
            a model of other ones.
    """
    names = [task.name for task in suite.tasks(page)]
    reference = lookup.check(reference or names[0], names, what='--reference: task')
    pair = interpolation.Pair(a, b)
    # Rounded, so that 3 of 10 steps is 0.3, as somebody would give it for one model.
    alphas = {f'alpha={x:g}': x for x in (round(k / (count - 1), 6) for k in range(count))}

    def load(name: str) -> Clip:
        if save:
            _save(pair, alphas[name], workdir / MODELS / name)
        return pair.clip(alphas[name], dtype=dtype)

    table, fine = suite.run(
        *(page, list(alphas), workdir),
        say=say,
        dtype=dtype,
        image_options=image_options,
        load=load,
    )
    table |= {'a': a, 'b': b, 'alphas': list(alphas.values()), 'reference': reference}
    suite_table.write(table, workdir)
    return table, fine


def _save(pair: interpolation.Pair, alpha: float, folder: pathlib.Path) -> None:
    """Writes a model unless it is there; ValueError if another one is."""
    card = pair.card(alpha)
    if not folder.exists():
        loaded.write(folder, card, pair.variables(alpha))
    elif pretrained.read(folder)[0] != card:
        raise ValueError(
            f'{folder}: holds a model of other checkpoints; name another --workdir, or remove it'
        )
