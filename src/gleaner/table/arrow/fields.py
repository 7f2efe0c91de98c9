"""The columns that an Arrow schema declares."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from gleaner.errors import BadBody, TooLarge, WrongType
from gleaner.table.arrow.format import (
    BOOL,
    DATE,
    FLOAT,
    FLOATS,
    INT,
    NULL,
    PER_SECOND,
    TEXTS,
    TIMESTAMP,
    TYPES,
    FlatTable,
    unpack,
)

_MOST_COLUMNS = 10_000  # a column costs far more than its bytes in a body


@dataclass(frozen=True, slots=True)
class Field:
    """A column as the schema declares it.

    kind: Arrow's name of the type.
    layout: the content of the column's buffers.
    holds: numpy's type of the buffer of numbers, of the ends of texts, of views, or of indexes into a dictionary.
    is_text: whether the values are text; a column of nulls alone may be either.
    per_second: the ticks of a second in a column of times; 0 for days.
    clock: as in `rows.Column`; empty for other columns than dates and times.
    words: the texts of the dictionary of a column with indexes.
    id: the number of that dictionary.
    """

    name: str
    kind: str
    layout: Literal["nulls", "numbers", "text", "views", "bits", "dictionary", "unknown"] = "unknown"
    holds: str = ""
    is_text: bool = False
    per_second: int = 0
    clock: Literal["", "local", "utc"] = ""
    words: Field | None = None
    id: int = 0


def read_fields(schema: FlatTable, text: Collection[str]) -> list[Field]:
    """Read the columns of a schema, each name once.

    text: the names of the columns that are text even if they have nulls alone.
    Raises BadBody, TooLarge, WrongType.
    """
    if schema.number(0, "<h"):
        raise WrongType("the Arrow stream is big-endian; write it in little-endian")
    start, count = schema.list(1, 4)
    if count > _MOST_COLUMNS:
        raise TooLarge(f"{count:,} columns; one request takes no more than {_MOST_COLUMNS:,}")
    fields: dict[str, Field] = {}
    for at in range(start, start + 4 * count, 4):
        field = _field(FlatTable(schema.data, at + unpack("<I", schema.data, at)))
        if field.name in fields:
            raise BadBody(f"the column {field.name[:100]!r} stands twice")
        if field.layout == "nulls" and field.name in text:
            field = replace(field, is_text=True)
        fields[field.name] = field
    return list(fields.values())


def _field(field: FlatTable) -> Field:
    name, kind, about = field.text(0), field.number(2, "B"), field.table(3)
    plain = _plain(name, kind, about)
    encoding = field.table(4)
    if encoding is None:
        return plain
    index = encoding.table(1)
    indexes = _integer(index) if index is not None else "<i4"
    if not (kind in TEXTS or kind == NULL) or not indexes:
        return Field(name, f"dictionary of {plain.kind}")
    number = encoding.number(0, "<q")
    return Field(name, plain.kind, "dictionary", indexes, is_text=True, words=plain, id=number)


def _plain(name: str, kind: int, about: FlatTable | None) -> Field:
    """Return the column as it would be without a dictionary."""
    known = TYPES[kind] if kind < len(TYPES) else f"type {kind}"
    if kind == NULL:
        return Field(name, known, "nulls")
    if kind in TEXTS:
        return Field(name, known, *TEXTS[kind], is_text=True)
    if kind == BOOL:
        return Field(name, known, "bits")
    if about is not None and kind in (DATE, TIMESTAMP):
        return _time(name, known, kind, about)
    numbers = ""
    if about is not None and kind == INT:
        numbers = _integer(about)
    elif about is not None and kind == FLOAT:
        numbers = FLOATS.get(about.number(0, "<h"), "")
    return Field(name, known, "numbers", numbers) if numbers else Field(name, known)


def _time(name: str, known: str, kind: int, about: FlatTable) -> Field:
    """Return a column of dates or of timestamps."""
    if kind == DATE and about.place(0) and not about.number(0, "<h"):
        return Field(name, known, "numbers", "<i4", clock="local")
    unit = about.number(0, "<h") if kind == TIMESTAMP else 1
    if not 0 <= unit < len(PER_SECOND):
        return Field(name, known)
    is_aware = kind == TIMESTAMP and about.place(1)
    return Field(name, known, "numbers", "<i8", per_second=PER_SECOND[unit], clock="utc" if is_aware else "local")


def _integer(about: FlatTable) -> str:
    width = about.number(0, "<i")
    return f"<{'i' if about.number(1, '?') else 'u'}{width // 8}" if width in (8, 16, 32, 64) else ""
