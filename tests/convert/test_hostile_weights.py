"""Damaged and hostile weights: one line that names the file, soon and in little memory."""

import functools
import json
import resource
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import torch_writer as torch
from support.layouts import edit, equal, written
from support.small_models import made

from clip_jax import convert
from clip_jax.convert import _pickle, _torch_file, big_vision, huggingface, open_clip
from clip_jax.runtime import foreign_arrays

SECONDS, MEMORY = 3.0, 64 << 20  # far above what a refusal takes, far below what it took


def refused(path, message: str, read=convert.read) -> None:
    """Asserts that a file is refused in one line that names it, soon and in little memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=message) as raised:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS and peak < MEMORY
    assert str(path) in str(raised.value) and '\n' not in str(raised.value)
    assert len(str(raised.value)) < 2000


# Archives of NumPy.


def with_header(tmp_path, name: str, header: bytes):
    """A checkpoint of big_vision with another header of one array, which gets a right checksum."""
    path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
        archive.writestr(name + '.npy', header)
    return path


def npy(header: str, data: bytes = b'') -> bytes:
    text = header.encode().ljust(118) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


STACKED = 'params/img/Transformer/encoderblock/x'
HEADERS = {
    'a billion blocks': (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 4)}"), ''),
    'blocks of nothing': (
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 0)}"),
        r'expected a leading axis of at most 1,000 blocks',
    ),
    'blocks without axes': (
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", bytes(4)),
        'expected a leading axis',
    ),
    'more than the file': (
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4)}"),
        'does not fit',
    ),
    'a negative size': (
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        'damaged',
    ),
    'numbers of no size': (npy("{'descr': '|S0', 'fortran_order': False, 'shape': (-1,)}"), ''),
    'no Python': (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,"), ''),
    'an odd character': (npy("{'descr': '<f4', 'fortran_order': Fal$e, 'shape': (1,)}"), ''),
    'brackets': (npy('[' * 5000), ''),
    'nothing': (b'', ''),
    'no array': (b'text', ''),
}


@pytest.mark.parametrize('kind', HEADERS)
def test_a_header_of_numpy_that_is_wrong(tmp_path, kind):
    header, message = HEADERS[kind]
    refused(with_header(tmp_path, STACKED, header), message or 'damaged .*copy or download')


def test_an_impossible_number_of_positions(tmp_path):
    header = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1000000000000, 32)}")
    path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    entries['params/img/pos_embedding.npy'] = header
    with zipfile.ZipFile(path, 'w') as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    refused(path, 'damaged .*does not fit')


def flips(content: bytes):
    """The content with bits of each byte flipped, and the place."""
    for i in range(len(content)):
        for bit in (0, 2, 4, 7):
            changed = bytearray(content)
            changed[i] ^= 1 << bit
            yield i, bytes(changed)


def outcome(read) -> list | str:
    """The numbers that a file holds, or the error."""
    try:
        return [array.read().tolist() for array in read().values()]
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize('kind', ['npz', 'torch'])
def test_no_flipped_bit_of_an_archive_changes_a_number(tmp_path, kind):
    path, numbers = tmp_path / 'x.npz', np.arange(6, dtype=np.float32).reshape(2, 3)
    if kind == 'npz':
        np.savez(path, numbers)
        read = functools.partial(foreign_arrays.open_npz, path)
    else:
        storages = torch.Storages()
        torch.write_zip(path, {'w': storages.tensor(numbers)}, storages)
        read = lambda: _torch_file.state_dict(path)[0]  # noqa: E731
    found = 0
    for i, content in flips(path.read_bytes()):
        path.write_bytes(content)
        if (result := outcome(read)) != [numbers.tolist()]:
            assert result and result[0] and str(path) in result, i
            found += 1
    assert found > 500  # the others are names, times and notes


def zip_field(content: bytes, record: bytes, offset: int, value: int) -> bytes:
    """Sets a 16-bit field of every record of a zip archive that begins so."""
    changed, place = bytearray(content), content.find(record)
    while place >= 0:
        struct.pack_into('<H', changed, place + offset, value)
        place = content.find(record, place + 1)
    return bytes(changed)


DIRECTORY, LOCAL = b'PK\x01\x02', b'PK\x03\x04'
ARCHIVES = {
    'encrypted': lambda x: zip_field(zip_field(x, DIRECTORY, 8, 1), LOCAL, 6, 1),
    'of a later version': lambda x: zip_field(x, DIRECTORY, 6, 99),
    'of an unknown method': lambda x: zip_field(zip_field(x, DIRECTORY, 10, 97), LOCAL, 8, 97),
    'a damaged directory': lambda x: x.replace(DIRECTORY, b'PK\x01\x03', 1),
    'without its end': lambda x: x[:-30],
}


@pytest.mark.parametrize('layout', ['torch', 'big_vision'])
@pytest.mark.parametrize('kind', ARCHIVES)
def test_a_damaged_archive(tmp_path, layout, kind):
    if layout == 'torch':
        storages, path = torch.Storages(), tmp_path / 'x.pt'
        arrays = {'visual.conv1.weight': np.zeros(3, np.float32)}
        torch.write_zip(path, torch.state_dict(arrays, storages), storages)
    else:
        path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    path.write_bytes(ARCHIVES[kind](path.read_bytes()))
    refused(path, r'damaged .*copy or download|is compressed, which torch never does')


def test_zeros_that_expand_to_much_memory(tmp_path):
    path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    zeros = np.zeros((1, 200 << 20), np.int8)
    arrays = {**np.load(path), 'params/txt/Embed_0/embedding': zeros}
    np.savez_compressed(path, **arrays)
    del arrays, zeros
    assert path.stat().st_size < 1 << 20
    refused(path, 'compressed as no weights are: .* bytes expand to')


def test_numbers_that_are_none_are_named_and_counted(tmp_path):
    path = written(tmp_path, 'open_clip', 'resnet')
    arrays = load_file(path / open_clip.SAFETENSORS)
    arrays['visual.layer1.0.conv1.weight'][0, 0, 0] = np.nan
    arrays['ln_final.bias'][:2] = np.inf
    save_file(arrays, path / open_clip.SAFETENSORS)
    message = r'1 of 16 in visual\.layer1\.0\.conv1\.weight, 2 of 64 in ln_final\.bias'
    refused(path, message)


def test_numbers_too_large_for_float32_are_named(tmp_path):
    path = written(tmp_path, 'open_clip', 'clip')
    arrays = load_file(path / open_clip.SAFETENSORS)
    arrays['logit_scale'] = np.array(1e300)
    save_file(arrays, path / open_clip.SAFETENSORS)
    refused(path, '1 of 1 in logit_scale')


# Pickles of torch whose containers share containers: 40 levels are 2^40 paths.


def shared(leaf: bytes, kind: bytes = b'\x86') -> bytes:
    """Instructions for pairs of pairs …, each of them twice the one below."""
    return leaf + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + kind for i in range(40))


def modules() -> torch.Raw:
    """40 modules, each the attributes a and b of the one above."""
    code = torch.module('M', {'x': 1})
    opened = b''
    for i in range(40):
        # The one below is made first, as the value of a; then b is the same.
        opened = torch.name('__torch__.made.up', 'M') + b')\x81}(' + torch.value('a') + opened
        code += b'q' + bytes([i]) + torch.value('b') + b'h' + bytes([i]) + b'ub'
    return torch.Raw(opened + code)


def test_modules_that_are_shared(tmp_path):
    storages = torch.Storages()
    path = torch.write_zip(tmp_path / 'x.pt', modules(), storages, script=True)
    refused(path, 'modules are nested too deeply', _torch_file.state_dict)


def test_a_size_of_shared_tuples(tmp_path):
    size = torch.Raw(shared(b')') + b'\x85')
    storages = torch.Storages()
    root = {'x': storages.view(np.zeros(3, np.float32), 0, size, (1,))}
    path = torch.write_zip(tmp_path / 'x.pt', root, storages)
    refused(path, 'impossible view', _torch_file.state_dict)


def legacy(path, protocol=1001, keys=None, root=None):
    parts = [torch.MAGIC, protocol, {'little_endian': True}, root or {}, keys or []]
    path.write_bytes(b''.join(map(torch.pickled, parts)))
    return path


def test_a_protocol_of_shared_tuples(tmp_path):
    path = legacy(tmp_path / 'x.pt', protocol=torch.Raw(shared(b')')))
    refused(path, 'its protocol is another one than 1001', _torch_file.state_dict)


def test_keys_of_storages_that_are_shared_tuples(tmp_path):
    path = legacy(tmp_path / 'x.pt', keys=torch.Raw(b'](' + shared(b')') + b'e'))
    refused(path, 'its list of storages does not match', _torch_file.state_dict)


def test_dictionary_keys_of_shared_tuples_are_not_hashed(tmp_path):
    root = torch.Raw(b'}(' + shared(b')') + b'Nu')
    path = torch.write_zip(tmp_path / 'x.pt', root, torch.Storages())
    refused(path, r'holds no named tensors; found \?', _torch_file.state_dict)


def test_keys_of_storages_that_are_numbers(tmp_path):
    storages = torch.Storages(legacy=True)
    root = {'x': storages.tensor(np.zeros(3, np.float32))}
    path = legacy(tmp_path / 'x.pt', keys=[0], root=root)
    refused(path, 'its list of storages does not match', _torch_file.state_dict)


def test_a_product_of_many_large_sizes(tmp_path):
    size = torch.Raw(torch.value(2**2030) + b'q\x00')
    many = torch.Raw(b'(' + size + b'h\x00' * 49_000 + b't')
    storages = torch.Storages()
    root = {'x': storages.view(np.zeros(3, np.float32), 0, many, many)}
    refused(
        torch.write_zip(tmp_path / 'x.pt', root, storages), '49001 sizes', _torch_file.state_dict
    )


def test_many_views_of_one_storage(tmp_path):
    storages = torch.Storages()
    numbers = np.zeros(1 << 18, np.float32)
    storage = storages.storage(numbers)
    rebuild = torch.name('torch._utils', '_rebuild_tensor_v2')
    root = {
        f'x{i}': torch.call(rebuild, storage, 0, (1 << 18,), (1,), False, torch.ORDERED_DICT)
        for i in range(100)
    }
    path = torch.write_zip(tmp_path / 'x.pt', root, storages)
    refused(path, 'its tensors share storages: they are 104,857,600', _torch_file.state_dict)


def test_views_of_one_storage_are_read_once_and_do_not_keep_it(tmp_path):
    storages = torch.Storages()
    storage = storages.storage(np.arange(1 << 20, dtype=np.float32))
    rebuild = torch.name('torch._utils', '_rebuild_tensor_v2')
    root = {
        f'x{i}': torch.call(rebuild, storage, i, (1024,), (1,), False, torch.ORDERED_DICT)
        for i in range(50)
    }
    path = torch.write_zip(tmp_path / 'x.pt', root, storages)
    arrays, _ = _torch_file.state_dict(path)
    tracemalloc.start()
    values = {name: array.read() for name, array in arrays.items()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values['x7'][0] == 7 and peak < 20 << 20


AMPLIFIED = {
    'names of a shared text': (
        b'](X\xff\xff\0\0' + b'a' * 0xFFFF + b'q\0' + b'h\0h\0\x93' * 10_000 + b'e',
        'a name has no end',
    ),
    'attributes of many objects': (
        b'](}('
        + b''.join(torch.value(f'a{i}') + b'N' for i in range(10_000))
        + b'uq\0'
        + (torch.name('__torch__.x', 'M') + b')\x81h\0b') * 1_000
        + b'e',
        'more values than files of tensors',
    ),
    'many steps': (b'N0' * 60_000 + b'N', 'more values than files of tensors'),
    'a number of many bytes': (b'\x8b\0\0\x10\0' + bytes(1 << 20), 'impossible size'),
}


@pytest.mark.parametrize('kind', AMPLIFIED)
def test_a_small_program_that_makes_much(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_pickle, 'MOST_STEPS', 100_000)
    code, message = AMPLIFIED[kind]
    path = torch.write_zip(tmp_path / 'x.pt', torch.Raw(code), torch.Storages())
    refused(path, message, _torch_file.state_dict)


# Configs that ask for more than the weights hold.


BOTH = {'open_clip': ('vision_cfg', 'text_cfg'), 'huggingface': ('vision_config', 'text_config')}
SIZES = {
    'open_clip': [
        (0, 'layers', 10**9),
        (0, 'layers', 10_000),
        (0, 'image_size', 10**9),
        (0, 'width', 10**6),
        (1, 'width', 20_000),
        (1, 'vocab_size', 10**12),
        (1, 'vocab_size', 0),
        (1, 'context_length', 10**9),
        (1, 'mlp_ratio', 1e300),
        (0, 'ls_init_value', float('nan')),
        (0, 'norm_kwargs', {'eps': float('nan')}),
    ],
    'huggingface': [
        (0, 'num_hidden_layers', 10**9),
        (1, 'num_hidden_layers', 10_000),
        (0, 'image_size', 10**9),
        (0, 'intermediate_size', 10**10),
        (0, 'hidden_size', 20_000),
        (1, 'vocab_size', 10**12),
        (1, 'vocab_size', 0),
        (1, 'max_position_embeddings', -1),
        (1, 'layer_norm_eps', float('nan')),
        (0, 'layer_norm_eps', -1.0),
        (0, 'layer_norm_eps', 0.0),
        (0, 'layer_norm_eps', 1e300),
        (0, 'num_attention_heads', True),
    ],
}


@pytest.mark.parametrize(
    ('layout', 'part', 'key', 'value'),
    [(layout, *rest) for layout, entries in SIZES.items() for rest in entries],
)
def test_a_config_that_asks_for_what_is_not_there(tmp_path, layout, part, key, value):
    path = written(tmp_path, layout, 'clip')
    config = path / {'open_clip': open_clip.CONFIG, 'huggingface': huggingface.CONFIG}[layout]
    section = BOTH[layout][part]
    edit(config, lambda c: c.get('model_cfg', c)[section].update({key: value}))
    refused(path, str(path))


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface'])
def test_a_config_of_brackets(tmp_path, layout):
    path = written(tmp_path, layout, 'clip')
    config = path / {'open_clip': open_clip.CONFIG, 'huggingface': huggingface.CONFIG}[layout]
    config.write_text('{"model_type": ' + '[' * 100_000)
    refused(path, 'nested too deeply')


def test_an_index_that_names_itself(tmp_path):
    path = written(tmp_path, 'huggingface', 'clip')
    (path / huggingface.SAFETENSORS).unlink()
    name = 'model.safetensors.index.json'
    (path / name).write_text(json.dumps({'weight_map': {'x': name}}))
    refused(path, 'an index, among the files of weights')


# Export.


def test_what_a_killed_convert_left_is_cleared_by_the_next(tmp_path):
    (tmp_path / 'x.0123abcd.partial').mkdir()
    (tmp_path / 'x.0123abcd.partial' / 'half').write_bytes(bytes(100))
    convert.write(tmp_path / 'x', 'open_clip', *made('clip'))
    assert [p.name for p in tmp_path.iterdir()] == ['x']
    assert not (tmp_path / 'x' / 'half').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files')
@pytest.mark.parametrize('layout', ['open_clip', 'big_vision'])
def test_a_full_disk_is_one_line(tmp_path, layout):
    source = written(tmp_path, 'huggingface', 'siglip' if layout == 'big_vision' else 'clip')
    card, variables = convert.read(source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal of a file that is too large: the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises((ValueError, OSError), match=r'(?i)too large') as raised:
            convert.write(tmp_path / 'y', layout, card, variables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert '\n' not in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x']


def test_what_is_not_damaged_is_read_as_before(tmp_path):
    for layout, name in (
        ('open_clip', 'clip'),
        ('huggingface', 'siglip'),
        ('big_vision', 'siglip'),
    ):
        (tmp_path / layout).mkdir()
        path = written(tmp_path / layout, layout, name)
        assert equal(convert.read(path)[1], made(name)[1])
