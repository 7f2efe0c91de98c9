"""The declaration of a column: the keys of `[[features]]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gleaner.table.dates import part_names
from gleaner.table.notation import Notation
from gleaner.table.numbers import LARGEST
from gleaner.table.words import MISSING, MOST_COLUMNS, NO, OTHER, YES, Gaps, gaps_of, name_words

Json = dict[str, Any]

Kind = Literal["float", "int", "bool", "category", "date", "datetime"]
Part = Literal["weekday", "month", "day_of_year", "hour", "days_since"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The declaration of one input column.

    min, max: the bounds of accepted numbers, both included.
    missing: whether a row without a value is refused.
    missing_values: entries that stand for a missing value; a number in any spelling, others as words.
    monotone: the direction in which predictions may move when the feature grows.
    sources: the headers under which files have the column, the preferred one first.
    map: words in a file's cells, and the numbers that they stand for; they come before `missing_values`.
    values: the words of a category; "learn" for those of the training data.
    unknown: the fate of a word that is not in `values`: refused, or "other".
    min_count: the rows of the training data that a learned word needs.
    fold: whether case and repeated blanks of words do not matter.
    true_values, false_values: the words of a bool, in any case.
    formats: of dates in text, beside ISO 8601, as `datetime.strptime` has them.
    timezone: of dates without one; empty for UTC.
    parts: the columns made from a date.
    decimal, thousands, strip, brackets: the notation of numbers in cells; see `Notation`.
    """

    __pydantic_config__ = {
        "extra": "forbid",
        "allow_inf_nan": False,
    }  # pydantic's name for it; `settings` reads these from TOML

    name: str
    type: Kind = "float"
    unit: str = ""
    min: float | None = None
    max: float | None = None
    missing: Literal["refuse", "allow"] = "refuse"
    missing_values: tuple[str, ...] = ()
    monotone: Literal["up", "down"] | None = None
    sources: tuple[str, ...] = ()
    map: Mapping[str, float] = field(default_factory=dict)
    values: tuple[str, ...] | Literal["learn"] = ()
    unknown: Literal["refuse", "other"] = "refuse"
    min_count: int = 1
    fold: bool = False
    true_values: tuple[str, ...] = ()
    false_values: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    timezone: str = ""
    parts: tuple[Part, ...] = ()
    decimal: str | None = None
    thousands: str | None = None
    strip: str | None = None
    brackets: bool | None = None
    description: str = ""

    @property
    def lowest(self) -> float:
        return -LARGEST if self.min is None else max(self.min, -LARGEST)

    @property
    def highest(self) -> float:
        return LARGEST if self.max is None else min(self.max, LARGEST)

    @property
    def is_number(self) -> bool:
        return self.type in ("float", "int")

    @property
    def is_date(self) -> bool:
        return self.type in ("date", "datetime")

    @property
    def allows_gaps(self) -> bool:
        return self.missing == "allow"

    @property
    def words(self) -> tuple[str, ...]:
        """The known words of a category; none before they are learned."""
        return () if self.values == "learn" else self.values

    @property
    def yes_no(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words for true and those for false."""
        return self.true_values or YES, self.false_values or NO

    @property
    def folds(self) -> bool:
        return self.fold or self.type == "bool"

    @property
    def places(self) -> int:
        """The number of a category's words, with `(other)` and `(missing)`."""
        return len(self.words) + (self.unknown == "other") + self.allows_gaps

    @property
    def is_coded(self) -> bool:
        """Whether a category has too many words for a column each."""
        return len(self.words) > MOST_COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        """The matrix columns: the feature, one per part, or one per word."""
        if self.type == "category" and not self.is_coded:
            more = [OTHER] * (self.unknown == "other") + [MISSING] * self.allows_gaps
            return tuple(f"{self.name}={word}" for word in (*self.words, *more))
        return tuple(f"{self.name}.{part}" for part in part_names(self.parts)) if self.is_date else (self.name,)

    @property
    def wanted(self) -> str:
        """The accepted values, in words."""
        if self.type == "category":
            return "a word" if self.unknown == "other" or not self.words else f"one of {name_words(self.words)}"
        if self.type == "bool":
            return f"true or false, or one of {name_words([*self.yes_no[0], *self.yes_no[1]])}"
        if self.is_date:
            like = "a date such as 2024-01-31" + "T13:30:00" * (self.type == "datetime")
            return like + (f", or as {' or '.join(self.formats)}" if self.formats else "")
        kind = "a whole number" if self.type == "int" else "a number"
        unit = f" of {self.unit}" if self.unit else ""
        return f"{kind}{unit}{_bounds(self.min, self.max)}"

    @property
    def notation(self) -> Notation:
        return Notation(self.decimal or ".", self.thousands or "", self.strip or "", bool(self.brackets))

    @property
    def gaps(self) -> Gaps:
        return gaps_of(self.missing_values, self.folds)

    @property
    def absent(self) -> str:
        """The reason to refuse a row without the feature."""
        return f"is missing; wanted {self.wanted}"

    @property
    def json_schema(self) -> Json:
        """The accepted values as a JSON Schema."""
        schema: Json
        if self.type == "category":
            schema = {"type": "string", "enum": list(self.words)}
            if self.unknown == "other" or not self.words:
                schema = {"type": ["string", "integer"]}
        elif self.type == "bool":
            schema = {"type": "boolean"}
        elif self.is_date:
            schema = {"type": "string", "format": "date" if self.type == "date" else "date-time"}
        else:
            kind = "integer" if self.type == "int" else "number"
            schema = {"type": kind, "minimum": self.lowest, "maximum": self.highest}
        return {"anyOf": [schema, {"type": "null"}]} if self.allows_gaps else schema


def _bounds(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f", {low:,.15g} or more"
    return f" from {low:,.15g} to {high:,.15g}" if low is not None else f", {high:,.15g} or less"
