"""Training speed, next to the same fits in plain scikit-learn: `make bench`.

The first part is `gleaner train` on the bundled sample: the whole process, with MLflow and its new database. The second
part is `train()` on a made table, in turn with the same fits in plain scikit-learn: the grids, the folds and the final
fits. It leaves out the forest, whose grid takes many minutes on a large table; `--forest` adds the forest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rig import ROOT, make_table, ratios, spread, versions, write_results
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from threadpoolctl import threadpool_limits

from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, ROWS_WORTH_THREADS, Task
from gleaner.training.train import train


def whole() -> float:
    """Return the seconds of `gleaner train` on the sample.

    The state folder is empty.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "GLEANER_PATHS__STATE": str(Path(scratch) / "state")}
        command = [sys.executable, "-m", "gleaner", "train", "--metrics-port", "0"]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def ours(table: Table, settings: Settings) -> float:
    began = time.perf_counter()
    for _ in train(table, settings):
        pass
    return time.perf_counter() - began


def bare(table: Table, settings: Settings) -> float:
    """Return the seconds of the same fits in plain scikit-learn."""
    task = Task(monotone=settings.schema_.monotone, log=True, counts=True, seed=settings.training.seed)
    X, y = table.X, table.y
    threads = None if len(y) >= ROWS_WORTH_THREADS else 1
    began = time.perf_counter()
    with threadpool_limits(threads, user_api="openmp"):
        for name in settings.training.candidates:
            estimator = FAMILIES[name].make(task, {}, X)
            if grid := {key: list(values) for key, values in FAMILIES[name].grid(task).items()}:
                search = GridSearchCV(estimator, grid, cv=3, scoring="r2", refit=False).fit(X, y)
                estimator = clone(estimator).set_params(**search.best_params_)
            for repeat in range(settings.training.repeats):
                for train_rows, test_rows in KFold(settings.training.folds, shuffle=True, random_state=repeat).split(X):
                    clone(estimator).fit(X[train_rows], y[train_rows]).predict(X[test_rows])
            estimator.fit(X, y).predict(X)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--forest", action="store_true", help="add the random forest")
    options = parser.parse_args()

    used = versions("scikit-learn", "mlflow", "numpy")
    print(", ".join(f"{name} {number}" for name, number in used.items()))
    wholes = [whole() for _ in range(options.rounds)]
    print(f"gleaner train on the sample: {spread(wholes, '.1f')} s")

    candidates = [name for name in FAMILIES if options.forest or name != "random_forest"]
    settings = load_settings(ROOT / "gleaner.toml", {"training": {"candidates": candidates}})
    table = make_table(options.rows)
    mine, plain = [], []
    for _ in range(options.rounds):
        mine.append(ours(table, settings))
        plain.append(bare(table, settings))
    print(f"{options.rows:,} rows, {', '.join(candidates)}: {spread(mine, '.1f')} s", end="")
    print(f"; plain scikit-learn {spread(plain, '.1f')} s; ratio {spread(ratios(mine, plain), '.2f')}")
    found = {"sample_seconds": wholes, "candidates": candidates, "rows": options.rows}
    write_results("training", used, {**found, "seconds": mine, "plain_seconds": plain})


if __name__ == "__main__":
    main()
