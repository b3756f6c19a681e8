"""The student with a constant learning rate after its warm-up, from which decays branch off."""

import student


def get_config():
    """Returns the config of the trunk; the branches change flags of it."""
    c = student.get_config().unlock()
    c.total_steps, c.checkpoint.keep_every = 400, 200
    c.optimizer.schedule.update(name='wsd', decay_steps=0)
    return c.lock()
