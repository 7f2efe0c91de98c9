"""A tree walked in Python, against the engine and the fitted tree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from grown import make_table, predict, properties, questions, tables, tree_edges
from hypothesis import given
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeRegressor

from gleaner.model.tree import Node, corners, read_tree, walk
from gleaner.training.export import export


def grow(max_depth: int | None = 4) -> tuple[DecisionTreeRegressor, onnx.ModelProto]:
    X, y = make_table(["wide", "signed", "few"], 200, 0)
    tree = DecisionTreeRegressor(max_depth=max_depth, random_state=0).fit(X, y)
    return tree, export(tree, 3)


def read(model: onnx.ModelProto) -> Node:
    root = read_tree(model.SerializeToString())
    assert root is not None
    return root


@properties
@given(tables, st.integers(1, 12), st.sampled_from([None, 0.0, 12.0]))
def test_a_tree_walked_in_python_predicts_as_the_engine_and_as_fitted(table, max_depth, floor):
    X, y = table
    tree = DecisionTreeRegressor(max_depth=max_depth, random_state=0).fit(X, y)
    model = export(tree, X.shape[1], floor=floor)
    root = read(model)
    predict_row = walk(root)

    for rows in (questions(X, tree_edges([tree.tree_])), np.array(corners(root, X.shape[1]))):
        walked = np.array([predict_row(row) for row in rows.tolist()])
        assert predict(model, rows).tobytes() == walked.tobytes()
        with np.errstate(over="ignore", invalid="ignore"):  # it adds up the whole table to see whether it is finite
            fitted = tree.predict(rows)
        assert walked.tobytes() == (fitted if floor is None else np.maximum(fitted, floor)).tobytes()


def test_a_tree_that_never_split_is_walked():
    tree = DecisionTreeRegressor().fit(np.zeros((2, 3)), [7.5, 7.5])

    assert 7.5 == walk(read(export(tree, 3)))([1.0, 2.0, 3.0])


def test_every_leaf_has_its_two_corners_and_every_threshold_its_two_sides():
    tree, model = grow()
    root = read(model)

    found = {float(leaf) for leaf in map(walk(root), corners(root, 3))}
    values = {column: {row[column] for row in corners(root, 3)} for column in range(3)}

    assert set(tree.tree_.value[tree.tree_.children_left < 0].ravel()) == found
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            column, threshold, *ways = node
            assert {threshold, np.nextafter(threshold, np.inf)} <= values[column]
            waiting += ways


def changed(node: Node, place: list[int], part: int, change: object) -> Node:
    """Return a tree with one member of one split changed."""
    assert isinstance(node, tuple)
    members = list(node)
    if place:
        members[place[0]] = changed(members[place[0]], place[1:], part, change)
    else:
        members[part] = change(node)
    return tuple(members)


def places(node: Node, place: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return the path to every split."""
    if not isinstance(node, tuple):
        return []
    return [place, *places(node[2], (*place, 2)), *places(node[3], (*place, 3))]


CHANGES = {
    "a threshold one step up": (1, lambda split: np.nextafter(split[1], np.inf)),
    "a threshold one step down": (1, lambda split: np.nextafter(split[1], -np.inf)),
    "another column": (0, lambda split: (split[0] + 1) % 3),
    "one way for all": (2, lambda split: split[3]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tree_that_differs_anywhere_differs_at_one_of_its_corners(change):
    _, model = grow(3)
    root = read(model)

    for place in places(root):
        wrong = changed(root, list(place), *CHANGES[change])
        rows = corners(wrong, 3)
        assert predict(model, np.array(rows)).tolist() != [walk(wrong)(row) for row in rows], place


# Other models


@pytest.mark.parametrize("wrong", [b"", b"no model", b"\x3a\x02\x0a\x00", b"\xff" * 20])
def test_bytes_that_are_no_model_are_no_tree(wrong):
    assert read_tree(wrong) is None


@properties
@given(st.data())
def test_a_damaged_model_is_no_tree_or_one_that_ends(data):
    model = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 3))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))

    root = read_tree(bytes(model[: data.draw(st.integers(0, len(model)))] if data.draw(st.booleans()) else model))

    assert root is None or len(corners(root, 1_000)) >= 2


MODEL = grow(2)[1].SerializeToString()


@pytest.mark.parametrize("kind", ["two trees", "another operator", "two operators", "a circle", "too many"])
def test_a_model_that_is_not_one_exported_tree_is_no_tree(kind, monkeypatch):
    _, model = grow()
    [node] = model.graph.node
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if kind == "two trees":
        attributes["tree_roots"].ints.append(1)
    if kind == "another operator":
        node.op_type = "TreeEnsembleRegressor"
    if kind == "two operators":
        model.graph.node.append(onnx.helper.make_node("Exp", ["prediction"], ["more"]))
    if kind == "a circle":
        attributes["nodes_trueleafs"].ints[0] = attributes["nodes_truenodeids"].ints[0] = 0
    if kind == "too many":
        monkeypatch.setattr("gleaner.model.tree._MOST_SPLITS", len(attributes["nodes_featureids"].ints) - 1)

    assert read_tree(model.SerializeToString()) is None
