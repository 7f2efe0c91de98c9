"""The outputs of a scoring: files that appear whole, and pipes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from gleaner.errors import Refused, Unwritable
from gleaner.machine.files import open_locked, sync
from gleaner.scoring.source import PIPE
from gleaner.table.numbers import Array
from gleaner.table.tables import Chunk

_WORKBOOKS = frozenset({".xlsx", ".xls", ".xlsm", ".ods"})


class Writer(Protocol):
    """A writer of chunks and their predictions in one format."""

    def write(self, chunk: Chunk, predictions: Array) -> None:
        """Write the rows of a chunk.

        predictions: (m,) the predictions of the accepted rows.
        Raises Unwritable.
        """

    def close(self) -> None:
        """Write the end of the table. Raises Unwritable."""


class Output:
    """A file under a temporary name, or a pipe or device.

    `open` comes within the `with` block, so that a signal at any moment leaves nothing. A file gets its own name
    from `move`; without `move` nothing is left of it. A pipe or a device is written directly. The temporary name is
    always the same and locked: a second process that writes the same file is refused, and the next process
    overwrites what a killed one left.
    """

    def __init__(self, path: Path) -> None:
        self.name = "standard output" if path == PIPE else str(path)
        self.path = path
        self._half: Path | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # from bytes that a full disk did not take
            if self._file:
                self._file.close()
            elif self._half:  # a signal within `open`: the file is removed unless another process holds it
                open_locked(self._half).close()
            if self._half:
                self._half.unlink()

    @property
    def file(self) -> BinaryIO:
        """The open file."""
        if self._file is None:
            raise ValueError(f"{self.name} is not open")
        return self._file

    def open(self) -> None:
        """Open the output. Raises Unwritable, Refused."""
        with self.writing():
            if self.path == PIPE:
                self._file = os.fdopen(os.dup(1), "wb")
                return
            self.path = self.path.resolve()  # a link to a file stays a link
            if self.path.is_dir():
                raise Unwritable(self.name, "is a folder; name a file")
            if self.path.exists() and not self.path.is_file():
                self._file = self.path.open("wb")
                return
            if not self.path.parent.is_dir():
                raise Unwritable(self.name, f"there is no folder {self.path.parent}; make it first")
            self._half = self.path.with_name(f".{self.path.name}.half")
            try:
                self._file = open_locked(self._half)
            except BlockingIOError as e:
                self._half = None
                fix = "wait for it, or name another file"
                raise Refused(f"{self.name} is being written by another process; {fix}") from e
            if self.path.exists():  # a private file stays private
                os.fchmod(self.file.fileno(), stat.S_IMODE(self.path.stat().st_mode))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an OSError in the block into Unwritable."""
        try:
            yield
        except OSError as e:
            raise Unwritable(self.name, f"cannot be written: {e.strerror or e}") from e

    def write(self, content: bytes) -> None:
        """Write bytes. Raises Unwritable."""
        with self.writing():
            self.file.write(content)

    def finish(self) -> None:
        """Force every byte onto the disk, under the temporary name. Raises Unwritable."""
        with self.writing():
            self.file.flush()
            if self._half:
                os.fsync(self.file.fileno())

    def move(self) -> None:
        """Give the file its own name. Raises Unwritable."""
        if self._half:
            with self.writing():
                self._half.rename(self.path)
                self._half = None
                sync(self.path.parent)


def check_paths(source: Path, out: Path, faults: Path | None) -> None:
    """Raise Refused for an unsafe output.

    An output may not be the input, the other output, or a workbook.
    Two paths are the same file also if one is a link to the other.
    """
    if out.suffix.lower() in _WORKBOOKS:
        raise Refused(f"{out}: cannot write a workbook; name a file in .csv or .parquet")
    for written in filter(None, (out, faults)):
        if source != PIPE and written != PIPE and _is_same(source, written):
            raise Refused(f"{written} is the table to read; name another file to write")
    if faults and out != PIPE and _is_same(out, faults):
        raise Refused(f"{faults} cannot hold both the predictions and the faults; name another file for one of them")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or (one.is_file() and one.samefile(other))
    except OSError:
        return False
