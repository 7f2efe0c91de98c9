"""A reader of Arrow streams with flat, uncompressed columns.

The reader is plain Python over numpy's views, which check their bounds, and copies as little as possible. Small
libraries end the process on damaged streams (nanoarrow 0.9 and arro3 0.9), and pyarrow weighs 156 MB.
Source: Apache Arrow, Columnar Format, "Serialization and Interprocess Communication", and format/{Message,Schema}.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadBody, TooLarge
from gleaner.table.arrow.buffers import Buffers, read_lengths
from gleaner.table.arrow.fields import Field, read_fields
from gleaner.table.arrow.format import BATCH, CONTINUES, DICTIONARY, SCHEMA, FlatTable, unpack
from gleaner.table.dates import DAY
from gleaner.table.rows import Column

_LONGEST_INLINE = 12

# Bounds for small bodies: a batch and a word each cost far more memory than bytes.
_MOST_BATCHES, _MOST_WORDS = 20_000, 100_000

_DAMAGE = (struct.error, ValueError, IndexError, TypeError, OverflowError, UnicodeDecodeError)


class _Words(dict[bytes | None, int]):
    """The distinct texts of a column: {bytes: position in `known`}.

    count: a function that is called with 1 for each new text.
    """

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
    """The values of one column in one batch.

    words: the list that the values point into; it may still grow at its end.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    words: list[str | None] | None = None


