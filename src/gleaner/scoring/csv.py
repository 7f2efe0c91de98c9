"""CSV in and out of a scoring, and its file of faults."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Self

from gleaner.errors import Unwritable
from gleaner.scoring.output import Output
from gleaner.table.csv import CsvFile, open_csv, read_rows
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, RefusedRow

# A cell that a spreadsheet would run as a formula, unless it is a number, in a text with NUL before every cell.
# Source: https://owasp.org/www-community/attacks/CSV_Injection, with the full-width signs that some programs
# read like the plain ones.
_FORMULA = re.compile(
    "\0(?=\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])"
    "(?!\\s*[+-]?[0-9.,]*[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?\\s*(?:\0|\\Z))"
)


class CsvSource:
    """A CSV file as the input of a scoring."""

    place = "line"

    def __init__(self, file: CsvFile, size: int) -> None:
        self.file, self.name, self._size = file, file.name, size
        self.header: Sequence[str] = file.header
        self.header_line: int | None = file.columns.line

    @property
    def done(self) -> float:
        return min(1.0, self.file.lines.at / self._size)  # a copy in UTF-8 can be longer

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        return read_rows(self.file, schema)


class CsvWriter:
    """A writer of CSV: the input's cells, then the prediction.

    The digits of a prediction read back as the same number. A text that a spreadsheet would run as a formula gets
    a `'` before it, which spreadsheets read as "this is text"; numbers stay as they are.
    """

    def __init__(self, output: Output, header: Sequence[str], column: str, like: CsvFile | None = None) -> None:
        """Write the header.

        column: the name of the predictions' column.
        like: a CSV file whose delimiter, encoding, byte order mark and line ends are kept.
        Raises Unwritable.
        """
        self._output, self._width = output, len(header)
        self._encoding = like.encoding if like else "utf-8"
        self._delimiter, self._end = (like.delimiter, like.line_end) if like else (",", "\n")
        if like and like.mark:
            output.write(like.mark)
        self._write([header], [column])

    def write(self, chunk: Chunk, predictions: Array) -> None:
        self._write(padded(chunk.cells, self._width), [repr(prediction) for prediction in predictions.tolist()])

    def close(self) -> None:
        pass

    def _write(self, rows: Sequence[Sequence[str]], last: Sequence[str]) -> None:
        try:
            rows = disarm(rows, self._width)
            text = csv_text([[*row, cell] for row, cell in zip(rows, last, strict=True)], self._delimiter, self._end)
            self._output.write(text.encode(self._encoding))
        except UnicodeEncodeError as e:
            reason = f"{e.object[e.start : e.end]!r} cannot be written in the table's own encoding, {self._encoding}"
            raise Unwritable(self._output.name, reason) from e
        except ValueError as e:
            reason = "a cell has a NUL character, which CSV cannot hold; write Parquet"
            raise Unwritable(self._output.name, reason) from e


class FaultsFile:
    """A CSV file of all faults of the refused rows.

    The file is made for the first refused row; a path that the user named is made at once.
    """

    def __init__(self, path: Path | None, place: str, *, is_named: bool) -> None:
        """Open the file.

        path: its path, None to write no faults.
        place: the unit that numbers the rows, "line" or "row".
        is_named: whether the user named the path.
        Raises Unwritable, Refused.
        """
        self.path, self._place = path, place
        self._output: Output | None = None
        if path and is_named:
            self._begin(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._output:
            self._output.__exit__()

    def write(self, refused: Sequence[RefusedRow]) -> None:
        """Write the faults of some rows. Raises Unwritable, Refused."""
        if not self.path or not refused:
            return
        output = self._output or self._begin(self.path)
        rows = [[str(fault.number), fault.column, fault.reason] for row in refused for fault in row.faults]
        output.write(csv_text(disarm(rows, 3), ",", "\n").encode("utf-8"))

    def finish(self) -> None:
        """Force every byte onto the disk. Raises Unwritable."""
        if self._output:
            self._output.finish()

    def move(self) -> None:
        """Give the file its own name. Raises Unwritable.

        Without faults, the file of an earlier table is removed.
        """
        if self._output:
            self._output.move()
        elif self.path and self.path.is_file():
            try:
                self.path.unlink()
            except OSError as e:
                raise Unwritable(self.path, f"is from an earlier table and cannot be removed: {e.strerror}") from e

    def _begin(self, path: Path) -> Output:
        self._output = Output(path)
        self._output.write(f"{self._place},column,reason\n".encode())
        return self._output


@contextmanager
def open_csv_source(
    file: BinaryIO, name: Path | str, encoding: str = "", names: Sequence[Sequence[str]] = ()
) -> Iterator[CsvSource]:
    """Open a seekable file as CSV.

    encoding: the encoding in the settings. names: the columns wanted; see `find_header`.
    Raises BadTable.
    """
    with open_csv(file, str(name), encoding=encoding, names=names) as opened:
        yield CsvSource(opened, os.fstat(file.fileno()).st_size)


def padded(rows: Sequence[Sequence[str]], width: int) -> Sequence[Sequence[str]]:
    """Return rows of `width` cells.

    A row may end early, or have empty cells beyond the header.
    """
    return [row if len(row) == width else [*row[:width], *[""] * (width - len(row))] for row in rows]


def disarm(rows: Sequence[Sequence[str]], width: int) -> Sequence[Sequence[str]]:
    """Return rows with a `'` before each text that is a formula.

    rows: rows of `width` cells.
    Raises ValueError if a cell has a NUL character.
    """
    text = "\0" + "\0".join(map("\0".join, rows))
    if text.count("\0") != width * len(rows):
        raise ValueError
    safe, found = _FORMULA.subn("\0'", text)
    if not found:
        return rows
    cells = safe[1:].split("\0")
    return [cells[i : i + width] for i in range(0, len(cells), width)]


def csv_text(rows: Sequence[Sequence[str]], delimiter: str, end: str) -> str:
    """Return rows as CSV, with quotes where they are needed."""
    text = io.StringIO(newline="")
    # Python before 3.13 does not quote a carriage return inside a cell, and does not read the cell back then.
    is_bare = end == "\n" and "\r" in "".join(map("".join, rows))
    quoting: Literal[0, 1] = csv.QUOTE_ALL if is_bare else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()
