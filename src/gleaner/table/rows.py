"""The rows of a request's body, and their faults.

Every format ends here, so all formats refuse the same rows with the same reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import NAMED_FAULTS, BadRows, Fault, TooLarge, wanted
from gleaner.table.feature import Feature
from gleaner.table.messages import show
from gleaner.table.numbers import Array
from gleaner.table.schema import SUGGESTIONS, Schema


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as it was sent.

    X: (m, k) matrix of the accepted rows, in their order.
    count: n, the number of rows sent.
    faults: the faults of the n - m refused rows, by their position from 0, as many as were asked for.
    unnamed: the number of further faults.
    is_single: whether the body was one object, so that pointers to its faults have no position.
    """

    X: Array
    count: int
    faults: Mapping[int, Sequence[Fault]] = field(default_factory=dict)
    unnamed: int = 0
    is_single: bool = False

    @property
    def accepted(self) -> NDArray[np.intp]:
        """The positions of the accepted rows, shape (m,).

        Some are wrong if a fault is unnamed.
        """
        return np.delete(np.arange(self.count), list(self.faults)) if self.faults else np.arange(self.count)

    def check(self) -> None:
        """Raise BadRows, with the first hundred faults, if a row was refused."""
        if self.faults:
            raise self.refusal(NAMED_FAULTS)

    def refusal(self, named: int | None = None) -> BadRows:
        """Return the error for the refused rows, at least one.

        named: the number of faults in the error; by default all kept ones.
        """
        every = [(i, fault) for i, faults in self.faults.items() for fault in faults]
        some = every[:named]
        return BadRows(
            [(self._pointer(i, fault.column), fault.reason) for i, fault in some],
            unnamed=self.unnamed + len(every) - len(some),
            lines=[fault.number if fault.place == "line" else None for _, fault in some],
        )

    def _pointer(self, i: int, column: str) -> str:
        return ("" if self.is_single else f"/{i}") + (f"/{escape(column)}" if column else "")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of n values as it was sent.

    values: (n,) numbers or bools, or positions in `words`; None for a type that no feature accepts.
    valid: (n,) False for a missing value; None if no value is missing.
    words: the texts of the column, each once.
    kind: the name of a type that no feature accepts.
    sent: n values as the body spells them, if `values` are rounded.
    clock: "local" or "utc" if `values` are seconds since 1970-01-01 00:00, as a column of dates has them.
    """

    values: Any
    valid: NDArray[np.bool_] | None = None
    words: tuple[object, ...] | None = None
    kind: str = ""
    sent: Sequence[object] | None = None
    clock: Literal["", "local", "utc"] = ""


def check_count(rows: int, most: int) -> None:
    """Raise TooLarge for more rows than one request may have."""
    if rows > most:
        raise TooLarge(f"{rows:,} rows; one request takes {most:,}, so send several")


def read_objects(schema: Schema, values: Sequence[object], *, named: int = NAMED_FAULTS) -> Rows:
    """Read rows from a list of JSON objects.

    Each object has every feature, but for one that may be missing, and no other key.
    named: the number of faults to keep; further ones are only counted.
    """
    right = f"an object with {', '.join(map(repr, schema.names))}"
    return _read(schema, (value if isinstance(value, dict) else show(value) for value in values), right, named)


def read_lists(
    schema: Schema, values: Sequence[object], names: Sequence[str] = (), *, named: int = NAMED_FAULTS
) -> Rows:
    """Read the rows of a list of lists.

    names: the feature of each member of a list; by default the schema's own order.
    named: the number of faults to keep; further ones are only counted.
    """
    names = names or schema.names

    def row(value: object) -> Mapping[str, object] | str:
        if isinstance(value, list):
            return dict(zip(names, value, strict=True)) if len(value) == len(names) else f"one of {len(value)}"
        return show(value)

    right = f"a list of {len(names)} values: {', '.join(map(repr, names))}"
    return _read(schema, map(row, values), right, named)


def _read(schema: Schema, values: Iterable[Mapping[str, object] | str], right: str, named: int) -> Rows:
    """Read rows from objects.

    values: an object per row, or a text that shows the value in its place.
    right: a row, in words.
    """
    accepted: list[Sequence[float]] = []
    faults: dict[int, Sequence[Fault]] = {}
    count = kept = unnamed = 0
    for i, value in enumerate(values):
        count += 1
        if isinstance(value, str):
            is_kept = kept < named
            found, more = [Fault("row", i, "", wanted(right, value))] * is_kept, int(not is_kept)
        else:
            try:
                accepted.append(schema.accept(value))
                continue
            except (KeyError, ValueError):
                found, more = schema.faults(value, i, named - kept, SUGGESTIONS - kept)
        if found:
            faults[i] = found
        kept += len(found)
        unnamed += more
    return Rows(schema.matrix(accepted), count, faults, unnamed)


def read_columns(schema: Schema, columns: Mapping[str, Column], count: int, *, named: int = NAMED_FAULTS) -> Rows:
    """Read the rows of named columns of `count` values each.

    named: the number of faults to keep; further ones are only counted.
    Raises BadRows for a missing column, one that no feature has, or one of a type that its feature does not accept.
    """
    check_names(schema, columns)
    columns = {feature.name: columns.get(feature.name, _none(count)) for feature in schema.features}
    wrong = []
    for feature in schema.features:
        column = columns[feature.name]
        if not _fits(feature, column):
            wrong.append((f"/{escape(feature.name)}", wanted(feature.wanted, f"a column of {_kind(column)}")))
    if wrong:
        raise BadRows(wrong)
    numbers = np.empty((count, len(schema.features)))
    good = np.empty((len(schema.features), count), dtype=np.bool_)
    for j, feature in enumerate(schema.features):
        numbers[:, j], good[j] = _accept_column(feature, columns[feature.name])
    if good.all():
        return Rows(schema.matrix(numbers), count)
    is_right = good.all(axis=0)
    refused = np.flatnonzero(~is_right)[:named]
    places = np.argwhere(~good[:, refused].T)[:named]
    faults: dict[int, list[Fault]] = {}
    for at, j in places.tolist():
        i, feature = int(refused[at]), schema.features[j]
        reason = wanted(feature.wanted, show(_value(columns[feature.name], i)))
        faults.setdefault(i, []).append(Fault("row", i, feature.name, reason))
    unnamed = good.size - int(np.count_nonzero(good)) - len(places)
    return Rows(schema.matrix(numbers[is_right]), count, faults, unnamed)


def check_names(schema: Schema, names: Collection[str]) -> None:
    """Raise BadRows unless the names are the features, in any order.

    A feature that may be missing may lack its name.
    """
    unknown, unnamed = schema.unknown(names, NAMED_FAULTS)
    given = frozenset(names)
    lacking = [feature for feature in schema.features if feature.name not in given and not feature.allows_gaps]
    missing = [(feature.name, feature.absent) for feature in lacking]
    if unknown or missing:
        raise BadRows([(f"/{escape(name)}", reason) for name, reason in [*unknown, *missing]], unnamed=unnamed)


def _none(count: int) -> Column:
    """Return a column without any value."""
    return Column(np.zeros(count), np.zeros(count, np.bool_))


def _kind(column: Column) -> str:
    if column.kind or column.values is None:
        return column.kind
    if column.words is not None:
        return "text"
    return "dates" if column.clock else "bools" if column.values.dtype == np.bool_ else "numbers"


def _fits(feature: Feature, column: Column) -> bool:
    """Return whether a feature accepts values of the column's type."""
    if column.values is None:
        return False
    if column.clock:
        return feature.is_date
    if column.words is not None:
        return not feature.is_number
    is_bool = column.values.dtype == np.bool_
    if feature.type == "bool" or feature.is_number:
        return feature.type == "bool" or not is_bool
    # Numbers in a column of words or dates are codes. A column of nulls has numbers, too.
    is_empty = column.valid is not None and not column.valid.any()
    return is_empty or (not is_bool and (feature.is_date or column.values.dtype.kind in "iu" or feature.allows_gaps))


def _accept_column(feature: Feature, column: Column) -> tuple[Array, NDArray[np.bool_]]:
    """Return (numbers, whether each is accepted), both of shape (n,)."""
    there = column.valid
    if column.clock:
        numbers, good = feature.accept_moments(column.values, is_aware=column.clock == "utc")
    elif column.words is None:
        values = column.values if there is None or feature.is_number else np.where(there, column.values, 0)
        numbers, good = feature.accept_array(values)
    elif not column.words:  # then every value is missing
        numbers, good = np.full(len(column.values), np.nan), np.full(len(column.values), feature.allows_gaps)
        return numbers, good
    else:
        known, is_known = feature.accept_array(column.words)
        at = column.values if there is None else np.where(there, column.values, 0)
        numbers, good = known[at], is_known[at]
    if there is None:
        return numbers, good
    return np.where(there, numbers, np.nan), np.where(there, good, feature.allows_gaps)


def _value(column: Column, i: int) -> object:
    """Return one value as JSON has it."""
    if column.sent is not None:
        return column.sent[i]
    if column.valid is not None and not column.valid[i]:
        return None
    return column.words[column.values[i]] if column.words is not None else column.values[i].item()


def escape(name: str) -> str:
    """Return a name as one part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
