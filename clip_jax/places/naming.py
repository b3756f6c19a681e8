"""Where checkpoints are in a folder of ours, and what may follow the path or name of one."""

import pathlib

CHECKPOINTS = 'checkpoints'  # the folder of steps in a run directory
AVERAGE = '#average'  # the average of the weights (config.ema)
BASE = '#base='  # after that, and before a path: where the model is that has the run's adapters
MODEL = '#model='  # after the path of bare weights: the name of their architecture


def parts(path: str | pathlib.Path) -> tuple[str, bool, str]:
    """Returns a path alone, whether it names an average, and the base that it names."""
    path, _, base = str(path).partition(BASE)
    return path.removesuffix(AVERAGE), path.endswith(AVERAGE), base


def split(path: str | pathlib.Path) -> tuple[str, str]:
    """Returns a path or a name alone, and what follows it, '' for nothing."""
    alone = bare(parts(path)[0])[0]
    return alone, str(path)[len(alone) :]


def averaged(path: str | pathlib.Path) -> bool:
    """Whether a path names the average of a run's weights."""
    return parts(path)[1]


def bare(path: str) -> tuple[str, str]:
    """Returns the path of bare weights, and the architecture that it names, '' for none."""
    path, _, name = path.partition(MODEL)
    return path, name
