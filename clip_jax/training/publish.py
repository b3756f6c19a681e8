"""A run as a repository for others: weights in a layout, and a model card with its scores."""

import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from etils import epath

from clip_jax import checkpoint, convert, pretrained
from clip_jax.places import naming
from clip_jax.runtime import environment, foreign_json
from clip_jax.training import run_directory

OURS = 'clip_jax'  # the layout of our own checkpoints
CARD = 'README.md'
_TRAINING = 'training'  # the item of a checkpoint that only a resumed run needs
_LIBRARIES = {OURS: 'clip_jax', 'open_clip': 'open_clip', 'huggingface': 'transformers'}
_SCORE = {'value': (int, float), 'unit': str}
_REPORT = {'type': str, 'data': str, 'scores': {foreign_json.ANY: _SCORE}}
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader('clip_jax', 'reports'),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write(
    run: str | pathlib.Path, folder: pathlib.Path, layout: str, *, name: str, license: str = ''
) -> None:
    """Writes what a repository needs into a new folder.

    Args:
        run: the run directory; `#average` after it takes the average of its weights.
        folder: the folder to create.
        layout: 'clip_jax', or one that `convert` writes, 'open_clip' or 'huggingface'.
        name: OWNER/NAME of the repository, for the commands in the card.
        license: of the weights, as Hugging Face names it ('apache-2.0'); '': not stated.

    Raises:
        ValueError: there is no run, the folder exists, or the layout cannot hold the model.
    """
    if layout != OURS:
        convert.check_layout(layout)
    place = pathlib.Path(naming.parts(run)[0]).expanduser()
    if not (place / 'config.json').is_file():
        raise ValueError(f'{run}: no run directory; expected one that `clip-jax train` wrote')
    if layout == OURS:
        if naming.averaged(run):
            raise ValueError(f'{run}: layout {OURS} has both; name the run alone')
        step = checkpoint.find(place)
        shutil.copytree(
            step, folder / checkpoint.FOLDER / step.name, ignore=shutil.ignore_patterns(_TRAINING)
        )
        card = checkpoint.read_about(step)['card']
    else:
        card, variables = pretrained.read(run)
        convert.write(folder, layout, card, variables)
    (folder / CARD).write_text(model_card(place, card, layout, name=name, license=license))


def model_card(
    run: pathlib.Path, card: Mapping[str, Any], layout: str, *, name: str, license: str
) -> str:
    """Returns the model card of a run, as Markdown.

    Args:
        run: the run directory, whose reports have the numbers.
        card: the card of the model.
        layout: the layout of the weights.
        name: OWNER/NAME of the repository.
        license: of the weights; '': not stated.
    """
    summary = foreign_json.read(run / 'summary.json', dict) if _is_complete(run) else {}
    config = foreign_json.read(run / 'config.json', dict)
    return _ENVIRONMENT.get_template('model_card.md.j2').render(
        name=name,
        license=license,
        layout=layout,
        library=_LIBRARIES.get(layout, layout),
        model=card['model'],
        summary=summary,
        config=config,
        recipe=json.dumps(_recipe(config), indent=1),
        scores=[*_scores(epath.Path(run))],
        addresses=_addresses(run),
        versions=summary.get('versions') or environment.versions(),
    )


def _is_complete(run: pathlib.Path) -> bool:
    return (run / 'summary.json').is_file()


def _addresses(run: pathlib.Path) -> dict[str, str]:
    """The revisions of the published checkpoints that the run has read, by their names."""
    path = run / run_directory.ADDRESSES
    return foreign_json.read(path, {foreign_json.ANY: str}) if path.is_file() else {}


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of training that a reader asks for."""
    keys = ('batch_size', 'total_steps', 'seed', 'init_from', 'loss', 'optimizer', 'ema')
    found = {key: config[key] for key in keys if config.get(key) is not None}
    return {key: _given(value) for key, value in found.items()}


def _given(value: Any) -> Any:
    """A setting without the keys that are not set."""
    if isinstance(value, Mapping):
        return {k: _given(v) for k, v in value.items() if v is not None}
    return value


def _scores(run: epath.Path) -> Iterator[tuple[str, str, str, str]]:
    """(evaluation, data, score, value) of each score in the run's reports."""
    for path in sorted((run / 'evals').glob('*.json')) if (run / 'evals').is_dir() else []:
        report = foreign_json.read(path, _REPORT)
        for score, found in report['scores'].items():
            value, unit = found['value'], found['unit']
            shown = f'{100 * value:.2f} %' if unit == 'fraction' else f'{value:g} {unit}'
            yield path.stem, report['data'], score, shown
