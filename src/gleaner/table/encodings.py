"""The encoding and the delimiter of a CSV file."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path
from typing import BinaryIO

from gleaner.errors import BadTable

_ZIP = b"PK\x03\x04"  # the first bytes of an .xlsx and of an .ods


def examine(name: Path | str, file: BinaryIO) -> str:
    """Return the encoding of a whole file. Raises BadTable."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding, undefined, is_end = "utf-8", False, False
    file.seek(0)
    head = file.read(len(_ZIP))
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadTable(name, "is UTF-16; save it as UTF-8 ('CSV UTF-8' in a spreadsheet)")
    if head == _ZIP:
        raise BadTable(name, "is a workbook or another zip file; save the table as 'CSV UTF-8'")
    file.seek(0)
    while not is_end:
        piece = file.read(1 << 20)
        is_end = not piece
        if b"\0" in piece:
            raise BadTable(name, "holds NUL bytes, so it is not a CSV file; save it as 'CSV UTF-8'")
        if encoding == "utf-8":
            try:
                decoder.decode(piece, final=is_end)
            except UnicodeDecodeError:
                encoding = "cp1252"
        undefined = undefined or any(byte in piece for byte in b"\x81\x8d\x8f\x90\x9d")
    if encoding == "cp1252" and undefined:
        raise BadTable(name, "is neither UTF-8 nor Windows-1252 text; save it as UTF-8")
    return encoding


def find_delimiter(header: str) -> str:
    """Return the delimiter that gives the header the most cells."""
    return max(",;\t", key=lambda d: len(next(csv.reader([header], delimiter=d))))
