"""Words of categories, and texts that stand for a missing value."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from gleaner.table.numbers import is_number

YES = ("true", "yes", "y", "1")
NO = ("false", "no", "n", "0")

# Columns for words that `values` does not list, and for no word at all.
OTHER, MISSING = "(other)", "(missing)"

# A category of more words is one column of the matrix, which holds the position of the word.
MOST_COLUMNS = 255


class Gaps(NamedTuple):
    """The entries that stand for a missing value: numbers and words."""

    numbers: frozenset[float]
    words: frozenset[str]


def plain_text(text: str) -> str:
    """Return a text in Unicode's NFC, without blanks around it."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def plain_word(text: str, *, fold: bool) -> str:
    """Return a text as words are compared.

    fold: whether case and repeated blanks do not matter.
    """
    text = plain_text(text)
    return " ".join(text.casefold().split()) if fold else text


@lru_cache(maxsize=1024)
def places_of(words: tuple[str, ...], fold: bool) -> Mapping[str, float]:
    """Return the position of each word; of equal words the first counts."""
    places: dict[str, float] = {}
    for i, word in enumerate(words):
        places.setdefault(plain_word(word, fold=fold), float(i))
    return places


@lru_cache(maxsize=1024)
def gaps_of(entries: tuple[str, ...], fold: bool) -> Gaps:
    """Return the entries that are numbers, and those that are words."""
    plain = [plain_word(entry, fold=fold) for entry in entries]
    numbers = frozenset(float(entry) for entry in plain if is_number(entry))
    return Gaps(numbers, frozenset(plain) | {""})


def digits(number: float) -> str:
    """Return a whole number as a code, such as 10115. Raises ValueError."""
    if isinstance(number, float):
        if not number.is_integer():
            raise ValueError
        number = int(number)
    if abs(number) >= 1 << 64:
        raise ValueError
    return str(number)


def name_words(words: Sequence[str], most: int = 20) -> str:
    """Return words for a message, at most so many."""
    some = ", ".join(f"'{word}'" if word.isprintable() else repr(word) for word in words[:most])
    return some + (f" and {len(words) - most:,} more" if len(words) > most else "")
