"""Models and artifacts that training never makes, each with one fault.

All of them use allowed operators only, have correct hashes unless that is the fault, and predict their golden rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import made
import numpy as np
import onnxruntime

from gleaner.model.manifest import MANIFEST, MODEL
from gleaner.training.onnx_graph import Graph
from gleaner.training.onnx_trees import TreeArrays, add_trees

GOLDEN = [[30.0, 50.0, 200_000.0], [60.0, 90.0, 300_000.0], [90.0, 10.0, 100_000.0]]
HUGE = 900 << 20


def finish(graph: Graph) -> bytes:
    return graph.as_model(3).SerializeToString()


def weigh(graph: Graph, rows: str, name: str = "weighed", **attributes: int) -> str:
    """Write a Gemm of three columns to one."""
    return graph.add("Gemm", name, rows, graph.constant(f"{name}_by", [[1.0], [2.0], [1e-3]]), **attributes)


# Predictions that depend on the rows beside


def with_the_sum_of_all_rows() -> bytes:
    graph = Graph()
    total = graph.add("ReduceSum", "total", "rows", graph.constant("axes", [0, 1]), keepdims=1)
    graph.add("Add", "more", weigh(graph, "rows"), total)
    return finish(graph)


def with_the_sum_of_whole_numbers() -> bytes:
    graph = Graph()
    ones = graph.add("Cast", "ones", graph.add("GreaterOrEqual", "over", "rows", graph.constant("limits", 40.0)), to=7)
    total = graph.add("ReduceSum", "total", ones, graph.constant("axes", [0, 1]), keepdims=1)
    graph.add("Add", "more", weigh(graph, "rows"), graph.add("Cast", "double", total, to=11))
    return finish(graph)


def less_the_first_row() -> bytes:
    graph = Graph()
    first = graph.add("Gather", "first", "rows", graph.constant("place", [0]), axis=0)
    weigh(graph, graph.add("Sub", "less", "rows", first))
    return finish(graph)


def transposed() -> bytes:
    graph = Graph()
    squares = graph.add("Gemm", "squares", "rows", "rows", transA=1)
    weigh(graph, graph.add("Gemm", "product", "rows", squares))
    return finish(graph)


def of_rows_by_rows() -> bytes:
    """Return a model of n x n numbers for n rows."""
    graph = Graph()
    alone = graph.add("ReduceSum", "alone", "rows", graph.constant("axes", [1]), keepdims=0)
    square = graph.add("Max", "square", weigh(graph, "rows"), alone)
    graph.add("ReduceSum", "sums", square, "axes", keepdims=1)
    return finish(graph)


# Other predictions


def not_finite_elsewhere() -> bytes:
    """Return exp(x) - exp(x), which is no number beyond 709 minutes."""
    graph = Graph()
    exploded = graph.add("Exp", "exploded", graph.add("Gemm", "x", "rows", graph.constant("of", [[1.0], [0], [0]])))
    graph.add("Sub", "difference", exploded, exploded)
    return finish(graph)


def not_finite_at_one_leaf() -> bytes:
    """Return a tree with a leaf that is no number.

    Only routes of exactly 1,439.25 minutes end there, so random rows do not find it.
    """
    low, high = np.nextafter(1439.25, 0), 1439.25
    tree = TreeArrays(
        np.array([1, -1, 3, -1, -1]),
        np.array([2, -1, 4, -1, -1]),
        np.zeros(5, np.int64),
        np.array([low, 0.0, high, 0.0, 0.0]),
        np.array([0.0, 1.0, 0.0, np.nan, 2.0]),
    )
    graph = Graph()
    add_trees(graph, "rows", [tree])
    return finish(graph)


def beyond_a_table() -> bytes:
    """Return a model that looks up doors in a table of 100."""
    graph = Graph()
    doors = graph.add("Gather", "doors", "rows", graph.constant("column", [1]), axis=1)
    graph.add("Gather", "found", graph.constant("table", np.arange(100.0)), graph.add("Cast", "place", doors, to=7))
    return finish(graph)


# Memory and time


def wide(columns: int = 1_000_000) -> bytes:
    """Return a model of 8 MB for a row, five times over."""
    graph = Graph()
    copies = graph.add("Gather", "copies", "rows", graph.constant("places", np.zeros(columns, np.int64)), axis=1)
    for i in range(4):
        copies = graph.add("Tanh", f"tanh_{i}", copies)
    weigh(graph, graph.add("Gather", "three", copies, graph.constant("first", [0, 1, 2]), axis=1))
    return finish(graph)


def of_many_nodes(count: int = 400_000) -> bytes:
    """Return a chain of small operators; the onnx package would take long."""

    def text(tag: int, content: bytes) -> bytes:
        size, varint = len(content), b""
        while size > 127:
            varint, size = varint + bytes([size & 127 | 128]), size >> 7
        return bytes([tag]) + varint + bytes([size]) + content

    graph = Graph()
    weigh(graph, "rows")
    model = graph.as_model(3)
    [node] = model.graph.node
    node.output[0] = "t0"
    names = [b"t%d" % i for i in range(count)] + [b"prediction"]
    chain = b"".join(
        text(0x0A, text(0x0A, names[i]) + text(0x12, names[i + 1]) + text(0x22, b"Tanh")) for i in range(count)
    )
    whole = model.graph.SerializeToString() + chain
    model.ClearField("graph")
    return model.SerializeToString() + text(0x3A, whole)


def forest(trees: int = 200, splits: int = 500) -> bytes:
    """Return an honest forest of 3 MB."""
    random, nodes, places = np.random.default_rng(0), 2 * splits + 1, np.arange(splits)
    left, right = np.full(nodes, -1), np.full(nodes, -1)
    left[:splits], right[:splits] = 2 * places + 1, 2 * places + 2
    grown = [
        TreeArrays(
            left, right, random.integers(0, 3, nodes), random.uniform(0, 1e6, nodes), random.uniform(0, 9, nodes)
        )
        for _ in range(trees)
    ]
    graph = Graph()
    add_trees(graph, "rows", grown)
    return finish(graph)


def slow() -> bytes:
    """Return a model of 100 million multiplications for a row."""
    graph, size = Graph(), 1_000
    rows = graph.add("Gemm", "wide", "rows", graph.constant("to_wide", np.full((3, size), 1e-6)))
    square = graph.constant("square", np.full((size, size), 1.0 / size))
    for i in range(100):
        rows = graph.add("Gemm", f"product_{i}", rows, square)
    graph.add("Gemm", "narrow", rows, graph.constant("to_one", np.full((size, 1), 1.0 / size)))
    return finish(graph)


# Artifacts


def golden_of(model: bytes) -> dict[str, list[object]]:
    """Return golden rows with the model's own predictions, made together."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {"rows": GOLDEN, "answers": session.run(None, {"rows": np.array(GOLDEN)})[0][:, 0].tolist()}


