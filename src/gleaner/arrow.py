"""Arrow's streaming format: a body -> columns, columns -> a body; flat columns of numbers and of text, uncompressed.

Read here, in memory-safe Python over numpy's views: of the small libraries, nanoarrow 0.9 and arro3 0.9 end the process
on damaged streams, and pyarrow weighs 156 MB. Nothing is copied that need not be.
Source: Apache Arrow, Columnar Format, "Serialization and Interprocess Communication", and format/{Message,Schema}.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import repeat
from typing import Any, Literal, NamedTuple

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadBody, TooLarge, WrongType
from gleaner.rows import Column

ARROW = "application/vnd.apache.arrow.stream"

Values = NDArray[Any] | Sequence[str | None]

# Message.fbs: MessageHeader. Schema.fbs: Type.
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_NULL, _INT, _FLOAT, _UTF8, _LARGE_UTF8, _UTF8_VIEW = 1, 2, 3, 5, 20, 24
_TYPES = (
    "none", "Null", "Int", "FloatingPoint", "Binary", "Utf8", "Bool", "Decimal", "Date", "Time", "Timestamp",
    "Interval", "List", "Struct", "Union", "FixedSizeBinary", "FixedSizeList", "Map", "Duration", "LargeBinary",
    "LargeUtf8", "LargeList", "RunEndEncoded", "BinaryView", "Utf8View", "ListView", "LargeListView",
)  # fmt: skip
_FLOATS = {0: "<f2", 1: "<f4", 2: "<f8"}
# How text is laid out: where each ends, or a view of 16 bytes for each: its size, and itself or where it is.
_TEXTS: dict[int, tuple[Literal["text", "views"], str]] = {
    _UTF8: ("text", "<i4"),
    _LARGE_UTF8: ("text", "<i8"),
    _UTF8_VIEW: ("views", "V16"),
}
_SHORT = 12
# What a small body could otherwise have many of: each costs far more than its bytes.
_MOST_COLUMNS, _MOST_BATCHES, _MOST_WORDS, _LONGEST_NAME = 10_000, 20_000, 100_000, 1_000
# No number of a message's own looks like these.
_MARK = 0x5A5A_5A5A_5A5A_0000
_V5, _CONTINUES = 4, b"\xff\xff\xff\xff"
_DAMAGE = (struct.error, ValueError, IndexError, TypeError, OverflowError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class _Field:
    """One column as the schema declares it.

    kind: Arrow's name of its type. holds: numpy's type of what its buffer holds: numbers, where texts end, views of
    texts, or, with `words`, indexes into dictionary `id`, whose own texts are laid out as `words` says.
    is_text: the column is one of words, not of numbers; nulls alone may be either.
    """

    name: str
    kind: str
    layout: Literal["nulls", "numbers", "text", "views", "dictionary", "unknown"] = "unknown"
    holds: str = ""
    is_text: bool = False
    words: _Field | None = None
    id: int = 0


class _Words(dict[bytes | None, int]):
    """The texts of a column, each once: its bytes -> its position in `known`. Each new one is told to `count`."""

    def __init__(self, count: Callable[[int], None]) -> None:
        super().__init__()
        self.known: list[str | None] = []
        self._count = count

    def __missing__(self, text: bytes | None) -> int:
        self._count(1)
        self[text] = position = len(self.known)
        self.known.append(text if text is None else text.decode())
        return position


class _Part(NamedTuple):
    """What one batch has of a column. words: the list that its values point into; it may still grow at its end."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    words: list[str | None] | None = None


