"""The likely encoding of a file, named in the error about it."""

from __future__ import annotations

from pathlib import Path

from gleaner.errors import BadEncoding, BadTable


def find_likely(path: Path) -> str | None:
    """Return the likely encoding of a file, or None.

    Raises ModuleNotFoundError without the extra `train`.
    """
    from gleaner.drafting.charset import guess_encoding  # its library comes with an extra

    return guess_encoding(path)


def name_likely(path: Path, error: BadEncoding) -> BadTable:
    """Return an error with the likely encoding, if there is one."""
    encoding = find_likely(path)
    if not encoding:
        return error
    fix = f'add encoding = "{encoding}" under [table] in gleaner.toml and check some words, or save the file as UTF-8'
    return BadTable(path, f"{error.fault}; the file is likely {encoding}: {fix}", line=error.line)
