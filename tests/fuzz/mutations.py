"""Mutations of files by their structure: each takes the bytes and a generator, and returns bytes.

A mutation of `RENEWED` writes the checksums of the format anew, so that a reader can only notice
that the content makes no sense; all others leave them as they were.
"""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# A program in a pickle: it would create a file of this name.
TRAP = 'fuzz-code-was-run'
SYSTEM = b'cos\nsystem\n(X' + struct.pack('<I', len(f'touch {TRAP}')) + f'touch {TRAP}'.encode()
SYSTEM += b'tR'


def _place(data: bytes, rng: Random) -> int:
    return int(rng.integers(max(1, len(data))))


# Bytes of any file.


def flip_bit(data: bytes, rng: Random) -> bytes:
    place = _place(data, rng)
    return data[:place] + bytes([data[place] ^ (1 << rng.integers(8))]) + data[place + 1 :]


def flip_early_bit(data: bytes, rng: Random) -> bytes:
    """Most structure is at the start."""
    return flip_bit(data[:200], rng) + data[200:]


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: _place(data, rng)]


def drop(data: bytes, rng: Random) -> bytes:
    place = _place(data, rng)
    return data[:place] + data[place + int(rng.integers(1, 64)) :]


def repeat(data: bytes, rng: Random) -> bytes:
    place, size = _place(data, rng), int(rng.integers(1, 512))
    return data[: place + size] + data[place:]


def zeros(data: bytes, rng: Random) -> bytes:
    place, size = _place(data, rng), int(rng.integers(1, 64))
    return data[:place] + bytes(size) + data[place + size :]


def noise(data: bytes, rng: Random) -> bytes:
    place, size = _place(data, rng), int(rng.integers(1, 16))
    return data[:place] + rng.bytes(size) + data[place + size :]


def insert(data: bytes, rng: Random) -> bytes:
    place = _place(data, rng)
    return data[:place] + rng.bytes(int(rng.integers(1, 32))) + data[place:]


def number(data: bytes, rng: Random) -> bytes:
    """Puts a number of two, four or eight bytes somewhere."""
    place, form = _place(data, rng), rng.choice(['<H', '>H', '<I', '>I', '<Q', '>Q'])
    found = struct.pack(form, int(rng.choice(NUMBERS)) % (1 << 8 * struct.calcsize(form)))
    return data[:place] + found + data[place + len(found) :]


def empty(data: bytes, rng: Random) -> bytes:
    return b''


def pointer(data: bytes, rng: Random) -> bytes:
    """What lies in a clone without Git LFS."""
    return (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 123456\n'
    )


# JSON.

DEEP = 100_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2.5, -0.0, float('nan'), float('inf'), 10**9, 10**30, 1e-300),
    *('', 'x', '\ud800', 'a' * 10_000, '../../x', '\x1b[2J', [], {}, [[]], [1, 2], {'a': 1}),
)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a tree."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                left.append(node[key])
    return found


