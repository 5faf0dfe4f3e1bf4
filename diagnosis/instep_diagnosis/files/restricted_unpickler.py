"""Pickles from strangers: the one reader, which knows plain values and nothing else.

It is no subclass of the standard one: that allocates what a pickle declares, and calls what it names. This one carries
out the opcodes that plain dictionaries, lists, tuples, sets of words and numbers are made of, refuses every other, and
holds no more than the bytes it was given can fill.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

OPERATIONS_MAX = 20_000_000
"""About 60 dumps of the recorder's default size."""
NUMBER_BYTES_MAX = 16
"""Of one integer."""

Plain = object


class RefusedPickle(ValueError):
    """The bytes are no pickle of plain values. The message says why, to follow a colon."""


_MARK = object()


class _Reader:
    """A pickle machine without a way to name, call or build anything."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Plain] = []
        self.memo: dict[int, Plain] = {}

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            there = len(self.data) - self.at
            raise RefusedPickle(f"it ends early: {count} bytes are announced at {self.at}, {there} are there")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        return int(struct.unpack(form, self.take(size))[0])

    def pop(self) -> Plain:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedPickle("it takes more values than it made")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Plain]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise RefusedPickle("a mark is missing")

    def text(self, size: int) -> None:
        self.stack.append(self.take(size).decode("utf-8", errors="replace"))

    def put(self, index: int) -> None:
        if not self.stack:
            raise RefusedPickle("it remembers a value that it did not make")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedPickle("it recalls a value that it did not make")
        self.stack.append(self.memo[index])

    def long(self, size: int) -> None:
        if size > NUMBER_BYTES_MAX:
            raise RefusedPickle(f"it holds a number of {size} bytes, at most {NUMBER_BYTES_MAX} are read")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def append(self, values: list[Plain]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise RefusedPickle("it appends to something that is no list")
        target.extend(values)

    def set_items(self, values: list[Plain]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(values) % 2:
            raise RefusedPickle("it sets items of something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise RefusedPickle("a key is neither a word nor a number")
            target[key] = value

    def pair(self) -> list[Plain]:
        value, key = self.pop(), self.pop()
        return [key, value]


_Step = Callable[[_Reader], None]
_STEPS: dict[int, _Step] = {
    0x80: lambda r: _ignore(r.take(1)),  # PROTO
    0x95: lambda r: _ignore(r.take(8)),  # FRAME
    ord("("): lambda r: r.stack.append(_MARK),
    ord("0"): lambda r: _ignore(r.pop()),
    ord("N"): lambda r: r.stack.append(None),
    0x88: lambda r: r.stack.append(True),
    0x89: lambda r: r.stack.append(False),
    ord("J"): lambda r: r.stack.append(r.number("<i")),
    ord("K"): lambda r: r.stack.append(r.number("<B")),
    ord("M"): lambda r: r.stack.append(r.number("<H")),
    0x8A: lambda r: r.long(r.number("<B")),
    0x8B: lambda r: r.long(r.number("<I")),
    ord("G"): lambda r: r.stack.append(struct.unpack(">d", r.take(8))[0]),
    ord("X"): lambda r: r.text(r.number("<I")),
    0x8C: lambda r: r.text(r.number("<B")),
    0x8D: lambda r: r.text(r.number("<Q")),
    ord("]"): lambda r: r.stack.append([]),
    ord("}"): lambda r: r.stack.append({}),
    ord(")"): lambda r: r.stack.append(()),
    ord("t"): lambda r: r.stack.append(tuple(r.pop_to_mark())),
    ord("l"): lambda r: r.stack.append(r.pop_to_mark()),
    0x85: lambda r: r.tuple(1),
    0x86: lambda r: r.tuple(2),
    0x87: lambda r: r.tuple(3),
    ord("a"): lambda r: r.append([r.pop()]),
    ord("e"): lambda r: r.append(r.pop_to_mark()),
    ord("s"): lambda r: r.set_items(r.pair()),
    ord("u"): lambda r: r.set_items(r.pop_to_mark()),
    ord("q"): lambda r: r.put(r.number("<B")),
    ord("r"): lambda r: r.put(r.number("<I")),
    0x94: lambda r: r.put(len(r.memo)),
    ord("h"): lambda r: r.get(r.number("<B")),
    ord("j"): lambda r: r.get(r.number("<I")),
}


def _ignore(value: Plain) -> None:
    del value


def load_plain(data: bytes) -> Plain:
    """The plain value in a pickle. Raises `RefusedPickle` for anything else; nothing in it is ever carried out.

    >>> load_plain(b"\\x80\\x02}q\\x00X\\x01\\x00\\x00\\x00aq\\x01K\\x07s.")
    {'a': 7}
    >>> load_plain(b"\\x80\\x02cos\\nsystem\\n.")
    Traceback (most recent call last):
    ...
    instep_diagnosis.files.restricted_unpickler.RefusedPickle: it holds opcode 0x63, which no plain value needs
    """
    reader = _Reader(data)
    for _ in range(OPERATIONS_MAX):
        code = reader.take(1)[0]
        if code == ord("."):
            return reader.pop()
        step = _STEPS.get(code)
        if step is None:
            raise RefusedPickle(f"it holds opcode 0x{code:02x}, which no plain value needs")
        step(reader)
    raise RefusedPickle(f"it has more than {OPERATIONS_MAX} operations")
