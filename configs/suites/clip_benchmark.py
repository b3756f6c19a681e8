"""The sets that CLIP_benchmark publishes for its benchmark (VTAB+ and retrieval), zero-shot.

    clip-jax eval suite --suite=clip_benchmark --model=runs/a --out=suites/a \\
        --suite.options.wds.root=/data/clip_benchmark

Each set has its own class names and templates. Without `root` the sets are read from the Hugging
Face hub. README.md says where they are.
"""

from ml_collections import ConfigDict, config_dict

# By kind, as the benchmark's dataset_type.csv has them; 'a/b' is the set wds_a-b.
SETS = {
    'natural': (
        *('imagenet1k', 'imagenetv2', 'imagenet-r', 'objectnet', 'imagenet-a', 'imagenet-o'),
        *('vtab/cifar10', 'vtab/cifar100', 'vtab/flowers', 'cars', 'vtab/svhn', 'fer2013'),
        *('vtab/pets', 'vtab/caltech101', 'voc2007_multilabel', 'voc2007', 'sun397'),
        *('fgvc_aircraft', 'country211', 'vtab/dtd', 'gtsrb', 'stl10'),
    ),
    'specialized': (
        *('imagenet_sketch', 'mnist', 'renderedsst2', 'vtab/diabetic_retinopathy'),
        *('vtab/eurosat', 'vtab/resisc45', 'vtab/pcam'),
    ),
    'structured': (
        *('vtab/clevr_count_all', 'vtab/clevr_closest_object_distance'),
        *('vtab/dsprites_label_orientation', 'vtab/dsprites_label_x_position'),
        *('vtab/dsprites_label_y_position', 'vtab/smallnorb_label_elevation'),
        *('vtab/smallnorb_label_azimuth', 'vtab/dmlab', 'vtab/kitti_closest_vehicle_distance'),
    ),
    'retrieval': ('mscoco_captions', 'flickr8k', 'flickr30k'),
}


def get_config() -> ConfigDict:
    """Returns the tasks, with an average for each kind of set."""
    tasks = {name(set_): task(set_, kind) for kind, sets in SETS.items() for set_ in sets}
    c = ConfigDict()
    c.tasks = ConfigDict(tasks, sort_keys=False)
    c.averages = {kind: tuple(map(name, sets)) for kind, sets in SETS.items()}
    c.options = ConfigDict({'wds': {'root': config_dict.placeholder(str)}})
    return c.lock()


def name(set_: str) -> str:
    """Returns the name of the task of a set."""
    return set_.removeprefix('vtab/').replace('-', '_')


def task(set_: str, kind: str) -> dict:
    """Returns the task of a set."""
    data = f'wds:hf://datasets/clip-benchmark/wds_{set_.replace("/", "-")}'
    if kind == 'retrieval':
        score = ('image_to_text/recall@5', 'text_to_image/recall@5')
        return {'type': 'retrieval', 'data': data, 'score': score}
    score = 'mean_average_precision' if set_ == 'voc2007_multilabel' else 'top1'
    return {'type': 'zeroshot', 'data': data, 'score': score}