class Stream:
    """A stream, read in two steps: first its schema, then its rows.

    No bytes make the reader read outside of them, or take many times their size in memory.
    """

    def __init__(self, body: bytes, text: Collection[str] = ()) -> None:
        """Read the schema.

        text: the names of the columns that are text even if they have nulls alone.
        Raises BadBody for another format, WrongType for a big-endian stream, TooLarge for too many columns.
        """
        self._body, self._messages, self._rows = body, _messages(body), 0
        self._words_left, self._bytes_left = _MOST_WORDS, len(body)
        with _reading():
            kind, header, _, _ = next(self._messages, (0, None, 0, 0))
            if header is None or kind != SCHEMA:
                raise BadBody("not an Arrow stream: the body does not begin with a schema")
            self._fields = read_fields(header, text)
        self._parts: list[list[_Part]] = [[] for _ in self._fields]
        self._texts = [_Words(self._count_words) for _ in self._fields]
        self._layouts = {field.id: field.words for field in self._fields if field.words is not None}
        self._dictionaries: dict[int, list[str | None]] = {}

    @property
    def declared(self) -> dict[str, Column]:
        """The columns by name, without rows.

        A column of an unreadable type has only its `kind`.
        """
        return {field.name: _joined(field, []) for field in self._fields}

    def read(self, *, max_rows: int) -> tuple[dict[str, Column], int]:
        """Read the rows as ({name: column}, the number of rows).

        Text becomes positions in a list of words.
        Raises BadBody for a damaged stream or a column of an unreadable type, WrongType for a compressed stream,
        and TooLarge for more than `max_rows` rows, 20,000 batches or 100,000 words.
        """
        with _reading():
            for field in self._fields:
                if field.layout == "unknown":  # the buffers of the next column could begin anywhere
                    raise ValueError(f"the column {field.name[:100]!r} is of type {field.kind}")
            for kind, header, start, end in self._messages:
                if kind == BATCH:
                    self._read_batch(header, start, end, max_rows)
                elif kind == DICTIONARY:
                    self._read_dictionary(header, start, end)
                else:
                    raise ValueError(f"a message of kind {kind}")
        pairs = zip(self._fields, self._parts, strict=True)
        return {field.name: _joined(field, parts) for field, parts in pairs}, self._rows

    def _read_batch(self, batch: FlatTable, start: int, end: int, max_rows: int) -> None:
        rows, nulls = read_lengths(batch, len(self._fields))
        self._rows += rows
        if self._rows > max_rows:
            raise TooLarge(f"more than {max_rows:,} rows; one request takes no more, so send several")
        if self._rows > len(self._body):  # rows of nulls alone need no bytes
            raise TooLarge(f"{self._rows:,} rows of nulls alone in {len(self._body):,} bytes; leave them out")
        buffers = Buffers(self._body, start, end, batch)
        for field, parts, texts, missing in zip(self._fields, self._parts, self._texts, nulls, strict=True):
            part = self._part(field, buffers, rows, missing, texts)
            if rows:
                parts.append(part)

    def _read_dictionary(self, batch: FlatTable, start: int, end: int) -> None:
        id_, data = batch.number(0, "<q"), batch.table(1)
        field = self._layouts.get(id_)
        if data is None or field is None:
            raise ValueError(f"no column has the dictionary {id_}")
        rows, [missing] = read_lengths(data, 1)
        self._count_words(rows)
        buffers = Buffers(self._body, start, end, data)
        texts = self._read_texts(field, buffers, rows, buffers.take_valid(field, rows, missing))
        words = [text if text is None else text.decode() for text in texts]
        if batch.number(2, "?") and id_ in self._dictionaries:
            self._dictionaries[id_] += words  # in place, because parts of earlier batches point into it
        else:
            self._dictionaries[id_] = words

    def _part(self, field: Field, buffers: Buffers, rows: int, missing: int, texts: _Words) -> _Part:
        valid = buffers.take_valid(field, rows, missing)
        if field.layout == "nulls":
            return _Part(np.zeros(rows, int), valid, texts.known if field.is_text else None)
        if field.layout == "numbers":
            values = buffers.take(field.holds, rows)
            return _Part(_seconds(values, field.per_second) if field.clock else values, valid)
        if field.layout == "bits":
            return _Part(buffers.take_bits(rows), valid)
        if field.layout in ("text", "views"):
            cells = self._read_texts(field, buffers, rows, valid)
            return _Part(np.fromiter(map(texts.__getitem__, cells), np.int64, rows), valid, texts.known)
        words, values = self._dictionaries.get(field.id, []), buffers.take(field.holds, rows)
        inside = (values >= 0) & (values < len(words))
        if not (inside if valid is None else inside | ~valid).all():
            raise ValueError(f"the column {field.name[:100]!r} points beyond its dictionary")
        return _Part(values.astype(np.int64), valid, words)

    def _read_texts(
        self, field: Field, buffers: Buffers, count: int, valid: NDArray[np.bool_] | None
    ) -> Iterator[bytes | None]:
        """Read the next `count` texts; None for a missing one."""
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

    def _cut(self, field: Field, buffers: Buffers, count: int) -> Iterator[bytes]:
        """Read texts that stand one behind the other."""
        ends = buffers.take(field.holds, count + 1 if count else 0)
        if count and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError("a text ends before it begins")
        cuts = ends.tolist()
        data = buffers.take_bytes(cuts[-1] if count else 0)
        self._count_bytes(len(data))
        return map(data.__getitem__, map(slice, cuts, cuts[1:]))

    def _viewed(self, buffers: Buffers, count: int, valid: NDArray[np.bool_] | None) -> Iterator[bytes]:
        """Read texts of views.

        A short text stands in its view, and a longer one anywhere in further buffers.
        """
        views = buffers.take("V16", count)
        place, many = buffers.take_more()
        if valid is not None:  # the view of a missing text may be anything
            views = np.where(valid, views, np.zeros((), "V16"))

        @cache  # a text of many rows may be many views of the same bytes
        def read(view: bytes) -> bytes:
            size, _, which, skip = struct.unpack("<4i", view)
            if 0 <= size <= _LONGEST_INLINE:
                return view[4 : 4 + size]
            if size < 0 or not 0 <= which < many:
                raise ValueError("a text is in no buffer")
            self._count_bytes(size)
            return buffers.part(place + 16 * which, skip, size)

        return map(read, views.tolist())

    def _count_words(self, count: int) -> None:
        self._words_left -= count
        if self._words_left < 0:
            raise TooLarge(f"more than {_MOST_WORDS:,} different words; one request takes no more")

    def _count_bytes(self, count: int) -> None:
        """Count the bytes of distinct texts. Raises ValueError.

        Distinct texts share no bytes, so that together they fit into the body.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise ValueError("texts overlap")


@contextmanager
def _reading() -> Iterator[None]:
    """Turn an error about the bytes in the block into BadBody."""
    try:
        yield
    except _DAMAGE as e:
        raise BadBody(f"not a whole Arrow stream: {e}") from e


def _messages(body: bytes) -> Iterator[tuple[int, FlatTable, int, int]]:
    """Yield (kind, header, body's start, body's end) of each message."""
    at, end, left = 0, len(body), 1 + _MOST_BATCHES
    while at < end:
        mark, size = body[at : at + 4], int.from_bytes(body[at + 4 : at + 8], "little", signed=True)
        if mark != CONTINUES:
            raise ValueError(f"byte {at}: wanted the mark of a message")
        if size == 0:
            return
        if not left:
            raise TooLarge(f"more than {_MOST_BATCHES:,} batches; put more rows into each batch")
        start = at + 8 + size
        if size < 8 or start > end:
            raise ValueError(f"byte {at}: a message of {size} bytes, but only {end - at - 8} follow")
        flat = body[at + 8 : start]
        message = FlatTable(flat, unpack("<I", flat, 0))
        length = message.number(3, "<q")
        header = message.table(2)
        if header is None or not 0 <= length <= end - start:
            raise ValueError(f"byte {at}: a message without a header, or cut off")
        yield message.number(1, "B"), header, start, start + length
        at, left = start + length, left - 1


def _seconds(ticks: NDArray[Any], per_second: int) -> NDArray[np.float64]:
    """Return ticks as seconds, with microseconds as the smallest part.

    per_second: the ticks of a second; 0 for days.
    """
    if not per_second:
        return ticks * DAY
    whole = ticks // per_second
    rest = ticks - whole * per_second
    if per_second > 1_000_000:
        rest, per_second = rest // (per_second // 1_000_000), 1_000_000
    return np.asarray(whole + rest / per_second, dtype=np.float64)


def _joined(field: Field, parts: Sequence[_Part]) -> Column:
    """Return the column of the parts that the batches have."""
    if field.layout == "unknown":
        return Column(None, kind=field.kind)
    if not parts:
        holds = "?" if field.layout == "bits" else field.holds if field.layout == "numbers" else "i8"
        return Column(np.empty(0, holds), words=() if field.is_text else None, clock=field.clock)
    if len(parts) == 1:
        [part] = parts
        return Column(part.values, part.valid, None if part.words is None else tuple(part.words), clock=field.clock)
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.concatenate([np.ones(len(p.values), bool) if p.valid is None else p.valid for p in parts])
    if not field.is_text:
        return Column(np.concatenate([part.values for part in parts]), valid, clock=field.clock)
    # Most batches share one list of words, which the column then has once.
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