def json_value(data: bytes, rng: Random) -> bytes:
    """Replaces, deletes or renames a value, or puts a deep one in its place."""
    tree = json.loads(data)
    places = _places(tree) if isinstance(tree, dict | list) else []
    if not places:
        return json.dumps(VALUES[rng.integers(len(VALUES))]).encode()
    node, key = places[rng.integers(len(places))]
    action = rng.integers(12)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[f'{key}_'] = node.pop(key)
    elif action == 2:
        node[key] = 'DEEP'
        opened = '[' if rng.integers(2) else '{"a":'
        return json.dumps(tree).encode().replace(b'"DEEP"', (opened * DEEP).encode())
    elif action == 3:
        node[key] = [node[key]] * 3
    elif action == 4 and isinstance(node[key], int | float):
        node[key] = node[key] * int(rng.choice([-1, 2, 10, 1000, 10**6]))
    else:
        node[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(tree).encode()


def jsonl_line(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines()
    i = rng.integers(len(lines))
    kind = rng.integers(4)
    if kind == 0:
        lines[i] = json.dumps(VALUES[rng.integers(len(VALUES))]).encode()
    elif kind == 1:
        lines[i] = b'[' * DEEP
    else:
        lines[i] = json_value(lines[i], rng)
    return b'\n'.join(lines)


# Zip archives, and what lies in them.

LOCAL, CENTRAL, END = b'PK\x03\x04', b'PK\x01\x02', b'PK\x05\x06'
FIELDS = {  # offset and format of each field of a record
    LOCAL: ((4, 'H'), (6, 'H'), (8, 'H'), (14, 'I'), (18, 'I'), (22, 'I'), (26, 'H'), (28, 'H')),
    CENTRAL: (
        *((4, 'H'), (6, 'H'), (8, 'H'), (10, 'H'), (16, 'I'), (20, 'I'), (24, 'I'), (28, 'H')),
        *((30, 'H'), (32, 'H'), (34, 'H'), (42, 'I')),
    ),
    END: ((4, 'H'), (6, 'H'), (8, 'H'), (10, 'H'), (12, 'I'), (16, 'I'), (20, 'H')),
}


def zip_field(data: bytes, rng: Random) -> bytes:
    """Changes a field of a record: flags, method, sizes, offsets, lengths."""
    kind = (LOCAL, CENTRAL, END)[rng.integers(3)]
    starts, place = [], data.find(kind)
    while place >= 0:
        starts.append(place)
        place = data.find(kind, place + 1)
    if not starts:
        return flip_bit(data, rng)
    offset, form = FIELDS[kind][rng.integers(len(FIELDS[kind]))]
    at = starts[rng.integers(len(starts))] + offset
    value = int(rng.choice(NUMBERS)) % (1 << 8 * struct.calcsize(form))
    new = struct.pack(f'<{form}', value)
    return data[:at] + new + data[at + len(new) :]


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def zip_entry(data: bytes, rng: Random) -> bytes:
    """Leaves out, renames, doubles, deflates or damages an entry; the checksums are right."""
    entries = list(_entries(data).items())
    i, method = rng.integers(len(entries)), zipfile.ZIP_STORED
    name, content = entries[i]
    match rng.integers(6):
        case 0:
            del entries[i]
        case 1:
            entries[i] = (str(rng.choice(['x', '../x', '/x', 'a\nb'])), content)
        case 2:
            entries.append((f'{name}.2', content))
        case 3:
            method = zipfile.ZIP_DEFLATED
        case 4:  # a bomb: deflated zeros
            entries[i], method = (name, content + bytes(50_000_000)), zipfile.ZIP_DEFLATED
        case _:
            entries[i] = (name, BYTES[rng.integers(len(BYTES))](content, rng))
    return _zipped(entries, method)


def npy_header(data: bytes, rng: Random) -> bytes:
    """Changes type, order or shape of an array in an npz, or of an npy file."""
    if data[:2] != b'PK':
        return _npy_header(data, rng)
    entries = list(_entries(data).items())
    i = rng.integers(len(entries))
    entries[i] = entries[i][0], _npy_header(entries[i][1], rng)
    return _zipped(entries)


TYPES = ('|S0', '<U0', '|O', '<f8', '<f4', '>f4', '<f2', '<i4', '<c16', '|V8', '|b1', '<M8[D]', 'x')


def _npy_header(data: bytes, rng: Random) -> bytes:
    (length,) = struct.unpack('<H', data[8:10])
    text, content = data[10 : 10 + length].decode('latin-1'), data[10 + length :]
    about = {'descr': '<f4', 'fortran_order': False, 'shape': ()} | _literal(text)
    shape = about['shape']
    match rng.integers(8):
        case 0:
            about['descr'] = TYPES[rng.integers(len(TYPES))]
        case 1:
            about['shape'] = ((-1,), (10**12,), (2**63,), (0,), (), shape * 40)[rng.integers(6)]
        case 2:
            about['shape'] = shape[::-1]
        case 3:
            about['shape'] = (*shape[:-1], max(0, (*shape, 1)[-1] - 1))
        case 4:
            about['fortran_order'] = True
        case 5:
            text = '(' * 5_000
        case 6:
            return data[:8] + struct.pack('<H', length ^ (1 << rng.integers(10))) + data[10:]
        case _:
            del about[rng.choice(list(about))]
    text = text if text.startswith('((') else f'{about}\n'
    return data[:8] + struct.pack('<H', len(text)) + text.encode('latin-1') + content


def _literal(text: str) -> dict[str, Any]:
    import ast

    return ast.literal_eval(text.strip())


def pickle_program(data: bytes, rng: Random) -> bytes:
    """Changes an instruction of the pickle in a torch file, or puts a program into it."""
    if data[:2] != b'PK':
        return _pickle_program(data, rng)
    entries = [
        (name, _pickle_program(content, rng) if name.endswith('.pkl') else content)
        for name, content in _entries(data).items()
    ]
    return _zipped(entries)


def _pickle_program(data: bytes, rng: Random) -> bytes:
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except ValueError:
        return flip_bit(data, rng)
    i = int(rng.integers(1, len(places)))
    start, end = [*places, len(data)][i : i + 2]
    match rng.integers(8):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:end] + data[start:]
        case 2:
            return data[:start] + SYSTEM + data[start:]
        case 3:
            return data[:start] + SYSTEM + data[end:]
        case 4:
            return data[:start] + rng.bytes(1) + data[start + 1 :]
        case 5:  # 40 levels of two equal children
            return data[:start] + b')' + b'q\xfah\xfa\x86' * 40 + data[end:]
        case 6:
            number = b'\x8a\x08' + struct.pack('<q', int(rng.choice([-1, 0, 7, 2**40, 2**62])))
            return data[:start] + number + data[end:]
        case _:
            text = b'no such name \x1b[2J'
            return data[:start] + b'X' + struct.pack('<I', len(text)) + text + data[end:]


# Other containers.


def safetensors_header(data: bytes, rng: Random) -> bytes:
    """Changes the JSON header, with the length that fits it or another."""
    (length,) = struct.unpack('<Q', data[:8])
    header, content = data[8 : 8 + length], data[8 + length :]
    if rng.integers(4) == 0:
        return struct.pack('<Q', int(rng.choice(NUMBERS))) + header + content
    header = json_value(header, rng)
    return struct.pack('<Q', len(header)) + header + content


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while data[place] & 0x80:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1


def _as_varint(value: int) -> bytes:
    out = b''
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def protobuf_field(data: bytes, rng: Random) -> bytes:
    """Leaves out, doubles, damages or mislabels a field of length-delimited fields."""
    fields, place = [], 0
    while place < len(data):
        tag, at = _varint(data, place)
        size, at = _varint(data, at)
        fields.append((tag, data[at : at + size]))
        place = at + size
    i = rng.integers(len(fields))
    tag, content = fields[i]
    match rng.integers(5):
        case 0:
            del fields[i]
        case 1:
            fields.insert(i, fields[i])
        case 2:
            fields[i] = tag, BYTES[rng.integers(len(BYTES))](content or b'x', rng)
        case 3:
            fields[i] = int(rng.integers(1, 64)) << 3 | 2, content
        case _:
            damaged = [_as_varint(t) + _as_varint(len(c)) + c for t, c in fields]
            damaged[i] = _as_varint(tag) + _as_varint(int(rng.choice(NUMBERS))) + content
            return b''.join(damaged)
    return b''.join(_as_varint(t) + _as_varint(len(c)) + c for t, c in fields)


TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))


