"""Prediction speed of models with and without gaps: `make bench-gaps`.

Both models of a candidate are fitted on the same made table; the second has gaps in a tenth of two columns. They
predict the same whole rows in turn, in this process: one row at a time, and a thousand at once. A third measurement
gives the second model rows with gaps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rig import ROOT, make_table, ratios, spread, versions, write_results
from threadpoolctl import threadpool_limits

from gleaner.model.predictor import Predictor
from gleaner.model.scores import scorer_of
from gleaner.settings.load import load_settings
from gleaner.settings.modelling import CANDIDATES
from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, Task
from gleaner.training.events import Fitted
from gleaner.training.packing import pack

PARAMETERS = {"decision_tree": {"max_depth": 3}, "random_forest": {"max_depth": 10, "n_estimators": 200}}
SINGLE_ROWS, BATCH_ROWS, BATCHES = 1_000, 1_000, 5


def with_gaps(table: Table) -> Table:
    """Return the table with gaps in its first and last column."""
    features = [
        replace(feature, missing="allow" if j != 1 else "refuse") for j, feature in enumerate(table.schema.features)
    ]
    gaps = np.random.default_rng(1).random(table.X.shape) < (0.1, 0.0, 0.1)
    schema = replace(table.schema, features=tuple(features))
    return replace(table, schema=schema, X=np.where(gaps, np.nan, table.X))


def load(name: str, table: Table, settings: Settings, folder: Path) -> Predictor:
    """Fit a candidate on a table, and load its artifact."""
    task = Task(monotone=table.schema.monotone, log=True, counts=True, seed=0, gaps=table.schema.gaps)
    with threadpool_limits(1):
        estimator = FAMILIES[name].make(task, PARAMETERS.get(name, {}), table.X).fit(table.X, table.y)
    predicted = estimator.predict(table.X)
    scores = scorer_of(settings).scores(table.y, predicted)
    fitted = Fitted(name, estimator, {}, scores, predicted, scores.loss, epochs=1, seconds=0.0)
    return Predictor(pack(fitted, table, scores, settings, folder))


def one_by_one(predictor: Predictor, X: Array) -> float:
    """Return the microseconds for each row, predicted alone."""
    rows, predict_row = X[:SINGLE_ROWS].tolist(), predictor.predict_row
    return 1e6 * measure(lambda: [predict_row(row) for row in rows]) / len(rows)


def at_once(predictor: Predictor, X: Array) -> float:
    """Return the microseconds for each row among a thousand."""
    rows = X[:BATCH_ROWS]
    return 1e6 * measure(lambda: [predictor.predict(rows) for _ in range(BATCHES)]) / (BATCHES * len(rows))


def measure(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    settings, whole = load_settings(ROOT / "gleaner.toml"), make_table(3_000)
    gappy = with_gaps(whole)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in CANDIDATES:
            without, taking = (
                load(name, table, settings, Path(scratch) / f"{name}-{kind}")
                for kind, table in (("without", whole), ("taking", gappy))
            )
            for way, run in (("one by one", one_by_one), ("1,000 at once", at_once)):
                runs: dict[str, list[float]] = {"without": [], "taking": [], "gaps": []}
                for _ in range(rounds):
                    runs["without"].append(run(without, whole.X))
                    runs["taking"].append(run(taking, whole.X))
                    runs["gaps"].append(run(taking, gappy.X))
                found[f"{name}, {way}"] = runs
                more = spread(ratios(runs["taking"], runs["without"]), ".2f")
                shown = ", ".join(f"{kind} {spread(values, '.2f')}" for kind, values in runs.items())
                print(f"{name}, {way}, µs a row: {shown}; a model that takes gaps: {more} times as long")
    write_results("gaps", versions("onnxruntime", "numpy", "scikit-learn"), found)


if __name__ == "__main__":
    main()
