"""The student, with the run of configs/flickr8k.py as its teacher."""

import student
from ml_collections import ConfigDict


def get_config():
    """Returns the config of the student with a teacher."""
    c = student.get_config().unlock()
    c.distillation.teachers.large = ConfigDict(
        {'path': 'runs/flickr8k', 'loss': 'mobileclip', 'weight': 1.0}
    )
    return c.lock()
