"""The physical lines of a CSV file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gleaner.errors import BadTable
from gleaner.table.encodings import Encoded, texts
from gleaner.table.tables import unreadable

LONGEST_LINE = 1 << 20
_IN_MEMORY = 1 << 24


@contextmanager
def recoded(file: BinaryIO, found: Encoded) -> Iterator[BinaryIO]:
    """Copy a file as UTF-8 with plain line ends.

    The copy has no mark. A large copy is a temporary file.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="gleaner-") as copy:
        for _, _, text in texts(file, found.encoding, found.mark):
            copy.write((text.replace("\r", "\n") if found.has_returns else text).encode())
        copy.seek(0)
        yield cast(BinaryIO, copy)


class Lines:
    """The physical lines of a file as text, each of bounded length.

    start: the byte behind the byte order mark.
    at: the byte that has been reached.
    number: the line that has been reached, from 1.
    """

    def __init__(self, name: Path | str, file: BinaryIO, encoding: str, *, start: int) -> None:
        self.name, self.file, self.encoding, self.at, self.number = name, file, encoding, start, 0
        self.start = start
        file.seek(start)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self.file.readline(LONGEST_LINE)
        except OSError as e:
            raise unreadable(self.name, e) from e
        if not line:
            raise StopIteration
        self.at += len(line)
        self.number += 1
        if len(line) == LONGEST_LINE:
            raise BadTable(self.name, "is longer than 1 MB; wanted a CSV file with one row per line", line=self.number)
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as e:
            raise BadTable(self.name, "changed while it was read; try again", line=self.number) from e

    def go(self, at: int, number: int) -> None:
        """Move to a place where a line ends."""
        self.at, self.number = at, number
        self.file.seek(at)

    def peek(self, size: int) -> bytes:
        """Return the next whole lines, about `size` bytes, without moving."""
        try:
            block = self.file.read(size)
            if block and not block.endswith(b"\n"):
                block += self.file.readline(LONGEST_LINE)
            self.file.seek(self.at)
        except OSError as e:
            raise unreadable(self.name, e) from e
        return block

    def skip(self, block: bytes) -> None:
        """Move behind a block that `peek` returned."""
        self.at += len(block)
        self.number += block.count(b"\n") + (not block.endswith(b"\n"))
        self.file.seek(self.at)
