"""The tar format: the members of a tar, read from its headers alone, with damage by kind.

The standard library's tarfile takes a damaged header after the first member for the end of the tar,
so damage could not be counted.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BLOCK = 512  # bytes; headers and data of a tar begin at multiples of it
_ZEROS = 1 << 20  # bytes per read after the end of a tar
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

    Formats: POSIX (ustar and pax), GNU and the older one without a magic number. Tars that were
    joined (`cat a.tar b.tar`) are read to the end of the last one. Unreadable if the tar is damaged
    or truncated, or if what follows its end is no tar.
    """
    start = offset = 0
    more: dict[str, Any] = {}  # from headers before a member's own
    while True:
        block = read(offset, BLOCK) if offset < end else b''
        # A shard may end without the two blocks of zeros, but not within a member.
        if not block.strip(b'\0'):
            if offset != start or offset > end:
                raise Unreadable('truncated_shard', f'it ends at byte {end}')
            start = offset = _after_zeros(read, offset, end)
            if offset == end:
                return
            _check_next(read, offset, end)
            continue
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


def _after_zeros(read: Read, offset: int, end: int) -> int:
    """Returns the offset of the next block that is not zeros; `end` if there is none."""
    while offset < end:
        data = read(offset, min(_ZEROS, end - offset))
        if rest := data.lstrip(b'\0'):
            return offset + (len(data) - len(rest)) // BLOCK * BLOCK
        if not data:
            break
        offset += len(data)
    return end


def _check_next(read: Read, offset: int, end: int) -> None:
    """Raises Unreadable if what follows the end of a tar is not another one."""
    try:
        check_header(read(offset, BLOCK))
    except Unreadable:
        raise Unreadable(
            'bytes_after_end', f'{end - offset} bytes after the end, at byte {offset}, are no tar'
        ) from None


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
        if len(block) < BLOCK:
            raise ValueError
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
        for key, value in _records(data):
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


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the (key, value) of a pax header; ValueError if it is damaged."""
    start, end = 0, len(data.rstrip(b'\0'))
    while start < end:
        # '30 path=name\n', where 30 counts the bytes of all that; 20 digits are more than any.
        digits = data[start : start + 20].partition(b' ')[0]
        stop = start + int(digits)
        record = data[start + len(digits) + 1 : stop]
        key, equals, value = record.partition(b'=')
        if not equals or not value.endswith(b'\n') or stop > len(data):
            raise ValueError
        yield key, value[:-1]
        start = stop


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
