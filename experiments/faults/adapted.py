"""A small run of adapters on the run of configs/quickstart.py, with an average of the weights."""

import quickstart


def get_config():
    """Returns the config of a run of 150 steps."""
    c = quickstart.get_config().unlock()
    c.total_steps, c.batch_size, c.log_every = 150, 64, 1
    c.eval_every, c.checkpoint.every, c.optimizer.warmup_steps = 15, 5, 20
    c.init_from = 'runs/quickstart'
    c.lora.image.rank = c.lora.text.rank = 4
    c.ema.decay = 0.9
    return c.lock()
