"""The 27 data sets of the CLIP paper, zero-shot and with linear probes (arXiv 2103.00020, table 9).

    clip-jax eval suite --suite=clip27 --model=runs/a --out=suites/a
    clip-jax eval suite --suite=clip27:zeroshot --model=ViT-B-32.pt

Data sets that TFDS builds are read from its folder, the others from `data/NAME/train` and
`data/NAME/test` with a sub-folder for each class. README.md describes these folders, and how this
suite differs from the paper.
"""

from ml_collections import ConfigDict, config_dict

# name: (training set, test set, metric, prompt set). Metrics are those of the paper's table 9.
SETS = {
    'food101': ('tfds:food101/train', 'tfds:food101/validation', 'accuracy', 'food'),
    'cifar10': ('tfds:cifar10/train', 'tfds:cifar10/test', 'accuracy', 'low_resolution'),
    'cifar100': ('tfds:cifar100/train', 'tfds:cifar100/test', 'accuracy', 'low_resolution'),
    'birdsnap': ('folder:data/birdsnap/train', 'folder:data/birdsnap/test', 'accuracy', 'birds'),
    'sun397': (
        'tfds:sun397/standard-part1-120k/train',
        'tfds:sun397/standard-part1-120k/test',
        'accuracy',
        'scenes',
    ),
    'stanford_cars': ('tfds:cars196/train', 'tfds:cars196/test', 'accuracy', 'cars'),
    'fgvc_aircraft': (
        'folder:data/fgvc_aircraft/train',
        'folder:data/fgvc_aircraft/test',
        'mean_per_class',
        'aircraft',
    ),
    'voc2007': ('tfds:voc/2007/train', 'tfds:voc/2007/test', 'map_11_point', 'general'),
    'dtd': ('tfds:dtd/train', 'tfds:dtd/test', 'accuracy', 'textures'),
    'oxford_pets': (
        'tfds:oxford_iiit_pet/train',
        'tfds:oxford_iiit_pet/test',
        'mean_per_class',
        'pets',
    ),
    'caltech101': ('tfds:caltech101/train', 'tfds:caltech101/test', 'mean_per_class', 'general'),
    'oxford_flowers': (
        'tfds:oxford_flowers102/train',
        'tfds:oxford_flowers102/test',
        'mean_per_class',
        'flowers',
    ),
    'mnist': ('tfds:mnist/train', 'tfds:mnist/test', 'accuracy', 'digits'),
    'fer2013': ('folder:data/fer2013/train', 'folder:data/fer2013/test', 'accuracy', 'expressions'),
    'stl10': ('tfds:stl10/train', 'tfds:stl10/test', 'accuracy', 'general'),
    # TFDS has all images of these two as `train`, shuffled.
    'eurosat': (
        'tfds:eurosat/rgb/train[:10000]',
        'tfds:eurosat/rgb/train[10000:15000]',
        'accuracy',
        'satellite',
    ),
    'resisc45': (
        'tfds:resisc45/train[:3150]',
        'tfds:resisc45/train[6300:]',
        'accuracy',
        'satellite',
    ),
    'gtsrb': ('folder:data/gtsrb/train', 'folder:data/gtsrb/test', 'accuracy', 'traffic_signs'),
    'kitti_distance': (
        'folder:data/kitti_distance/train',
        'folder:data/kitti_distance/test',
        'accuracy',
        'distances',
    ),
    'country211': (
        'folder:data/country211/train',
        'folder:data/country211/test',
        'accuracy',
        'countries',
    ),
    'patch_camelyon': (
        'tfds:patch_camelyon/train',
        'tfds:patch_camelyon/test',
        'accuracy',
        'medical',
    ),
    'ucf101': ('folder:data/ucf101/train', 'folder:data/ucf101/test', 'accuracy', 'actions'),
    'kinetics700': (
        'folder:data/kinetics700/train',
        'folder:data/kinetics700/test',
        'accuracy',  # for the probe; zero-shot: the mean of top-1 and top-5, as in the paper
        'actions',
    ),
    'clevr_counts': (
        'folder:data/clevr_counts/train',
        'folder:data/clevr_counts/test',
        'accuracy',
        'counts',
    ),
    'hateful_memes': (
        'folder:data/hateful_memes/train',
        'folder:data/hateful_memes/test',
        'roc_auc',
        'memes',
    ),
    'rendered_sst2': (
        'folder:data/rendered_sst2/train',
        'folder:data/rendered_sst2/test',
        'accuracy',
        'rendered_text',
    ),
    'imagenet': ('tfds:imagenet2012/train', 'tfds:imagenet2012/validation', 'accuracy', 'general'),
}
# Validation sets, to choose C with; the last fit of the probe uses them too.
VALIDATION = {
    'dtd': 'tfds:dtd/validation',
    'oxford_flowers': 'tfds:oxford_flowers102/validation',
    'patch_camelyon': 'tfds:patch_camelyon/validation',
    'voc2007': 'tfds:voc/2007/validation',
}
# Options of the source of a set.
SOURCES = {'voc2007': {'label_key': 'labels'}}
# Class names in the order of labels, where those of the data set are not words; or a file of them,
# one per line.
CLASSES = {
    'eurosat': (
        *('fields of annual crops', 'a forest', 'wild grass and shrubs', 'a highway'),
        *('industrial buildings', 'a pasture', 'orchards and vineyards', 'houses'),
        *('a river', 'a lake or the sea'),
    ),
    'imagenet': 'data/imagenet/classes.txt',
    'patch_camelyon': ('a healthy lymph node', 'a lymph node with tumour cells'),
    'sun397': 'data/sun397/classes.txt',
}
EVALS = ('zeroshot', 'linear_probe')


def get_config(evals: str = '') -> ConfigDict:
    """Returns the tasks of both evaluations, or of one: zeroshot or linear_probe."""
    chosen = (evals,) if evals else EVALS
    tasks = {}
    for kind in chosen:
        make = {'zeroshot': zeroshot, 'linear_probe': linear_probe}[kind]
        tasks |= {f'{name}_{kind}': make(name) for name in SETS}
    c = ConfigDict()
    c.tasks = ConfigDict(tasks, sort_keys=False)
    c.options = ConfigDict({'tfds': {'data_dir': config_dict.placeholder(str)}})
    return c.lock()


def zeroshot(name: str) -> dict:
    """Returns the zero-shot task of a data set."""
    _, test, metric, prompts = SETS[name]
    score = 'top1' if metric == 'accuracy' else metric
    score = ('top1', 'top5') if name == 'kinetics700' else score
    task = {'type': 'zeroshot', 'data': test, 'score': score, 'templates': prompts}
    if name in CLASSES:
        task['classes'] = CLASSES[name]
    return task | _source(name)


def linear_probe(name: str) -> dict:
    """Returns the linear-probe task of a data set."""
    train, test, metric, _ = SETS[name]
    task = {'type': 'linear_probe', 'data': test, 'train': train, 'metric': metric, 'score': metric}
    if name in VALIDATION:
        task['validation'] = VALIDATION[name]
    return task | _source(name)


def _source(name: str) -> dict:
    return {'source': SOURCES[name]} if name in SOURCES else {}
