"""The 27 data sets of the CLIP paper, zero-shot and with linear probes (arXiv 2103.00020, table 9).

    clip-jax eval suite --suite=clip27 --model=runs/a --out=suites/a
    clip-jax eval suite --suite=clip27:zeroshot --model=ViT-B-32.pt

Those that TFDS builds are read from there, the others from `data/NAME/train` and `data/NAME/test`,
with a sub-folder a class. README.md says what to put there, and where this differs from the paper.
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
    # Of these two, TFDS has all images as `train`, shuffled.
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
        'accuracy',  # of the probe; zero-shot, the paper's mean of top-1 and top-5
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
# Where a set has images to choose C by: the probe's last fit sees these too.
VALIDATION = {
    'dtd': 'tfds:dtd/validation',
    'oxford_flowers': 'tfds:oxford_flowers102/validation',
    'patch_camelyon': 'tfds:patch_camelyon/validation',
    'voc2007': 'tfds:voc/2007/validation',
}
# Options of the source, where a set needs some.
SOURCES = {'voc2007': {'label_key': 'labels'}}
# Names of classes, in the order of labels, where those of the set are no words; a file of them has
# one a line.
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
    """Returns the lines of both evaluations, or of the one that is named."""
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
    """The line of a set for zero-shot transfer."""
    _, test, metric, prompts = SETS[name]
    score = 'top1' if metric == 'accuracy' else metric
    score = ('top1', 'top5') if name == 'kinetics700' else score
    line = {'type': 'zeroshot', 'data': test, 'score': score, 'templates': prompts}
    if name in CLASSES:
        line['classes'] = CLASSES[name]
    return line | _source(name)


def linear_probe(name: str) -> dict:
    """The line of a set for the linear probe."""
    train, test, metric, _ = SETS[name]
    line = {'type': 'linear_probe', 'data': test, 'train': train, 'metric': metric, 'score': metric}
    if name in VALIDATION:
        line['validation'] = VALIDATION[name]
    return line | _source(name)


def _source(name: str) -> dict:
    return {'source': SOURCES[name]} if name in SOURCES else {}
