"""ImageNet and test sets of its classes from other sources, zero-shot, with effective robustness.

    clip-jax eval suite --suite=imagenet_variants --model=runs/a --model=runs/b --model=runs/c \\
        --suite.options.wds.root=/data/clip_benchmark --out=suites/robustness

With three checkpoints or more, the table has how far each is above a line through the accuracies of
all (Taori et al. 2020, arXiv 2007.00644). README.md says where the sets are.
"""

from ml_collections import ConfigDict, config_dict

# ImageNet-A, ImageNet-R and ObjectNet have 200, 200 and 113 of the classes.
SETS = {
    'imagenet': 'imagenet1k',
    'imagenet_v2': 'imagenetv2',
    'imagenet_sketch': 'imagenet_sketch',
    'imagenet_a': 'imagenet-a',
    'imagenet_r': 'imagenet-r',
    'objectnet': 'objectnet',
}


def get_config() -> ConfigDict:
    """Returns the tasks, the mean of the variants, and which effective robustness is wanted."""
    hub = 'wds:hf://datasets/clip-benchmark/wds_{}'
    tasks = {
        name: {'type': 'zeroshot', 'data': hub.format(set_), 'score': 'top1'}
        for name, set_ in SETS.items()
    }
    original, *variants = SETS
    c = ConfigDict()
    c.tasks = ConfigDict(tasks, sort_keys=False)
    c.averages = {'variants': tuple(variants)}
    # The checkpoints that the line is fitted to; all if none are named.
    c.robustness = {'of': original, 'tasks': tuple(variants), 'baseline': ()}
    c.options = ConfigDict({'wds': {'root': config_dict.placeholder(str)}})
    return c.lock()
