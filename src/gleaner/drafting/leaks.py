"""Columns that must not be features.

They are copies of others, or give the target away.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gleaner.table.schema import Schema
from gleaner.table.tables import Table

_SAMPLE = 500
_SAME = 1e-9


def find_leaks(table: Table) -> Iterator[tuple[str, str]]:
    """Yield (feature, why it must not be one).

    A feature that is the target in another unit, or two that add up to it, predict perfectly, and are not known when
    a prediction is wanted. A copy of another feature adds nothing.
    table: at least three rows.
    """
    schema, y = table.schema, table.y
    columns = _columns(schema)
    values = {name: table.X[:, at] for name, at in columns.items()}
    if len(y) < 3 or not np.ptp(y):
        return
    given: set[str] = set()
    for name, x in values.items():
        if np.isfinite(x).all() and np.ptp(x) and _is_line(x, y):
            given.add(name)
            yield name, f"it gives {schema.target.name!r} away: one is a straight line of the other"
    rest = [name for name in values if name not in given and np.isfinite(values[name]).all()]
    for one, other in _pairs(rest, values, y):
        given |= {one, other}
        yield one, f"with {other!r} it gives {schema.target.name!r} away: they add up to it"
        yield other, f"with {one!r} it gives {schema.target.name!r} away: they add up to it"
    seen: dict[bytes, str] = {}
    for name, x in values.items():
        first = seen.setdefault(x.tobytes(), name)
        if first != name and name not in given:
            yield name, f"it has the same values as {first!r}"


def _columns(schema: Schema) -> dict[str, int]:
    """Return the matrix column of each feature that is a number."""
    places = {name: at for at, name in enumerate(schema.columns)}
    return {feature.name: places[feature.name] for feature in schema.features if feature.is_number}


def _is_line(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether y is a straight line of x."""
    slope, level = np.polyfit(x - x.mean(), y, 1)
    residual = y - (slope * (x - x.mean()) + level)
    return bool(np.abs(residual).max() <= _SAME * np.ptp(y))


def _pairs(names: list[str], values: dict[str, np.ndarray], y: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield the pairs of columns that add up to y."""
    if len(names) < 2:
        return
    some = np.linspace(0, len(y) - 1, min(_SAMPLE, len(y))).astype(int)
    sample, bound = np.column_stack([values[name][some] for name in names]), _SAME * max(1.0, float(np.abs(y).max()))
    for i, one in enumerate(names):
        off = np.abs(sample[:, i + 1 :] + sample[:, [i]] - y[some, None]).max(axis=0)
        for j in np.flatnonzero(off <= bound).tolist():
            other = names[i + 1 + j]
            if np.abs(values[one] + values[other] - y).max() <= bound and np.ptp(values[one]) and np.ptp(values[other]):
                yield one, other