class _Buffers:
    """The buffers of one batch, in their order. Each lies within the body of its own message, else ValueError."""

    def __init__(self, body: bytes, start: int, end: int, batch: _Flat) -> None:
        self._body, self._start, self._end, self._places = body, start, end, batch.data
        self._at, self._left = batch.list(2, 16)
        counts, many = batch.list(4, 8)
        self._counts = struct.iter_unpack("<q", memoryview(batch.data)[counts : counts + 8 * many])

    def take(self, kind: str, count: int) -> NDArray[Any]:
        """The next buffer, as `count` values of numpy's type `kind`."""
        start = self._next(count * np.dtype(kind).itemsize)
        return np.frombuffer(self._body, kind, count, start) if count else np.empty(0, kind)

    def take_bytes(self, count: int) -> bytes:
        start = self._next(count)
        return self._body[start : start + count]

    def take_more(self) -> tuple[int, int]:
        """(where the places of the buffers that a column of views has besides are, how many there are)."""
        at, [count] = self._at, next(self._counts, (0,))
        if not 0 <= count <= self._left:
            raise ValueError(f"{count} buffers that are not there")
        self._at, self._left = at + 16 * count, self._left - count
        return at, count

    def part(self, place: int, skip: int, size: int) -> bytes:
        """`size` bytes, behind the first `skip`, of the buffer whose place is there."""
        start = self._find(place, skip, size)
        return self._body[start : start + size]

    def _next(self, size: int) -> int:
        """Where the next buffer starts. One that is left out is empty."""
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


