"""CSV in and out of a scoring, and its file of faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import BinaryIO, Self

from gleaner.errors import Unwritable
from gleaner.scoring.output import Output
from gleaner.table.csv import CsvFile, open_csv, read_rows
from gleaner.table.csv_text import csv_text, disarm, padded, titles_text
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, RefusedRow


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
    """A writer of CSV: the input's cells, then the columns of `new_columns`.

    The lines above the input's header come first.
    The digits of a prediction read back as the same number. A text that a spreadsheet would run as a formula gets
    a `'` before it, which spreadsheets read as "this is text"; numbers stay as they are.
    """

    def __init__(self, output: Output, header: Sequence[str], columns: Sequence[str], like: CsvFile | None) -> None:
        """Write the header.

        columns: the names of the columns to add; without the second one, refused rows are dropped.
        like: a CSV file whose delimiter, encoding, byte order mark and line ends are kept.
        Raises Unwritable.
        """
        self._output, self._width = output, len(header)
        self._keeps_refused = len(columns) > 1
        self._encoding = like.encoding if like else "utf-8"
        self._delimiter, self._end = (like.delimiter, like.line_end) if like else (",", "\n")
        if like and like.mark:
            output.write(like.mark)
        if like:
            self._write_text(lambda: titles_text(like.above(), self._delimiter, self._end))
        self._write([header], [columns])

    def write(self, chunk: Chunk, predictions: Array) -> None:
        numbers = map(repr, predictions.tolist())
        if not chunk.refused:
            empty = [""] * self._keeps_refused
            self._write(chunk.cells, [[number, *empty] for number in numbers])
        elif self._keeps_refused:
            problems = chunk.problems()
            self._write(chunk.cells, [["" if problem else next(numbers), problem] for problem in problems])
        else:
            self._write(list(compress(chunk.cells, chunk.accepted)), [[number] for number in numbers])

    def close(self) -> None:
        pass

    def _write(self, rows: Sequence[Sequence[str]], more: Sequence[Sequence[str]]) -> None:
        if rows:
            self._write_text(lambda: self._text(rows, more))

    def _text(self, rows: Sequence[Sequence[str]], more: Sequence[Sequence[str]]) -> str:
        safe = disarm(padded(rows, self._width), self._width)
        return csv_text([[*row, *cells] for row, cells in zip(safe, more, strict=True)], self._delimiter, self._end)

    def _write_text(self, make: Callable[[], str]) -> None:
        try:
            self._output.write(make().encode(self._encoding))
        except UnicodeEncodeError as e:
            reason = f"{e.object[e.start : e.end]!r} cannot be written in the table's own encoding, {self._encoding}"
            raise Unwritable(self._output.name, reason) from e
        except ValueError as e:
            reason = "a cell has a NUL character, which CSV cannot hold; write Parquet"
            raise Unwritable(self._output.name, reason) from e


class FaultsFile:
    """A CSV file of all faults of the refused rows.

    The file is made for the first refused row, or by `begin`.
    path: its path, None to write no faults.
    place: the unit that numbers the rows, "line" or "row".
    """

    def __init__(self, path: Path | None, place: str) -> None:
        self.path, self._place = path, place
        self._output: Output | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._output:
            self._output.__exit__()

    def begin(self) -> None:
        """Make the file without waiting for a refused row. Raises Unwritable, Refused."""
        if self.path:
            self._begin(self.path)

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
        self._output.open()
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
