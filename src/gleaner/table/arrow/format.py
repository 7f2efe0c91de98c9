"""The constants of Arrow's streaming format, and FlatBuffers' tables."""

from __future__ import annotations

import struct
from typing import Literal

ARROW = "application/vnd.apache.arrow.stream"

# Message.fbs: MessageHeader. Schema.fbs: Type.
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
NULL, INT, FLOAT, UTF8, BOOL, DATE, TIMESTAMP, LARGE_UTF8, UTF8_VIEW = 1, 2, 3, 5, 6, 8, 10, 20, 24
TYPES = (
    "none", "Null", "Int", "FloatingPoint", "Binary", "Utf8", "Bool", "Decimal", "Date", "Time", "Timestamp",
    "Interval", "List", "Struct", "Union", "FixedSizeBinary", "FixedSizeList", "Map", "Duration", "LargeBinary",
    "LargeUtf8", "LargeList", "RunEndEncoded", "BinaryView", "Utf8View", "ListView", "LargeListView",
)  # fmt: skip
FLOATS = {0: "<f2", 1: "<f4", 2: "<f8"}
PER_SECOND = (1, 1_000, 1_000_000, 1_000_000_000)  # by TimeUnit

# The two layouts of text: where each text ends, or for each text a view of 16 bytes with its size and its place.
TEXTS: dict[int, tuple[Literal["text", "views"], str]] = {
    UTF8: ("text", "<i4"),
    LARGE_UTF8: ("text", "<i8"),
    UTF8_VIEW: ("views", "V16"),
}

LONGEST_NAME = 1_000

V5 = 4

CONTINUES = b"\xff\xff\xff\xff"


class FlatTable:
    """A table of FlatBuffers, whose fields are read by number.

    Source: FlatBuffers, "Internals": a table begins with the position of the list of its fields' offsets.
    """

    __slots__ = ("_at", "_offsets", "_size", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self._at = data, at
        self._offsets = at - unpack("<i", data, at)
        self._size = unpack("<H", data, self._offsets)

    def place(self, field: int) -> int:
        """Return the position of a field; 0 for a missing field."""
        slot = 4 + 2 * field
        offset = unpack("<H", self.data, self._offsets + slot) if slot < self._size else 0
        return self._at + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        """Return a field as `struct` format `kind`; 0 if missing."""
        at = self.place(field)
        return unpack(kind, self.data, at) if at else 0

    def table(self, field: int) -> FlatTable | None:
        at = self.place(field)
        return FlatTable(self.data, at + unpack("<I", self.data, at)) if at else None

    def list(self, field: int, size: int) -> tuple[int, int]:
        """Return (start, number) of a list's members. Raises ValueError.

        size: the bytes of a member.
        """
        at = self.place(field)
        if not at:
            return 0, 0
        at += unpack("<I", self.data, at)
        start, count = at + 4, unpack("<I", self.data, at)
        if start + size * count > len(self.data):
            raise ValueError(f"a list of {count} members is longer than its message")
        return start, count

    def text(self, field: int) -> str:
        """Return a text. Raises ValueError for a very long one."""
        start, count = self.list(field, 1)
        if count > LONGEST_NAME:  # many names could share the same bytes
            raise ValueError(f"a name has {count} bytes; at most {LONGEST_NAME:,} are read")
        return self.data[start : start + count].decode()


def unpack(kind: str, data: bytes, at: int) -> int:
    """Return the integer of the `struct` format `kind` at a position."""
    return int(struct.unpack_from(kind, data, at)[0])
