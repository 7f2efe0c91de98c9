"""A table in, the same table with its predictions out: of any size, in bounded memory, and whole or not at all."""

from __future__ import annotations

import codecs
import csv
import fcntl
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, Self

from gleaner.artifact import sync
from gleaner.errors import BadArtifact, BadTable, Refused, Unwritable
from gleaner.schema import Array, Schema
from gleaner.slots import Loaded
from gleaner.tables import Chunk, CsvFile, RefusedRow, open_csv, plain_name, read_rows

PIPE = Path("-")
_PIECE = 1 << 20

# A cell that a spreadsheet would run as a formula, unless it is a number, in a text with NUL before every cell.
# Source: https://owasp.org/www-community/attacks/CSV_Injection, with the wide signs that some read as narrow ones.
_FORMULA = re.compile(
    "\0(?=\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])"
    "(?!\\s*[+-]?[0-9.,]*[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?\\s*(?:\0|\\Z))"
)


class Source(Protocol):
    """A table that is open to be scored. place: what counts its rows, "line" or "row"."""

    name: Path | str
    header: Sequence[str]
    place: str

    @property
    def done(self) -> float:
        """How much of it has been read, from 0 to 1."""

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        """Its rows. Raises BadTable."""


class Writer(Protocol):
    """Writes chunks and their predictions."""

    def write(self, chunk: Chunk, predictions: Array) -> None:
        """Raises Unwritable."""

    def close(self) -> None:
        """Write what belongs at the end. Raises Unwritable."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many rows have been predicted and refused, and how much of the table was read for them, from 0 to 1."""

    rows: int
    refused: int
    done: float


class Output:
    """A file that is written under a temporary name beside its own, and gets its own at the end; if it does not,
    nothing is left. A pipe or a device is written as it is.

    The temporary name is always the same, and locked: of two that write one file the second is refused, and what a
    killed one left is used up by the next.
    """

    def __init__(self, path: Path) -> None:
        """Raises Unwritable, Refused."""
        self.name = "standard output" if path == PIPE else str(path)
        self._half: Path | None = None
        with self.writing():
            self.path = path if path == PIPE else path.resolve()  # a link to a file stays a link
            if path == PIPE:
                self.file: BinaryIO = os.fdopen(os.dup(1), "wb")
            elif self.path.is_dir():
                raise Unwritable(self.name, "is a folder; name a file")
            elif self.path.exists() and not self.path.is_file():
                self.file = self.path.open("wb")
            elif not self.path.parent.is_dir():
                raise Unwritable(self.name, f"there is no folder {self.path.parent}; make it first")
            else:
                half = self.path.with_name(f".{self.path.name}.half")
                self.file = _locked(half, self.name)
                self._half = half
                if self.path.exists():  # what was private stays private
                    os.fchmod(self.file.fileno(), stat.S_IMODE(self.path.stat().st_mode))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of bytes that found no room
            self.file.close()
        if self._half:
            with suppress(OSError):
                self._half.unlink()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What goes wrong in the block is the output's fault. Raises Unwritable."""
        try:
            yield
        except OSError as e:
            raise Unwritable(self.name, f"cannot be written: {e.strerror or e}") from e

    def write(self, content: bytes) -> None:
        """Raises Unwritable."""
        with self.writing():
            self.file.write(content)

    def finish(self) -> None:
        """Bring everything onto the disk, under the temporary name. Raises Unwritable."""
        with self.writing():
            self.file.flush()
            if self._half:
                os.fsync(self.file.fileno())

    def move(self) -> None:
        """Give the file its name. Raises Unwritable."""
        if self._half:
            with self.writing():
                self._half.rename(self.path)
                self._half = None
                sync(self.path.parent)


class CsvSource:
    """A CSV file to be scored."""

    place = "line"

    def __init__(self, file: CsvFile, size: int) -> None:
        self.file, self.name, self._size = file, file.name, size
        self.header: Sequence[str] = file.header

    @property
    def done(self) -> float:
        return self.file.lines.at / self._size

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        return read_rows(self.file, schema)


