"""The rows of a body: those that every column accepts, as one matrix, and what is wrong with each of the others.

Every door comes through here, so a row that one refuses is refused by all, in the same words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import NAMED_FAULTS, BadRows, Fault, TooLarge, nearest
from gleaner.schema import Array, Feature, Schema, show

# So many unknown columns are told with the nearest feature: beside sixty with long names it takes 6 ms to find.
SUGGESTIONS = 5

Faults = Mapping[int, Sequence[Fault]]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as it was sent.

    X: (m, k) matrix of the accepted rows, in their order. count: rows sent, n of them.
    faults: what is wrong with the n - m others, by their position from 0, as much of it as was asked for; unnamed:
    how much more is.
    is_single: one object rather than a list of one: what is wrong is pointed at without a position.
    """

    X: Array
    count: int
    faults: Faults = field(default_factory=dict)
    unnamed: int = 0
    is_single: bool = False

    @property
    def accepted(self) -> NDArray[np.intp]:
        """The positions of the accepted rows, shape (m,); where no fault is unnamed."""
        return np.delete(np.arange(self.count), list(self.faults)) if self.faults else np.arange(self.count)

    def check(self) -> None:
        """Raises BadRows, naming the first hundred faults, if a row was refused."""
        if self.faults:
            raise self.refusal(NAMED_FAULTS)

    def refusal(self, named: int | None = None) -> BadRows:
        """What is wrong with the refused rows, of which there is one at least: the faults kept, or `named` of them."""
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
    """One column as it was sent, n values long.

    values: numbers; or, with `words`, positions in them; None for a type that no feature takes, named by `kind`.
    valid: (n,) where a value is there; None for all of them.
    sent: what stood in the body, where `values` do not tell it as the sender spelled it.
    """

    values: Any
    valid: NDArray[np.bool_] | None = None
    words: tuple[object, ...] | None = None
    kind: str = ""
    sent: Sequence[object] | None = None


def check_count(rows: int, most: int) -> None:
    """Raises TooLarge for more rows than one request takes."""
    if rows > most:
        raise TooLarge(f"{rows:,} rows; one request takes {most:,}, so send several")


def judge_objects(schema: Schema, values: Sequence[object], *, named: int = NAMED_FAULTS) -> Rows:
    """The rows in a list of JSON objects, which have every feature and no other key.

    named: how many faults are kept; the others are only counted. So for all judges.
    """
    wanted = f"an object with {', '.join(map(repr, schema.names))}"
    return _judge(schema, (value if isinstance(value, dict) else show(value) for value in values), wanted, named)


def judge_lists(
    schema: Schema, values: Sequence[object], names: Sequence[str] = (), *, named: int = NAMED_FAULTS
) -> Rows:
    """The rows in a list of lists, whose members stand in the order of `names`; without them, of the features."""
    names = names or schema.names

    def read(value: object) -> Mapping[str, object] | str:
        if isinstance(value, list):
            return dict(zip(names, value, strict=True)) if len(value) == len(names) else f"one of {len(value)}"
        return show(value)

    wanted = f"a list of {len(names)} values: {', '.join(map(repr, names))}"
    return _judge(schema, map(read, values), wanted, named)


def _judge(schema: Schema, values: Iterable[Mapping[str, object] | str], wanted: str, named: int) -> Rows:
    """The rows in some values: each an object, or what stands where the `wanted` row should be."""
    accepted: list[Sequence[float]] = []
    faults: dict[int, Sequence[Fault]] = {}
    count = told = unnamed = 0
    for i, value in enumerate(values):
        count += 1
        if isinstance(value, str):
            is_told = told < named
            found, more = [Fault("row", i, "", f"wanted {wanted}, got {value}")] * is_told, int(not is_told)
        else:
            try:
                accepted.append(schema.accept(value))
                continue
            except (KeyError, ValueError):
                found, more = schema.faults(value, i, named - told, SUGGESTIONS - told)
        if found:
            faults[i] = found
        told += len(found)
        unnamed += more
    return Rows(schema.matrix(accepted), count, faults, unnamed)


def judge_columns(schema: Schema, columns: Mapping[str, Column], count: int, *, named: int = NAMED_FAULTS) -> Rows:
    """The rows in named columns of `count` values each.

    Raises BadRows for what is wrong with a column as a whole: there is no such feature, it is missing, or of a
    type that the feature does not take.
    """
    check_names(schema, columns)
    wrong = []
    for feature in schema.features:
        column = columns[feature.name]
        if column.values is None or (column.words is None) == (feature.type == "category"):
            kind = column.kind or ("text" if column.words is not None else "numbers")
            wrong.append((f"/{escape(feature.name)}", f"wanted {feature.wanted}, got a column of {kind}"))
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
        reason = f"wanted {feature.wanted}, got {show(_value(columns[feature.name], i))}"
        faults.setdefault(i, []).append(Fault("row", i, feature.name, reason))
    unnamed = good.size - int(np.count_nonzero(good)) - len(places)
    return Rows(schema.matrix(numbers[is_right]), count, faults, unnamed)


def check_names(schema: Schema, names: Collection[str]) -> None:
    """Raises BadRows unless these are the features, in any order."""
    known, given = frozenset(schema.names), frozenset(names)
    unknown = [name for name in names if name not in known]
    faults = [
        (f"/{escape(name[:100])}", f"no such column{nearest(name, schema.names) if i < SUGGESTIONS else ''}")
        for i, name in enumerate(unknown[:NAMED_FAULTS])
    ]
    unnamed = len(unknown) - len(faults)
    for feature in schema.features:
        if feature.name not in given:
            faults.append((f"/{escape(feature.name)}", f"is missing; wanted {feature.wanted}"))
    if faults:
        raise BadRows(faults, unnamed=unnamed)


def _accept_column(feature: Feature, column: Column) -> tuple[Array, NDArray[np.bool_]]:
    """(what `Feature.accept` gives for each value, whether it gives anything)."""
    if column.words is not None:
        places = {word: float(i) for i, word in enumerate(feature.values)}
        known = np.array([places.get(word, np.nan) if isinstance(word, str) else np.nan for word in column.words])
        at = column.values if column.valid is None else np.where(column.valid, column.values, 0)
        numbers = known[at] if len(known) else np.full(len(at), np.nan)
        good = ~np.isnan(numbers)
    else:
        numbers = column.values.astype(np.float64)
        good = (numbers >= feature.lowest) & (numbers <= feature.highest)
        if feature.type == "int":
            good &= np.trunc(numbers) == numbers
    return numbers, good if column.valid is None else good & column.valid


def _value(column: Column, i: int) -> object:
    """One value as JSON would have it."""
    if column.sent is not None:
        return column.sent[i]
    if column.valid is not None and not column.valid[i]:
        return None
    return column.words[column.values[i]] if column.words is not None else column.values[i].item()


def escape(name: str) -> str:
    """One part of a JSON pointer. Source: RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")
