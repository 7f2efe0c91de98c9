"""The encoding of a CSV file."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gleaner.errors import BadEncoding, BadTable

_ZIP = b"PK\x03\x04"  # the first bytes of an .xlsx and of an .ods
_MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
_NO_FILES = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoding of a file's text.

    encoding: the name of the codec.
    mark: the byte order mark, empty for none.
    has_returns: whether lines end with a carriage return alone.
    """

    encoding: str
    mark: bytes = b""
    has_returns: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether lines can be read as bytes."""
        return not self.has_returns and is_like_ascii(self.encoding)


def find_codec(name: str) -> str | None:
    """Return the usual name of an encoding; None for an unknown one."""
    try:
        found = codecs.lookup(name.strip()).name
        "".encode(found)  # raises LookupError for a codec that is no text encoding
    except (LookupError, ValueError):
        return None
    return None if found.replace("_", "-") in _NO_FILES else found


def is_like_ascii(encoding: str) -> bool:
    """Return whether an encoding reads ASCII as it is."""
    plain = bytes(range(128))
    try:
        return plain.decode(encoding).encode("utf-8") == plain
    except UnicodeError:
        return False


def examine(name: Path | str, file: BinaryIO, declared: str = "", charset: str | None = None) -> Encoded:
    """Return the encoding of a whole file.

    A byte order mark decides. Else UTF-8 comes before the declared encoding: other text is never valid UTF-8 by chance.
    declared: the encoding in `[table]`, empty for none.
    charset: the encoding that an HTTP request names, empty for none; None for a file. It comes before UTF-8.
    Raises BadTable.
    """
    file.seek(0)
    head = file.read(len(_ZIP))
    if head == _ZIP:
        raise BadTable(name, "is a workbook or another zip file; save the table as 'CSV UTF-8'")
    marked = next((one for one, mark in _MARKS.items() if head.startswith(mark)), None)
    if marked:
        return _read(name, file, marked, _MARKS[marked], charset)
    if charset or (declared and not is_like_ascii(declared)):
        return _read(name, file, charset or declared, b"", charset)
    if not declared:
        return _read(name, file, "utf-8", b"", charset)
    try:
        return _read(name, file, "utf-8", b"", charset)
    except BadEncoding:
        return _read(name, file, declared, b"", charset)


def texts(file: BinaryIO, encoding: str, mark: bytes) -> Iterator[tuple[int, bytes, str]]:
    """Yield (position, bytes, text) of a file's pieces.

    Raises UnicodeDecodeError, with the byte's position as its reason.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    at, is_end = len(mark), False
    file.seek(at)
    while not is_end:
        piece = file.read(_PIECE)
        is_end = not piece
        try:
            text = decoder.decode(piece, final=is_end)
        except UnicodeDecodeError as e:
            kept = max(0, len(e.object) - len(piece))  # bytes of the piece before
            raise UnicodeDecodeError(
                encoding, e.object[e.start : e.start + 1] or b"?", 0, 1, str(at + e.start - kept)
            ) from e
        yield at, piece, text
        at += len(piece)


def _read(name: Path | str, file: BinaryIO, encoding: str, mark: bytes, charset: str | None) -> Encoded:
    """Read a whole file in one encoding. Raises BadTable."""
    has_ends = has_returns = False
    try:
        for _, _, text in texts(file, encoding, mark):
            if "\0" in text:
                raise BadTable(name, "holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'")
            has_ends, has_returns = has_ends or "\n" in text, has_returns or "\r" in text
    except UnicodeDecodeError as e:
        raise _refusal(name, file, encoding, int(e.reason), e.object[0], charset) from e
    return Encoded(encoding, mark, has_returns and not has_ends)


def _refusal(name: Path | str, file: BinaryIO, encoding: str, at: int, byte: int, charset: str | None) -> BadEncoding:
    """Return the error for a byte that is no text."""
    file.seek(0)
    line, left = 1, at
    while left and (piece := file.read(min(left, _PIECE))):
        line += piece.count(b"\n")
        left -= len(piece)
    key = 'encoding = "..." under [table] in gleaner.toml'
    where = f"the charset of Content-Type, or {key}" if charset is not None else key
    fault = f"byte {at + 1:,} of the file, 0x{byte:02x}, is not {encoding.upper()}"
    return BadEncoding(name, fault, f"name the encoding by {where}, or send UTF-8", line=line)
