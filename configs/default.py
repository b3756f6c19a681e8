"""Every key of a training config, with its default; other configs say only what differs.

    clip-jax train --config=default --workdir=runs/x --config.batch_size=4096

A value that is not set (placeholder) leaves the choice to the part that it belongs to. The defaults
are those of CLIP's ViT-B/32 (arXiv 2103.00020, tables 18 to 20), for one machine's batch.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the defaults."""
    c = ConfigDict()
    c.seed = 0  # of initialization, shuffling, augmentation and dropout
    c.batch_size = 1024  # pairs a step, over all devices; each pair's negatives are all the others
    c.microbatches = 1  # parts of a batch that are embedded one after the other; saves memory
    c.total_steps = 100_000  # updates; the learning rate ends at 0 there
    c.log_every = 50  # steps between two lines of metrics
    c.eval_every = 5_000  # steps between two rounds of evals; also one at the start and the end
    # Seconds that two steps in a row may take, saves and compilation included, and so may two
    # batches of an evaluation; then the stacks of all threads are printed and the process ends. 0:
    # no limit.
    c.step_timeout = 1800.0

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1_000  # steps between two
    c.checkpoint.keep = 2  # the newest so many stay
    c.checkpoint.keep_every = 0  # and the first from each multiple of this on; 0: no more
    c.checkpoint.keep_best = 0  # and so many of those with the best metric
    c.checkpoint.best_metric = placeholder(str)  # a number of an evaluation, as zeroshot/top1
    c.checkpoint.best_mode = 'max'  # or min
    c.checkpoint.verify = 'all'  # checksums, before a run goes on; sampled: of some large files

    c.skip_updates = ConfigDict()
    c.skip_updates.max_consecutive = 10  # updates in a row that cannot be made before the run stops
    # Skip an update whose loss lies so many standard deviations above the last 128; 0: never.
    c.skip_updates.loss_spike_std = 0.0

    # A folder for compiled programs: a restart finds them there. All hosts must see it, and whoever
    # can write to it can run code here.
    c.compilation_cache = placeholder(str)

    # Devices form a mesh data x fsdp x tensor; data is what remains.
    c.mesh = ConfigDict()
    c.mesh.fsdp = 1  # parameters and optimizer state are dealt out over so many devices
    c.mesh.tensor = 1  # attention heads and hidden features are

    c.data = ConfigDict()
    # A SPEC: tfds:NAME[/CONFIG]/SPLIT, tars:GLOB, table:FILE or folder:DIR. Or several of them:
    # '3 * tars:A-*.tar + 1 * tars:B-*.tar' takes three of four pairs from A.
    c.data.train = 'tfds:shapes_captions/train'
    c.data.num_threads = 4  # threads that read and decode
    c.data.num_workers = 0  # processes with as many threads each; 0: threads of this process
    c.data.caption = 'random'  # of several captions of an image; or first, longest
    c.data.max_bad_fraction = (
        0.05  # share of records that cannot be used, above which the run stops
    )
    # What is not trained on; 0: no such bound. Counted, and replaced as bad records are.
    c.data.filter = ConfigDict()
    c.data.filter.min_side = 0  # pixels of an image's shorter side
    c.data.filter.max_aspect = 0.0  # longer side / shorter side
    c.data.filter.min_caption = 0  # characters
    c.data.filter.max_caption = 0  # characters
    c.data.augment = ConfigDict()
    c.data.augment.crop_scale = (0.9, 1.0)  # random resized crop: share of the area that stays
    c.data.augment.flip = 0.0  # probability of mirroring; captions may speak of left and right
    c.data.augment.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    c.data.augment.color_jitter_prob = 0.8  # probability of that
    c.data.augment.grayscale = 0.0  # probability of losing all color
    # Options of each kind of source, for every SPEC of that kind.
    c.data.options = ConfigDict()
    c.data.options.tfds = ConfigDict()
    # Where prepared sets lie; TFDS's own default is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    c.data.options.tfds.data_dir = placeholder(str)
    c.data.options.tfds.image_key = 'image'  # the feature that holds the image
    c.data.options.tfds.text_key = 'captions'  # the feature with one text or several
    c.data.options.tfds.label_key = 'label'  # the feature with the class, if there is one
    c.data.options.tars = ConfigDict()
    c.data.options.tars.image_exts = ('jpg', 'jpeg', 'png', 'webp')  # members that are images
    c.data.options.tars.text_exts = ('txt',)  # members with captions, one a line
    c.data.options.tars.label_ext = 'cls'  # the member with the class, a number
    c.data.options.tars.json_key = 'caption'  # the field of .json members that is the text
    c.data.options.tars.index_dir = ''  # where indices are kept; '': in the user's cache folder
    c.data.options.table = ConfigDict()
    c.data.options.table.image_key = 'image'  # the column of paths or, in Parquet, encoded images
    c.data.options.table.text_key = ('caption',)  # columns of captions
    c.data.options.table.label_key = 'label'  # the column of classes, if there is one
    c.data.options.table.root = ''  # what paths are relative to; '': the folder of the table
    c.data.options.table.label_separator = ''  # what cuts a text into several classes; '': nothing
    c.data.options.folder = ConfigDict()
    # Files that are images.
    c.data.options.folder.image_exts = (
        *('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff'),
    )

    # Evaluation preprocessing; part of the card. What is not set is OpenAI's, or init_from's.
    c.preprocess = ConfigDict()
    c.preprocess.resize = placeholder(str)  # shortest (side, then center crop; not set) or squash
    c.preprocess.interpolation = placeholder(str)  # bicubic (not set), bilinear, …
    c.preprocess.mean = placeholder(tuple)  # of red, green, blue
    c.preprocess.std = placeholder(tuple)  # as above

    c.tokenizer = ConfigDict()
    c.tokenizer.name = 'bpe'  # CLIP's; or sentencepiece, trained on the training captions
    c.tokenizer.context_length = 77  # tokens a text; longer ones are cut
    c.tokenizer.path = placeholder(str)  # sentencepiece: a model file, instead of training one
    c.tokenizer.vocab_size = placeholder(int)  # sentencepiece: pieces to train

    c.model = ConfigDict()
    c.model.preset = 'ViT-B-32'  # a name in models/presets.py; '': sizes stand below
    c.model.embed_dim = placeholder(int)  # of the space that images and texts share
    c.model.dtype = 'auto'  # of arithmetic: float32, bfloat16; auto: bfloat16 on accelerators
    c.model.remat = 'none'  # what is computed again backward: none, dots (all but dense), full
    c.model.scan = False  # one compiled block for all of a transformer: compiles sooner
    c.model.attention = 'xla'  # or cudnn: flash attention, on CUDA GPUs in bfloat16
    c.model.image_proj = placeholder(str)  # of image rows: linear (not set), biased or none
    c.model.text_proj = placeholder(str)  # of text rows: linear (not set), biased (SigLIP) or none
    c.model.init_logit_scale = placeholder(float)  # ln of the similarities' factor; not set: loss's
    c.model.init_logit_bias = placeholder(float)  # added to them; not set: loss's, if it has one
    c.model.image = ConfigDict()
    c.model.image.name = placeholder(str)  # a file of models/image/; not set: vit
    c.model.image.variant = placeholder(str)  # a row of its VARIANTS / patch_size, as B/32
    c.model.image.image_size = placeholder(int)  # pixels, height and width; not set: 224 for a ViT
    c.model.image.width = placeholder(int)  # vit: features of a patch; resnet: of the stem
    c.model.image.heads = placeholder(int)  # of attention
    c.model.image.patch_size = placeholder(int)  # vit: pixels, height and width
    c.model.image.depth = placeholder(int)  # vit: blocks
    c.model.image.mlp_dim = placeholder(int)  # vit: hidden features of a block's MLP
    c.model.image.pool = placeholder(str)  # vit: cls (not set), mean, map or queries
    c.model.image.positions = placeholder(str)  # vit: learned (not set), sincos2d: fixed ones
    c.model.image.pre_norm = placeholder(bool)  # vit: CLIP's norm before the first block (not set)
    c.model.image.activation = placeholder(str)  # vit: gelu (not set), gelu_tanh or quick_gelu
    c.model.image.norm_eps = placeholder(float)  # vit: added to variances; not set: 1e-5
    c.model.image.layer_scale = placeholder(float)  # vit: initial factors of branches; not set: no
    c.model.image.dropout = placeholder(float)  # vit: share of branches' outputs; not set: 0
    c.model.image.patch_dropout = placeholder(float)  # vit: share left out in training; not set: 0
    c.model.image.depths = placeholder(tuple)  # resnet: blocks of its four stages
    c.model.text = ConfigDict()
    c.model.text.name = placeholder(str)  # a file of models/text/; not set: transformer
    c.model.text.variant = placeholder(str)  # a row of its VARIANTS
    c.model.text.width = placeholder(int)  # features of a token
    c.model.text.depth = placeholder(int)  # blocks
    c.model.text.heads = placeholder(int)  # of attention
    c.model.text.mlp_dim = placeholder(int)  # hidden features of a block's MLP
    c.model.text.pool = placeholder(str)  # the row that is read: eot (not set), argmax, last, cls
    c.model.text.causal = placeholder(bool)  # whether tokens see only earlier ones; not set: true
    c.model.text.norm_eps = placeholder(float)  # as for the image encoder
    c.model.text.layer_scale = placeholder(float)  # as for the image encoder
    c.model.text.dropout = placeholder(float)  # as for the image encoder
    c.model.text.activation = placeholder(str)  # gelu (not set), gelu_tanh or quick_gelu

    # Training begins from a checkpoint of any known layout: a run directory, or files of OpenAI,
    # open_clip, Hugging Face or big_vision. Its architecture, tokenizer and preprocessing take the
    # place of model.preset, tokenizer and the defaults of preprocess; what is set in model and
    # preprocess changes them, and with another model.image.image_size positions are interpolated.
    c.init_from = placeholder(str)  # not set: random numbers

    c.loss = ConfigDict()
    c.loss.name = 'softmax'  # a file of losses/: softmax (CLIP) or sigmoid (SigLIP)
    # gather: each device makes its images' similarities to all texts, tile by tile; ring: texts go
    # from device to device, for batches whose texts do not fit; dense: the whole matrix at once.
    c.loss.implementation = 'gather'
    c.loss.block_size = 512  # texts in a tile

    # AdamW with linear warm-up, then half a cosine to 0.
    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 5e-4  # at its peak
    c.optimizer.warmup_steps = 2_000  # the learning rate's way up, a line
    c.optimizer.b1 = 0.9  # decay of the mean of gradients
    c.optimizer.b2 = 0.98  # decay of the mean of their squares
    c.optimizer.eps = 1e-6  # added to the root of that
    c.optimizer.weight_decay = 0.2  # of kernels and embeddings; times the learning rate
    c.optimizer.grad_clip_norm = 1.0  # of the gradient's global norm; 0: not clipped

    # A name of your choice -> a file of evals/, a SPEC, and that file's options, for instance
    # c.evals.pets = ConfigDict({'type': 'zeroshot', 'data': 'tfds:oxford_iiit_pet/test'})
    c.evals = ConfigDict()
    return c.lock()
