"""Histograms of what training saw, against which what serving sees can be held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gleaner.schema import Array


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins: `counts[i]` in [edges[i], edges[i+1]); the last bin has both its ends."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: Array, *, bins: int = 10) -> Histogram:
    """The histogram of values, shape (n,), over bins of about equal counts.

    Edges are quantiles, so that heavy tails do not leave all rows in one bin; equal quantiles are merged.
    A single distinct value makes one bin of width zero.
    Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("a histogram of no values")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    if len(edges) == 1:
        return Histogram((float(edges[0]), float(edges[0])), (len(values),))
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)))
