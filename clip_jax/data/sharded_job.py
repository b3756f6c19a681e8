"""A resumable job over a source: shards of fixed ranges of records, written once each.

Importing a data set and embedding one are such jobs. A note beside each shard says that the shard
is complete; the settings that the files depend on are stored first and must be the same when the
job resumes. So the files depend neither on interruptions nor on the number of threads or processes.
"""

import abc
import json
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

from etils import epath

from clip_jax.runtime import atomic
from clip_jax.runtime.messages import first_few


class ShardedJob(abc.ABC):
    """Base class: a subclass has `source`, `shard_size` and `settings`, and knows its own files."""

    if TYPE_CHECKING:  # a real property would be the default value of a field of the same name

        @property
        def source(self) -> Sized:
            """The records."""

        @property
        def shard_size(self) -> int:
            """Records of the source per shard."""

        @property
        def settings(self) -> Mapping[str, Any]:
            """JSON values that the files depend on."""

    @property
    def long_settings(self) -> Mapping[str, str]:
        """What messages say in place of a long value that has changed."""
        return {}

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What messages call the job: its folder and what it holds."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """What to do if the settings differ."""

    @abc.abstractmethod
    def read_settings(self) -> Mapping[str, Any] | None:
        """Returns the settings that the job was started with; None if it was not."""

    @abc.abstractmethod
    def write_settings(self) -> None:
        """Stores the settings."""

    @abc.abstractmethod
    def is_complete(self, shard: int) -> bool:
        """Whether a shard and its note exist and agree."""

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self.source) // self.shard_size)

    def range(self, shard: int) -> range:
        """Returns the records of the source that a shard is made of."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, len(self.source)))

    def begin(self) -> None:
        """Stores the settings; ValueError if the job was started with other ones."""
        before = self.read_settings()
        if before is None:
            self.write_settings()
        else:
            check_settings(
                before, self.settings, title=self.title, remedy=self.remedy, long=self.long_settings
            )

    def missing(self, shards: Iterable[int] | None = None) -> list[int]:
        """Returns those of the shards (default: of all) that are still to be written."""
        shards = range(self.shards) if shards is None else shards
        return [shard for shard in shards if not self.is_complete(shard)]


def check_files(folder: epath.Path, *own: str, what: str) -> None:
    """Raises ValueError, which begins with `what`, if a folder has files besides its `own`."""
    if folder.exists() and (others := atomic.unexpected_files(folder, *own)):
        raise ValueError(
            f'{what}: {folder} holds other files ({first_few(others)}); name a new folder'
        )


def check_settings(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    title: str,
    remedy: str,
    long: Mapping[str, str] = {},
) -> None:
    """Raises ValueError if settings have changed since a job was started, and says which.

    Args:
        before: the settings that the job was started with.
        now: settings to compare; others of `before` do not count.
        title: what the message calls the job.
        remedy: what to do, the end of the message.
        long: what the message says in place of a long value, by name.
    """
    now = json.loads(json.dumps(now))
    changed = [
        long.get(name, f'{name} was {before.get(name)}, is {value}')
        for name, value in now.items()
        if value != before.get(name)
    ]
    if changed:
        raise ValueError(f'{title} with other settings: {"; ".join(changed)}. {remedy}')


def read_note(path: epath.PathLike, *required: str) -> dict[str, Any] | None:
    """Reads the note of a complete shard; None if there is none, or if it is damaged."""
    path = epath.Path(path)
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) and note.keys() >= set(required) else None
