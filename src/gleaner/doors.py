"""The kinds of table that a slot takes: a body -> rows, and predictions -> an answer of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gleaner.arrow import ARROW, Stream, Values, write_stream
from gleaner.errors import NAMED_FAULTS, BadRows, BadTable, Fault, TooLarge, WrongType
from gleaner.rows import Rows, judge_columns
from gleaner.schema import Array, Schema
from gleaner.slots import Loaded
from gleaner.tables import open_csv
from gleaner.tables import read_rows as read_csv
from gleaner.wire import JSON, RowReader, encode_numbers, write_json, write_predictions

CSV = "text/csv"
KINDS = (JSON, CSV, ARROW)
# The kinds that are large without being much to read: they have limits of their own.
TABLES = frozenset({CSV, ARROW})
# An answer in part has a reason for every fault: so many are 2 MB.
MOST_FAULTS = 10_000


@dataclass(frozen=True, slots=True)
class Bound:
    """A loaded version with the reader of its own schema."""

    loaded: Loaded
    reader: RowReader
    version: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The predictions for the rows that were accepted, shape (m,), and what is told beside them.

    detail: with the version and an id for each row. partial: with the reason for each row that was refused.
    """

    rows: Rows
    predictions: Array
    version: int
    id: str
    detail: bool
    partial: bool

    @property
    def ids(self) -> list[str]:
        return [f"{self.id}-{i}" for i in range(self.rows.count)]

    def spread(self) -> Array:
        """The predictions at their rows' positions, shape (n,); NaN where a row was refused."""
        if not self.rows.faults:
            return self.predictions
        spread = np.full(self.rows.count, np.nan)
        spread[self.rows.accepted] = self.predictions
        return spread

    def reasons(self) -> list[str | None]:
        """For each row what is wrong with it, or None."""
        reasons: list[str | None] = [None] * self.rows.count
        for i, faults in self.rows.faults.items():
            reasons[i] = "; ".join(map(str, faults))
        return reasons


def read_rows(kind: str, body: bytes, reader: RowReader, *, max_rows: int, partial: bool = False) -> Rows:
    """The rows of a body of one of `KINDS`; `max_rows` is for `TABLES`, the reader knows that of JSON.

    partial: whether the rest will be answered where some rows are refused; then every fault is kept.
    Raises WrongType for another kind, BadBody, BadTable or TooLarge for a body that cannot be read as one, and
    BadRows where columns as a whole are wrong, or more rows than can be answered in part.
    """
    named = MOST_FAULTS if partial else NAMED_FAULTS
    if kind == JSON:
        rows = reader.read(body, named=named)
    elif kind == ARROW:
        rows = _read_arrow(body, reader.schema, max_rows, named)
    elif kind == CSV:
        rows = _read_csv(body, reader.schema, max_rows, named)
    else:
        raise WrongType(f"wanted Content-Type: {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind or 'none'!r}")
    if partial and rows.unnamed and len(rows.X):
        faults = MOST_FAULTS + rows.unnamed
        reason = f"{faults:,} faults, and an answer in part tells {MOST_FAULTS:,}; `gleaner score` takes whole tables"
        raise BadRows([("", reason)])
    return rows


def _read_arrow(body: bytes, schema: Schema, max_rows: int, named: int) -> Rows:
    stream = Stream(body, text=[feature.name for feature in schema.features if feature.type == "category"])
    judge_columns(schema, stream.declared, 0)  # another table is refused before any of its rows is read
    return judge_columns(schema, *stream.read(max_rows=max_rows), named=named)


def _read_csv(body: bytes, schema: Schema, max_rows: int, named: int) -> Rows:
    with open_csv(body, "the body") as file:
        try:
            file.columns.find_all(schema.features)
        except BadTable as e:  # it can be read, and is another table
            raise BadRows([("", e.reason)], lines=[e.line]) from e
        pieces, faults = [np.empty((0, len(schema.columns)))], dict[int, Sequence[Fault]]()
        count = unnamed = 0
        for chunk in read_csv(file, schema, named=named):
            count += len(chunk.X) + len(chunk.refused)
            if count > max_rows:
                raise TooLarge(f"more than {max_rows:,} rows; one request takes no more, so send several")
            pieces.append(chunk.X)
            faults.update({row.index: row.faults for row in chunk.refused if row.faults})
            unnamed += sum(row.unnamed for row in chunk.refused)
        return Rows(np.concatenate(pieces), count, faults, unnamed)


def write_answer(kind: str, answer: Answer) -> bytes:
    """An answer in one of `KINDS`."""
    if kind == ARROW:
        return write_stream({"prediction": answer.spread(), **_more(answer)}, answer.rows.count)
    if kind == CSV:
        return _write_csv(answer)
    return _write_json(answer)


def _more(answer: Answer) -> dict[str, Values]:
    """The columns beside the prediction."""
    more: dict[str, Values] = {}
    if answer.detail:
        more["prediction_id"] = answer.ids
        more["version"] = np.full(answer.rows.count, answer.version)
    if answer.partial:
        more["fault"] = answer.reasons()
    return more


def _write_json(answer: Answer) -> bytes:
    if not (answer.detail or answer.partial):
        return write_predictions(answer.predictions.tolist())
    more: dict[str, Sequence[object]] = {}
    if answer.detail:
        more |= {"prediction_id": answer.ids, "version": [answer.version] * answer.rows.count}
    if answer.partial:
        more["errors"] = answer.rows.refusal().entries() if answer.rows.faults else []
    return write_json({"prediction": [None if p != p else p for p in answer.spread().tolist()], **more})


def _write_csv(answer: Answer) -> bytes:
    """Lines of cells with CRLF behind each; a text is in quotes. Source: RFC 4180, section 2."""
    if not (answer.detail or answer.partial):
        # The same digits that JSON gets: an eighth of the time that `repr` takes.
        digits = encode_numbers(answer.predictions.tolist())[1:-1].replace(b",", b"\r\n")
        return b"prediction\r\n" + digits + b"\r\n" * bool(digits)
    columns: Mapping[str, Sequence[str]] = {
        "prediction": ["" if p != p else repr(p) for p in answer.spread().tolist()],
        **{
            name: [str(v) for v in column.tolist()] if isinstance(column, np.ndarray) else list(map(_cell, column))
            for name, column in _more(answer).items()
        },
    }
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True)), ""]
    return "\r\n".join(lines).encode()


def _cell(text: str | None) -> str:
    """A text in quotes: none of ours begins with what a spreadsheet would take for a formula."""
    return '"' + (text or "").replace('"', '""') + '"'
