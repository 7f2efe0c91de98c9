"""Plots of a fitted candidate: predicted against actual, residuals, importances."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gleaner.table.feature import Target
from gleaner.table.tables import Table
from gleaner.training.events import Fitted

_POINTS = 5_000


def draw_plots(fitted: Fitted, table: Table, target: Target, folder: Path) -> Iterator[Path]:
    """Write a candidate's plots into a folder, and yield their paths.

    The predictions are out of fold: the model had not seen the rows. At most 5,000 rows are drawn.
    """
    y, predicted = table.y, fitted.out_of_fold
    if len(y) > _POINTS:
        shown = np.random.default_rng(0).choice(len(y), _POINTS, replace=False)
        y, predicted = y[shown], predicted[shown]
    unit = f" ({target.unit})" if target.unit else ""

    figure, axes = _figure(f"{fitted.candidate}: out-of-fold mean absolute error {fitted.scores.mae:.3g}{unit}")
    ends = [float(min(y.min(), predicted.min())), float(max(y.max(), predicted.max()))]
    axes.plot(ends, ends, color="0.6", linewidth=1, label="right")
    axes.scatter(predicted, y, s=12, alpha=0.5, linewidths=0)
    axes.set(xlabel=f"predicted {target.name}{unit}", ylabel=f"actual {target.name}{unit}")
    axes.legend(frameon=False)
    yield _save(figure, folder / "predicted_against_actual.png")

    figure, axes = _figure(f"{fitted.candidate}: residuals")
    axes.axhline(0, color="0.6", linewidth=1)
    axes.scatter(predicted, y - predicted, s=12, alpha=0.5, linewidths=0)
    axes.set(xlabel=f"predicted {target.name}{unit}", ylabel=f"actual minus predicted{unit}")
    yield _save(figure, folder / "residuals.png")

    longest = max(map(len, fitted.importances), default=0)
    title = f"{fitted.candidate}: what shuffling a column costs"
    figure, axes = _figure(title, left=min(0.5, 0.06 + 0.0125 * longest))
    ranked = sorted(fitted.importances.items(), key=lambda item: item[1])
    axes.barh([name for name, _ in ranked], [value for _, value in ranked])
    axes.set(xlabel=f"growth of the mean absolute error{unit}")
    yield _save(figure, folder / "importances.png")


def _figure(title: str, *, left: float = 0.12) -> tuple[Figure, Axes]:
    # Margins are fixed, since matplotlib's layouts take as long as the drawing.
    figure = Figure(figsize=(6.4, 4.8), dpi=90)
    axes = figure.subplots()
    figure.subplots_adjust(left=left, right=0.96, top=0.92, bottom=0.12)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
