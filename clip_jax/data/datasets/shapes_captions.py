"""The built-in data set: drawn shapes with captions, some color-shape pairs kept out of training.

A model that learns colors and shapes separately also names the pairs that it never saw:
`test_heldout` measures that. clip_jax/data/shapes.py draws everything, so no network is needed.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from clip_jax.data.shapes import PAIRS, SPLITS, example


class ShapesCaptions(tfds.core.GeneratorBasedBuilder):
    """Drawn pictures of one or two colored shapes with 5 captions; one shape has a label."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}

    def __init__(self, *, file_format: str = 'array_record', **options):
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(64, 64, 3), encoding_format='jpeg'),
                    'captions': tfds.features.Sequence(tfds.features.Text()),
                    'label': tfds.features.ClassLabel(names=PAIRS),
                }
            ),
            supervised_keys=('image', 'label'),
            # Record i is picture i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split, count) for split, count in SPLITS.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        for i in range(count):
            yield i, example(split, i)
