"""A source made of a list, for tests."""


class Listed:
    """A source of the examples of a list; an exception in it is raised."""

    def __init__(self, examples, label_names=(), skipped=None):
        self.examples, self.label_names = examples, list(label_names)
        self.skipped = skipped or {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict:
        if isinstance(self.examples[i], Exception):
            raise self.examples[i]
        return self.examples[i]

    def where(self, i: int) -> str:
        return f'place {i}'
