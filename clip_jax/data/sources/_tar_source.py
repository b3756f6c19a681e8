"""The samples of tar shards as a data source, whatever their members mean."""

from collections.abc import Sequence
from typing import Any, Protocol

from clip_jax.data.errors import BadRecord, Skipped
from clip_jax.data.sources import _tar_files, _tar_format
from clip_jax.data.sources._tar_format import BLOCK
from clip_jax.data.sources._tar_index import Index


class Texts(Protocol):
    """Reads the members of a sample that stand in for its texts."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that captions come from."""

    def read(self, members: Sequence[bytes | None]) -> dict[str, Any]:
        """Returns what the members add to an example; ValueError if one holds anything else."""


class Labels(Protocol):
    """Reads the label member of a sample."""

    @property
    def names(self) -> list[str]:
        """The names of the classes, [] if they have none."""

    def read(self, data: bytes) -> dict[str, Any]:
        """Returns what the member adds to an example; ValueError if it holds anything else."""


class TarSource:
    """Samples of tar shards by number; safe to share between threads and to pickle.

    Args:
        spec: the SPEC, for messages.
        index: where the samples are.
        texts: reads the members with a role of texts.
        labels: reads the member with the role of a label.
    """

    def __init__(self, spec: str, index: Index, texts: Texts, labels: Labels):
        self.label_names = labels.names
        self._spec, self._index, self._texts, self._labels = spec, index, texts, labels
        self.text_fields = texts.fields
        self._open = _tar_files.Opener()

    @property
    def skipped(self) -> dict[str, Skipped]:
        """What the shards hold besides samples, by kind."""
        return self._index.skipped

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the encoded 'image', and 'texts', 'fields', 'label' or 'labels' if there are any.

        BadRecord if its text is not UTF-8, or not JSON with the field.
        """
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} samples, none with the index {i}.')
        shard, (image, image_size, label, label_size, *texts, _) = self._index[i]
        example: dict[str, Any] = {'image': self._read(shard, image, image_size)}
        places = zip(texts[::2], texts[1::2], strict=True)
        members = [self._read(shard, *place) if place[0] else None for place in places]
        data = self._read(shard, label, label_size) if label else b''
        try:
            example |= self._texts.read(members)
            return example | (self._labels.read(data) if label else {})
        except BadRecord:
            raise  # who replaces the record says where it is
        except ValueError as error:
            raise ValueError(f'{self.where(i)}: {error}') from None

    def where(self, i: int) -> str:
        """Returns the shard and the name of image `i`."""
        shard, (image, *_, head) = self._index[i]
        try:
            name = _tar_format.name_in(self._read(shard, image - head, head * BLOCK))
        except (OSError, ValueError):
            name = ''  # Messages about a shard that cannot be read have to name it too.
        return f'{shard}: {name or f"image at byte {image * BLOCK}"}'

    def __str__(self) -> str:
        return self._spec

    def _read(self, shard: str, block: int, size: int) -> bytes:
        if not size:
            return b''
        # This reference keeps the shard open during the read, whatever other threads open.
        file = self._open(shard)
        data = file.read(block * BLOCK, size)
        if len(data) < size:
            raise ValueError(
                f'{shard}: was truncated since it was indexed: expected {size} bytes at '
                f'{block * BLOCK}, found {len(data)}. Start again when the shard is complete.'
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._open = _tar_files.Opener()
