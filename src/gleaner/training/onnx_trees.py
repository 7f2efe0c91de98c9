"""The export of trees: the arrays of scikit-learn's, and ONNX's operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from gleaner.model.forest import AT_MOST, GAPS, MEMBER, MEMBERS
from gleaner.training.onnx_graph import Graph

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MEAN, SUM = 0, 1  # ai.onnx.ml's aggregate functions


class TreeArrays(NamedTuple):
    """Arrays over a tree's nodes, each of shape (nodes,), the root first.

    Rows with x[feature] <= threshold go left. A leaf has left = -1.
    gap_left: whether a gap goes left; None if all go right.
    members: for each split of a tree, the words' positions that go left instead; None where the threshold decides.
    """

    left: Ints
    right: Ints
    feature: Ints
    threshold: Floats
    value: Floats
    gap_left: Bools | None = None
    members: Sequence[Ints | None] | None = None


def grown(tree: Any, gappy: Ints) -> TreeArrays:
    """Return the arrays of one of scikit-learn's fitted trees.

    gappy: the columns that allow gaps.
    """
    value = tree.value.reshape(tree.node_count)  # refuses more than one output
    gap_left = tree.missing_go_to_left.astype(np.bool_) & np.isin(tree.feature, gappy) if len(gappy) else None
    threshold = _for_doubles(tree.threshold)
    return TreeArrays(tree.children_left, tree.children_right, tree.feature, threshold, value, gap_left)


def _for_doubles(threshold: Floats) -> Floats:
    """Return the largest doubles that float32 rounds to at most the thresholds.

    scikit-learn's trees round a row to float32 before they compare it with a threshold. With the returned
    thresholds the row itself can be compared. A double half way between two float32 numbers is rounded to the
    number whose last bit is 0.
    """
    below = threshold.astype(np.float32)
    below = np.where(below > threshold, np.nextafter(below, np.float32(-np.inf)), below)
    half_way = (below.astype(np.float64) + np.nextafter(below, np.float32(np.inf))) / 2
    return np.where(half_way.astype(np.float32) <= below, half_way, np.nextafter(half_way, -np.inf))


def boosted(boosting: Any, gappy: Ints, words: Sequence[int] = ()) -> list[TreeArrays]:
    """Return the baseline and every round's tree, in scikit-learn's order.

    `_baseline_prediction`, `_predictors` and `_preprocessor` are private, so scikit-learn is pinned, and tests compare
    the export.
    words: the number of words of each category; their columns are the first.
    Raises ValueError for a boosting that predicts through a link, or has other categories.
    """
    is_word = np.zeros(boosting.n_features_in_, np.bool_)
    is_word[: len(words)] = True
    if boosting.loss not in ("squared_error", "absolute_error") or not np.array_equal(
        boosting.is_categorical_ if boosting.is_categorical_ is not None else np.zeros_like(is_word), is_word
    ):
        raise ValueError
    seen = boosting._preprocessor.named_transformers_["encoder"].categories_ if words else []
    trees = [_stump(boosting._baseline_prediction.item())]
    for (predictor,) in boosting._predictors:
        nodes = predictor.nodes
        left = np.where(nodes["is_leaf"], -1, nodes["left"].astype(np.int64))
        right = nodes["right"].astype(np.int64)
        feature = nodes["feature_idx"]
        gap_left = nodes["missing_go_to_left"].astype(np.bool_) & np.isin(feature, gappy)
        bits = predictor.raw_left_cat_bitsets
        members = [
            _members(bits[node["bitset_idx"]], seen[node["feature_idx"]], node, words)
            if node["is_categorical"]
            else None
            for node in (nodes if words else ())
        ]
        trees.append(TreeArrays(left, right, feature, nodes["num_threshold"], nodes["value"], gap_left, members))
    return trees


def _members(bits: Any, seen: Floats, node: Any, words: Sequence[int]) -> Ints:
    """Return the positions of the words that go left at a split.

    bits: scikit-learn's bitset over the places of `seen`, in words of 32 bits.
    seen: the positions that the training rows had. Another goes where a missing value goes.
    """
    goes_left = np.full(words[node["feature_idx"]], bool(node["missing_go_to_left"]))
    places = np.arange(len(seen))
    goes_left[seen.astype(np.int64)] = (bits[places // 32] >> (places % 32).astype(np.uint32)) & 1
    return np.flatnonzero(goes_left)


def _stump(value: float) -> TreeArrays:
    """Return a tree that always predicts one value.

    ONNX has no tree without a split, so both sides of the split predict the value.
    """
    return TreeArrays(
        np.array([1, -1, -1]), np.array([2, -1, -1]), np.zeros(3, np.int64), np.zeros(3), np.full(3, value)
    )


def turned(tree: TreeArrays, rows: Ints, columns: int) -> TreeArrays:
    """Turn a tree's splits so that most rows fail each comparison.

    The turned splits compare the columns of `both_ways`.
    rows: the training rows that reached each node, shape (nodes,).
    In onnxruntime's memory the side of a failed comparison follows its split, where the processor reads ahead. A row
    through a forest of 200 trees of depth 10 takes 10.6 instead of 13.3 microseconds. For a forest grown on 20,000
    rows it takes 10.5 instead of 14, and 6.8 instead of 9.4 in a large batch. Boosting's small, even trees gain
    nothing.
    """
    turn = (tree.left >= 0) & (rows[tree.left] > rows[tree.right])
    return TreeArrays(
        left=np.where(turn, tree.right, tree.left),
        right=np.where(turn, tree.left, tree.right),
        feature=np.where(turn, tree.feature + columns, tree.feature),
        # The opposite of x <= t is -x < -t, which is -x <= the double below -t.
        threshold=np.where(turn, np.nextafter(-tree.threshold, -np.inf), tree.threshold),
        value=tree.value,
        gap_left=None if tree.gap_left is None else tree.gap_left ^ turn,
    )


def both_ways(graph: Graph, rows: str, columns: int) -> str:
    """Write the rows with every column twice, as it is and negated."""
    twice = graph.add("Gather", "rows_twice", rows, graph.constant("columns", np.tile(np.arange(columns), 2)), axis=1)
    return graph.add("Mul", "both_ways", twice, graph.constant("signs", np.repeat([1.0, -1.0], columns)))


def add_trees(
    graph: Graph, rows: str, trees: Sequence[TreeArrays], *, aggregate: int = SUM, name: str = "trees"
) -> str:
    """Write the sum or mean of trees, added in their order.

    ai.onnx.ml numbers splits and leaves separately, over all trees: `number` is a node's place among its own kind.
    """
    trees = [tree if len(tree.value) > 1 else _stump(tree.value[0]) for tree in trees]
    sizes = [len(tree.value) for tree in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    arrays = zip(*(tree[:5] for tree in trees), strict=True)
    left, right, feature, threshold, value = map(np.concatenate, arrays)
    leaf = left < 0
    number = np.where(leaf, np.cumsum(leaf), np.cumsum(~leaf)) - 1
    gap_left = np.concatenate([_gap_left(tree) for tree in trees])[~leaf]
    gaps = {GAPS: gap_left.astype(np.int64).tolist()} if gap_left.any() else {}
    members = [each for tree in trees for each in tree.members or [None] * len(tree.value)]
    modes = np.array([AT_MOST if each is None else MEMBER for each in members], np.uint8)[~leaf]
    sets = [np.append(each.astype(np.float64), np.nan) for each in members if each is not None]
    words = {MEMBERS: numpy_helper.from_array(np.concatenate(sets), MEMBERS)} if sets else {}
    true, false = ((children + np.repeat(roots, sizes))[~leaf] for children in (left, right))
    return graph.add(
        "TreeEnsemble",
        name,
        rows,
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function=aggregate,
        tree_roots=number[roots].tolist(),
        nodes_modes=numpy_helper.from_array(modes, "nodes_modes"),
        nodes_featureids=feature[~leaf].tolist(),
        nodes_splits=numpy_helper.from_array(threshold[~leaf], "nodes_splits"),
        nodes_truenodeids=number[true].tolist(),
        nodes_trueleafs=leaf[true].astype(np.int64).tolist(),
        nodes_falsenodeids=number[false].tolist(),
        nodes_falseleafs=leaf[false].astype(np.int64).tolist(),
        leaf_targetids=[0] * int(leaf.sum()),
        leaf_weights=numpy_helper.from_array(value[leaf], "leaf_weights"),
        **gaps,
        **words,
    )


def _gap_left(tree: TreeArrays) -> Bools:
    return np.zeros(len(tree.value), np.bool_) if tree.gap_left is None else tree.gap_left


def lookup(column: int, values: Floats) -> TreeArrays:
    """Return a tree that finds the value of a position.

    column: the column of positions, from 0 to len(values) - 1.
    """
    nodes: list[tuple[int, int, float, float]] = []

    def grow(first: int, last: int) -> int:
        at = len(nodes)
        nodes.append((-1, -1, 0.0, float(values[first])))
        if first < last:
            middle = (first + last) // 2
            nodes[at] = (grow(first, middle), grow(middle + 1, last), middle + 0.5, 0.0)
        return at

    grow(0, len(values) - 1)
    left, right, threshold, value = map(np.array, zip(*nodes, strict=True))
    return TreeArrays(left, right, np.full(len(nodes), column), threshold, value)
