"""Words as sets, columns and means, and their cost: `make bench-words`.

Boosting is fitted on three quarters of a made table and scored on the rest; the made words have effects of their own,
and the frequencies of words in a text. Then each form predicts the same rows in turn, in this process. At the end JSON
rows of numbers, of words and of dates are read in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from rig import ratios, spread, versions, write_results
from threadpoolctl import threadpool_limits

from gleaner.model.scores import mae, r2
from gleaner.serving.formats.json import RowReader
from gleaner.table.feature import Feature, Target
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.training.candidates import FAMILIES, Task
from gleaner.training.export import export

WORDS, ROWS = (10, 100, 254, 2_000), 8_000
SINGLE_ROWS, BODIES = 500, 2_000


def make(words: int, seed: int) -> tuple[Array, Array]:
    """Return numbers of two features, the first a category, and a target."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1.0, words + 1)
    word = random.choice(words, ROWS, p=frequency / frequency.sum())
    x = random.normal(size=ROWS)
    effect = random.normal(size=words)
    return np.column_stack([word, x]), effect[word] + np.abs(x) + random.normal(0, 0.5, ROWS)


def schema_of(words: int) -> Schema:
    names = tuple(f"w{i}" for i in range(words))
    return Schema(
        (Feature(name="word", type="category", values=names, unknown="other"), Feature(name="x")), Target(name="y")
    )


def forms(words: int) -> dict[str, tuple[Schema, Any]]:
    """Return the schema and the parameters of each form of words.

    Without means, words beyond the 250 most frequent are one.
    """
    if words <= 254:
        return {"columns": (schema_of(words), {}), "sets": (schema_of(words), {"words": "sets"})}
    return {"sets of 250 and one": (schema_of(250), {"words": "sets"}), "means": (schema_of(words), {})}


def session_of(model: bytes) -> Callable[[Array], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"rows": rows})


def measure(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(words: int, rounds: int, found: dict[str, object]) -> None:
    """Print the scores and the speed of each form."""
    rows = 3 * ROWS // 4
    scores: dict[str, list[tuple[float, float]]] = {}
    asked: dict[str, tuple[Callable[[Array], object], Array]] = {}
    for name, (schema, parameters) in forms(words).items():
        task = Task(monotone=schema.monotone, log=False, counts=False, seed=0, categories=schema.categories)
        for seed in range(3):
            numbers, y = make(words, seed)
            numbers[:, 0] = np.minimum(numbers[:, 0], len(schema.features[0].words))
            X = schema.matrix(numbers)
            estimator = FAMILIES["gradient_boosting"].make(task, parameters, X).fit(X[:rows], y[:rows])
            predicted = estimator.predict(X[rows:])
            scores.setdefault(name, []).append((r2(y[rows:], predicted), mae(y[rows:], predicted)))
        asked[name] = session_of(export(estimator, X.shape[1]).SerializeToString()), X[rows:]
    runs: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, (predict, X) in asked.items():
            singles = [X[i : i + 1] for i in range(SINGLE_ROWS)]
            runs[name].append(1e6 * measure(lambda: [predict(row) for row in singles]) / SINGLE_ROWS)  # noqa: B023
    for name, each in scores.items():
        score, error = np.median(each, axis=0)
        print(f"{words} words, {name}: r2 {score:.3f}, mae {error:.3f}, {spread(runs[name], '.0f')} µs a row")
    found[f"{words} words"] = {"scores": scores, "microseconds": runs}


def read_bodies(rounds: int, found: dict[str, object]) -> None:
    """Print the time to read a JSON row of each kind."""
    kinds: dict[str, tuple[Feature, object]] = {
        "numbers": (Feature(name="a"), 12.5),
        "words": (Feature(name="a", type="category", values=tuple(f"w{i}" for i in range(20))), "w7"),
        "many words": (Feature(name="a", type="category", values=tuple(f"w{i}" for i in range(2_000))), "w7"),
        "dates": (Feature(name="a", type="date", parts=("weekday", "month", "days_since")), "2024-01-31"),
    }
    readers = {}
    for kind, (feature, value) in kinds.items():
        schema = Schema(tuple(Feature(**{**_keys(feature), "name": name}) for name in "abc"), Target(name="y"))
        text = f'"{value}"' if isinstance(value, str) else value
        body = f'{{"a": {text}, "b": {text}, "c": {text}}}'.encode()
        readers[kind] = RowReader(schema, max_rows=99, max_depth=9).accept, body
    runs: dict[str, list[float]] = {kind: [] for kind in readers}
    for _ in range(rounds):
        for kind, (accept, body) in readers.items():
            runs[kind].append(1e6 * measure(lambda: [accept(body) for _ in range(BODIES)]) / BODIES)  # noqa: B023
    for kind, times in runs.items():
        more = spread(ratios(times, runs["numbers"]), ".1f")
        print(f"JSON, a row of three {kind}: {spread(times, '.2f')} µs, {more} times that of numbers")
    found["JSON"] = runs


def _keys(feature: Feature) -> dict[str, Any]:
    return {"type": feature.type, "values": feature.values, "parts": feature.parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    found: dict[str, object] = {}
    with threadpool_limits(1):
        for words in WORDS:
            compare(words, rounds, found)
        read_bodies(rounds, found)
    write_results("words", versions("onnxruntime", "numpy", "scikit-learn"), found)


if __name__ == "__main__":
    main()
