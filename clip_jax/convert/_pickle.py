"""A safe unpickler for torch files: nothing in them is imported, called or executed.

A pickle is a program for a stack machine; Python's unpickler imports and calls what it names. This
one implements only the opcodes that occur in torch files. Names stay names, the caller decides what
a call of a name returns, and objects of other classes are `Inert`.
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

MOST_ON_STACK = 100_000
MOST_MARKS = 100  # maximum nesting of containers
LONGEST_NAME = 1_000
MOST_STEPS = 3_000_000  # of the program, and attributes that are set: a few seconds
_LONGEST_NUMBER = 1_000  # bytes


class Name(str):
    """A class or function that a file names, as 'module name'; it is never imported."""


class Inert:
    """What stands for an object of a class that is not imported, or for what a call returns.

    Attributes:
        name: the class or function, as 'module name'.
    """

    __slots__ = ('name',)

    def __init__(self, name: str):
        self.name = name


class Instance:
    """An object of a TorchScript class, reduced to its attributes."""

    __slots__ = ('attributes',)

    def __init__(self):
        self.attributes: dict[str, Any] = {}


def load(
    file: BinaryIO,
    end: int,
    *,
    call: Callable[[Name, tuple], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """Reads one pickle.

    Args:
        file: the file, at the start of the pickle.
        end: the position in the file that the pickle must not exceed.
        call: what a call of a name with arguments stands for.
        persistent: what a persistent id stands for.

    Returns:
        The value: dicts, lists, tuples, strings, bytes, numbers, None, `Instance`s, `Name`s,
        `Inert`s, and what `call` and `persistent` return. Containers may be shared, so that walking
        all paths through them can take forever.

    Raises:
        ValueError: the pickle has an opcode or a value that torch files do not contain.
    """
    return _Machine(file, end, call, persistent).run()


class _Machine:
    def __init__(self, file, end, call, persistent):
        self.file, self.end = file, end
        self.call, self.persistent = call, persistent
        self.steps = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.read(1)) != b'.':
            if code not in _STEPS:
                raise ValueError(f'the opcode {code!r} does not occur in files of tensors')
            _STEPS[code](self)
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise ValueError('it has more values than files of tensors')
            if len(self.stack) > MOST_ON_STACK or len(self.marks) > MOST_MARKS:
                raise ValueError('values are nested too deeply')
        value = self.pop()
        if self.stack or self.marks:
            raise ValueError('values are left on the stack at its end')
        return value

    def read(self, size: int) -> bytes:
        # Checked before reading, since Python allocates the requested size.
        if size > self.end - self.file.tell():
            raise ValueError('it ends in the middle of a value')
        return self.file.read(size)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def size(self, form: str, most: int = 2**31) -> int:
        size = self.number(form)
        if not 0 <= size <= most:
            raise ValueError('a value has an impossible size')
        return size

    def long_number(self) -> int:
        return int.from_bytes(self.read(self.size('<i', _LONGEST_NUMBER)), 'little', signed=True)

    def text(self, form: str) -> str:
        return self.read(self.number(form)).decode('utf-8', 'surrogatepass')

    def line(self) -> str:
        line = self.file.readline(LONGEST_NAME)
        if not line.endswith(b'\n'):
            raise ValueError('a name has no end')
        return line[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, kind: type = object) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError('it pops an empty stack')
        return self.of_kind(self.stack.pop(), kind)

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError('it pops to a mark that was never set')
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def of_kind(self, value: Any, kind: type) -> Any:
        if kind is not object and type(value) is not kind:
            raise ValueError(f'expected a {kind.__name__}, found a {type(value).__name__}')
        return value

    def set_items(self, pairs: list[Any]) -> None:
        target = self.pop()
        if len(pairs) % 2:
            raise ValueError('a key has no value')
        if not isinstance(target, Inert):
            self.of_kind(target, dict)
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                # Others are not hashed: that of shared tuples can take forever.
                plain = type(key) in _KEYS
                target[key if plain else Inert(type(key).__name__)] = value
        self.push(target)

    def extend(self, values: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, Inert):
            self.of_kind(target, list).extend(values)
        self.push(target)

    def put(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.push(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError('it reads a memo entry that was never written')
        self.push(self.memo[index])

    def name(self, module: str, name: str) -> None:
        if len(module) + len(name) > LONGEST_NAME:  # texts may be shared, names are not
            raise ValueError('a name has no end')
        self.push(Name(f'{module} {name}'))

    def reduce(self) -> None:
        arguments, called = self.pop(tuple), self.pop()
        if isinstance(called, Inert):
            self.push(Inert(called.name))
        else:
            self.push(self.call(self.of_kind(called, Name), arguments))

    def new_object(self) -> None:
        arguments, name = self.pop(tuple), self.pop(Name)
        if not is_script_class(name):
            self.push(Inert(name))
        elif arguments:
            raise ValueError(f'it creates an object of {name.replace(" ", ".")} with arguments')
        else:
            self.push(Instance())

    def new_object_of_keywords(self) -> None:
        self.pop()
        self.new_object()

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if isinstance(target, Instance):
            items = self.of_kind(state, dict).items()
            self.steps += len(items)  # they may be shared by many objects
            target.attributes |= {self.of_kind(key, str): x for key, x in items}
        # A dict has torch's version metadata, or what a subclass of it adds.
        elif type(target) not in (dict, Inert):
            raise ValueError(f'it sets attributes of a {type(target).__name__}')
        self.push(target)

    def stack_name(self) -> None:
        name, module = self.pop(str), self.pop(str)
        self.name(module, name)


def is_script_class(name: Name) -> bool:
    """Returns whether a name is that of a TorchScript class."""
    return name.startswith(('__torch__.', '__torch__ '))


_KEYS = (str, int, float, bool, bytes, type(None))
_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b'\x80': lambda m: m.read(1),  # version of the protocol
    b'\x95': lambda m: m.read(8),  # length of a frame
    b'(': lambda m: m.marks.append(len(m.stack)),
    b'N': lambda m: m.push(None),
    b'\x88': lambda m: m.push(True),
    b'\x89': lambda m: m.push(False),
    b'J': lambda m: m.push(m.number('<i')),
    b'K': lambda m: m.push(m.number('<B')),
    b'M': lambda m: m.push(m.number('<H')),
    b'\x8a': lambda m: m.push(int.from_bytes(m.read(m.number('<B')), 'little', signed=True)),
    b'\x8b': lambda m: m.push(m.long_number()),
    b'G': lambda m: m.push(m.number('>d')),
    b'X': lambda m: m.push(m.text('<I')),
    b'\x8c': lambda m: m.push(m.text('<B')),
    b'\x8d': lambda m: m.push(m.text('<Q')),
    b'C': lambda m: m.push(m.read(m.number('<B'))),
    b'B': lambda m: m.push(m.read(m.number('<I'))),
    b'\x8e': lambda m: m.push(m.read(m.number('<Q'))),
    b'\x96': lambda m: m.push(m.read(m.number('<Q'))),
    b'0': lambda m: m.pop(),
    b'1': lambda m: m.pop_to_mark(),
    b'U': lambda m: m.push(m.read(m.number('<B')).decode('latin1')),  # a str of Python 2
    b'T': lambda m: m.push(m.read(m.size('<i')).decode('latin1')),
    b'\x8f': lambda m: m.push([]),  # a set
    b'\x90': lambda m: m.extend(m.pop_to_mark()),
    b'\x91': lambda m: m.push(tuple(m.pop_to_mark())),  # a frozenset
    b'}': lambda m: m.push({}),
    b']': lambda m: m.push([]),
    b')': lambda m: m.push(()),
    b't': lambda m: m.push(tuple(m.pop_to_mark())),
    b'\x85': lambda m: m.push((m.pop(),)),
    b'\x86': lambda m: m.push((m.pop(), m.pop())[::-1]),
    b'\x87': lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
    b's': lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b'u': lambda m: m.set_items(m.pop_to_mark()),
    b'a': lambda m: m.extend([m.pop()]),
    b'e': lambda m: m.extend(m.pop_to_mark()),
    b'q': lambda m: m.put(m.number('<B')),
    b'r': lambda m: m.put(m.number('<I')),
    b'\x94': lambda m: m.put(len(m.memo)),
    b'h': lambda m: m.get(m.number('<B')),
    b'j': lambda m: m.get(m.number('<I')),
    b'c': lambda m: m.name(m.line(), m.line()),
    b'\x93': _Machine.stack_name,
    b'R': _Machine.reduce,
    b'\x81': _Machine.new_object,
    b'\x92': _Machine.new_object_of_keywords,
    b'b': _Machine.build,
    b'Q': lambda m: m.push(m.persistent(m.pop())),
}
