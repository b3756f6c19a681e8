"""Counts what a source leaves out while it is opened, by kind."""

from clip_jax.data.errors import Skipped

EXAMPLES = 5  # places that are listed for each kind


class Ledger(dict[str, Skipped]):
    """Counts by kind, with the first few places of each."""

    def add(self, kind: str, place: str) -> None:
        """Counts one more of a kind, at this place; '' only counts."""
        count, examples = self.get(kind, (0, []))
        listed = not place or len(examples) >= EXAMPLES
        self[kind] = Skipped(count + 1, examples if listed else [*examples, place])
