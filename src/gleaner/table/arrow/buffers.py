"""The buffers of an Arrow batch, as numpy's views of the body."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import WrongType
from gleaner.table.arrow.fields import Field
from gleaner.table.arrow.format import FlatTable


class Buffers:
    """The buffers of one batch, in order.

    Raises ValueError for a buffer that is not inside the body of its own message.
    """

    def __init__(self, body: bytes, start: int, end: int, batch: FlatTable) -> None:
        self._body, self._start, self._end, self._places = body, start, end, batch.data
        self._at, self._left = batch.list(2, 16)
        counts, many = batch.list(4, 8)
        self._counts = struct.iter_unpack("<q", memoryview(batch.data)[counts : counts + 8 * many])

    def take(self, kind: str, count: int) -> NDArray[Any]:
        """Return the next buffer as `count` values of numpy's type `kind`."""
        start = self._next(count * np.dtype(kind).itemsize)
        return np.frombuffer(self._body, kind, count, start) if count else np.empty(0, kind)

    def take_bits(self, count: int) -> NDArray[np.bool_]:
        """Return the next buffer as `count` bits."""
        bits = self.take("u1", (count + 7) // 8)
        return np.unpackbits(bits, count=count, bitorder="little").astype(bool)

    def take_bytes(self, count: int) -> bytes:
        start = self._next(count)
        return self._body[start : start + count]

    def take_more(self) -> tuple[int, int]:
        """Return (position, number) of the further buffers of a column.

        Only a column of views has further buffers.
        """
        at, [count] = self._at, next(self._counts, (0,))
        if not 0 <= count <= self._left:
            raise ValueError(f"a column of views has {count} buffers, and its message has {self._left}")
        self._at, self._left = at + 16 * count, self._left - count
        return at, count

    def take_valid(self, field: Field, rows: int, missing: int) -> NDArray[np.bool_] | None:
        """Return a mask of the present values, shape (rows,), or None.

        A column without nulls may omit this buffer.
        """
        if field.layout == "nulls":
            return np.zeros(rows, bool)
        bits = self.take_bits(rows if missing else 0)
        return bits if missing else None

    def part(self, place: int, skip: int, size: int) -> bytes:
        """Return `size` bytes of a buffer, behind its first `skip`.

        place: the position of the buffer's place.
        """
        start = self._find(place, skip, size)
        return self._body[start : start + size]

    def _next(self, size: int) -> int:
        """Return the start of the next buffer.

        A missing buffer is an empty one.
        """
        if not self._left:
            if size:
                raise ValueError(f"no buffer for {size} bytes")
            return self._start
        at, self._at, self._left = self._at, self._at + 16, self._left - 1
        return self._find(at, 0, size)

    def _find(self, place: int, skip: int, size: int) -> int:
        offset, length = struct.unpack_from("<qq", self._places, place)
        start = self._start + int(offset) + skip
        if size and (offset < 0 or skip < 0 or skip + size > length or start + size > self._end):
            raise ValueError(f"a buffer of {length} bytes for {skip + size}, or beyond its message")
        return start


def read_lengths(batch: FlatTable, columns: int) -> tuple[int, list[int]]:
    """Return (rows, missing values per column) of a batch.

    Raises ValueError, or WrongType for a compressed batch.
    """
    if batch.table(3) is not None:
        raise WrongType("the Arrow stream is compressed; write it without compression")
    rows, (start, count) = batch.number(0, "<q"), batch.list(1, 16)
    if count != columns:
        raise ValueError(f"a batch has {count} columns, and the schema {columns}")
    nodes = struct.unpack_from(f"<{2 * count}q", batch.data, start)
    if rows < 0 or any(length != rows for length in nodes[::2]):
        raise ValueError("columns of different lengths")
    return rows, list(nodes[1::2])