class Stream:
    """One stream, read in two steps: what its schema declares, and then its rows.

    Whatever the bytes say, nothing outside of them is touched, and what is made of them is not many times larger.
    """

    def __init__(self, body: bytes, text: Collection[str] = ()) -> None:
        """`text`: the columns that are to hold text; one of nulls alone does not say it.

        Raises BadBody where it is no such stream, WrongType where it is big-endian, TooLarge for many columns.
        """
        self._body, self._messages, self._rows = body, _messages(body), 0
        self._words_left, self._bytes_left = _MOST_WORDS, len(body)
        with _reading():
            kind, header, _, _ = next(self._messages, (0, None, 0, 0))
            if header is None or kind != _SCHEMA:
                raise BadBody("not an Arrow stream: it does not begin with a schema")
            self._fields = _fields(header, text)
        self._parts: list[list[_Part]] = [[] for _ in self._fields]
        self._texts = [_Words(self._count_words) for _ in self._fields]
        self._layouts = {field.id: field.words for field in self._fields if field.words is not None}
        self._dictionaries: dict[int, list[str | None]] = {}

    @property
    def declared(self) -> dict[str, Column]:
        """The columns by name, empty; one of a type that is not read has no values, and says what it is."""
        return {field.name: _joined(field, []) for field in self._fields}

    def read(self, *, max_rows: int) -> tuple[dict[str, Column], int]:
        """({name: column}, rows): numbers as they are, text as positions in a list of words.

        Raises BadBody where the stream is damaged or has a column that is not read, WrongType where it is compressed,
        TooLarge for more rows than `max_rows`, or more batches or words than anything sensible has.
        """
        with _reading():
            for field in self._fields:
                if field.layout == "unknown":  # nor is it known where the buffers of the next column begin
                    raise ValueError(f"the column {field.name[:100]!r} is of type {field.kind}")
            for kind, header, start, end in self._messages:
                if kind == _BATCH:
                    self._read_batch(header, start, end, max_rows)
                elif kind == _DICTIONARY:
                    self._read_dictionary(header, start, end)
                else:
                    raise ValueError(f"a message of kind {kind}")
        pairs = zip(self._fields, self._parts, strict=True)
        return {field.name: _joined(field, parts) for field, parts in pairs}, self._rows

    def _read_batch(self, batch: _Flat, start: int, end: int, max_rows: int) -> None:
        rows, nulls = _lengths(batch, len(self._fields))
        self._rows += rows
        if self._rows > max_rows:
            raise TooLarge(f"more than {max_rows:,} rows; one request takes no more, so send several")
        if self._rows > len(self._body):  # where there are only nulls, rows cost nothing
            raise TooLarge(f"{self._rows:,} rows of nothing but nulls in {len(self._body):,} bytes; leave them out")
        buffers = _Buffers(self._body, start, end, batch)
        for field, parts, texts, missing in zip(self._fields, self._parts, self._texts, nulls, strict=True):
            part = self._part(field, buffers, rows, missing, texts)
            if rows:
                parts.append(part)

    def _read_dictionary(self, batch: _Flat, start: int, end: int) -> None:
        id_, data = batch.number(0, "<q"), batch.table(1)
        field = self._layouts.get(id_)
        if data is None or field is None:
            raise ValueError(f"a dictionary {id_} that no column has")
        rows, [missing] = _lengths(data, 1)
        self._count_words(rows)
        buffers = _Buffers(self._body, start, end, data)
        texts = self._read_texts(field, buffers, rows, _valid(field, buffers, rows, missing))
        words = [text if text is None else text.decode() for text in texts]
        if batch.number(2, "?") and id_ in self._dictionaries:
            self._dictionaries[id_] += words  # in place: parts point into it, and a copy each time would be many
        else:
            self._dictionaries[id_] = words

    def _part(self, field: _Field, buffers: _Buffers, rows: int, missing: int, texts: _Words) -> _Part:
        valid = _valid(field, buffers, rows, missing)
        if field.layout == "nulls":
            return _Part(np.zeros(rows, int), valid, texts.known if field.is_text else None)
        if field.layout == "numbers":
            return _Part(buffers.take(field.holds, rows), valid)
        if field.layout in ("text", "views"):
            cells = self._read_texts(field, buffers, rows, valid)
            return _Part(np.fromiter(map(texts.__getitem__, cells), np.int64, rows), valid, texts.known)
        words, values = self._dictionaries.get(field.id, []), buffers.take(field.holds, rows)
        inside = (values >= 0) & (values < len(words))
        if not (inside if valid is None else inside | ~valid).all():
            raise ValueError(f"the column {field.name[:100]!r} points beyond its dictionary")
        return _Part(values.astype(np.int64), valid, words)

    def _read_texts(
        self, field: _Field, buffers: _Buffers, count: int, valid: NDArray[np.bool_] | None
    ) -> Iterator[bytes | None]:
        """The next `count` texts, None for those that are not there."""
        texts: Iterator[bytes]
        if field.layout == "nulls":
            texts = repeat(b"", count)
        elif field.layout == "views":
            texts = self._viewed(buffers, count, valid)
        else:
            texts = self._cut(field, buffers, count)
        if valid is None:
            return texts
        return (text if is_there else None for text, is_there in zip(texts, valid.tolist(), strict=True))

    def _cut(self, field: _Field, buffers: _Buffers, count: int) -> Iterator[bytes]:
        """Texts that stand one behind the other."""
        ends = buffers.take(field.holds, count + 1 if count else 0)
        if count and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError("text that ends before it begins")
        cuts = ends.tolist()
        data = buffers.take_bytes(cuts[-1] if count else 0)
        self._count_bytes(len(data))
        return map(data.__getitem__, map(slice, cuts, cuts[1:]))

    def _viewed(self, buffers: _Buffers, count: int, valid: NDArray[np.bool_] | None) -> Iterator[bytes]:
        """Texts that stand in their views or, if they are longer, anywhere in the buffers behind these."""
        views = buffers.take("V16", count)
        place, many = buffers.take_more()
        if valid is not None:  # where nothing is, a view may say anything
            views = np.where(valid, views, np.zeros((), "V16"))

        @cache  # one that stands in many rows may be as many views of the same bytes
        def read(view: bytes) -> bytes:
            size, _, which, skip = struct.unpack("<4i", view)
            if 0 <= size <= _SHORT:
                return view[4 : 4 + size]
            if size < 0 or not 0 <= which < many:
                raise ValueError("a text that is in no buffer")
            self._count_bytes(size)
            return buffers.part(place + 16 * which, skip, size)

        return map(read, views.tolist())

    def _count_words(self, count: int) -> None:
        self._words_left -= count
        if self._words_left < 0:
            raise TooLarge(f"more than {_MOST_WORDS:,} different words; one request takes no more")

    def _count_bytes(self, count: int) -> None:
        """Different texts of an honest sender share no bytes, so together they are no longer than the body."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise ValueError("texts that overlap")


@contextmanager
def _reading() -> Iterator[None]:
    """What is wrong with the bytes in the block is the sender's fault. Raises BadBody."""
    try:
        yield
    except _DAMAGE as e:
        raise BadBody(f"not a whole Arrow stream: {e}") from e


