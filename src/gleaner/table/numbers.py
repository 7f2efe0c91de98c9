"""Plain numbers: digits, with a point before the decimals."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Trees and forests compare float32 inputs, so a number must stay finite after rounding to float32.
LARGEST = float(np.finfo(np.float32).max)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_number(text: str) -> float:
    """Read a decimal number in ASCII.

    Raises ValueError for `1_000`, `1,000`, `inf`, `nan` and empty text.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def read_numbers(cells: Sequence[str]) -> Array | None:
    """Read many cells, or return None if `read_number` may refuse one.

    Blanks around a number are allowed.
    Python's float() reads more than `read_number`, but nothing more from these characters alone.
    """
    text = "".join(cells)
    if not text.isascii() or text.encode("ascii").translate(None, b"0123456789+-.eE "):
        return None
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Return whether `read_number` reads a text."""
    return _NUMBER.fullmatch(text) is not None
