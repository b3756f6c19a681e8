"""Labeled sets whose image i is a row of numbers, and what embeds them, for tests of probes."""

import numpy as np


class Toy:
    """Images that are rows, with a label each; lists are several labels."""

    def __init__(self, rows, labels, label_names=(), name='toy'):
        self.images, self.labels, self.label_names = rows, labels, list(label_names)
        self.name = name

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        label = self.labels[i]
        key = 'labels' if isinstance(label, list) else 'label'
        return {'image': self.images[i], key: label if key == 'labels' else int(label)}

    def where(self, i):
        return f'{self.name} record {i}'

    def __str__(self):
        return self.name


def encode_image(images, *, features='embedding'):
    """The rows themselves; as embeddings, of unit length."""
    rows = np.stack(images).astype(np.float32)
    if features == 'pre_projection':
        return rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def classes(n, *, seed=0, count=4, dim=12, overlap=1.0, spread=1.0):
    """Rows [n, dim] of overlapping classes, and their labels; the classes are the same always."""
    rng = np.random.default_rng([7, seed])
    means = spread * np.random.default_rng(3).normal(size=(count, dim))
    labels = rng.integers(count, size=n)
    return (means[labels] + overlap * rng.normal(size=(n, dim))).astype(np.float32), labels


def several(n, *, seed=0, count=4, dim=12):
    """Rows, and for each a list of labels, also none."""
    rng = np.random.default_rng([8, seed])
    directions = np.random.default_rng(4).normal(size=(dim, count))
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    has = rows @ directions + rng.normal(size=(n, count)) > 2
    return rows, [np.flatnonzero(own).tolist() for own in has]
