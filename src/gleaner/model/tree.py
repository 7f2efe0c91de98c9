"""A model.onnx that is a single tree, walked in Python.

For one row this is quicker than calling the engine. The engine computes every other model. `predictor` uses a tree
only after its predictions equalled the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gleaner.model.forest import GAPS, MEMBERS, check_trees
from gleaner.model.graph import read_graph
from gleaner.table.numbers import LARGEST

Node = float | tuple[int, float, "Node", "Node"] | tuple[int, float, "Node", "Node", bool]
"""A leaf's prediction, or a split: column, threshold, the branch for row[column] <= threshold, the other branch.

If a missing value takes the first branch anywhere in the tree, each split has a fifth member: whether it does there.
"""

# While a larger tree is read, the GIL would be held for long, and the other threads serve requests meanwhile.
_MOST_SPLITS, _MOST_BYTES = 4_096, 1 << 20


def read_tree(model: bytes) -> Node | None:
    """Return the root of a model that is one tree, or None.

    A mean of one tree is that tree: see `corners` for the proof that it predicts as the engine.
    """
    try:
        graph = read_graph(model)
        [node] = graph.nodes
        if node.operator != "TreeEnsemble" or sum(map(len, node.parts)) > _MOST_BYTES:
            return None
        attributes = node.attributes()
        check_trees(attributes, graph.input.width)
        lists = {name: value.tolist() for name, value in attributes.items() if not isinstance(value, int)}
        if lists["tree_roots"] != [0] or len(lists["nodes_splits"]) > _MOST_SPLITS or MEMBERS in lists:
            return None
        columns, thresholds, low, high, low_is_leaf, high_is_leaf = (
            lists[f"nodes_{name}"]
            for name in ("featureids", "splits", "truenodeids", "falsenodeids", "trueleafs", "falseleafs")
        )
        leaves = lists["leaf_weights"]
        splits: dict[int, Node] = {}
        for i in reversed(range(len(columns))):  # the splits below a split come after it
            low_branch = leaves[low[i]] if low_is_leaf[i] else splits[low[i]]
            high_branch = leaves[high[i]] if high_is_leaf[i] else splits[high[i]]
            split = (columns[i], thresholds[i], low_branch, high_branch)
            splits[i] = (*split, bool(lists[GAPS][i])) if GAPS in lists else split
        return splits[0]
    except (ValueError, LookupError, TypeError):
        return None


def walk(root: Node) -> Callable[[Sequence[float]], float]:
    """Return the function that predicts one row with a tree.

    A missing value is NaN, which passes no comparison.
    """
    if _knows_gaps(root):
        return _walk_gaps(root)

    def predict_row(row: Sequence[float]) -> float:
        node = root
        while isinstance(node, tuple):
            column, threshold, low, high = node  # type: ignore[misc]
            node = low if row[column] <= threshold else high
        return node

    return predict_row


def _walk_gaps(root: Node) -> Callable[[Sequence[float]], float]:
    def predict_row(row: Sequence[float]) -> float:
        node = root
        while isinstance(node, tuple):
            column, threshold, low, high, gap_is_low = node  # type: ignore[misc]
            value = row[column]
            node = low if value <= threshold or (gap_is_low and value != value) else high
        return node

    return predict_row


def _knows_gaps(root: Node) -> bool:
    return isinstance(root, tuple) and len(root) == 5


def corners(root: Node, width: int) -> list[list[float]]:
    """Return the least and the greatest row of every leaf.

    They lie on both sides of each threshold. If the tree knows gaps, there is also the least row of every split with a
    gap in its column.
    width: the number of columns.
    """
    rows: list[list[float]] = []
    waiting = [(root, [-LARGEST] * width, [LARGEST] * width)]
    while waiting:
        node, least, most = waiting.pop()
        if isinstance(node, tuple):
            column, threshold, low, high, *_ = node
            if _knows_gaps(root):
                rows.append([math.nan if j == column else value for j, value in enumerate(least)])
            below, above = most.copy(), least.copy()
            below[column] = min(most[column], threshold)
            above[column] = max(least[column], math.nextafter(threshold, math.inf))
            waiting += [(low, least, below), (high, above, most)]
        else:
            rows += [least, most]
    return rows
