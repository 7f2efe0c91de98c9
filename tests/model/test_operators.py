"""The rule of every operator, on models made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hostile
import made
import numpy as np
import onnx
import pytest
from hostile import finish, weigh

from gleaner.errors import BadArtifact
from gleaner.model.forest import ATTRIBUTES
from gleaner.model.operators import MOST_NUMBERS, OPERATORS, check_operators, measure
from gleaner.training.export import export
from gleaner.training.onnx_graph import Graph

ROWS = made.questions(8)


def refusal(folder: Path, model: bytes) -> str:
    made.rewrite(made.copy(made.artifact("linear"), folder), model)
    with pytest.raises(BadArtifact) as caught:
        check_operators(folder)
    assert "operator" == caught.value.reason
    return caught.value.detail


# Rows beside


@pytest.mark.parametrize("mixing", hostile.MIXING)
def test_a_model_that_reads_the_rows_beside_is_refused(tmp_path, mixing):
    model = hostile.MIXING[mixing]()
    if mixing != "rows by rows":  # its predictions are right; it is refused for its memory
        together, alone = hostile.predict(model, ROWS), [hostile.predict(model, row[None])[0] for row in ROWS]
        assert together.tolist() != alone  # without the check, the engine mixes rows

    assert refusal(tmp_path / "new", model)


def of(write: Callable[[Graph], str]) -> bytes:
    graph = Graph()
    write(graph)
    return finish(graph)


def constant_along_the_rows(graph: Graph) -> str:
    return graph.add("Add", "more", weigh(graph, "rows"), graph.constant("each", np.ones((8, 1))))


def constant_of_more_axes(graph: Graph) -> str:
    return graph.add("Add", "more", weigh(graph, "rows"), graph.constant("each", np.ones((1, 1, 1))))


def one_row_to_eight(graph: Graph) -> str:
    return graph.add("Max", "most", graph.constant("some", np.ones((8, 1))), graph.constant("others", np.ones((8, 1))))


def new_first_axis(graph: Graph) -> str:
    return weigh(graph, graph.add("Unsqueeze", "apart", "rows", graph.constant("first", [0])))


def last_axis_by_its_end(graph: Graph) -> str:
    return weigh(graph, graph.add("Unsqueeze", "apart", "rows", graph.constant("first", [-3])))


def axes_from_rows(graph: Graph) -> str:
    column = graph.add("Gather", "column", "rows", graph.constant("zero", [0]), axis=1)
    return weigh(graph, graph.add("Unsqueeze", "apart", "rows", graph.add("Cast", "axes", column, to=7)))


def weights_from_rows(graph: Graph) -> str:
    return graph.add("Gemm", "square", "rows", "rows", transB=1)


def rows_as_weights(graph: Graph) -> str:
    return graph.add("Gemm", "product", graph.constant("left", np.ones((1, 8))), "rows")


def an_offset_for_each_row(graph: Graph) -> str:
    weights = graph.constant("weights", np.ones((3, 1)))
    return graph.add("Gemm", "product", "rows", weights, graph.constant("offsets", np.ones((8, 1))))


def an_unknown_attribute(graph: Graph) -> str:
    return weigh(graph, "rows", alpha=2)


def a_sum_of_floats(graph: Graph) -> str:
    return graph.add("ReduceSum", "sum", "rows", graph.constant("axes", [1]), keepdims=1)


def a_lookup_by_anything(graph: Graph) -> str:
    place = graph.add("Cast", "place", weigh(graph, "rows"), to=7)
    return graph.add("Gather", "found", graph.constant("table", np.ones(9)), place)


def a_column_that_is_not_there(graph: Graph) -> str:
    return graph.add("Gather", "found", "rows", graph.constant("place", [3]), axis=1)


def a_missing_input(graph: Graph) -> str:
    return graph.add("Exp", "exp", "later")


def two_columns(graph: Graph) -> str:
    return graph.add("Gemm", "two", "rows", graph.constant("weights", np.ones((3, 2))))


def two_numbers_with_one_name(graph: Graph) -> str:
    return graph.add("Exp", "rows", weigh(graph, "rows")) and graph.add("Exp", "last", "rows")


def replace(graph: Graph, constant: list, to: str = "rows") -> str:
    gap = graph.add("IsNaN", "gap", "rows")
    return weigh(graph, graph.add("Where", "filled", gap, graph.constant("medians", constant), to))


def one_constant_for_every_column(graph: Graph) -> str:
    return replace(graph, [1.0])


def a_constant_for_each_row(graph: Graph) -> str:
    return replace(graph, [[1.0] * 3] * 8)


def rows_in_place_of_the_constants(graph: Graph) -> str:
    gap = graph.add("IsNaN", "gap", "rows")
    return weigh(graph, graph.add("Where", "filled", gap, "rows", graph.constant("medians", np.ones(3))))


def a_constant_condition(graph: Graph) -> str:
    always, medians = graph.constant("always", np.ones(3, np.bool_)), graph.constant("medians", np.ones(3))
    return weigh(graph, graph.add("Where", "filled", always, medians, "rows"))


def more_rows(graph: Graph) -> str:
    return weigh(graph, graph.add("Concat", "more", "rows", "rows", axis=0))


def columns_by_their_end(graph: Graph) -> str:
    return weigh(graph, graph.add("Concat", "more", "rows", "rows", axis=-1))


def a_constant_beside_the_rows(graph: Graph) -> str:
    return weigh(graph, graph.add("Concat", "more", "rows", graph.constant("ones", np.ones((8, 1))), axis=1))


def gaps_of_a_constant(graph: Graph) -> str:
    return weigh(graph, graph.add("IsNaN", "gap", graph.constant("ones", np.ones((8, 3)))))


def a_lookup_by_gaps(graph: Graph) -> str:
    place = graph.add("Cast", "place", graph.add("IsNaN", "gap", weigh(graph, "rows")), to=7)
    return graph.add("Gather", "found", graph.constant("table", np.ones(9)), place)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (one_constant_for_every_column, "Where needs a condition for each column, a constant for each"),
        (a_constant_for_each_row, "Where needs a condition"),
        (rows_in_place_of_the_constants, "Where needs a condition"),
        (a_constant_condition, "Where needs a condition"),
        (more_rows, "Concat joins other than the columns"),
        (columns_by_their_end, "Concat joins other than the columns"),
        (a_constant_beside_the_rows, "Concat joins other than the columns"),
        (gaps_of_a_constant, "IsNaN needs rows as its only input"),
        (a_lookup_by_gaps, "may choose a place that is not there"),
        (constant_along_the_rows, "Add would spread rows over another axis"),
        (constant_of_more_axes, "would spread rows"),
        (one_row_to_eight, "Max needs two inputs, one of them rows"),
        (new_first_axis, "Unsqueeze touches the axis of the rows"),
        (last_axis_by_its_end, "touches the axis of the rows"),
        (axes_from_rows, "needs rows and constant axes"),
        (weights_from_rows, "Gemm has the attribute 'transB'"),
        (rows_as_weights, "multiplies other than rows by constants"),
        (an_offset_for_each_row, "adds a constant that differs from row to row"),
        (an_unknown_attribute, "Gemm has the attribute 'alpha'"),
        (a_sum_of_floats, "adds up other than whole numbers"),
        (a_lookup_by_anything, "may choose a place that is not there"),
        (a_column_that_is_not_there, "may choose a place that is not there"),
        (a_missing_input, "reads 'later', which no operator before it makes"),
        (two_columns, "is not one number for each row"),
        (two_numbers_with_one_name, "two tensors have the name 'rows'"),
    ],
)
def test_a_use_beyond_an_operators_rule_is_refused(tmp_path, monkeypatch, write, why):
    monkeypatch.setattr("onnx.checker.check_model", lambda model: None)  # the engine is not as strict

    assert why in refusal(tmp_path / "new", of(write))


@pytest.mark.parametrize("candidate", made.CANDIDATES)
def test_every_candidate_passes(candidate):
    check_operators(made.artifact(candidate).folder)


def test_a_spline_of_many_columns_passes(tmp_path, monkeypatch):
    model = made.artifact("spline").model.read_bytes()

    work = measure(model)

    assert 3 * 4 < work.numbers < 3 * 40
    assert {"Gather", "Exp"} <= work.operators <= set(OPERATORS)


# Memory


def test_a_row_that_needs_too_much_memory_is_refused(tmp_path):
    most = MOST_NUMBERS // 5 - 10
    made.rewrite(made.copy(made.artifact("linear"), tmp_path / "good"), hostile.wide(most))
    check_operators(tmp_path / "good")

    assert "one row needs more than 131,072 numbers" in refusal(tmp_path / "new", hostile.wide(most + 50))


def test_too_many_nodes_are_refused_before_they_are_read(tmp_path):
    assert "more than 1,000 times" in refusal(tmp_path / "new", hostile.of_many_nodes(1_001))


# Trees


def number(attribute: str, value: int, *, at: int = 0) -> Callable[[dict], None]:
    def change(attributes: dict) -> None:
        if attributes[attribute].ints:
            attributes[attribute].ints[at] = value
        else:
            attributes[attribute].i = value

    return change


def double(attribute: str, value: float) -> Callable[[dict], None]:
    def change(attributes: dict) -> None:
        numbers = np.frombuffer(attributes[attribute].t.raw_data).copy()
        numbers[0] = value
        attributes[attribute].t.raw_data = numbers.tobytes()

    return change


def mode(attributes: dict) -> None:
    raw = attributes["nodes_modes"].t.raw_data
    attributes["nodes_modes"].t.raw_data = b"\x04" + raw[1:]


def shorter(attributes: dict) -> None:
    attributes["leaf_targetids"].ints.pop()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (double("leaf_weights", np.nan), "a leaf that is not finite"),
        (double("leaf_weights", np.inf), "a leaf that is not finite"),
        (double("nodes_splits", np.nan), "a threshold that is no number"),
        (number("nodes_featureids", 3), "compare a column"),
        (number("nodes_featureids", -1), "compare a column"),
        (number("nodes_truenodeids", 10**9), "is not there"),
        (number("nodes_falsenodeids", -1), "is not there"),
        (number("nodes_trueleafs", 2), "is not there"),
        (number("nodes_truenodeids", 0), "on several paths"),
        (number("tree_roots", 1), "on several paths"),
        (number("leaf_targetids", 1), "another target"),
        (number("n_targets", 2), "more than one number"),
        (number("aggregate_function", 3), "neither a sum nor a mean"),
        (mode, "compare otherwise"),
        (shorter, "differ in their lengths"),
    ],
)
def test_trees_that_may_lead_nowhere_are_refused(tmp_path, change, why):
    model = export(made.fitted("decision_tree").estimator, 3)
    [node] = model.graph.node
    attributes = {attribute.name: attribute for attribute in node.attribute}
    assert ATTRIBUTES == set(attributes)
    change(attributes)

    assert why in refusal(tmp_path / "new", model.SerializeToString())


@pytest.mark.parametrize(
    ("sides", "why"),
    [
        ([0], "differ in their lengths"),
        ([2] * 99, "neither way"),
        ([-1] * 99, "neither way"),
        (1, "another type than exports write"),
    ],
)
def test_trees_that_send_a_gap_nowhere_are_refused(tmp_path, sides, why):
    model = export(made.fitted("decision_tree").estimator, 3)
    [node] = model.graph.node
    splits = sum(len(each.ints) for each in node.attribute if each.name == "nodes_featureids")
    value = sides[:splits] if isinstance(sides, list) else sides
    node.attribute.append(onnx.helper.make_attribute("nodes_missing_value_tracks_true", value))

    assert why in refusal(tmp_path / "new", model.SerializeToString())


def test_trees_without_one_of_their_lists_are_refused(tmp_path):
    for name in ATTRIBUTES:
        model = export(made.fitted("decision_tree").estimator, 3)
        [node] = model.graph.node
        [place] = [i for i, attribute in enumerate(node.attribute) if attribute.name == name]
        del node.attribute[place]

        assert f"the trees lack {name}" in refusal(tmp_path / name, model.SerializeToString())
