"""Every key of a training config, with its default; other configs say only what differs.

    clip-jax train --config=configs/default.py --workdir=runs/x --config.batch_size=4096

A value that is not set (placeholder) leaves the choice to the part that it belongs to. The defaults
are those of CLIP's ViT-B/32 (arXiv 2103.00020, tables 18 to 20), for one machine's batch.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the defaults."""
    c = ConfigDict()
    c.seed = 0  # of initialisation, shuffling, augmentation and dropout
    c.batch_size = 1024  # pairs a step, over all devices; each pair's negatives are all the others
    c.total_steps = 100_000
    c.log_every = 50  # steps between two lines of metrics
    c.eval_every = 5_000  # steps between two rounds of evals; also one at the start and the end
    c.checkpoint_every = 1_000  # steps between two checkpoints
    c.keep_checkpoints = 2  # the newest so many stay

    c.data = ConfigDict()
    c.data.train = 'tfds:shapes_captions/train'  # a SPEC: tfds:NAME[/CONFIG]/SPLIT or tars:GLOB
    c.data.num_threads = 4  # threads that read and decode
    c.data.augment = ConfigDict()
    c.data.augment.crop_scale = (0.9, 1.0)  # random resized crop: share of the area that stays
    c.data.augment.flip = 0.0  # probability of mirroring; captions may speak of left and right
    # Options of each kind of source, for every SPEC of that kind.
    c.data.options = ConfigDict()
    c.data.options.tfds = ConfigDict()
    # Where prepared sets lie; TFDS's own default is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    c.data.options.tfds.data_dir = placeholder(str)
    c.data.options.tfds.image_key = 'image'
    c.data.options.tfds.text_key = 'captions'
    c.data.options.tfds.label_key = 'label'
    c.data.options.tars = ConfigDict()
    c.data.options.tars.image_exts = ('jpg', 'jpeg', 'png', 'webp')
    c.data.options.tars.text_exts = ('txt',)
    c.data.options.tars.label_ext = 'cls'

    # Evaluation preprocessing; part of the card.
    c.preprocess = ConfigDict()
    c.preprocess.resize = 'shortest'  # shortest side, then centre crop; or squash, to a square
    c.preprocess.interpolation = 'bicubic'  # or bilinear
    c.preprocess.mean = (0.48145466, 0.4578275, 0.40821073)
    c.preprocess.std = (0.26862954, 0.26130258, 0.27577711)

    c.tokenizer = ConfigDict()
    c.tokenizer.name = 'bpe'  # CLIP's; or sentencepiece, trained on the training captions
    c.tokenizer.context_length = 77
    c.tokenizer.path = placeholder(str)  # sentencepiece: a model file, instead of training one
    c.tokenizer.vocab_size = placeholder(int)  # sentencepiece: pieces to train

    c.model = ConfigDict()
    c.model.embed_dim = 512  # of the space that images and texts share
    c.model.dtype = 'auto'  # of arithmetic: float32, bfloat16; auto: bfloat16 on accelerators
    c.model.image = ConfigDict()
    c.model.image.name = 'vit'
    c.model.image.variant = 'B/32'  # a row of VARIANTS / patch_size; what is set below overrides it
    c.model.image.image_size = 224
    c.model.image.patch_size = placeholder(int)
    c.model.image.width = placeholder(int)
    c.model.image.depth = placeholder(int)
    c.model.image.heads = placeholder(int)
    c.model.image.mlp_dim = placeholder(int)
    c.model.image.pool = 'cls'  # cls, mean or map
    c.model.image.positions = 'learned'  # or sincos2d: fixed sines and cosines
    c.model.image.pre_norm = True  # CLIP's layer norm before the first block
    c.model.image.activation = 'gelu'  # gelu, gelu_tanh or quick_gelu
    c.model.image.patch_dropout = 0.0  # share of patches left out in training
    c.model.text = ConfigDict()
    c.model.text.name = 'transformer'
    c.model.text.variant = 'B'
    c.model.text.width = placeholder(int)
    c.model.text.depth = placeholder(int)
    c.model.text.heads = placeholder(int)
    c.model.text.mlp_dim = placeholder(int)
    c.model.text.activation = 'gelu'

    c.loss = ConfigDict()
    c.loss.name = 'softmax'
    c.loss.implementation = 'dense'

    # AdamW with linear warm-up, then half a cosine to 0.
    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 5e-4  # at its peak
    c.optimizer.warmup_steps = 2_000
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.2
    c.optimizer.clip_norm = 1.0  # of the gradient's global norm; 0: not clipped

    # A name of your choice -> a file of evals/, a SPEC, and that file's options, for instance
    # c.evals.pets = ConfigDict({'eval': 'zeroshot', 'data': 'tfds:oxford_iiit_pet/test'})
    c.evals = ConfigDict()
    return c.lock()
