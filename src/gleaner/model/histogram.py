"""Histograms of the training data, to compare later data with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gleaner.table.numbers import Array


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins.

    edges: ascending, one more than there are bins. Bin i is [edges[i], edges[i+1]); the last includes its end.
    counts: values per bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: Array, *, bins: int = 10) -> Histogram:
    """Return the histogram of values over bins of about equal counts.

    values: shape (n,).
    bins: the largest number of bins; equal quantiles are merged.
    Edges are quantiles, so that heavy tails do not leave all rows in one bin. A single distinct value makes one
    bin of width zero.
    Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("a histogram of no values")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    if len(edges) == 1:
        return Histogram((float(edges[0]), float(edges[0])), (len(values),))
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)))
