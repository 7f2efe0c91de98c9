"""The one tree of a model.onnx, walked in Python: for a row alone that is quicker than to call an engine.

A model that is anything but one tree is left to the engine; `predictor` holds the two together before it uses this.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence

from gleaner.artifact import members, varints
from gleaner.schema import LARGEST

Node = float | tuple[int, float, "Node", "Node"]
"""A leaf's answer; or a split: column, threshold, the way of a row that is not above it, and the other way."""

# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_GRAPH, _NODE, _OP_TYPE, _ATTRIBUTE = 7, 1, 4, 5
_NAME, _TENSOR, _INTEGERS = 1, 5, 8  # of an AttributeProto
_RAW = 9  # of a TensorProto
# A larger tree would keep Python's lock for long while it is read, and other threads answer meanwhile.
_MOST_SPLITS = 4_096


def read_tree(model: bytes) -> Node | None:
    """The root of a model that is one tree and nothing else, as `export` writes it; None for any other model.

    What an attribute means besides is not looked at: see `corners`.
    """
    try:
        [node] = [part for graph in _parts(model, _GRAPH) for part in _parts(graph, _NODE)]
        [operator] = _parts(node, _OP_TYPE)
        attributes = {bytes(*_parts(part, _NAME)).decode(): part for part in _parts(node, _ATTRIBUTE)}
        if bytes(operator) != b"TreeEnsemble" or _integers(attributes["tree_roots"]) != [0]:
            return None
        columns, low, high, low_is_leaf, high_is_leaf = (
            _integers(attributes[f"nodes_{name}"])
            for name in ("featureids", "truenodeids", "falsenodeids", "trueleafs", "falseleafs")
        )
        if len(columns) > _MOST_SPLITS:
            return None
        thresholds, leaves = _doubles(attributes["nodes_splits"]), _doubles(attributes["leaf_weights"])
        splits: dict[int, Node] = {}
        for i in reversed(range(len(columns))):  # a split's own splits come after it
            low_way = leaves[low[i]] if low_is_leaf[i] else splits[low[i]]
            high_way = leaves[high[i]] if high_is_leaf[i] else splits[high[i]]
            splits[i] = (columns[i], thresholds[i], low_way, high_way)
        return splits[0]
    except (ValueError, LookupError, TypeError):
        return None


def walk(root: Node) -> Callable[[Sequence[float]], float]:
    """A tree's answer to a row."""

    def answer(row: Sequence[float]) -> float:
        node = root
        while isinstance(node, tuple):
            column, threshold, low, high = node
            node = low if row[column] <= threshold else high
        return node

    return answer


def corners(root: Node, width: int) -> list[list[float]]:
    """The least and the greatest row of every leaf: all that a threshold decides, from both of its sides."""
    rows: list[list[float]] = []
    waiting = [(root, [-LARGEST] * width, [LARGEST] * width)]
    while waiting:
        node, least, most = waiting.pop()
        if isinstance(node, tuple):
            column, threshold, low, high = node
            below, above = most.copy(), least.copy()
            below[column] = min(most[column], threshold)
            above[column] = max(least[column], math.nextafter(threshold, math.inf))
            waiting += [(low, least, below), (high, above, most)]
        else:
            rows += [least, most]
    return rows


def _parts(message: bytes | memoryview, wanted: int) -> Iterator[memoryview]:
    return (part for number, part in members(message) if number == wanted)


def _integers(attribute: memoryview) -> list[int]:
    return [number for part in _parts(attribute, _INTEGERS) for number in varints(part)]


def _doubles(attribute: memoryview) -> list[float]:
    [tensor] = _parts(attribute, _TENSOR)
    [raw] = _parts(tensor, _RAW)
    numbers = array("d", bytes(raw))
    return numbers.tolist()