class CsvWriter:
    """Writes CSV: the cells as they were, and behind them the prediction, in digits that read back as the same number.

    A text that a spreadsheet would run as a formula gets a `'` before it, which spreadsheets read as "this is text";
    a number is left alone. like: a CSV file whose delimiter, encoding, mark and line ends are taken over.
    """

    def __init__(self, output: Output, header: Sequence[str], column: str, like: CsvFile | None = None) -> None:
        """Raises Unwritable."""
        self._output, self._width = output, len(header)
        self._encoding = like.encoding if like else "utf-8"
        self._delimiter, self._end = (like.delimiter, like.line_end) if like else (",", "\n")
        if like and like.marked:
            output.write(codecs.BOM_UTF8)
        self._write([header], [column])

    def write(self, chunk: Chunk, predictions: Array) -> None:
        width = self._width
        # A row may end early, or in empty cells beyond the header; the prediction stands under its name all the same.
        rows = [row if len(row) == width else [*row[:width], *[""] * (width - len(row))] for row in chunk.cells]
        self._write(rows, [repr(prediction) for prediction in predictions.tolist()])

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
            raise Unwritable(self._output.name, "a cell holds a NUL character, which CSV cannot; write Parquet") from e


class Faults:
    """Every fault of every refused row, as CSV in a file of its own, which there is for the first of them only; or
    at once, where somebody named it."""

    def __init__(self, path: Path | None, place: str, *, is_named: bool) -> None:
        """Raises Unwritable, Refused."""
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
        """Raises Unwritable, Refused."""
        if not self.path or not refused:
            return
        output = self._output or self._begin(self.path)
        rows = [[str(fault.number), fault.column, fault.reason] for row in refused for fault in row.faults]
        output.write(csv_text(disarm(rows, 3), ",", "\n").encode("utf-8"))

    def finish(self) -> None:
        if self._output:
            self._output.finish()

    def move(self) -> None:
        """Give the file its name; without one, take away what tells of an earlier table. Raises Unwritable."""
        if self._output:
            self._output.move()
        elif self.path and self.path.is_file():
            try:
                self.path.unlink()
            except OSError as e:
                raise Unwritable(self.path, f"is of an earlier table and cannot be taken away: {e.strerror}") from e

    def _begin(self, path: Path) -> Output:
        self._output = Output(path)
        self._output.write(f"{self._place},column,reason\n".encode())
        return self._output


def score(source: Source, loaded: Loaded, writer: Writer, output: Output, faults: Faults) -> Iterator[Progress]:
    """Predict every row that the model's columns accept, and say after each chunk, and at the end, how far that is.

    The files have their names at the end, and not before.
    Raises BadTable, BadArtifact, Unwritable, Refused.
    """
    rows = refused = 0
    for chunk in source.chunks(loaded.manifest.schema):
        if len(chunk.X):
            writer.write(chunk, _predict(loaded, chunk, source.place))
        faults.write(chunk.refused)
        rows, refused = rows + len(chunk.X), refused + len(chunk.refused)
        yield Progress(rows, refused, source.done)
    writer.close()
    output.finish()
    faults.finish()
    faults.move()
    output.move()
    yield Progress(rows, refused, 1.0)


def _predict(loaded: Loaded, chunk: Chunk, place: str) -> Array:
    try:
        return loaded.predictor.predict(chunk.X)
    except ArithmeticError as e:
        where = f"{place} {chunk.lines[0]} to {chunk.lines[-1]}"
        raise BadArtifact(f"version {loaded.version}", "selftest", f"{e}, for a row from {where}") from e


_WORKBOOKS = frozenset({".xlsx", ".xls", ".xlsm", ".ods"})


