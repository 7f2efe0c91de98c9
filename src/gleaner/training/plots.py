"""Plots of a fitted candidate: predicted against actual, residuals, importances."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gleaner.table.feature import Target
from gleaner.table.tables import Table
from gleaner.training.events import Fitted

_POINTS = 5_000
_BARS = 25

# Fonts for letters that matplotlib's own font lacks, as Linux, Windows and macOS have them.
_FONTS = [
    *(f"Noto Sans{script}" for script in (" CJK JP", " CJK KR", " CJK SC", "", " Arabic", " Devanagari", " Thai")),
    *("Yu Gothic", "Malgun Gothic", "Microsoft YaHei", "Nirmala UI", "Leelawadee UI"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "PingFang SC", "Arial Unicode MS"),
    *("WenQuanYi Zen Hei", "NanumGothic", "IPAGothic"),
]


def draw_plots(fitted: Fitted, table: Table, target: Target, folder: Path) -> list[Path]:
    """Write a candidate's plots into a folder, and return their paths.

    The predictions are out of fold: the model had not seen the rows. At most 5,000 rows are drawn, and the 25 columns
    that matter most.
    """
    with _any_letters():
        return list(_draw(fitted, table, target, folder))


@contextmanager
def _any_letters() -> Iterator[None]:
    """Draw letters of any script that the machine's fonts have."""
    installed = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(font for font in _FONTS if font in installed)]
    with rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


def _draw(fitted: Fitted, table: Table, target: Target, folder: Path) -> Iterator[Path]:
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

    title = f"{fitted.candidate}: what shuffling a column costs"
    ranked = sorted(fitted.importances.items(), key=lambda item: item[1])[-_BARS:]
    longest = max((_width(name) for name, _ in ranked), default=0)
    figure, axes = _figure(title, left=min(0.5, 0.06 + 0.0125 * longest))
    axes.barh([name for name, _ in ranked], [value for _, value in ranked])
    axes.set(xlabel=f"growth of the mean absolute error{unit}")
    yield _save(figure, folder / "importances.png")


def _width(text: str) -> int:
    """Return the width of a text; letters of East Asia count twice."""
    return sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text)


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