def tar_header(data: bytes, rng: Random) -> bytes:
    """Changes a field of a header, with a checksum that fits it."""
    headers = [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b'ustar']
    start = headers[rng.integers(len(headers))]
    header = bytearray(data[start : start + 512])
    offset, size = TAR_FIELDS[rng.integers(len(TAR_FIELDS))]
    values = (b'', b'7' * size, b'\xff' * size, b'\x80' + b'\0' * 6 + b'\x7f', b'x', b'-1', b'5')
    value = (values[rng.integers(len(values))] + bytes(size))[:size]
    header[offset : offset + size] = value
    header[148:156] = b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


def jpeg_segment(data: bytes, rng: Random) -> bytes:
    """Changes marker, length or content of a segment before the scan, such as height and width."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (size,) = struct.unpack('>H', data[place + 2 : place + 4])
        segments.append((place, size))
        place += 2 + size
    start, size = segments[rng.integers(len(segments))]
    match rng.integers(5):
        case 0:
            return data[:start] + data[start + 2 + size :]
        case 1:
            return data[: start + 1] + rng.bytes(1) + data[start + 2 :]
        case 2:
            length = struct.pack('>H', int(rng.choice(NUMBERS)) & 0xFFFF)
            return data[: start + 2] + length + data[start + 4 :]
        case 3:
            frame = next(s for s, _ in segments if data[s + 1] in (0xC0, 0xC2))
            sizes = struct.pack('>HH', *(int(rng.choice(NUMBERS)) & 0xFFFF for _ in range(2)))
            return data[: frame + 5] + sizes + data[frame + 9 :]
        case _:
            inside = start + 4 + int(rng.integers(max(1, size - 2)))
            return data[:inside] + rng.bytes(1) + data[inside + 1 :]


def png_chunk(data: bytes, rng: Random) -> bytes:
    """Changes, leaves out, doubles or inserts a chunk; checksums are right."""
    chunks, place = [], 8
    while place < len(data):
        (size,) = struct.unpack('>I', data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    i = rng.integers(len(chunks))
    kind, content = chunks[i]
    match rng.integers(6):
        case 0:
            del chunks[i]
        case 1:
            chunks.insert(i, chunks[i])
        case 2:
            chunks[i] = kind, BYTES[rng.integers(len(BYTES))](content or b'x', rng)
        case 3:
            sizes = struct.pack('>II', *(int(rng.choice(NUMBERS)) for _ in range(2)))
            chunks[0] = b'IHDR', sizes + chunks[0][1][8:]
        case 4:
            kinds = bytes([int(rng.choice([0, 1, 3, 8, 16])), int(rng.choice([0, 2, 3, 4, 5, 6]))])
            chunks[0] = b'IHDR', chunks[0][1][:8] + kinds + chunks[0][1][10:]
        case _:
            bomb = zlib.compress(bytes(20_000_000))
            more = [(b'zTXt', b'x\0\0' + bomb), (b'iCCP', b'x\0\0' + bomb), (b'IDAT', bomb)]
            chunks.insert(1, more[rng.integers(3)])
    out = data[:8]
    for kind, content in chunks:
        out += struct.pack('>I', len(content)) + kind + content
        out += struct.pack('>I', zlib.crc32(kind + content))
    return out


def parquet_footer(data: bytes, rng: Random) -> bytes:
    """Damages the footer, or says that it has another length."""
    (size,) = struct.unpack('<I', data[-8:-4])
    if rng.integers(3) == 0:
        return data[:-8] + struct.pack('<I', int(rng.choice(NUMBERS))) + data[-4:]
    start = len(data) - 8 - size
    return data[:start] + BYTES[rng.integers(4)](data[start:-8], rng) + data[-8:]


def text_line(data: bytes, rng: Random) -> bytes:
    """Changes a line of a table."""
    lines = data.split(b'\n')
    i = rng.integers(len(lines))
    texts = (
        *(b'', b'"', b'\0', b'\xff\xfe', b',' * 1000, b'/dev/zero,x,1', b'"a\nb', b'\xe9,\xe9,1'),
        *(b'zip://x::file:///etc/passwd,x,1', lines[i] * 2, b'x' * 200_000),
    )
    lines[i] = texts[rng.integers(len(texts))]
    return b'\n'.join(lines)


BYTES: tuple[Mutation, ...] = (
    flip_bit,
    drop,
    noise,
    zeros,
    flip_early_bit,
    truncate,
    repeat,
    insert,
    number,
    empty,
    pointer,
)
STRUCTURES: dict[str, tuple[Mutation, ...]] = {
    'zip': (zip_field, zip_entry),
    'torch': (zip_field, zip_entry, pickle_program, pickle_program),
    'legacy': (pickle_program,),
    'npz': (zip_field, zip_entry, npy_header, npy_header),
    'npy': (npy_header,),
    'safetensors': (safetensors_header,),
    'json': (json_value, json_value, json_value),
    'jsonl': (jsonl_line, jsonl_line),
    'sentencepiece': (protobuf_field, protobuf_field),
    'tar': (tar_header,),
    'jpeg': (jpeg_segment,),
    'png': (png_chunk,),
    'parquet': (parquet_footer,),
    'text': (text_line, text_line),
    'bytes': (),
}
RENEWED = {
    *(zip_entry, npy_header, pickle_program, safetensors_header, protobuf_field, tar_header),
    *(png_chunk, json_value, jsonl_line, text_line, jpeg_segment),
}


def mutate(data: bytes, structure: str, rng: Random) -> tuple[Mutation, bytes]:
    """Chooses a mutation, half of the time by structure: returns it and the changed bytes."""
    own = STRUCTURES[structure]
    choices = own if own and rng.integers(2) else BYTES
    mutation = choices[rng.integers(len(choices))]
    return mutation, mutation(data, rng)