def _messages(body: bytes) -> Iterator[tuple[int, _Flat, int, int]]:
    """(kind, header, where its body starts, where that ends) of each message."""
    at, end, left = 0, len(body), 1 + _MOST_BATCHES
    while at < end:
        mark, size = body[at : at + 4], int.from_bytes(body[at + 4 : at + 8], "little", signed=True)
        if mark != _CONTINUES:
            raise ValueError(f"byte {at}: wanted the mark of a message")
        if size == 0:
            return
        if not left:
            raise TooLarge(f"more than {_MOST_BATCHES:,} batches; put more rows into each")
        start = at + 8 + size
        if size < 8 or start > end:
            raise ValueError(f"byte {at}: a message of {size} bytes, of which {end - at - 8} are there")
        flat = body[at + 8 : start]
        message = _Flat(flat, _int("<I", flat, 0))
        length = message.number(3, "<q")
        header = message.table(2)
        if header is None or not 0 <= length <= end - start:
            raise ValueError(f"byte {at}: a message without a header, or cut off")
        yield message.number(1, "B"), header, start, start + length
        at, left = start + length, left - 1


def _fields(schema: _Flat, text: Collection[str]) -> list[_Field]:
    """The columns that a schema declares, each name once; of the nulls, those in `text` are text."""
    if schema.number(0, "<h"):
        raise WrongType("the Arrow stream is big-endian; write it on this kind of machine or swap its bytes")
    start, count = schema.list(1, 4)
    if count > _MOST_COLUMNS:
        raise TooLarge(f"{count:,} columns; one request takes no more than {_MOST_COLUMNS:,}")
    fields: dict[str, _Field] = {}
    for at in range(start, start + 4 * count, 4):
        field = _field(_Flat(schema.data, at + _int("<I", schema.data, at)))
        if field.name in fields:
            raise BadBody(f"the column {field.name[:100]!r} stands twice")
        if field.layout == "nulls" and field.name in text:
            field = replace(field, is_text=True)
        fields[field.name] = field
    return list(fields.values())


def _field(field: _Flat) -> _Field:
    name, kind, about = field.text(0), field.number(2, "B"), field.table(3)
    plain = _plain(name, kind, about)
    encoding = field.table(4)
    if encoding is None:
        return plain
    index = encoding.table(1)
    indexes = _integer(index) if index is not None else "<i4"
    if not (kind in _TEXTS or kind == _NULL) or not indexes:
        return _Field(name, f"dictionary of {plain.kind}")
    return _Field(name, plain.kind, "dictionary", indexes, True, plain, encoding.number(0, "<q"))


def _plain(name: str, kind: int, about: _Flat | None) -> _Field:
    """A column as it would be without a dictionary."""
    known = _TYPES[kind] if kind < len(_TYPES) else f"type {kind}"
    if kind == _NULL:
        return _Field(name, known, "nulls")
    if kind in _TEXTS:
        return _Field(name, known, *_TEXTS[kind], is_text=True)
    numbers = ""
    if about is not None and kind == _INT:
        numbers = _integer(about)
    elif about is not None and kind == _FLOAT:
        numbers = _FLOATS.get(about.number(0, "<h"), "")
    return _Field(name, known, "numbers", numbers) if numbers else _Field(name, known)


