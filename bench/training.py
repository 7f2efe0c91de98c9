"""How long a training takes, whole, and beside bare scikit-learn doing the same fits: `make bench`.

First `gleaner train` on the bundled sample: the process from start to end, MLflow and its new database included. Then,
on a made table, `train()` and the same fits written straight down: the grids as GridSearchCV runs them, the folds, the
final fits. The two are measured in turn. The forest is left out of the large table unless `--forest` asks for it: its
grid alone takes many minutes there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rig import ROOT, make_table
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from threadpoolctl import threadpool_limits

from gleaner.candidates import FAMILIES, ROWS_WORTH_THREADS, Task
from gleaner.settings import Settings, load_settings
from gleaner.tables import Table
from gleaner.training import train


def whole() -> float:
    """Seconds of `gleaner train` on the sample, in a folder where nothing was before."""
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
    """The same fits with nothing around them."""
    task = Task(monotone=settings.schema_.monotone, log=True, counts=True, seed=settings.training.seed)
    X, y = table.X, table.y
    threads = None if len(y) >= ROWS_WORTH_THREADS else 1
    began = time.perf_counter()
    with threadpool_limits(threads, user_api="openmp"):
        for name in settings.training.candidates:
            estimator = FAMILIES[name].make(task, {}, X)
            if FAMILIES[name].grid:
                grid = {key: list(values) for key, values in FAMILIES[name].grid.items()}
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
    parser.add_argument("--forest", action="store_true", help="the random forest, too")
    options = parser.parse_args()

    names = ("scikit-learn", "mlflow", "numpy")
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names))
    wholes = [whole() for _ in range(options.rounds)]
    print(f"gleaner train on the sample: {statistics.median(wholes):.1f} s ({min(wholes):.1f} to {max(wholes):.1f})")

    candidates = [name for name in FAMILIES if options.forest or name != "random_forest"]
    settings = load_settings(ROOT / "gleaner.toml", {"training": {"candidates": candidates}})
    table = make_table(options.rows)
    ratios, seconds = [], []
    for _ in range(options.rounds):
        mine, theirs = ours(table, settings), bare(table, settings)
        ratios.append(mine / theirs)
        seconds.append((mine, theirs))
    middle = sorted(seconds)[len(seconds) // 2]
    print(f"{options.rows:,} rows, {', '.join(candidates)}: {middle[0]:.1f} s; bare scikit-learn {middle[1]:.1f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
