"""The evaluation of DataComp (Gadre et al. 2023, arXiv 2304.14108), zero-shot.

    clip-jax eval suite --suite=datacomp38 --model=runs/a --out=suites/a \\
        --suite.options.wds.root=/data/evalsets

Each set has the metric that DataComp averages, and its own class names and templates. Without
`root` the sets are read from the Hugging Face hub. README.md says where they are.
"""

from ml_collections import ConfigDict, config_dict

HUB = 'wds:hf://datasets/djghosh/wds_{}_test'
# name: (set, score).
SETS = {
    'caltech101': ('vtab-caltech101', 'mean_per_class'),
    'cifar10': ('cifar10', 'top1'),
    'cifar100': ('vtab-cifar100', 'top1'),
    'clevr_counts': ('vtab-clevr_count_all', 'top1'),
    'clevr_distance': ('vtab-clevr_closest_object_distance', 'top1'),
    'country211': ('country211', 'top1'),
    'dtd': ('vtab-dtd', 'top1'),
    'eurosat': ('vtab-eurosat', 'top1'),
    'fgvc_aircraft': ('fgvc_aircraft', 'mean_per_class'),
    'food101': ('food101', 'top1'),
    'gtsrb': ('gtsrb', 'top1'),
    'imagenet': ('imagenet1k', 'top1'),
    'imagenet_sketch': ('imagenet_sketch', 'top1'),
    'imagenet_v2': ('imagenetv2', 'top1'),
    'imagenet_a': ('imagenet-a', 'top1'),
    'imagenet_o': ('imagenet-o', 'top1'),
    'imagenet_r': ('imagenet-r', 'top1'),
    'kitti_distance': ('vtab-kitti_closest_vehicle_distance', 'top1'),
    'mnist': ('mnist', 'top1'),
    'objectnet': ('objectnet', 'top1'),
    'oxford_flowers': ('vtab-flowers', 'mean_per_class'),
    'oxford_pets': ('vtab-pets', 'mean_per_class'),
    'voc2007': ('voc2007', 'top1'),
    'patch_camelyon': ('vtab-pcam', 'top1'),
    'rendered_sst2': ('renderedsst2', 'top1'),
    'resisc45': ('vtab-resisc45', 'top1'),
    'stanford_cars': ('cars', 'top1'),
    'stl10': ('stl10', 'top1'),
    'sun397': ('sun397', 'top1'),
    'svhn': ('vtab-svhn', 'top1'),
    'iwildcam': ('wilds-iwildcam', 'macro_f1'),
    'camelyon17': ('wilds-camelyon17', 'top1'),
    'fmow': ('wilds-fmow', 'worst_group'),
    'dollar_street': ('dollar_street', 'worst_group_top5'),
    'geode': ('geode', 'worst_group'),
}
# The test images of Karpathy's splits, as CLIP_benchmark has them.
RETRIEVAL = {'flickr30k': 'flickr30k', 'mscoco': 'mscoco_captions'}
WINOGAVIL = 'choices:data/winogavil/winogavil_dataset.csv'  # no set of `wds`
# The numbers that are stored with each image, and those whose values are its group.
COLUMNS = {
    'fmow': (('region', 'year', 'y'), ('region',)),
    'dollar_street': (('income_ds', 'income_meta', 'region'), ('income_ds',)),
    'geode': (('region', 'country'), ('region',)),
}
# Sets of faces are no part of DataComp's average. Each objective is a task.
FACES = ('fairface', 'utkface')
FACE_COLUMNS = ('age', 'gender', 'race', 'race_binary')
FACE_GROUPS = {'race': ('race_binary',), 'gender': ('gender', 'race'), 'age': ('race_binary',)}
# The averages that the paper reports.
SHIFTS = (
    *('imagenet_sketch', 'imagenet_v2', 'imagenet_a', 'imagenet_o', 'imagenet_r'),
    'objectnet',
)
VTAB = (
    *('caltech101', 'cifar100', 'clevr_counts', 'clevr_distance', 'dtd', 'eurosat'),
    *('kitti_distance', 'oxford_flowers', 'oxford_pets', 'patch_camelyon', 'resisc45', 'svhn'),
    'sun397',
)


def get_config() -> ConfigDict:
    """Returns the tasks, with the averages that the paper reports."""
    tasks = {name: zeroshot(name) for name in SETS}
    tasks |= {name: retrieval(set_) for name, set_ in RETRIEVAL.items()}
    tasks['winogavil'] = {'type': 'compositional', 'data': WINOGAVIL, 'score': 'jaccard_10_12'}
    averages = {
        'ImageNet distribution shifts': SHIFTS,
        'VTAB': VTAB,
        'retrieval': (*RETRIEVAL, 'winogavil'),
        'average': tuple(tasks),
    }
    tasks |= {f'{set_}_{what}': faces(set_, what) for set_ in FACES for what in FACE_GROUPS}
    c = ConfigDict()
    c.tasks = ConfigDict(tasks, sort_keys=False)
    c.averages = ConfigDict(averages, sort_keys=False)
    c.options = ConfigDict({'wds': {'root': config_dict.placeholder(str)}})
    return c.lock()


def zeroshot(name: str) -> dict:
    """Returns the task of a set of classes."""
    set_, metric = SETS[name]
    task = {'type': 'zeroshot', 'data': HUB.format(set_), 'score': metric}
    if name in COLUMNS:
        columns, group_by = COLUMNS[name]
        task['source'] = {'columns': columns, 'group_by': group_by}
    return task


def retrieval(set_: str) -> dict:
    """Returns the task of a set of captions."""
    return {
        'type': 'retrieval',
        'data': f'wds:hf://datasets/clip-benchmark/wds_{set_}',
        'score': ('image_to_text/recall@1', 'text_to_image/recall@1'),
    }


def faces(set_: str, objective: str) -> dict:
    """Returns the task of one objective of a set of faces."""
    source = {
        'columns': FACE_COLUMNS,
        'objective': objective,
        'group_by': FACE_GROUPS[objective],
    }
    data = HUB.format(set_)
    return {'type': 'zeroshot', 'data': data, 'score': 'worst_group', 'source': source}
