"""The rows that a validation trains on, and those that it tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold

from gleaner.errors import BadTraining
from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array
from gleaner.table.tables import Table

GRID_FOLDS = 3
FORWARD_BLOCKS = 4

# The positions of rows.
Rows: TypeAlias = NDArray[np.int64]


def check_groups(table: Table, settings: Settings) -> None:
    """Raise BadTraining if the table has fewer groups than folds."""
    least = max(settings.training.folds, GRID_FOLDS)
    if table.groups is not None and (found := table.group_count) < least:
        raise BadTraining(
            f"{table.path} has {found} groups in {settings.training.group!r}; {least} folds need at least {least}: "
            "set training.group to a column with more entries, or lower training.folds"
        )


def grid_folds(table: Table) -> Iterator[tuple[Rows, Rows]]:
    """Yield (rows to train on, rows to test) of each unshuffled fold."""
    folds = KFold(GRID_FOLDS) if table.groups is None else GroupKFold(GRID_FOLDS)
    yield from folds.split(table.X, groups=table.groups)


def shuffled_folds(table: Table, settings: Settings, repeat: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows to train on and to test, fold by fold.

    repeat: counts from 0.
    """
    count, seed = settings.training.folds, (settings.training.seed + repeat) % 2**32
    kind = KFold if table.groups is None else GroupKFold
    yield from kind(count, shuffle=True, random_state=seed).split(table.X, groups=table.groups)


def forward_folds(days: Array) -> list[tuple[Rows, Rows]]:
    """Return the rows to train on and to test, step by step.

    The rows with a day are cut into 4 consecutive blocks of about equal size, without parting a day. Each block but the
    first is tested after training on all rows before it. Without two such steps, most rows are of one day, and the
    list is empty.
    days: (n,) day numbers, NaN for none.
    """
    known = np.flatnonzero(~np.isnan(days))
    order = known[np.argsort(days[known], kind="stable")]
    ordered = days[order]
    cuts = {0, len(order)}
    for block in range(1, FORWARD_BLOCKS):
        at = len(order) * block // FORWARD_BLOCKS
        start, end = (int(np.searchsorted(ordered, ordered[at], side)) for side in ("left", "right")) if at else (0, 0)
        cuts.add(start if at - start <= end - at else end)
    edges = sorted(cuts)[1:]
    steps = [(np.sort(order[:start]), np.sort(order[start:end])) for start, end in pairwise(edges)]
    return steps if len(steps) > 1 else []
