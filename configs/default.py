"""Every key of a training config with its default; other configs override some of them.

    clip-jax train --config=default --workdir=runs/x --config.batch_size=4096

A placeholder has no value: the part of the program that it belongs to has its own default. The
defaults are those of CLIP ViT-B/32 (arXiv 2103.00020, tables 18 to 20) with a batch for one host.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the defaults."""
    c = ConfigDict()

    # ---- Run: length, logging, checkpoints -------------------------------------------------------
    c.seed = 0  # of initialization, shuffling, augmentation and dropout
    c.batch_size = 1024  # pairs per step over all devices; each pair's negatives are all others
    c.microbatches = 1  # GradCache: parts of a batch that are embedded one by one, to save memory
    c.total_steps = 100_000  # updates; the learning rate reaches 0 at the last
    # Stages: mappings with steps, which add up to total_steps, and values that other stages have
    # from the config: model.image.image_size, model.image.patch_dropout, batch_size, microbatches,
    # optimizer.learning_rate, data.train, data.budgets, data.patch_sizes and data.augment.NAME. See
    # docs/finetune.md.
    c.stages = ()
    c.log_every = 50  # steps between lines of metrics
    c.eval_every = 5_000  # steps between evaluations; also at the start and at the end
    c.figures = True  # draw curves and examples into plots/ at the end of the run
    # Watchdog: seconds that two consecutive steps (or evaluation batches) may take, including saves
    # and compilation. After that the stacks of all threads are printed and the process exits with
    # code 75. 0: no limit.
    c.step_timeout = 1800.0

    # Metric writers beside metrics.jsonl: NAME -> type (a file of metrics/ or an import path) and
    # options of that type, such as {'type': 'wandb', 'project': 'clip'}.
    c.writers = ConfigDict({'tensorboard': {'type': 'tensorboard'}})

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1_000  # steps between checkpoints
    c.checkpoint.keep = 2  # number of newest checkpoints to keep
    c.checkpoint.keep_every = 0  # also keep the first at or after each multiple of this; 0: none
    c.checkpoint.keep_best = 0  # also keep this many checkpoints with the best metric
    c.checkpoint.best_metric = placeholder(str)  # a score of an evaluation, such as zeroshot/top1
    c.checkpoint.verify = 'all'  # checksums before resuming: all, or sampled (parts of large files)

    c.skip_updates = ConfigDict()
    c.skip_updates.max_consecutive = 10  # skipped updates in a row that stop the run
    # Skip an update if its loss is this many standard deviations above the last 128; 0: never.
    c.skip_updates.loss_spike_std = 0.0

    # A folder for JAX's persistent compilation cache, so that a restart need not compile again. It
    # must be shared by all hosts; whoever can write to it can run code on them.
    c.compilation_cache = placeholder(str)

    # Options of XLA for the train step, separated by spaces: auto, or NAME=VALUE as in XLA_FLAGS.
    # auto: what helps on several GPUs, nothing elsewhere; see docs/speed.md.
    c.compiler_options = 'auto'

    # A trace of some steps, for xprof and TensorBoard, in the folder profile of the run directory;
    # see docs/speed.md.
    c.profile = ConfigDict()
    c.profile.start_step = placeholder(int)  # the first step that is traced; default: no trace
    c.profile.steps = 5  # the number of steps that are traced

    # ---- Devices ---------------------------------------------------------------------------------
    # The mesh has the axes slices x data x fsdp x tensor; the size of data follows from the others.
    c.mesh = ConfigDict()
    # Groups of devices with slow links between them: TPU slices (default: as many as there are), or
    # nodes of GPUs (default: 1). The batch is sharded over them; fsdp and tensor are within one.
    c.mesh.slices = placeholder(int)
    c.mesh.fsdp = 1  # devices over which parameters and optimizer state are sharded
    c.mesh.tensor = 1  # devices over which attention heads and MLP features are sharded
    # ZeRO-1: the optimizer's state is also sharded over data, and so is the work of an update.
    c.mesh.shard_optimizer = False

    # ---- Data ------------------------------------------------------------------------------------
    c.data = ConfigDict()
    # A SPEC: tfds:NAME[/CONFIG]/SPLIT, tars:GLOB, table:FILE, folder:DIR, or my_package.my_source:
    # ADDRESS. Or a mixture: '3 * tars:A-*.tar + 1 * tars:B-*.tar' takes 3 of 4 pairs from A.
    c.data.train = 'tfds:shapes_captions/train'
    # For a model that takes images of any aspect ratio (naflex): pairs of the most patches of an
    # image and a probability, such as ((128, 0.25), (256, 0.75)), drawn for each batch; (): always
    # preprocess.max_patches.
    c.data.budgets = ()
    # The same for the height and width of patches, in pixels; (): always model.image.patch_size.
    c.data.patch_sizes = ()
    c.data.num_threads = 4  # threads that read and decode
    c.data.num_workers = 0  # processes with that many threads each; 0: threads of the main process
    c.data.caption = 'random'  # which of an image's captions: random, first or longest
    # Captions by field: NAME -> probability, such as {'caption': 0.7, 'synthetic': 0.3}; a record
    # without a field has the others. Fields are columns of a table, features of TFDS, extensions of
    # tar members and keys of .json members, with _ for each dot. Empty: all captions alike.
    c.data.caption_fields = ConfigDict()
    c.data.captions_per_image = 1  # captions of an image in a batch, all of them its positives
    c.data.negative_fields = ()  # fields of hard negatives, which are never captions of the image
    c.data.hard_negatives = 0  # hard-negative captions of an image in a batch
    c.data.max_bad_fraction = 0.05  # fraction of bad records above which the run stops
    c.data.max_pixels = 89_478_485  # images with more are bad records (the default: Pillow's limit)
    # Pairs to leave out; 0: no limit. They are counted, and replaced by others as bad records are.
    c.data.filter = ConfigDict()
    c.data.filter.min_side = 0  # pixels of the shorter side
    c.data.filter.max_aspect = 0.0  # longer side / shorter side
    c.data.filter.min_caption = 0  # characters
    c.data.filter.max_caption = 0  # characters
    c.data.augment = ConfigDict()
    c.data.augment.crop_scale = (0.9, 1.0)  # random resized crop: range of area fractions
    c.data.augment.flip = 0.0  # probability of a horizontal flip, which makes "left" wrong
    c.data.augment.randaugment = ()  # RandAugment: operations and magnitude 0 to 30, such as (2, 9)
    c.data.augment.trivial_augment = False  # TrivialAugment: one operation of a random magnitude
    c.data.augment.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    c.data.augment.color_jitter_prob = 0.8  # probability of color jitter
    c.data.augment.grayscale = 0.0  # probability of conversion to grayscale
    c.data.augment.random_erasing = 0.0  # probability of replacing a rectangle by noise
    # Options of each kind of source, for all SPECs of that kind.
    c.data.options = ConfigDict()
    c.data.options.tfds = ConfigDict()
    # The folder of prepared data sets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    c.data.options.tfds.data_dir = placeholder(str)
    c.data.options.tfds.image_key = 'image'  # the feature with the image
    c.data.options.tfds.text_key = ('captions',)  # features of captions
    c.data.options.tfds.label_key = 'label'  # the feature with the class, if there is one
    c.data.options.tars = ConfigDict()
    # Extensions of members that are images.
    c.data.options.tars.image_exts = ('jpg', 'jpeg', 'png', 'webp', 'avif')
    c.data.options.tars.text_exts = ('txt',)  # members with captions, such as txt, syn.txt or json
    c.data.options.tars.text_lines = True  # each line is a caption; False: a member is one caption
    c.data.options.tars.label_ext = 'cls'  # the member with the class number; npy: several classes
    c.data.options.tars.other_exts = ()  # members that are left out on purpose
    c.data.options.tars.class_names = 'classnames.txt'  # the file of class names beside the shards
    c.data.options.tars.json_key = ('caption',)  # fields of .json members with captions
    c.data.options.tars.index_dir = ''  # where indices are stored; '': the user's cache folder
    c.data.options.table = ConfigDict()
    c.data.options.table.image_key = 'image'  # column of paths or, in Parquet, of encoded images
    c.data.options.table.text_key = ('caption',)  # columns of captions
    c.data.options.table.label_key = 'label'  # the column of classes, if there is one
    c.data.options.table.root = ''  # what paths are relative to; '': the folder of the table
    c.data.options.table.label_separator = ''  # splits a text into several classes; '': never
    # How .csv, .tsv and .txt files are written; '': found out (see docs/data.md).
    c.data.options.table.delimiter = ''  # the character between values
    c.data.options.table.quoting = ''  # double, backslash or none
    c.data.options.table.column_names = ()  # the columns of files without a header
    c.data.options.table.encoding = ''  # such as latin-1
    c.data.options.folder = ConfigDict()
    c.data.options.folder.text_lines = True  # each line of a .txt file is a caption
    # Extensions of image files.
    c.data.options.folder.image_exts = (
        *('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff', 'avif', 'heic', 'heif'),
    )
    c.data.options.kept = ConfigDict()
    c.data.options.kept.data = ''  # the SPEC of the listed data where it has moved; '': the list's
    c.data.options.kept.options = ConfigDict()  # options of its source, instead of the list's

    # Preprocessing for evaluation, stored in the model card. Default: OpenAI's, or init_from's.
    c.preprocess = ConfigDict()
    c.preprocess.resize = placeholder(str)  # shortest (default; then center crop) or squash
    c.preprocess.max_patches = placeholder(int)  # naflex: of an image; default: its positions
    c.preprocess.interpolation = placeholder(str)  # bicubic (default), bilinear, ...
    c.preprocess.mean = placeholder(tuple)  # per channel: red, green, blue
    c.preprocess.std = placeholder(tuple)  # per channel
    c.preprocess.gray16 = placeholder(str)  # 16-bit grayscale: clip (default; published) or scale

    c.tokenizer = ConfigDict()
    c.tokenizer.name = 'bpe'  # a file of tokenizers/ (bpe is CLIP's) or an import path
    c.tokenizer.context_length = 77  # tokens per text; longer texts are truncated
    c.tokenizer.path = placeholder(str)  # sentencepiece: model file; default: trained on captions
    c.tokenizer.vocab_size = placeholder(int)  # sentencepiece: size if it is trained

    # ---- Model -----------------------------------------------------------------------------------
    c.model = ConfigDict()
    c.model.preset = 'ViT-B-32'  # a name in models/presets.py; '': the sizes are set below
    c.model.embed_dim = placeholder(int)  # dimension of the joint embedding space
    c.model.dtype = 'auto'  # compute dtype: float32, bfloat16, or auto (bfloat16 on accelerators)
    # Rematerialization: none, dots (save only matmuls), offload (save them in the host's memory) or
    # full (save only a block's input).
    c.model.remat = 'none'
    c.model.scan = False  # scan over transformer layers: compiles one block, so compiles faster
    # xla; short: a kernel for TPU and up to 1,024 tokens; splash: JAX's for TPU; cudnn: flash
    # attention on CUDA GPUs in bfloat16; auto: on TPU short, or splash for more tokens, and cudnn
    # on GPU, where they take the shapes, else xla. See docs/speed.md.
    c.model.attention = 'auto'
    c.model.image_proj = placeholder(str)  # image projection: linear (default), biased or none
    c.model.text_proj = placeholder(str)  # text projection: as above; biased in SigLIP
    c.model.init_logit_scale = placeholder(float)  # log of it; default: the loss's
    c.model.init_logit_bias = placeholder(float)  # default: the loss's, if it has one
    c.model.image = ConfigDict()
    c.model.image.name = placeholder(str)  # a file of models/image/ or an import path; default: vit
    c.model.image.variant = placeholder(str)  # a key of its VARIANTS / patch_size, such as B/32
    # Height and width in pixels; default: 224 for a ViT.
    c.model.image.image_size = placeholder(int)
    c.model.image.width = placeholder(int)  # vit: token dimension; resnet: channels of the stem
    c.model.image.heads = placeholder(int)  # attention heads
    c.model.image.patch_size = placeholder(int)  # vit: patch height and width in pixels
    c.model.image.depth = placeholder(int)  # vit: number of blocks
    c.model.image.mlp_dim = placeholder(int)  # vit: hidden dimension of the MLPs
    c.model.image.pool = placeholder(str)  # vit: cls (default), mean, map or queries
    c.model.image.positions = placeholder(str)  # vit: learned (default) or sincos2d (fixed)
    # vit: whether the class token has a position too (default: yes).
    c.model.image.class_position = placeholder(bool)
    c.model.image.stem = placeholder(str)  # vit: patches (default) or convolutions
    c.model.image.pre_norm = placeholder(bool)  # vit: LayerNorm before the blocks (default: yes)
    c.model.image.activation = placeholder(str)  # vit: gelu (default), gelu_tanh or quick_gelu
    c.model.image.norm_eps = placeholder(float)  # vit: epsilon of LayerNorm; default: 1e-5
    c.model.image.layer_scale = placeholder(float)  # vit: initial LayerScale; default: none
    c.model.image.dropout = placeholder(float)  # vit: dropout rate on branch outputs; default: 0
    # vit: fraction of patches dropped in training; default: 0.
    c.model.image.patch_dropout = placeholder(float)
    c.model.image.depths = placeholder(tuple)  # resnet: blocks in each of the four stages
    c.model.text = ConfigDict()
    c.model.text.name = placeholder(str)  # a file of models/text/ or an import path
    c.model.text.variant = placeholder(str)  # a key of its VARIANTS
    c.model.text.width = placeholder(int)  # token dimension
    c.model.text.depth = placeholder(int)  # number of blocks
    c.model.text.heads = placeholder(int)  # attention heads
    c.model.text.mlp_dim = placeholder(int)  # hidden dimension of the MLPs
    c.model.text.pool = placeholder(str)  # pooled token: eot (default), argmax, last, cls
    c.model.text.causal = placeholder(bool)  # causal attention mask (default: yes)
    c.model.text.norm_eps = placeholder(float)  # as for the image encoder
    c.model.text.layer_scale = placeholder(float)  # as for the image encoder
    c.model.text.dropout = placeholder(float)  # as for the image encoder
    c.model.text.activation = placeholder(str)  # gelu (default), gelu_tanh or quick_gelu

    # The caption decoder (CoCa, CapPa): there is one if its depth is set. Its other sizes are by
    # default those of the text encoder. The image encoder must be vit.
    c.model.decoder = ConfigDict()
    c.model.decoder.depth = placeholder(int)  # number of layers; default: no decoder
    # text (default): it reads the output of the text encoder, transformer, at each token (CoCa);
    # tokens: embeddings of its own.
    c.model.decoder.inputs = placeholder(str)
    c.model.decoder.parallel = placeholder(bool)  # a mask token, for captioning.parallel
    c.model.decoder.width = placeholder(int)  # token dimension
    c.model.decoder.heads = placeholder(int)  # attention heads
    c.model.decoder.mlp_dim = placeholder(int)  # hidden dimension of the MLPs
    c.model.decoder.dropout = placeholder(float)  # as for the image encoder

    # Fine-tuning: the checkpoint to start from, a run directory or files of OpenAI, open_clip,
    # Hugging Face or big_vision. Its architecture, tokenizer and preprocessing replace
    # model.preset, tokenizer and the defaults of preprocess. Values set in model and preprocess
    # override them; for another model.image.image_size, position embeddings are interpolated.
    # An average of a run's weights is named by '#average' after its path.
    c.init_from = placeholder(str)  # not set: random initialization
    # weights; or all: also the optimizer's state, the step (total_steps counts from step 0 of that
    # run), the random key and, for the same data, the input position of a run of clip_jax.
    c.init_state = 'weights'
    # The encoders to take from init_from. With one of them, such as ('image',) for LiT, the other
    # encoder and both projections are new, as model says, with the tokenizer of this config for a
    # new text encoder.
    c.init_towers = ('image', 'text')

    # Low-rank adaptation of init_from (LoRA): matrices of a tower get adapters, and nothing else is
    # trained but what optimizer.rules un-freezes. Checkpoints have only what is trained.
    c.lora = ConfigDict()
    c.lora.image = ConfigDict()
    c.lora.image.rank = 0  # of the adapters; 0: none in this tower
    c.lora.image.alpha = 0.0  # alpha / rank is the factor of an adapter; 0: that of the rank
    # A regular expression for whole paths below the tower; default: the kernels of attention.
    c.lora.image.targets = placeholder(str)
    c.lora.text = ConfigDict()
    c.lora.text.rank = 0  # as for the image encoder
    c.lora.text.alpha = 0.0  # as for the image encoder
    c.lora.text.targets = placeholder(str)  # as for the image encoder

    # ---- Loss and optimizer ----------------------------------------------------------------------
    c.loss = ConfigDict()
    # softmax (CLIP), sigmoid (SigLIP), or an import path, as my_package.my_loss. All other keys are
    # options of the loss.
    c.loss.name = 'softmax'
    # gather (default): all-gather the texts, then compute logits block by block; ring: rotate texts
    # around the devices (ppermute), if they do not fit on one device; dense: all logits at once.
    c.loss.implementation = placeholder(str)
    c.loss.block_size = placeholder(int)  # texts per block; default: 512
    # Matryoshka: also train the first coordinates of embeddings; lengths, as (64, 128, 256, 512).
    c.loss.dims = placeholder(tuple)

    # Of models with a decoder (model.decoder): the captioning loss.
    c.captioning = ConfigDict()
    c.captioning.weight = 2.0  # of the captioning loss
    c.captioning.contrastive = 1.0  # of the contrastive loss; 0: captions alone
    # Share of the captions that are predicted in parallel, from mask tokens alone (CapPa: 0.75).
    c.captioning.parallel = 0.0

    # Distillation from frozen models. NAME -> path (a checkpoint with the same tokenizer, which
    # embeds each batch too) or embeddings (a folder that clip-jax embed wrote over the training
    # data), loss (a file of distillation/ or an import path), weight (default: 1) and options of
    # that loss.
    c.distillation = ConfigDict()
    c.distillation.teachers = ConfigDict()
    c.distillation.contrastive = 1.0  # weight of the contrastive loss beside them; 0: without it

    c.optimizer = ConfigDict()
    # adamw, adafactor, lamb, lion, muon, schedule_free, sgd, or an import path; see
    # clip_jax/step/optimizers. A config may set its other options too.
    c.optimizer.name = 'adamw'
    c.optimizer.learning_rate = 5e-4  # peak
    c.optimizer.warmup_steps = 2_000  # steps of linear warm-up
    # What follows the warm-up: cosine, linear, constant, rsqrt or wsd (warmup, stable, decay). The
    # other keys are options of some of them.
    c.optimizer.schedule = ConfigDict({'name': 'cosine'})
    c.optimizer.schedule.final = placeholder(float)  # fraction of the peak at the end; default: 0
    c.optimizer.schedule.decay_steps = placeholder(int)  # wsd; default: a tenth of all steps
    c.optimizer.schedule.shape = placeholder(str)  # wsd: linear (default), cosine or sqrt
    c.optimizer.schedule.timescale = placeholder(float)  # rsqrt, in steps; default: 10,000
    c.optimizer.schedule.cooldown_steps = placeholder(int)  # rsqrt; default: 0
    c.optimizer.b1 = placeholder(float)  # decay of the first moment; adamw's default: 0.9
    c.optimizer.b2 = placeholder(float)  # decay of the second moment; adamw's default: 0.98
    c.optimizer.eps = placeholder(float)  # added to its root; adamw's default: 1e-6
    c.optimizer.momentum = placeholder(float)  # sgd, adafactor and muon
    c.optimizer.nesterov = placeholder(bool)  # sgd and muon
    c.optimizer.update_clip = placeholder(float)  # adamw (1: StableAdamW) and adafactor
    c.optimizer.moment_dtype = placeholder(str)  # such as bfloat16; default: float32
    c.optimizer.weight_decay = 0.2  # decoupled, on kernels and embeddings; times the learning rate
    c.optimizer.grad_clip_norm = 1.0  # maximum global norm of gradients; 0: no clipping
    # What is not trained: lock_image, lock_text (a tower with its projection), lock_image:N (all
    # but the last N blocks and what follows them), lit (as lock_image), projections_only.
    c.optimizer.freeze = ()
    # Rules for parameters by path; of those that match, a later one wins. path: a regular
    # expression for the whole path; then any of frozen, lr_mult, weight_decay, schedule,
    # unfreeze_at, as in {'path': 'text/.*', 'lr_mult': 0.1}. See docs/finetune.md.
    c.optimizer.rules = ()
    # Layer-wise learning rates: the factor from a block to the one before it.
    c.optimizer.layer_decay = ConfigDict({'image': 1.0, 'text': 1.0})

    # An exponential moving average of the weights, which is evaluated and saved beside them.
    c.ema = ConfigDict()
    c.ema.decay = 0.0  # weight of the old average in a step, such as 0.9999; 0: no average
    c.ema.warmup = True  # the decay is at most (1 + step) / (10 + step)

    # ---- Evaluations -----------------------------------------------------------------------------
    # NAME -> type (a file of evals/ or an import path), data (a SPEC), and options of that type:
    # c.evals.pets = ConfigDict({'type': 'zeroshot', 'data': 'tfds:oxford_iiit_pet/test'})
    # Its data has the options of data.options, but those in `source`, such as
    # 'source': {'text_key': ('caption',)}.
    c.evals = ConfigDict()
    return c.lock()
