"""A small run with what fine-tuning adds: stages, an average of the weights, and a teacher."""

import quickstart
from ml_collections import ConfigDict

SIZES = (16, 24, 32, 24, 16, 32)  # image sizes of the stages


def get_config():
    """Returns the config of a run of 150 steps."""
    c = quickstart.get_config().unlock()
    c.total_steps, c.batch_size, c.log_every = 150, 64, 1
    c.eval_every, c.checkpoint.every, c.optimizer.warmup_steps = 15, 5, 20
    c.model.image.update(depth=2, positions='learned', patch_dropout=0.25)
    c.model.text.depth = 1
    c.ema.decay = 0.9
    c.stages = tuple({'steps': 25, 'model.image.image_size': size} for size in SIZES)
    c.distillation.teachers.large = ConfigDict({'path': 'runs/quickstart', 'loss': 'mobileclip'})
    return c.lock()
