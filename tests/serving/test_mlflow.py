"""The two readers of MLflow's bodies: the fast one only accepts.

Both return the same numbers.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import event, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from gleaner.errors import BadBody, BadRows, TooLarge
from gleaner.serving.formats.json import read_json
from gleaner.serving.formats.mlflow import accept_invocation, read_invocation
from gleaner.table.feature import Feature, Target
from gleaner.table.rows import Rows
from gleaner.table.schema import Schema

SCHEMA = Schema((Feature(name="x", min=-5.0, max=1e22), Feature(name="n", type="int")), Target(name="y"))
CATEGORY = Schema((Feature(name="x"), Feature(name="zone", type="category", values=("a", "b"))), Target(name="y"))

properties = of_hypothesis(max_examples=400, deadline=None, derandomize=True, database=None)


def read_accepted(schema: Schema, body: bytes) -> Rows | None:
    """Return the rows of a body; None if it has a fault."""
    try:
        rows = read_invocation(schema, read_json(body, max_depth=32), max_rows=5)
    except (BadBody, BadRows, TooLarge):
        return None
    return None if rows.faults else rows


values = st.one_of(
    st.sampled_from(
        ["0", "-0", "-0.0", "30", "3e1", "1e22", "9007199254740993", "18446744073709551616", "12.5", "1e400"]
    ),
    st.sampled_from(["null", "true", '"1"', "NaN", "01", "-6", "[1]", "{}", "1_0"]),
    st.integers(-5, 100).map(str),
    st.floats(-5, 100).map(repr),
)
rows = st.lists(values, min_size=2, max_size=2) | st.lists(values, max_size=3)
lists = st.lists(rows.map(lambda row: f"[{','.join(row)}]"), max_size=6).map(lambda some: f"[{','.join(some)}]")
columns = st.sampled_from(
    ['["x","n"]', '["n","x"]', '["x","x"]', '["x"]', "[]", '["x","n","z"]', '"xn"', '["x","\\u006e"]']
)
indexes = st.sampled_from(["", ',"index":[0,1]', ',"index":["a"]', ',"index":[],"index":[]', ',"dtype":1'])
bodies = st.one_of(
    st.tuples(st.sampled_from(["instances", "inputs", "dataframe_records", "data"]), lists).map(
        lambda both: f'{{"{both[0]}": {both[1]}}}'
    ),
    st.tuples(columns, lists, indexes).map(
        lambda parts: f'{{"dataframe_split":{{"columns":{parts[0]},"data":{parts[1]}{parts[2]}}}}}'
    ),
    st.tuples(lists, lists).map(lambda two: f'{{"inputs":{two[0]},"inputs":{two[1]}}}'),
    st.tuples(lists, lists).map(lambda two: f'{{"inputs":{two[0]},"instances":{two[1]}}}'),
    lists.map(lambda text: f'{{"inputs":{text},"params":{{}}}}'),
    lists,
)


@properties
@given(bodies.map(str.encode), st.sampled_from([SCHEMA, CATEGORY]))
def test_the_fast_reader_accepts_only_what_the_other_accepts_with_the_same_numbers(body, schema):
    accepted, slow = accept_invocation(schema, body, max_rows=5), read_accepted(schema, body)

    if accepted is not None:
        event("accepted by both")
        assert slow is not None
        assert (slow.count, slow.X.tobytes()) == (accepted.count, accepted.X.tobytes())


@pytest.mark.parametrize(
    "value",
    [
        {"dataframe_split": {"columns": ["n", "x"], "data": [[1, 2.5], [3, 4]]}},
        {"dataframe_split": {"index": [0, 1], "columns": ["n", "x"], "data": [[1, 2.5], [3, 4]]}},
        {"inputs": [[2.5, 1], [4, 3]]},
        {"instances": [[2.5, 1.0], [4, 3]]},
    ],
)
def test_the_fast_reader_accepts_what_mlflow_sends(value):
    accepted = accept_invocation(SCHEMA, json.dumps(value).encode(), max_rows=5)

    assert accepted
    assert [[2.5, 1.0], [4.0, 3.0]] == accepted.X.tolist()


@pytest.mark.parametrize("columns", [["n", "x"], None])
def test_a_row_of_another_length_hides_no_fault_of_the_others(columns):
    row = [1, 2.5] if columns else [2.5, 1]
    split = {"data": [[9, -9] if columns else [-9, 9], row, [1], 7, row]} | ({"columns": columns} if columns else {})

    rows = read_invocation(SCHEMA, {"dataframe_split": split}, max_rows=5)

    with pytest.raises(BadRows) as caught:
        rows.check()
    wanted = "wanted a list of 2 values: " + ("'n', 'x'" if columns else "'x', 'n'")
    assert [
        {"pointer": "/0/x", "detail": "wanted a number from -5 to 1e+22, got -9"},
        {"pointer": "/2", "detail": f"{wanted}, got one of 1"},
        {"pointer": "/3", "detail": f"{wanted}, got 7"},
    ] == caught.value.entries()
    assert [[2.5, 1.0], [2.5, 1.0]] == rows.X.tolist()


def test_the_most_rows_are_accepted_and_one_more_is_left_to_the_other_reader():
    assert accept_invocation(SCHEMA, b'{"inputs":[[1,1],[1,1],[1,1],[1,1],[1,1]]}', max_rows=5)
    assert accept_invocation(SCHEMA, b'{"inputs":[[1,1],[1,1],[1,1],[1,1],[1,1],[1,1]]}', max_rows=5) is None
    with pytest.raises(TooLarge, match="6 rows; one request takes 5"):
        read_invocation(SCHEMA, {"inputs": [[1, 1]] * 6}, max_rows=5)
