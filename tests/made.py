"""Small real things for the tests: a table, fitted candidates, their artifacts, and stores of them."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import NUMBER, ROUTE, SETTINGS, write_made_table
from onnx import TensorProto, helper
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from gleaner.artifact import MANIFEST, MODEL, Artifact
from gleaner.candidates import FAMILIES, Task
from gleaner.events import Fitted
from gleaner.export import _Graph, _Tree, _trees, export
from gleaner.packing import pack
from gleaner.predictor import ENGINE
from gleaner.schema import Array
from gleaner.settings import CANDIDATES, Settings, load_settings
from gleaner.store import Store
from gleaner.tables import Table, read_table
from gleaner.training import judge_of

__all__ = ["CANDIDATES", "NUMBER", "ROUTE", "ROW"]

ROW = (30.0, 50.0, 200_000.0)
"""The guide's route; the made tree of depth 3 answers NUMBER, the mean of a leaf of 276 rows that sum to 6091."""

_PARAMETERS: dict[str, dict[str, Any]] = {
    "decision_tree": {"max_depth": 3},
    "random_forest": {"max_depth": 5, "n_estimators": 12},
}


@cache
def shared_folder() -> Path:
    """A folder of this run, for what is made once; what lies in it is never changed."""
    folder = tempfile.mkdtemp(prefix="gleaner-made-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def settings() -> Settings:
    path = shared_folder() / "gleaner.toml"
    path.write_text(SETTINGS)
    return load_settings(path)


@cache
def table() -> Table:
    """600 rows; 276 of them are the guide's route."""
    path = shared_folder() / "made.csv"
    write_made_table(path)
    return read_table(path, settings().schema_)


def questions(n: int, seed: int = 0) -> Array:
    """Rows, shape (n, 3), in the table's ranges and somewhat beyond."""
    return np.random.default_rng(seed).uniform((0, 0, 0), (400, 1000, 1_000_000), (n, 3))


def describe(candidate: str, estimator: Any) -> Fitted:
    """A fitted estimator as training hands it over."""
    judge, data = judge_of(settings()), table()
    predicted = estimator.predict(data.X)
    scores = judge.scores(data.y, predicted)
    return Fitted(candidate, estimator, {}, scores, predicted, scores.loss, epochs=1, seconds=0.1)


@cache
def fitted(candidate: str) -> Fitted:
    """A candidate of the shipped families, fitted on the made table."""
    data = table()
    task = Task(monotone=settings().schema_.monotone, log=True, counts=True, seed=0)
    with threadpool_limits(1):
        estimator = FAMILIES[candidate].make(task, _PARAMETERS.get(candidate, {}), data.X).fit(data.X, data.y)
        return describe(candidate, estimator)


@cache
def artifact(candidate: str) -> Artifact:
    """The artifact of a candidate, packed once; to change one, take a `copy`."""
    return pack(fitted(candidate), table(), scores_of_a_constant(), settings(), shared_folder() / candidate, run_id="r")


@cache
def constant(answer: float) -> Artifact:
    """An artifact that answers one number, whatever it is asked."""
    stump = DecisionTreeRegressor().fit(np.zeros((2, 3)), [answer, answer])
    folder = shared_folder() / f"constant-{answer}"
    return pack(describe("decision_tree", stump), table(), scores_of_a_constant(), settings(), folder, run_id="r")


def scores_of_a_constant() -> Any:
    y = table().y
    return judge_of(settings()).scores(y, np.full(len(y), np.median(y)))


def copy(source: Artifact, folder: Path) -> Path:
    """A copy of an artifact, to be changed at will."""
    shutil.copytree(source.folder, folder)
    return folder


def rewrite(folder: Path, model: bytes | None = None, **members: Any) -> Path:
    """Change an artifact so that its hashes are right again: what is wrong now must be found in another way."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if model is not None:
        (folder / MODEL).write_bytes(model)
        manifest["files"] = {MODEL: {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}}
    (folder / MANIFEST).write_text(json.dumps(manifest | members))
    return folder


def fill(root: Path, *sources: Artifact | Path, tested: bool = True) -> Store:
    """A store with artifacts as versions 1, 2, ...; the first is the champion, the second the challenger.

    tested: remember their self-tests as passed, which saves a process each.
    """
    store = Store(root)
    for version, source in enumerate(sources, start=1):
        added = store.add(version, source if isinstance(source, Path) else source.folder)
        if tested:
            store.remember_passed(version, added.digest, ENGINE)
    store.point(dict(zip(("champion", "challenger"), range(1, len(sources) + 1), strict=False)))
    return store


# Models that no training makes


def exploding(weight: float = 1.0) -> bytes:
    """A model that answers exp(weight * time_spent): infinite from 710 / weight minutes on."""
    graph = _Graph()
    product = graph.add("Gemm", "product", "rows", graph.constant("weights", [[weight], [0.0], [0.0]]))
    graph.add("Exp", "exploded", product)
    return graph.as_model(3).SerializeToString()


def killing() -> bytes:
    """A tree of 100,000 nodes below each other: whole and valid, and onnxruntime's recursion ends the process."""
    n = 100_000
    left, right = np.full(2 * n + 1, -1), np.full(2 * n + 1, -1)
    left[:n], right[: n - 1], right[n - 1] = np.arange(n, 2 * n), np.arange(1, n), 2 * n
    threshold = np.arange(2 * n + 1, dtype=np.float64)
    graph = _Graph()
    _trees(graph, "rows", [_Tree(left, right, np.zeros(2 * n + 1, np.int64), threshold, np.ones(2 * n + 1))])
    return graph.as_model(3).SerializeToString()


def tree_with_casts() -> bytes:
    """The made tree as it was exported at first: rounded to float32 and floored by operators of their own."""
    tree = fitted("decision_tree").estimator.tree_
    graph = _Graph()
    single = graph.add("Cast", "float32_rows", "rows", to=TensorProto.FLOAT)
    rounded = graph.add("Cast", "rounded_rows", single, to=TensorProto.DOUBLE)
    grown = _Tree(tree.children_left, tree.children_right, tree.feature, tree.threshold, tree.value.ravel())
    graph.add("Max", "floored", _trees(graph, rounded, [grown]), graph.constant("floor", 0.0))
    return graph.as_model(3).SerializeToString()


def beside_thresholds() -> Array:
    """Rows with a column at, or a step of either precision beside, what the made tree compares it with."""
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
    """A good model of a table with one column fewer."""
    tree = DecisionTreeRegressor(max_depth=2).fit(table().X[:, :2], table().y)
    return export(tree, 2).SerializeToString()


def exploding_artifact(folder: Path) -> Path:
    """An artifact whose golden rows are answered rightly and whose model is infinite for long routes."""
    golden = {"rows": [[1.0, 1.0, 1.0]], "answers": [float(np.exp(1.0))]}
    return rewrite(copy(artifact("linear"), folder), exploding(), golden=golden)


def node(operator: str, **attributes: Any) -> Any:
    return helper.make_node(operator, ["prediction"], ["more"], **attributes)
