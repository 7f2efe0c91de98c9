"""Arrow's streaming format: a body -> columns, columns -> a body; flat columns of numbers and of text, uncompressed.

Read here, in memory-safe Python over numpy's views: of the small libraries, nanoarrow 0.9 and arro3 0.9 end the process
on damaged streams, and pyarrow weighs 156 MB. Nothing is copied that need not be.
Source: Apache Arrow, Columnar Format, "Serialization and Interprocess Communication", and format/{Message,Schema}.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import number_types as types
from flatbuffers.table import Table as Flat
from numpy.typing import NDArray

from gleaner.errors import BadBody, TooLarge, WrongType
from gleaner.rows import Column

ARROW = "application/vnd.apache.arrow.stream"

Values = NDArray[Any] | Sequence[str | None]

# Message.fbs: MessageHeader. Schema.fbs: Type.
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_INT, _FLOAT, _UTF8, _LARGE_UTF8 = 2, 3, 5, 20
_TYPES = (
    "none", "Null", "Int", "FloatingPoint", "Binary", "Utf8", "Bool", "Decimal", "Date", "Time", "Timestamp",
    "Interval", "List", "Struct", "Union", "FixedSizeBinary", "FixedSizeList", "Map", "Duration", "LargeBinary",
    "LargeUtf8", "LargeList", "RunEndEncoded", "BinaryView", "Utf8View", "ListView", "LargeListView",
)  # fmt: skip
_FLOATS = {0: "<f2", 1: "<f4", 2: "<f8"}
# No number of a message's own looks like these.
_MARK = 0x5A5A_5A5A_5A5A_0000
_V5, _CONTINUES = 4, b"\xff\xff\xff\xff"
_DAMAGE = (struct.error, ValueError, IndexError, TypeError, OverflowError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class _Field:
    """One column as the stream's schema declares it. `numbers`: numpy's type of its values, or of its indexes."""

    name: str
    kind: str
    numbers: str
    offsets: str = ""
    dictionary: int | None = None


def read_stream(body: bytes, *, max_rows: int) -> tuple[dict[str, Column], int]:
    """({name: column}, rows) of a stream: numbers as they are, text as positions in a list of words.

    A column of another type comes without values, and says what it is.
    Raises BadBody where it is no such stream, WrongType where it is compressed, TooLarge for more rows than `max_rows`.
    """
    try:
        return _Reader(body, max_rows).read()
    except _DAMAGE as e:
        raise BadBody(f"not a whole Arrow stream: {e}") from e


class _Reader:
    """Reads one stream. Whatever the bytes say, nothing outside of them is touched: views check their bounds."""

    def __init__(self, body: bytes, max_rows: int) -> None:
        self.body, self.max_rows, self.rows = body, max_rows, 0
        self.fields: list[_Field] = []
        self.parts: list[list[Column]] = []
        self.words: dict[int, tuple[object, ...]] = {}
        self.is_flat = True

    def read(self) -> tuple[dict[str, Column], int]:
        messages = self._messages()
        kind, header, _ = next(messages, (0, None, 0))
        if kind != _SCHEMA:
            raise BadBody("not an Arrow stream: it does not begin with a schema")
        self._read_schema(header)
        for kind, header, start in messages:
            if kind == _BATCH:
                self._read_batch(header, start)
            elif kind == _DICTIONARY:
                self._read_dictionary(header, start)
            else:
                raise ValueError(f"a message of kind {kind}")
        names = [field.name for field in self.fields]
        return {name: _joined(parts) for name, parts in zip(names, self.parts, strict=True)}, self.rows

    def _messages(self) -> Iterator[tuple[int, Any, int]]:
        """(kind, header, where its body starts) of each message."""
        at, end = 0, len(self.body)
        while at < end:
            mark, size = self.body[at : at + 4], int.from_bytes(self.body[at + 4 : at + 8], "little", signed=True)
            if mark != _CONTINUES:
                raise ValueError(f"byte {at}: wanted the mark of a message")
            if size == 0:
                return
            start = at + 8 + size
            if size < 8 or start > end:
                raise ValueError(f"byte {at}: a message of {size} bytes, of which {end - at - 8} are there")
            flat = self.body[at + 8 : start]
            message = Flat(flat, int.from_bytes(flat[:4], "little"))
            length = _number(message, 3, types.Int64Flags)
            header = _table(message, 2)
            if header is None or not 0 <= length <= end - start:
                raise ValueError(f"byte {at}: a message without a header, or cut off")
            yield _number(message, 1, types.Uint8Flags), header, start
            at = start + length

    def _read_schema(self, schema: Flat) -> None:
        if _number(schema, 0, types.Int16Flags):
            raise WrongType("the Arrow stream is big-endian; write it on this kind of machine or swap its bytes")
        self.fields = [_field(member) for member in _tables(schema, 1)]
        names = [field.name for field in self.fields]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise BadBody(f"the column {name[:100]!r} stands twice")
        self.parts = [[_empty(field)] for field in self.fields]
        # What the buffers of another type are is not known, so neither is where those of the next column begin.
        self.is_flat = all(field.numbers or field.offsets for field in self.fields)

    def _read_batch(self, batch: Flat, start: int) -> None:
        columns, rows = self._columns(self.fields, batch, start)
        self.rows += rows
        if self.rows > self.max_rows:
            raise TooLarge(f"more than {self.max_rows:,} rows; one request takes no more, so send several")
        for parts, column in zip(self.parts, columns, strict=True):
            parts.append(column)

    def _read_dictionary(self, batch: Flat, start: int) -> None:
        id_, data = _number(batch, 0, types.Int64Flags), _table(batch, 1)
        fields = [field for field in self.fields if field.dictionary == id_]
        if not self.is_flat:
            return
        if data is None or not fields:
            raise ValueError(f"a dictionary {id_} that no column has")
        values = _Field(fields[0].name, "Utf8", "", fields[0].offsets)
        [column], _ = self._columns([values], data, start)
        assert column.words is not None
        before = self.words.get(id_, ()) if _number(batch, 2, types.BoolFlags) else ()
        self.words[id_] = before + column.words

    def _columns(self, fields: Sequence[_Field], batch: Flat, start: int) -> tuple[list[Column], int]:
        rows = _number(batch, 0, types.Int64Flags)
        if _table(batch, 3) is not None:
            raise WrongType("the Arrow stream is compressed; write it without compression")
        if not self.is_flat:
            return [_empty(field) for field in fields], rows
        nodes, buffers = _pairs(batch, 1), iter(_pairs(batch, 2))
        if len(nodes) != len(fields) or any(length != rows for length, _ in nodes) or rows < 0:
            raise ValueError("columns of different lengths")

        def view(kind: str, count: int) -> NDArray[Any]:
            offset, length = next(buffers, (0, 0))
            size = np.dtype(kind).itemsize
            if offset < 0 or length < count * size:
                raise ValueError(f"a buffer of {length} bytes for {count} values")
            return np.frombuffer(self.body, kind, count, start + offset) if count else np.empty(0, kind)

        columns = []
        for field, (_, nulls) in zip(fields, nodes, strict=True):
            # A validity buffer may be left out where there are no nulls.
            bits = view("u1", (rows + 7) // 8) if nulls else view("u1", 0)
            valid = np.unpackbits(bits, count=rows, bitorder="little").astype(bool) if nulls else None
            if field.numbers:
                values = view(field.numbers, rows)
                columns.append(self._indexed(field, values, valid) if field.offsets else Column(values, valid))
            else:
                columns.append(_texts(view(field.offsets, rows + 1 if rows else 0), view, valid))
        return columns, rows

    def _indexed(self, field: _Field, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Column:
        """A column that points into a dictionary."""
        assert field.dictionary is not None
        words = self.words.get(field.dictionary, ())
        inside = (values >= 0) & (values < len(words))
        if not (inside if valid is None else inside | ~valid).all():
            raise ValueError(f"the column {field.name[:100]!r} points beyond its dictionary")
        return Column(values.astype(np.int64), valid, words)


def _texts(offsets: NDArray[Any], view: Callable[[str, int], NDArray[Any]], valid: NDArray[np.bool_] | None) -> Column:
    """A column of text; each value is a word of its own."""
    ends = offsets.tolist()
    data = view("u1", max(ends, default=0)).tobytes()
    if any(a > b or a < 0 for a, b in pairwise(ends)):
        raise ValueError("text that ends before it begins")
    there = valid.tolist() if valid is not None else [True] * (len(ends) - 1)
    cuts = zip(pairwise(ends), there, strict=False)
    words = tuple(data[a:b].decode() if is_there else None for (a, b), is_there in cuts)
    return Column(np.arange(len(words)), valid, words)


def _field(field: Flat) -> _Field:
    name, kind, about = _text(field, 0), _number(field, 2, types.Uint8Flags), _table(field, 3)
    known = _TYPES[kind] if kind < len(_TYPES) else f"type {kind}"
    offsets = {_UTF8: "<i4", _LARGE_UTF8: "<i8"}.get(kind, "")
    encoding = _table(field, 4)
    if encoding is not None:
        index = _table(encoding, 1)
        indexes = _integer(index) if index is not None else "<i4"
        if not offsets or not indexes:
            return _Field(name, f"dictionary of {known}", "")
        return _Field(name, "Utf8", indexes, offsets, _number(encoding, 0, types.Int64Flags))
    numbers = ""
    if about is not None and kind == _INT:
        numbers = _integer(about)
    elif about is not None and kind == _FLOAT:
        numbers = _FLOATS.get(_number(about, 0, types.Int16Flags), "")
    return _Field(name, known, numbers, offsets)


def _integer(about: Flat) -> str:
    width = _number(about, 0, types.Int32Flags)
    return f"<{'i' if _number(about, 1, types.BoolFlags) else 'u'}{width // 8}" if width in (8, 16, 32, 64) else ""


def _empty(field: _Field) -> Column:
    if not (field.numbers or field.offsets):
        return Column(None, kind=field.kind)
    if field.offsets:
        return Column(np.empty(0, np.int64), None, ())
    return Column(np.empty(0, field.numbers))


def _joined(parts: list[Column]) -> Column:
    """The column that several batches have of one; the first of them is empty and knows the type."""
    if len(parts) == 2 or parts[0].values is None:
        return parts[-1]
    if parts[0].words is not None:  # a dictionary may grow from batch to batch
        words, pieces, start = [], [], 0
        for part in parts:
            assert part.words is not None
            words.append(part.words)
            pieces.append(part.values + start)
            start += len(part.words)
        return Column(np.concatenate(pieces), _joined_valid(parts), tuple(word for some in words for word in some))
    return Column(np.concatenate([part.values for part in parts]), _joined_valid(parts))


def _joined_valid(parts: list[Column]) -> NDArray[np.bool_] | None:
    if all(part.valid is None for part in parts):
        return None
    return np.concatenate([np.ones(len(p.values), bool) if p.valid is None else p.valid for p in parts])


# Flatbuffers, by the number of a field in its table


def _offset(table: Flat, field: int) -> int:
    """Where a field is; 0 if it is left out."""
    return int(table.Offset(4 + 2 * field))


def _number(table: Flat, field: int, flags: Any) -> int:
    offset = _offset(table, field)
    return int(table.Get(flags, table.Pos + offset)) if offset else 0


def _table(table: Flat, field: int) -> Flat | None:
    offset = _offset(table, field)
    return Flat(table.Bytes, table.Indirect(table.Pos + offset)) if offset else None


def _text(table: Flat, field: int) -> str:
    offset = _offset(table, field)
    return bytes(table.String(table.Pos + offset)).decode() if offset else ""


def _tables(table: Flat, field: int) -> list[Flat]:
    start, count = _vector(table, field, 4)
    return [Flat(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)]


def _pairs(table: Flat, field: int) -> list[tuple[int, int]]:
    """A vector of structs of two 64-bit numbers."""
    start, count = _vector(table, field, 16)
    return list(struct.iter_unpack("<qq", table.Bytes[start : start + 16 * count]))


def _vector(table: Flat, field: int, size: int) -> tuple[int, int]:
    """(where its members start, how many there are)."""
    offset = _offset(table, field)
    if not offset:
        return 0, 0
    start, count = int(table.Vector(offset)), int(table.VectorLen(offset))
    if not 0 <= start <= start + size * count <= len(table.Bytes):
        raise ValueError(f"a list of {count} members that are not there")
    return start, count


# Writing


def write_stream(columns: Mapping[str, Values], rows: int) -> bytes:
    """A stream of one batch: float64 columns (NaN is written as null), int64 columns, and columns of text or None."""
    nodes, buffers = [], list[bytes]()
    for column in columns.values():
        valid, values = _parts(column)
        nodes.append((rows, 0 if valid is None else rows - int(valid.sum())))
        buffers += [b"" if valid is None else np.packbits(valid, bitorder="little").tobytes(), *values]
    padded = [buffer + bytes(-len(buffer) % 8) for buffer in buffers]
    places, at = [], 0
    for buffer, whole in zip(buffers, padded, strict=True):
        places.append((at, len(buffer)))
        at += len(whole)
    head, batch, holes = _template(tuple((name, _kind(column)) for name, column in columns.items()))
    filled = bytearray(batch)
    numbers = [rows, at, *(number for pair in (*nodes, *places) for number in pair)]
    for hole, number in zip(holes, numbers, strict=True):
        struct.pack_into("<q", filled, hole, number)
    return b"".join([head, filled, *padded, _CONTINUES, bytes(4)])


@lru_cache
def _template(columns: tuple[tuple[str, int], ...]) -> tuple[bytes, bytes, list[int]]:
    """(schema message, batch message, where in it its numbers stand) for columns of some names and kinds.

    To build a message takes longer than to write 10,000 rows, and only these numbers differ between two.
    """
    buffers = sum(3 if kind == _UTF8 else 2 for _, kind in columns)
    marks = iter(range(_MARK, _MARK + 2 + 2 * (len(columns) + buffers)))
    rows, length = next(marks), next(marks)
    nodes, places = ([(next(marks), next(marks)) for _ in range(n)] for n in (len(columns), buffers))
    head = _message(_SCHEMA, lambda builder: _write_schema(builder, columns), 0)
    batch = _message(_BATCH, lambda builder: _write_batch(builder, rows, nodes, places), length)
    wanted = [rows, length, *(mark for pair in (*nodes, *places) for mark in pair)]
    return head, batch, [batch.index(struct.pack("<q", mark)) for mark in wanted]


def _parts(column: Values) -> tuple[NDArray[np.bool_] | None, list[bytes]]:
    """(which values are there, None for all; the buffers behind that one)."""
    if isinstance(column, np.ndarray):
        valid = ~np.isnan(column) if column.dtype.kind == "f" else np.ones(len(column), bool)
        return (None if valid.all() else valid), [column.tobytes()]
    valid = np.array([text is not None for text in column], dtype=bool)
    encoded = [(text or "").encode() for text in column]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return (None if valid.all() else valid), [offsets.tobytes(), b"".join(encoded)]


def _message(kind: int, write: Callable[[flatbuffers.Builder], int], length: int) -> bytes:
    builder = flatbuffers.Builder(512)
    header = write(builder)
    builder.StartObject(5)
    builder.PrependInt16Slot(0, _V5, 0)
    builder.PrependUint8Slot(1, kind, 0)
    builder.PrependUOffsetTRelativeSlot(2, header, 0)
    builder.PrependInt64Slot(3, length, 0)
    builder.Finish(builder.EndObject())
    flat = bytes(builder.Output())
    flat += bytes(-len(flat) % 8)
    return _CONTINUES + len(flat).to_bytes(4, "little") + flat


def _kind(column: Values) -> int:
    if isinstance(column, np.ndarray):
        return _FLOAT if column.dtype.kind == "f" else _INT
    return _UTF8


def _write_schema(builder: flatbuffers.Builder, columns: Sequence[tuple[str, int]]) -> int:
    fields = [_write_field(builder, name, kind) for name, kind in columns]
    builder.StartVector(4, len(fields), 4)
    for field in reversed(fields):
        builder.PrependUOffsetTRelative(field)
    members = builder.EndVector()
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(1, members, 0)
    return int(builder.EndObject())


def _write_field(builder: flatbuffers.Builder, name: str, kind: int) -> int:
    label = builder.CreateString(name)
    builder.StartVector(4, 0, 4)  # no children; some readers want the empty list
    children = builder.EndVector()
    builder.StartObject(2)
    if kind == _FLOAT:
        builder.PrependInt16Slot(0, 2, 0)
    elif kind == _INT:
        builder.PrependInt32Slot(0, 64, 0)
        builder.PrependBoolSlot(1, True, False)
    about = builder.EndObject()
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, label, 0)
    builder.PrependBoolSlot(1, True, False)
    builder.PrependUint8Slot(2, kind, 0)
    builder.PrependUOffsetTRelativeSlot(3, about, 0)
    builder.PrependUOffsetTRelativeSlot(5, children, 0)
    return int(builder.EndObject())


def _write_batch(
    builder: flatbuffers.Builder, rows: int, nodes: list[tuple[int, int]], places: list[tuple[int, int]]
) -> int:
    vectors = []
    for pairs in (nodes, places):
        builder.StartVector(16, len(pairs), 8)
        for first, second in reversed(pairs):
            builder.Prep(8, 16)
            builder.PrependInt64(second)
            builder.PrependInt64(first)
        vectors.append(builder.EndVector())
    builder.StartObject(5)
    builder.PrependInt64Slot(0, rows, 0)
    builder.PrependUOffsetTRelativeSlot(1, vectors[0], 0)
    builder.PrependUOffsetTRelativeSlot(2, vectors[1], 0)
    return int(builder.EndObject())
