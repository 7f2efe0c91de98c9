"""CSV files as bodies and as responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import NamedTuple

import numpy as np

from gleaner.errors import BadRows, BadTable, Fault, TooLarge, WrongType, wanted
from gleaner.serving.exchange import check_wanted
from gleaner.serving.formats.arrow import more_columns
from gleaner.serving.formats.json import encode_numbers
from gleaner.serving.formats.predictions import Predictions
from gleaner.table.csv import CsvFile, open_csv, read_rows
from gleaner.table.csv_text import csv_text, disarm, padded, titles_text
from gleaner.table.encodings import find_codec
from gleaner.table.messages import show
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema
from gleaner.table.tables import names_of, plain_name

CSV = "text/csv"


# Refused rows are read one by one, so a million of them would take a quarter of a minute.
_MOST_REFUSED = 20_000

# A block is split into cells in one step, which keeps all other threads waiting: 2 ms for this many bytes.
_BLOCK_BYTES = 1 << 16

# The rows of a response that are written in one step.
_ROWS_AT_ONCE = 1_000


class Text(NamedTuple):
    """The encoding of a body of text.

    encoding: the encoding in the settings. charset: that of the request. Empty for none.
    """

    encoding: str = ""
    charset: str = ""


PLAIN = Text()


def read_csv(body: bytes, schema: Schema, max_rows: int, named: int, text: Text = PLAIN) -> Rows:
    """Read the rows of a CSV body. Raises BadTable, BadRows, TooLarge, WrongType."""
    with _opened(body, schema, text) as file:
        try:
            file.columns.find_all(schema.features)
        except BadTable as e:  # the body is CSV, with the columns of another table
            raise BadRows([("", e.reason)], lines=[e.line]) from e
        pieces, faults = [np.empty((0, len(schema.columns)))], dict[int, Sequence[Fault]]()
        count = refused = unnamed = 0
        for chunk in read_rows(file, schema, named=named, block_bytes=_BLOCK_BYTES, max_lines=2 * max_rows + 1):
            check_wanted()
            count += len(chunk.X) + len(chunk.refused)
            refused += len(chunk.refused)
            if count > max_rows:
                raise TooLarge(f"more than {max_rows:,} rows; one request takes no more, so send several")
            pieces.append(chunk.X)
            faults.update({row.index: row.faults for row in chunk.refused if row.faults})
            unnamed += sum(row.unnamed for row in chunk.refused)
            if refused > _MOST_REFUSED:
                first = next(iter(faults.values()))[0]
                raise BadRows([("", f"more than {_MOST_REFUSED:,} refused rows; the first: {first}")])
        return Rows(np.concatenate(pieces), count, faults, unnamed)


def write_csv(predictions: Predictions) -> bytes:
    """Write lines that end with CRLF, with texts in quotes.

    Source: RFC 4180, section 2.
    """
    if not (predictions.detail or predictions.partial):
        # The digits that JSON gets: an eighth of the time that `repr` takes.
        digits = encode_numbers(predictions.numbers.tolist())[1:-1].replace(b",", b"\r\n")
        return b"prediction\r\n" + digits + b"\r\n" * bool(digits)
    columns = _columns(predictions)
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True)), ""]
    return "\r\n".join(lines).encode()


def check_added(body: bytes, schema: Schema, text: Text, *, detail: bool, partial: bool) -> None:
    """Raise BadRows for a column that the response adds, too."""
    nothing = Predictions(Rows(np.empty((0, 0)), 0, {}), np.empty(0), 0, "", detail, partial)
    with _opened(body, schema, text) as file:
        taken = set(map(plain_name, file.header)) & set(_columns(nothing))
    if taken:
        raise BadRows([("", f"the table has a column {min(taken)!r} already; rename it, or leave out columns=all")])


def write_whole_csv(body: bytes, schema: Schema, text: Text, predictions: Predictions) -> bytes:
    """Write the rows of a body with the added columns, in UTF-8.

    The body's delimiter stays; a text that a spreadsheet would run as a formula gets a `'` before it.
    """
    columns = _columns(predictions, quote=str)
    with _opened(body, schema, text) as file:
        width = len(file.header)
        added = iter(zip(*columns.values(), strict=True))
        pieces = [
            titles_text(file.above(), file.delimiter, "\r\n"),
            csv_text([[*disarm([file.header], width)[0], *columns]], file.delimiter, "\r\n"),
        ]
        rows = (cells for _, cells in file.rows())
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            check_wanted()
            safe = disarm(padded(some, width), width)
            lines = [[*cells, *next(added)] for cells in safe]
            pieces.append(csv_text(lines, file.delimiter, "\r\n"))
    return "".join(pieces).encode()


def _opened(body: bytes, schema: Schema, text: Text) -> AbstractContextManager[CsvFile]:
    charset = find_codec(text.charset) if text.charset else ""
    if text.charset and not charset:
        raise WrongType(wanted("a known charset in Content-Type, such as utf-8 or windows-1252", show(text.charset)))
    return open_csv(body, "the body", encoding=text.encoding, charset=charset, names=names_of(schema.features))


def _columns(predictions: Predictions, quote: Callable[[str], str] | None = None) -> Mapping[str, Sequence[str]]:
    """Return the columns of a response as text.

    quote: the function that makes a cell of a text.
    """
    quote = quote or _cell
    return {
        "prediction": ["" if p != p else repr(p) for p in predictions.spread().tolist()],
        **{
            name: list(map(str, column.tolist()))
            if isinstance(column, np.ndarray)
            else [quote(text or "") for text in column]
            for name, column in more_columns(predictions).items()
        },
    }


def _cell(text: str) -> str:
    """Put a text in quotes.

    None of these texts starts with a character that begins a spreadsheet's formula.
    """
    return '"' + text.replace('"', '""') + '"'
