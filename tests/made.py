"""A small table, fitted candidates, their artifacts, and stores, for tests."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from projects import NUMBER, ROUTE, SETTINGS, write_made_table
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from gleaner.model.artifact import Artifact
from gleaner.model.manifest import MANIFEST, MODEL
from gleaner.model.predictor import ENGINE
from gleaner.model.scores import scorer_of
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.settings.modelling import CANDIDATES
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.numbers import Array
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, Task
from gleaner.training.events import Fitted
from gleaner.training.export import export
from gleaner.training.onnx_graph import Graph
from gleaner.training.onnx_trees import TreeArrays, add_trees
from gleaner.training.packing import pack

__all__ = ["CANDIDATES", "NUMBER", "ROUTE", "ROW"]

ROW = (30.0, 50.0, 200_000.0)
"""The guide's route. The made tree predicts NUMBER for it, the mean of a leaf of 276 rows that sum to 6091."""

_PARAMETERS: dict[str, dict[str, Any]] = {
    "decision_tree": {"max_depth": 3},
    "random_forest": {"max_depth": 5, "n_estimators": 12},
}


@cache
def shared_folder() -> Path:
    """Return a folder for files that are made once and never changed."""
    folder = tempfile.mkdtemp(prefix="made-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def settings() -> Settings:
    path = shared_folder() / "gleaner.toml"
    path.write_text(SETTINGS)
    return load_settings(path)


@cache
def table() -> Table:
    """Return a table of 600 rows, 276 of them the guide's route."""
    path = shared_folder() / "made.csv"
    write_made_table(path)
    return read_table(path, settings().schema_)


def questions(n: int, seed: int = 0) -> Array:
    """Return rows, shape (n, 3), in the table's ranges and somewhat beyond."""
    return np.random.default_rng(seed).uniform((0, 0, 0), (400, 1000, 1_000_000), (n, 3))


@cache
def gappy_table() -> Table:
    """Return the made table with gaps in two columns."""
    data = table()
    features = [
        replace(feature, missing="allow" if j != 1 else "refuse") for j, feature in enumerate(settings().features)
    ]
    gaps = np.random.default_rng(1).random(data.X.shape) < (0.2, 0.0, 0.1)
    schema = replace(data.schema, features=tuple(features))
    return replace(data, schema=schema, X=np.where(gaps, np.nan, data.X))


def describe(candidate: str, estimator: Any, data: Table | None = None) -> Fitted:
    """Return a fitted estimator as training returns it."""
    scorer, data = scorer_of(settings()), data or table()
    predicted = estimator.predict(data.X)
    scores = scorer.scores(data.y, predicted)
    return Fitted(candidate, estimator, {}, scores, predicted, scores.loss, epochs=1, seconds=0.1)


@cache
def fitted(candidate: str) -> Fitted:
    """Return a candidate, fitted on the made table."""
    return fitted_on(table(), candidate)


def fitted_on(data: Table, candidate: str) -> Fitted:
    task = Task(monotone=settings().schema_.monotone, log=True, counts=True, seed=0, gaps=data.schema.gaps)
    with threadpool_limits(1):
        estimator = FAMILIES[candidate].make(task, _PARAMETERS.get(candidate, {}), data.X).fit(data.X, data.y)
        return describe(candidate, estimator, data)


@cache
def artifact(candidate: str) -> Artifact:
    """Return a candidate's artifact, packed once; `copy` it to change it."""
    return pack(fitted(candidate), table(), scores_of_a_constant(), settings(), shared_folder() / candidate, run_id="r")


@cache
def constant(number: float) -> Artifact:
    """Return an artifact that always predicts one number."""
    stump = DecisionTreeRegressor().fit(np.zeros((2, 3)), [number, number])
    folder = shared_folder() / f"constant-{number}"
    return pack(describe("decision_tree", stump), table(), scores_of_a_constant(), settings(), folder, run_id="r")


def scores_of_a_constant() -> Any:
    y = table().y
    return scorer_of(settings()).scores(y, np.full(len(y), np.median(y)))


def copy(source: Artifact, folder: Path) -> Path:
    """Return a copy of an artifact, which may be changed."""
    shutil.copytree(source.folder, folder)
    return folder


def rewrite(folder: Path, model: bytes | None = None, **members: Any) -> Path:
    """Change an artifact, and its hashes to match."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if model is not None:
        (folder / MODEL).write_bytes(model)
        manifest["files"] = {MODEL: {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}}
    (folder / MANIFEST).write_text(json.dumps(manifest | members))
    return folder


def fill(root: Path, *sources: Artifact | Path, tested: bool = True) -> Store:
    """Return a store with artifacts as versions 1, 2, ....

    The first is the champion, the second the challenger.
    tested: remember their self-tests as passed, which saves a process each.
    """
    store = Store(root)
    for version, source in enumerate(sources, start=1):
        added = store.add(version, source if isinstance(source, Path) else source.folder)
        if tested:
            store.remember_passed(version, added.digest, ENGINE)
    store.point(dict(zip(("champion", "challenger"), range(1, len(sources) + 1), strict=False)))
    return store


def place(folder: Path, *sources: Artifact | Path, poll_seconds: float = 0.1) -> Store:
    """Write settings and a store of tested versions, ready to serve.

    sources: by default a tree and a linear model.
    """
    (folder / "gleaner.toml").write_text(f'{SETTINGS}\n[serving]\nlog = "json"\npoll_seconds = {poll_seconds}\n')
    return fill(folder / ".gleaner" / "store", *(sources or (artifact("decision_tree"), artifact("linear"))))


# Models that training never makes


def exploding(weight: float = 1.0) -> bytes:
    """Return a model of exp(weight * time_spent), which can be infinite."""
    graph = Graph()
    product = graph.add("Gemm", "product", "rows", graph.constant("weights", [[weight], [0.0], [0.0]]))
    graph.add("Exp", "exploded", product)
    return graph.as_model(3).SerializeToString()


def killing() -> bytes:
    """Return a valid tree of 100,000 levels, which overflows onnxruntime's stack."""
    n = 100_000
    left, right = np.full(2 * n + 1, -1), np.full(2 * n + 1, -1)
    left[:n], right[: n - 1], right[n - 1] = np.arange(n, 2 * n), np.arange(1, n), 2 * n
    threshold = np.arange(2 * n + 1, dtype=np.float64)
    graph = Graph()
    add_trees(graph, "rows", [TreeArrays(left, right, np.zeros(2 * n + 1, np.int64), threshold, np.ones(2 * n + 1))])
    return graph.as_model(3).SerializeToString()


def tree_with_casts() -> bytes:
    """Return the made tree with operators for rounding and floor."""
    tree = fitted("decision_tree").estimator.tree_
    graph = Graph()
    single = graph.add("Cast", "float32_rows", "rows", to=TensorProto.FLOAT)
    rounded = graph.add("Cast", "rounded_rows", single, to=TensorProto.DOUBLE)
    grown = TreeArrays(tree.children_left, tree.children_right, tree.feature, tree.threshold, tree.value.ravel())
    graph.add("Max", "floored", add_trees(graph, rounded, [grown]), graph.constant("floor", 0.0))
    return graph.as_model(3).SerializeToString()


def beside_thresholds() -> Array:
    """Return rows on and right beside the made tree's thresholds."""
    tree, rows = fitted("decision_tree").estimator.tree_, []
    for column, threshold in zip(tree.feature, tree.threshold, strict=True):
        if column >= 0:
            single = np.float32(threshold)
            near = [np.nextafter(single, np.float32(way)) for way in (-np.inf, np.inf)]
            middles = [(np.float64(single) + np.float64(each)) / 2 for each in near]
            for value in (threshold, single, *near, *middles):
                for exact in (value, np.nextafter(np.float64(value), -np.inf), np.nextafter(np.float64(value), np.inf)):
                    rows.append([exact if j == column else ROW[j] for j in range(3)])
    return np.array(rows, dtype=np.float64)


def of_two_columns() -> bytes:
    """Return a good model of a table with one column fewer."""
    tree = DecisionTreeRegressor(max_depth=2).fit(table().X[:, :2], table().y)
    return export(tree, 2).SerializeToString()


def exploding_artifact(folder: Path) -> Path:
    """Write an artifact that predicts infinity for long routes."""
    golden = {"rows": [[1.0, 1.0, 1.0]], "answers": [float(np.exp(1.0))]}
    return rewrite(copy(artifact("linear"), folder), exploding(), golden=golden)


def node(operator: str, **attributes: Any) -> Any:
    return helper.make_node(operator, ["prediction"], ["more"], **attributes)
