"""The input of a scoring, from a file or a pipe."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from gleaner.errors import BadTable, Refused, Unwritable
from gleaner.table.schema import Schema
from gleaner.table.tables import Chunk, plain_name, unreadable

PIPE = Path("-")
PROBLEM = "problem"
_PIECE = 1 << 20


class Source(Protocol):
    """An opened table.

    name: the table's name in errors.
    header: the names of its columns.
    place: the unit that numbers its rows, "line" or "row".
    header_line: the line of the header, None for a table without lines.
    """

    name: Path | str
    header_line: int | None
    header: Sequence[str]
    place: str

    @property
    def done(self) -> float:
        """The share that has been read, from 0 to 1."""

    def chunks(self, schema: Schema) -> Iterator[Chunk]:
        """Yield its rows. Raises BadTable."""


def new_columns(source: Source, column: str, *, drops_refused: bool) -> list[str]:
    """Return the names of the columns that a scoring adds.

    column: the name of the predictions' column. A second column has the problems of refused rows, if those are kept.
    Raises BadTable for a name that the table has already, Refused for an empty name.
    """
    if not column.strip():
        raise Refused("--column: wanted a name for the column of predictions, got an empty one")
    if plain_name(column) in map(plain_name, source.header):
        reason = f"has a column {column!r} already; give --column another name"
        raise BadTable(source.name, reason, line=source.header_line)
    if drops_refused:
        return [column]
    if PROBLEM in map(plain_name, [column, *source.header]):
        reason = f"has a column {PROBLEM!r} already; rename it, or give --drop-refused"
        raise BadTable(source.name, reason, line=source.header_line)
    return [column, PROBLEM]


@contextmanager
def open_source(path: Path) -> Iterator[tuple[BinaryIO, Path | str]]:
    """Open a table as (a seekable file, its name in errors).

    A pipe is first copied to a temporary file, because only the last byte decides a table's encoding.
    Raises BadTable, Unwritable.
    """
    name = "standard input" if path == PIPE else path
    with ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(os.fdopen(os.dup(0), "rb") if path == PIPE else path.open("rb"))
            is_whole = path != PIPE and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        except OSError as e:
            raise unreadable(name, e) from e
        yield (file if is_whole else stack.enter_context(_copied(file, name))), name


@contextmanager
def _copied(pipe: BinaryIO, name: Path | str) -> Iterator[BinaryIO]:
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
        raise unreadable(name, e) from e
