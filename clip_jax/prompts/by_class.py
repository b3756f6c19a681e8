"""Class names and prompts in the formats in which others publish them: by WordNet id, by folder, by
number, and prompts by class.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

WORDNET_ID = re.compile(r'n\d{8}')
PLACE = re.compile(r'\{c?\}')  # of the class name in a template
_LINE = re.compile(r'(n\d{8})\s+(\S.*)')


def from_lines(lines: Collection[str]) -> dict[str, str]:
    """Reads lines of a WordNet id and its names, as in ImageNet's LOC_synset_mapping.txt.

    Returns:
        The first name of each id, {} if some line is another one.
    """
    found = [line for line in map(_LINE.fullmatch, lines) if line]
    if len(found) < len(lines):
        return {}
    return {line[1]: line[2].split(',')[0].strip() for line in found}


def from_object(value: Mapping[str, Any]) -> dict[str, str] | list[str]:
    """Returns the class names in a JSON object: by folder, or a list in order; [] for others.

    These are: names by folder; `[id, name]` by number (Keras' imagenet_class_index.json); names by
    number (`id2label` of transformers); prompts by name (CuPL, Pratt et al. 2023).
    """
    if value and all(map(_is_pair, value.values())):
        return {folder: name.replace('_', ' ') for folder, name in value.values()}
    if _are_texts(value.values()):
        numbers = [str(k) for k in range(len(value))]
        return [value[k] for k in numbers] if {*numbers} == {*value} else dict(value)
    return list(value) if are_prompts(value) and _mention(value) else []


def are_prompts(value: Any) -> bool:
    """Whether a JSON value holds prompts by class: texts without a place for the class name."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(own, list) and own and _are_texts(own) for own in value.values())
        and not any(PLACE.search(text) for own in value.values() for text in own)
    )


def _mention(prompts: Mapping[str, list[str]]) -> bool:
    """Whether texts mention what they stand under, as prompts do; names in a set do not."""
    plain = {name: name.replace('_', ' ').lower() for name in prompts}
    return any(plain[name] in text.lower() for name, own in prompts.items() for text in own)


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and _are_texts(value)
    return pair and bool(WORDNET_ID.fullmatch(value[0]))


def _are_texts(values: Collection[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