def pack(folder: Path, make: Callable[[], bytes], *, golden: bool = True) -> Path:
    """Write an artifact of a model that predicts its golden rows.

    golden: compute them; not for a model that would end this process.
    """
    made.copy(made.constant(3.0), folder)
    model = make()
    return made.rewrite(folder, model, **({"golden": golden_of(model)} if golden else {}))


def with_a_huge_doc_string(folder: Path) -> Path:
    """Write a model with a doc string of 900 MB."""
    pack(folder, not_finite_elsewhere)
    with (folder / MODEL).open("r+b") as file:
        file.seek(0, 2)
        header, size = b"\x32", HUGE
        while size > 127:
            header, size = header + bytes([size & 127 | 128]), size >> 7
        file.write(header + bytes([size]))
        file.truncate(file.tell() + HUGE)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, 2)
    return made.rewrite(folder, files={MODEL: {"sha256": digest, "size": size}})


def truncated(folder: Path) -> None:
    with (folder / MODEL).open("r+b") as file:
        file.truncate((folder / MODEL).stat().st_size // 2)


def with_another_byte(folder: Path) -> None:
    model = bytearray((folder / MODEL).read_bytes())
    model[-1] ^= 1
    (folder / MODEL).write_bytes(model)


def with_another_file(folder: Path) -> None:
    (folder / "extra.py").write_text("raise SystemExit\n")


def without_model(folder: Path) -> None:
    (folder / MODEL).unlink()


def without_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def with_other_golden_rows(folder: Path) -> None:
    golden = json.loads((folder / MANIFEST).read_bytes())["golden"]
    made.rewrite(folder, golden={**golden, "answers": [answer + 1e-3 for answer in golden["answers"]]})


MIXING: Mapping[str, Callable[[], bytes]] = {
    "the sum of all rows": with_the_sum_of_all_rows,
    "the sum of whole numbers": with_the_sum_of_whole_numbers,
    "less the first row": less_the_first_row,
    "transposed rows": transposed,
    "rows by rows": of_rows_by_rows,
}
"""Models whose predictions depend on the rows beside."""


def predict(model: bytes, rows: np.ndarray) -> np.ndarray:
    """Return the engine's predictions, without any check."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    predictions: np.ndarray = session.run(None, {"rows": rows})[0][:, 0]
    return predictions