def check_paths(source: Path, out: Path, faults: Path | None) -> None:
    """Raises Refused if what is written would fall on what is read, also through a link, or on each other.

    Nor is CSV written under a name that promises a workbook.
    """
    if out.suffix.lower() in _WORKBOOKS:
        raise Refused(f"{out}: a workbook is not written; a name in .csv or .parquet is")
    for written in filter(None, (out, faults)):
        if source != PIPE and written != PIPE and _is_same(source, written):
            raise Refused(f"{written} is the table that is read; name another file to write")
    if faults and out != PIPE and _is_same(out, faults):
        raise Refused(f"{faults} cannot hold both the predictions and the faults; name another file for one of them")


def check_column(source: Source, column: str) -> None:
    """Raises BadTable if the table has such a column already, Refused for a name that is none."""
    if not column.strip():
        raise Refused("--column: wanted a name for the predictions' column, got none")
    if plain_name(column) in map(plain_name, source.header):
        line = 1 if source.place == "line" else None
        raise BadTable(source.name, f"has a column {column!r} already; give --column another name", line=line)


@contextmanager
def open_source(path: Path) -> Iterator[tuple[BinaryIO, Path | str]]:
    """A file to be scored, which can seek, and what to call it.

    A pipe is first read to its end, into a temporary file: a table's encoding is a property of the whole of it.
    Raises BadTable, Unwritable.
    """
    name = "standard input" if path == PIPE else path
    with ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(os.fdopen(os.dup(0), "rb") if path == PIPE else path.open("rb"))
            is_whole = path != PIPE and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        except IsADirectoryError as e:
            raise BadTable(name, "is a directory; give a file") from e
        except OSError as e:
            raise BadTable(name, f"cannot be read: {e.strerror or e}") from e
        yield (file if is_whole else stack.enter_context(_spooled(file, name))), name


@contextmanager
def open_csv_source(file: BinaryIO, name: Path | str) -> Iterator[CsvSource]:
    """A CSV file to be scored, out of a file that can seek. Raises BadTable."""
    with open_csv(file, str(name)) as opened:
        yield CsvSource(opened, os.fstat(file.fileno()).st_size)


def disarm(rows: Sequence[Sequence[str]], width: int) -> Sequence[Sequence[str]]:
    """Rows of equal width, with a `'` before each text that a spreadsheet would run as a formula.

    Raises ValueError if a cell holds a NUL character.
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
    """Rows as CSV, quoted where that is needed."""
    text = io.StringIO(newline="")
    # Python before 3.13 does not quote a carriage return that ends no line, and then does not read it back.
    is_bare = end == "\n" and "\r" in "".join(map("".join, rows))
    quoting: Literal[0, 1] = csv.QUOTE_ALL if is_bare else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()


@contextmanager
def _spooled(pipe: BinaryIO, name: Path | str) -> Iterator[BinaryIO]:
    try:
        with ExitStack() as stack:
            whole = stack.enter_context(tempfile.TemporaryFile(prefix="gleaner-"))
            while piece := _read(pipe, name):
                whole.write(piece)
            whole.seek(0)
            kept = stack.pop_all()
    except OSError as e:
        where = f"{tempfile.gettempdir()} (or set TMPDIR)"
        raise Unwritable(name, f"cannot be kept in {where}: {e.strerror or e}") from e
    with kept:
        yield whole


def _read(pipe: BinaryIO, name: Path | str) -> bytes:
    try:
        return pipe.read(_PIECE)
    except OSError as e:
        raise BadTable(name, f"cannot be read: {e.strerror or e}") from e


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.is_file() and one.samefile(other))
    except OSError:
        return False


def _locked(path: Path, name: str) -> BinaryIO:
    """An empty file of that name, which is ours until it is closed. Raises Refused, OSError."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have given it another name, or taken it away, since we opened it.
            if _is_still(handle, path):
                os.ftruncate(handle, 0)
                return os.fdopen(handle, "wb")
        except BlockingIOError as e:
            os.close(handle)
            raise Refused(f"{name} is being written by another process; wait for it, or name another file") from e
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_still(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False
