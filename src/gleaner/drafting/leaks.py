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
_GIVEN = 0.999  # r2 that two columns of a leak reach together, and neither alone
_MOST_DECIMALS = 6


def find_leaks(table: Table) -> Iterator[tuple[str, str]]:
    """Yield (feature, why it must not be one).

    A feature that is the target in another unit, or two of which it is the sum, the mean or another weighted sum,
    predict perfectly, and are not known when a prediction is wanted. A copy of another feature adds nothing.
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
    for one, other in _weighted_pairs([name for name in rest if name not in given], values, y):
        given |= {one, other}
        yield one, f"with {other!r} it gives {schema.target.name!r} away: it is a weighted sum of the two"
        yield other, f"with {one!r} it gives {schema.target.name!r} away: it is a weighted sum of the two"
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


def _weighted_pairs(names: list[str], values: dict[str, np.ndarray], y: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield the pairs of columns whose weighted sum rounds to y."""
    names = [name for name in names if np.ptp(values[name])]
    # Rounding moves the target by half of its last decimal, and the fitted weights by a little of that.
    tolerance = 1 / 10 ** _decimals(y)
    if len(names) < 2 or len(y) < 10:
        return
    X = np.column_stack([values[name] for name in names])
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    each, both = X.T @ ((y - y.mean()) / y.std()) / len(y), X.T @ X / len(y)
    # r2 of a regression on two columns, from the correlations (each with the target, both with one another)
    with np.errstate(all="ignore"):
        reached = (each[:, None] ** 2 + each**2 - 2 * np.outer(each, each) * both) / (1 - both**2)
    alone = each**2 > _GIVEN
    found = (reached > _GIVEN) & (np.abs(both) < 1 - _SAME) & ~alone & ~alone[:, None]
    for i, j in np.argwhere(np.triu(found, 1)).tolist():
        pair = np.column_stack([X[:, [i, j]], np.ones(len(y))])
        weights = np.linalg.lstsq(pair, y, rcond=None)[0]
        if np.abs(pair @ weights - y).max() <= tolerance:
            yield names[i], names[j]


def _decimals(y: np.ndarray) -> int:
    """Return the decimals that the target is rounded to."""
    return next((d for d in range(_MOST_DECIMALS) if np.allclose(y, np.round(y, d), rtol=0, atol=1e-9)), _MOST_DECIMALS)
