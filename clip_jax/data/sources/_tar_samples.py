"""Which members of a tar shard make a sample, by their names.

Members with the same key are a sample; the extension says what a member is. WebDataset splits a
file name at its first dot: `x.txt` and `x.seg.png` belong to `x`. Names such as
`Photo 2024.05.06.png` have dots of their own. So the extension is the longest one that an option
names, here `png`, and the key is what is before it. If letters come between the first dot and that
extension, as in `x.seg.png` and `x.syn.txt`, and the shard has a sample `x`, the name is one of
WebDataset: the member belongs to `x`, and is not used because no option names `seg.png`.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clip_jax.data.sources._tar_format import Member

_LARGEST_MEMBER = 0x7FFFF000  # bytes; the most that a single read returns
# Extensions of images, whether an option names them or not.
_IMAGES = (
    *('avif', 'bmp', 'gif', 'heic', 'heif', 'jp2', 'jpeg', 'jpg', 'jxl'),
    *('png', 'tif', 'tiff', 'webp'),
)
# What WebDataset's writers put between the key and the last extension: seg, syn, depth_map.
_WORDS = re.compile(r'[a-z_][\w-]*(\.[a-z_][\w-]*)*', re.ASCII | re.IGNORECASE)
# Absolute paths, drive letters, parent folders, control characters; \ is a slash on Windows.
_UNSAFE = re.compile(r'[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)|.*[\0-\x1f\x7f-\x9f]', re.DOTALL)
_KINDS = {'image': 'unused_image', 'text': 'unused_caption', 'label': 'unused_label'}


def roles(
    image_exts: Sequence[str],
    text_exts: Sequence[str],
    label_ext: str,
    other_exts: Sequence[str],
) -> dict[str, str]:
    """Maps extensions to 'image', 'text0', 'text1', ..., 'label' or 'other'.

    ValueError if an extension is given twice, or one string for a list.
    """
    found: dict[str, str] = {}
    options = {'image': image_exts, 'text': text_exts, 'label': [label_ext], 'other': other_exts}
    for role, exts in options.items():
        if isinstance(exts, str):
            raise ValueError(f'tars: {role}_exts is {exts!r}; expected a list such as [{exts!r}]')
        for ext in (ext.lower().removeprefix('.') for ext in exts):
            if found.setdefault(ext, role) != role:
                raise ValueError(
                    f'tars: extension .{ext} is given for {found[ext]} and for {role}. Choose one '
                    'with image_exts, text_exts, label_ext and other_exts.'
                )
    # Each caption of a sample has a place of its own.
    texts = [ext for ext, role in found.items() if role == 'text']
    return found | {ext: f'text{k}' for k, ext in enumerate(texts)}


class Name(NamedTuple):
    """A member's name, split."""

    key: str  # '' for a hidden file
    extension: str  # in lower case
    first: str  # the key up to the first dot of the file name


def most_parts(roles: dict[str, str]) -> int:
    """Returns how many parts between dots an extension with a role has at most."""
    return max((extension.count('.') for extension in roles), default=0) + 1


def split(name: str, roles: dict[str, str], parts: int) -> Name:
    """Splits a name before the longest extension that has a role, else at the first dot.

    Args:
        name: the name of a member.
        roles: the roles of extensions.
        parts: most_parts(roles).
    """
    folder, slash, base = name.rpartition('/')
    stem, _, extension = base.partition('.')
    if not stem:
        return Name('', extension.lower(), '')
    first = folder + slash + stem
    pieces = base.rsplit('.', parts)
    for i in range(1, len(pieces)):
        known = '.'.join(pieces[i:]).lower()
        if known in roles:
            return Name(folder + slash + '.'.join(pieces[:i]), known, first)
    return Name(first, extension.lower(), first)


class Sorter:
    """Puts the members of one shard into samples, and counts those that are in none."""

    def __init__(self, roles: dict[str, str], skip: Callable[..., None]):
        """`skip(kind, name)` counts a member; without a name it only counts."""
        self.extensions: Counter[str] = Counter()
        self._roles, self._parts, self._skip = roles, most_parts(roles), skip
        self._samples: dict[str, dict[str, Member]] = {}
        self._waiting: list[tuple[Name, Member]] = []

    def add(self, member: Member) -> None:
        """Adds the next member; folders hold nothing themselves."""
        name = split(member.name, self._roles, self._parts)
        role = self._roles.get(name.extension)
        if member.kind == 'other':
            self._skip('not_a_file', member.name)
        elif member.kind == 'file' and _UNSAFE.match(member.name):
            self._skip('unsafe_name', member.name)
        elif member.kind == 'file':
            self.extensions[name.extension] += 1
            if not name.key or role in (None, 'other'):
                self._count_other(name, member)
            elif member.size > _LARGEST_MEMBER:
                self._skip('too_large_member', member.name)
            elif name.key != name.first and _WORDS.fullmatch(name.key, len(name.first) + 1):
                self._waiting.append((name, member))
            else:
                self._put(name, member)

    def samples(self) -> list[dict[str, Member]]:
        """Returns the samples, role by role, in the order of their first members."""
        for name, member in self._waiting:
            if name.first in self._samples:
                role = self._roles[name.extension]
                self._skip(_KINDS[role.rstrip('0123456789')], member.name)
            else:
                self._put(name, member)
        found = []
        for sample in sorted(self._samples.values(), key=lambda s: next(iter(s.values())).offset):
            if 'image' in sample:
                found.append(sample)
                continue
            for role, member in sample.items():
                what = 'label' if role == 'label' else 'caption'
                self._skip(f'{what}_without_image', member.name)
        return found

    def _put(self, name: Name, member: Member) -> None:
        sample = self._samples.setdefault(name.key, {})
        if sample.setdefault(self._roles[name.extension], member) != member:
            self._skip('duplicate_member', member.name)

    def _count_other(self, name: Name, member: Member) -> None:
        is_image = name.extension.rpartition('.')[2] in _IMAGES
        if name.key and is_image and name.extension not in self._roles:
            self._skip('unused_image', member.name)
            return
        # One example of each extension says more than five of the same.
        new = self.extensions[name.extension] == 1
        self._skip('other_file', member.name if new else '')
