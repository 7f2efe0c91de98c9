"""The formats of a table; a response has its request's format.

A new format is a file of this folder and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gleaner.errors import NAMED_FAULTS, BadRows, WrongType, wanted
from gleaner.serving.formats.arrow import read_arrow, write_arrow
from gleaner.serving.formats.csv import CSV, PLAIN, Text, read_csv, write_csv
from gleaner.serving.formats.json import JSON, RowReader, write_table
from gleaner.serving.formats.predictions import Predictions
from gleaner.table.arrow.format import ARROW
from gleaner.table.rows import Rows


class Format(NamedTuple):
    """A reader of bodies and a writer of responses.

    read: (body, reader of the columns, max_rows, named faults, text) -> rows.
    """

    read: Callable[[bytes, RowReader, int, int, Text], Rows]
    write: Callable[[Predictions], bytes]


FORMATS: Mapping[str, Format] = {
    JSON: Format(lambda body, reader, _, named, text: reader.read(body, named=named), write_table),
    CSV: Format(lambda body, reader, most, named, text: read_csv(body, reader.schema, most, named, text), write_csv),
    ARROW: Format(lambda body, reader, most, named, _: read_arrow(body, reader.schema, most, named), write_arrow),
}

# The formats of large tables, which are quick to read: they have limits of their own.
TABLES = frozenset({CSV, ARROW})

# A partial response has a reason for every fault: this many take 2 MB.
MOST_FAULTS = 10_000


def read_rows(
    kind: str, body: bytes, reader: RowReader, *, max_rows: int, partial: bool = False, text: Text = PLAIN
) -> Rows:
    """Read the rows of a body in one of `FORMATS`.

    max_rows: the limit for `TABLES`; the reader has that of JSON.
    text: the encoding of a body of text.
    partial: whether the accepted rows are predicted although others are refused; then every fault is kept.
    Raises WrongType for another format; BadBody, BadTable or TooLarge for an unreadable body; BadRows for faults of
    whole columns, and for more faults than a partial response has.
    """
    if kind not in FORMATS:
        *kinds, last = FORMATS
        raise WrongType(wanted(f"Content-Type: {', '.join(kinds)} or {last}", repr(kind or "none")))
    rows = FORMATS[kind].read(body, reader, max_rows, MOST_FAULTS if partial else NAMED_FAULTS, text)
    if partial and rows.unnamed and len(rows.X):
        faults = MOST_FAULTS + rows.unnamed
        limit = f"a partial response names at most {MOST_FAULTS:,}"
        raise BadRows([("", f"{faults:,} faults, and {limit}; use `gleaner score` for such a table")])
    return rows


def write_response(kind: str, predictions: Predictions) -> bytes:
    """Write predictions in one of `FORMATS`."""
    return FORMATS[kind].write(predictions)
