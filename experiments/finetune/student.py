"""A fifth of the parameters of configs/flickr8k.py, trained for 400 steps."""

import flickr8k


def get_config():
    """Returns the config of the student without a teacher."""
    c = flickr8k.get_config().unlock()
    c.total_steps, c.eval_every = 400, 100
    c.optimizer.warmup_steps = 40
    c.model.image.update(width=96, depth=4, mlp_dim=384)
    c.model.text.update(width=96, mlp_dim=384)
    return c.lock()
