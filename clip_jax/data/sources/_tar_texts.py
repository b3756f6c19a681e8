"""Captions of tar shards: members of text and of JSON."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import _captions


class Texts(NamedTuple):
    """How captions are stored."""

    extensions: list[str]  # of the caption members of a sample
    json_keys: tuple[str, ...]
    lines: bool  # whether each line is a caption

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that captions come from: members by extension, and those of .json."""
        each = ((self.json_keys if _is_json(ext) else (ext,)) for ext in self.extensions)
        return tuple(dict.fromkeys(_captions.field(key) for keys in each for key in keys))

    def read(self, members: Sequence[bytes | None]) -> dict[str, Any]:
        """Returns the 'texts', each once, and 'fields' of a sample; {} without captions."""
        found, lacking = [], None
        for extension, data in zip(self.extensions, members, strict=True):
            if data is None:
                continue
            if not _is_json(extension):
                found.append((extension, _captions.of_file(data, lines=self.lines)))
                continue
            content = _json_object(data)
            for key in self.json_keys:
                if key not in content:
                    lacking = content  # Another field may have a caption.
                elif content[key] is not None:
                    found.append((key, _json_texts(content[key], key)))
        if lacking is not None and not any(texts for _, texts in found):
            names = ', '.join(map(repr, list(lacking)[:12])) or 'nothing'
            wanted = ' or '.join(map(repr, self.json_keys))
            raise BadRecord(
                'no_caption', f'its .json member has no {wanted} (json_key); it has {names}'
            )
        if not found:
            return {}
        several = len(self.extensions) > 1 or len(self.json_keys) > 1
        example = _captions.of_example(found, several=several)
        if len(found) > 1:  # img2dataset stores a caption twice, as .txt and in .json.
            example['texts'] = list(dict.fromkeys(example['texts']))
        return example


def _is_json(extension: str) -> bool:
    return extension.rpartition('.')[2] == 'json'


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord('not_utf8', f'its .json member is not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise BadRecord('not_utf8', f'its .json member is not an object: {data[:60]!r}')
    return fields


def _json_texts(value: Any, key: str) -> list[str]:
    """Returns the texts in the value of a field of a JSON object."""
    texts = value if isinstance(value, list) else [value]
    try:
        # JSON can hold unpaired surrogates, which no tokenizer can encode.
        return [text.strip() for text in texts if text.strip() and text.encode()]
    except (AttributeError, UnicodeEncodeError):
        found = repr(value)[:60]
        raise BadRecord('not_utf8', f'{key!r} of its .json member is not text: {found}') from None
