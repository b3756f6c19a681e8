"""From the run of configs/flickr8k.py: 300 more steps at a lower learning rate."""

import flickr8k


def get_config():
    """Returns the config of fine-tuning; flags choose what is trained and how."""
    c = flickr8k.get_config().unlock()
    c.init_from = 'runs/flickr8k'
    c.total_steps, c.eval_every = 300, 100
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 30
    return c.lock()
