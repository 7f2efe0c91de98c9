"""CSV files as bodies and as responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gleaner.errors import BadRows, BadTable, Fault, TooLarge, WrongType, wanted
from gleaner.serving.exchange import check_wanted
from gleaner.serving.formats.arrow import more_columns
from gleaner.serving.formats.json import encode_numbers
from gleaner.serving.formats.predictions import Predictions
from gleaner.table.csv import open_csv, read_rows
from gleaner.table.encodings import find_codec
from gleaner.table.messages import show
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema
from gleaner.table.tables import names_of

CSV = "text/csv"


# Refused rows are read one by one, so a million of them would take a quarter of a minute.
_MOST_REFUSED = 20_000

# A block is split into cells in one step, which keeps all other threads waiting: 2 ms for this many bytes.
_BLOCK_BYTES = 1 << 16


def read_csv(body: bytes, schema: Schema, max_rows: int, named: int, encoding: str = "", charset: str = "") -> Rows:
    """Read the rows of a CSV body.

    encoding: the encoding in the settings. charset: that of the request.
    Raises BadTable, BadRows, TooLarge, WrongType.
    """
    if charset and not (known := find_codec(charset)):
        raise WrongType(wanted("a known charset in Content-Type, such as utf-8 or windows-1252", show(charset)))
    names = names_of(schema.features)
    with open_csv(body, "the body", encoding=encoding, charset=known if charset else "", names=names) as file:
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
    columns: Mapping[str, Sequence[str]] = {
        "prediction": ["" if p != p else repr(p) for p in predictions.spread().tolist()],
        **{
            name: [str(v) for v in column.tolist()] if isinstance(column, np.ndarray) else list(map(_cell, column))
            for name, column in more_columns(predictions).items()
        },
    }
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True)), ""]
    return "\r\n".join(lines).encode()


def _cell(text: str | None) -> str:
    """Put a text in quotes.

    None of these texts starts with a character that begins a spreadsheet's formula.
    """
    return '"' + (text or "").replace('"', '""') + '"'
