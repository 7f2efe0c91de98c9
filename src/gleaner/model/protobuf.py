"""A strict reader of protobuf's wire format, without the library.

Readers differ in what they make of an unknown field, a repeated one or one of another type. This one refuses all
three, so that no other reader finds anything that it did not.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_VARINT, _BYTES = 0, 2
_LONGEST_VARINT = 10


class Field(NamedTuple):
    """A field that a message may have.

    kind: a whole number, bytes, or "numbers": any number of whole numbers in one unbroken run.
    most: the most times that the field may occur.
    """

    kind: Literal["number", "bytes", "numbers"]
    most: int = 1


Fields = Mapping[int, Field]
Message = Mapping[int, list[memoryview]]


def read(message: bytes | memoryview, fields: Fields) -> Message:
    """Return the contents of each field of a message, in their order.

    Every field of `fields` has a list, which may be empty. The content of a whole number is its varint; that of a
    run is the whole run, for `integers`.
    Raises ValueError for any other field, and for bytes that are no message.
    """
    view, found = memoryview(message), {number: list[memoryview]() for number in fields}
    for number, content in _members(view, fields):
        if len(found[number]) == fields[number].most:
            raise ValueError(f"field {number} stands there more than {fields[number].most:,} times")
        found[number].append(content)
    return found


def integer(varint: memoryview) -> int:
    """Return the whole number in a field's content."""
    return _varint(varint, 0)[0]


def integers(run: memoryview) -> NDArray[np.int64]:
    """Return the whole numbers of a run, shape (n,)."""
    digits = np.frombuffer(run, np.uint8)
    ends = np.flatnonzero(digits < 0x80)  # of a tag, of its number, of a tag, ...
    starts, ends = ends[0::2] + 1, ends[1::2]
    numbers = np.zeros(len(starts), np.uint64)
    lengths = ends - starts + 1
    for place in range(int(lengths.max(initial=0))):
        there = lengths > place
        digit = (digits[starts[there] + place] & 0x7F).astype(np.uint64)
        numbers[there] |= digit << np.uint64(7 * place)
    return numbers.view(np.int64)


def _members(view: memoryview, fields: Fields) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        field, wire = fields.get(tag >> 3), tag & 7
        if field is None or wire != (_BYTES if field.kind == "bytes" else _VARINT):
            raise ValueError(f"field {tag >> 3} of type {wire}, which no export contains")
        if field.kind == "numbers":
            at = _end_of_run(view, start, tag)
        elif wire == _VARINT:
            start = at
            _, at = _varint(view, at)
        else:
            size, start = _varint(view, at)
            at = start + size
        if at > len(view):
            raise ValueError("it ends too early")
        yield tag >> 3, view[start:at]


def _end_of_run(view: memoryview, start: int, tag: int) -> int:
    """Return the end of the run of one field's whole numbers.

    numpy reads two million of them in the time in which Python reads a few thousand.
    """
    digits = np.frombuffer(view[start:], np.uint8)
    ends = np.flatnonzero(digits < 0x80)
    ends = ends[: len(ends) // 2 * 2]
    tags, lasts = ends[0::2], ends[1::2]
    firsts = np.concatenate([[0], lasts[:-1] + 1])[: len(tags)]
    same = (tags == firsts) & (digits[tags] == tag) & (lasts - tags <= _LONGEST_VARINT)
    count = len(same) if same.all() else int(same.argmin())
    if not count:
        raise ValueError("a whole number that does not end")
    return start + int(lasts[count - 1]) + 1


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in view[at : at + _LONGEST_VARINT]:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a whole number that does not end")
