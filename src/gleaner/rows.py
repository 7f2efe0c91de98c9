"""The rows of a body: those that every column accepts, as one matrix, and what is wrong with each of the others.

Every door comes through here, so a row that one refuses is refused by all, in the same words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gleaner.errors import BadRows, BadValue, nearest
from gleaner.schema import Array, Feature, Schema, show

NAMED_FAULTS = 100

Faults = Mapping[int, Sequence[BadValue]]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as it was sent.

    X: (m, k) matrix of the accepted rows, in their order. count: rows sent, n of them.
    faults: what is wrong with each of the n - m others, by its position from 0.
    is_single: one object rather than a list of one: what is wrong is pointed at without a position.
    """

    X: Array
    count: int
    faults: Faults = field(default_factory=dict)
    is_single: bool = False

    @property
    def accepted(self) -> NDArray[np.intp]:
        """The positions of the accepted rows, shape (m,)."""
        return np.delete(np.arange(self.count), list(self.faults)) if self.faults else np.arange(self.count)

    def check(self) -> None:
        """Raises BadRows, naming the first hundred faults, if a row was refused."""
        if self.faults:
            raise self.refusal(NAMED_FAULTS)

    def refusal(self, named: int | None = None) -> BadRows:
        """What is wrong with the refused rows, of which there is one at least; all of it, or the first `named`."""
        every = [(i, fault) for i in sorted(self.faults) for fault in self.faults[i]]
        some = every[:named]
        return BadRows(
            [(self._pointer(i, fault.column), fault.reason) for i, fault in some],
            unnamed=len(every) - len(some),
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


def judge_objects(schema: Schema, values: Sequence[object]) -> Rows:
    """The rows in a list of JSON objects, which have every feature and no other key."""
    accepted: list[Sequence[float]] = []
    faults: dict[int, list[BadValue]] = {}
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            names = ", ".join(map(repr, schema.names))
            faults[i] = [BadValue("row", i, "", f"wanted an object with {names}, got {show(value)}")]
            continue
        numbers = schema.accept(value, i)
        wrong = [number for number in numbers if isinstance(number, BadValue)]
        if wrong:
            faults[i] = wrong
        else:
            accepted.append([number for number in numbers if isinstance(number, float)])
    return Rows(schema.matrix(accepted), len(values), faults)


def judge_lists(schema: Schema, values: Sequence[object], names: Sequence[str] = ()) -> Rows:
    """The rows in a list of lists, whose members stand in the order of `names`; without them, of the features."""
    names = names or schema.names
    wanted = f"a list of {len(names)} values: {', '.join(map(repr, names))}"
    objects: list[object] = []
    short: dict[int, BadValue] = {}
    for i, value in enumerate(values):
        if isinstance(value, list) and len(value) == len(names):
            objects.append(dict(zip(names, value, strict=True)))
        else:
            got = f"one of {len(value)}" if isinstance(value, list) else show(value)
            short[i] = BadValue("row", i, "", f"wanted {wanted}, got {got}")
            objects.append(None)
    rows = judge_objects(schema, objects)
    return Rows(rows.X, rows.count, {i: [short[i]] if i in short else faults for i, faults in rows.faults.items()})


def judge_columns(schema: Schema, columns: Mapping[str, Column], count: int) -> Rows:
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
    faults: dict[int, list[BadValue]] = {}
    for j, feature in enumerate(schema.features):
        column = columns[feature.name]
        numbers[:, j], good = _accept_column(feature, column)
        for i in map(int, np.flatnonzero(~good)):
            reason = f"wanted {feature.wanted}, got {show(_value(column, i))}"
            faults.setdefault(i, []).append(BadValue("row", i, feature.name, reason))
    if not faults:
        return Rows(schema.matrix(numbers), count)
    return Rows(schema.matrix(np.delete(numbers, list(faults), axis=0)), count, dict(sorted(faults.items())))


def check_names(schema: Schema, names: Collection[str]) -> None:
    """Raises BadRows unless these are the features, in any order."""
    unknown = [name[:100] for name in names if name not in schema.names]
    missing = [feature for feature in schema.features if feature.name not in names]
    if unknown or missing:
        raise BadRows(
            [(f"/{escape(name)}", f"no such column{nearest(name, schema.names)}") for name in unknown[:NAMED_FAULTS]]
            + [(f"/{escape(feature.name)}", f"is missing; wanted {feature.wanted}") for feature in missing]
        )


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
