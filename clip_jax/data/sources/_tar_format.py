"""The tar format: the members of a tar, read from its headers alone, with damage by kind.

The standard library's tarfile takes a damaged header after the first member for the end of the tar,
so damage could not be counted.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BLOCK = 512  # bytes; headers and data of a tar begin at multiples of it
_LONGEST_NAME = 1 << 20  # bytes of a header that says more about the member after it
Read = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer at the end


class Member(NamedTuple):
    """One entry of a tar; offset and size, in bytes, are of its data."""

    name: str
    kind: str  # file, folder or other
    header: int  # offset of its first header
    offset: int
    size: int


def members(read: Read, end: int) -> Iterator[Member]:
    """Yields the members of a tar of `end` bytes, reading headers only.

    Formats: POSIX (ustar and pax), GNU and the older one without a magic number. Unreadable if the
    tar is damaged or truncated.
    """
    start = offset = 0
    more: dict[str, Any] = {}  # from headers before a member's own
    while True:
        block = read(offset, BLOCK) if offset < end else b''
        # A shard may end without the two blocks of zeros, but not within a member.
        if not block.strip(b'\0'):
            if offset != start or offset > end:
                raise Unreadable('truncated_shard', f'it ends at byte {end}')
            return
        if len(block) < BLOCK:
            raise Unreadable('truncated_shard', f'it ends at byte {end}, in a header')
        header = _header(block, offset)
        offset += BLOCK
        if header.type in b'xXLK':
            more |= _more(header, read, offset, end)
        elif header.type != b'g':
            member = _member(header, more, start, offset, read)
            if member.offset + member.size > end:
                raise Unreadable('truncated_shard', f'it ends at byte {end}, in {member.name!r}')
            yield member
            start = offset = member.offset + -(-member.size // BLOCK) * BLOCK
            more = {}
            continue
        offset += -(-header.size // BLOCK) * BLOCK


def name_in(headers: bytes) -> str:
    """Returns the name of the member with these headers; '' if they are not headers."""
    try:
        # As if the tar continued after the headers; the data is not read.
        return next(members(lambda offset, size: headers[offset : offset + size], 1 << 62)).name
    except (Unreadable, StopIteration):
        return ''


def check_header(block: bytes) -> None:
    """Raises Unreadable if the first block of a file is not a tar header."""
    _header(block, 0)


class Unreadable(Exception):
    """The rest of a tar cannot be read; `kind` is what it is counted as."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class _Header(NamedTuple):
    name: str
    type: bytes
    size: int
    sparse_blocks: bool  # more blocks with a map of holes follow


def _header(block: bytes, offset: int) -> _Header:
    try:
        size, kind = _number(block[124:136]), block[156:157]
        if size < 0 or not _sum_is_right(block):
            raise ValueError
    except ValueError:
        raise Unreadable(
            'damaged_shard', f'no tar header at byte {offset}, the rest is not read'
        ) from None
    name = _text(block[:100])
    # Only in the POSIX format these bytes are the start of the name.
    if block[257:263] == b'ustar\0' and (prefix := _text(block[345:500])):
        name = f'{prefix}/{name}'
    return _Header(name, kind, size, kind == b'S' and block[482] != 0)


def _sum_is_right(block: bytes) -> bool:
    # The sum itself counts as eight spaces.
    rest = block[:148] + b' ' * 8 + block[156:]
    found, total = _number(block[148:156]), sum(rest)
    # Some old programs summed signed bytes.
    return found == total or found == total - 256 * sum(byte > 127 for byte in rest)


def _number(field: bytes) -> int:
    """Parses a number of a header: octal digits or, after a byte of 128, binary."""
    if field[0] == 128:
        return int.from_bytes(field[1:], 'big')
    return int(field.partition(b'\0')[0].strip() or b'0', 8)


def _text(field: bytes) -> str:
    return field.partition(b'\0')[0].decode('utf-8', errors='replace')


def _more(header: _Header, read: Read, offset: int, end: int) -> dict[str, Any]:
    """Returns the name, size and holes that a long-name or pax header gives the next member."""
    if offset + header.size > end:
        raise Unreadable('truncated_shard', f'it ends at byte {end}, in a header')
    if header.size > _LONGEST_NAME:
        raise Unreadable('damaged_shard', f'a name of {header.size} bytes at byte {offset}')
    if header.type == b'K':  # the target of a link
        return {}
    data = read(offset, header.size)
    if header.type == b'L':
        return {'name': _text(data)}
    more: dict[str, Any] = {}
    try:
        while data.strip(b'\0'):
            # '30 path=name\n', where 30 counts the bytes of all that.
            length = int(data.partition(b' ')[0])
            key, equals, value = data[:length].partition(b' ')[2].partition(b'=')
            if not equals or not value.endswith(b'\n') or length > len(data):
                raise ValueError
            value, data = value[:-1], data[length:]
            if key == b'path':
                more['name'] = value.decode('utf-8', errors='replace')
            elif key == b'size':
                more['size'] = int(value)
            elif key.startswith(b'GNU.sparse.'):
                more['sparse'] = True
        if more.get('size', 0) < 0:
            raise ValueError
    except ValueError:
        message = f'a pax header at byte {offset - BLOCK} is damaged, the rest is not read'
        raise Unreadable('damaged_shard', message) from None
    return more


def _member(header: _Header, more: dict[str, Any], start: int, offset: int, read: Read) -> Member:
    follows = header.sparse_blocks
    while follows:
        block = read(offset, BLOCK)
        offset += BLOCK
        follows = len(block) == BLOCK and block[504] != 0
    name, size = more.get('name', header.name), more.get('size', header.size)
    kind = 'file' if header.type in (b'0', b'\0', b'7') and 'sparse' not in more else 'other'
    # Before there was a type for folders, a slash at the end of the name marked one.
    if header.type == b'5' or (header.type == b'\0' and name.endswith('/')):
        kind = 'folder'
    # Links, devices and folders sometimes have a size, but no data.
    return Member(name, kind, start, offset, 0 if header.type in b'123456' else size)
