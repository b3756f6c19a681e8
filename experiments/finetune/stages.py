"""The student in three stages: small images first, a short end at a high resolution."""

import student


def get_config():
    """Returns the config of a run of three stages."""
    c = student.get_config().unlock()
    c.model.image.update(image_size=32, positions='learned')
    c.stages = (
        {'steps': 200, 'batch_size': 256, 'model.image.patch_dropout': 0.25},
        {'steps': 150, 'model.image.image_size': 64},
        {'steps': 50, 'model.image.image_size': 96, 'model.image.patch_dropout': 0.0},
    )
    return c.lock()