def _integer(about: _Flat) -> str:
    width = about.number(0, "<i")
    return f"<{'i' if about.number(1, '?') else 'u'}{width // 8}" if width in (8, 16, 32, 64) else ""


def _lengths(batch: _Flat, columns: int) -> tuple[int, list[int]]:
    """(rows of a batch, how many values each of its columns lacks)."""
    if batch.table(3) is not None:
        raise WrongType("the Arrow stream is compressed; write it without compression")
    rows, (start, count) = batch.number(0, "<q"), batch.list(1, 16)
    if count != columns:
        raise ValueError(f"{count} columns, where the schema has {columns}")
    nodes = struct.unpack_from(f"<{2 * count}q", batch.data, start)
    if rows < 0 or any(length != rows for length in nodes[::2]):
        raise ValueError("columns of different lengths")
    return rows, list(nodes[1::2])


def _valid(field: _Field, buffers: _Buffers, rows: int, missing: int) -> NDArray[np.bool_] | None:
    """Which values are there. The buffer that says so may be left out where all are."""
    if field.layout == "nulls":
        return np.zeros(rows, bool)
    bits = buffers.take("u1", (rows + 7) // 8 if missing else 0)
    return np.unpackbits(bits, count=rows, bitorder="little").astype(bool) if missing else None


def _joined(field: _Field, parts: Sequence[_Part]) -> Column:
    """The column that the batches have of one."""
    if field.layout == "unknown":
        return Column(None, kind=field.kind)
    if not parts:
        return Column(np.empty(0, int), words=() if field.is_text else None)
    if len(parts) == 1:
        [part] = parts
        return Column(part.values, part.valid, None if part.words is None else tuple(part.words))
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.concatenate([np.ones(len(p.values), bool) if p.valid is None else p.valid for p in parts])
    if not field.is_text:
        return Column(np.concatenate([part.values for part in parts]), valid)
    # Batches mostly share a list of words, which then stands here once.
    starts: dict[int, int] = {}
    words: list[str | None] = []
    pieces = []
    for part in parts:
        assert part.words is not None
        if id(part.words) not in starts:
            starts[id(part.words)] = len(words)
            words += part.words
        pieces.append(part.values + starts[id(part.words)])
    return Column(np.concatenate(pieces), valid, tuple(words))


# Flatbuffers. Source: FlatBuffers, "Internals": a table begins with where its list of the offsets of its fields is.


class _Flat:
    """A table in a message, from which a field is asked for by its number."""

    __slots__ = ("_at", "_offsets", "_size", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self._at = data, at
        self._offsets = at - _int("<i", data, at)
        self._size = _int("<H", data, self._offsets)

    def place(self, field: int) -> int:
        """Where a field is; 0 if it is left out."""
        slot = 4 + 2 * field
        offset = _int("<H", self.data, self._offsets + slot) if slot < self._size else 0
        return self._at + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        """A field of the `struct` format `kind`; 0 if it is left out."""
        at = self.place(field)
        return _int(kind, self.data, at) if at else 0

    def table(self, field: int) -> _Flat | None:
        at = self.place(field)
        return _Flat(self.data, at + _int("<I", self.data, at)) if at else None

    def list(self, field: int, size: int) -> tuple[int, int]:
        """(where the members of `size` bytes each start, how many there are)."""
        at = self.place(field)
        if not at:
            return 0, 0
        at += _int("<I", self.data, at)
        start, count = at + 4, _int("<I", self.data, at)
        if start + size * count > len(self.data):
            raise ValueError(f"a list of {count} members that are not there")
        return start, count

    def text(self, field: int) -> str:
        start, count = self.list(field, 1)
        if count > _LONGEST_NAME:  # many names may be made of the same bytes
            raise ValueError(f"a name of {count} bytes")
        return self.data[start : start + count].decode()


def _int(kind: str, data: bytes, at: int) -> int:
    return int(struct.unpack_from(kind, data, at)[0])


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
