"""MLflow's scoring protocol: the bodies that `POST /invocations` takes, and its answer.

Source: MLflow 3, "Deploy MLflow Model as a Local Inference Server", and `mlflow.pyfunc.scoring_server`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from gleaner.errors import BadRows
from gleaner.rows import Column, Rows, check_count, check_names, escape, judge_columns, judge_lists, judge_objects
from gleaner.schema import Schema, show


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[str]
    data: list[list[float]]
    index: list[int] | msgspec.UnsetType = msgspec.UNSET


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    instances: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    inputs: list[list[float]] | msgspec.UnsetType = msgspec.UNSET


FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# What MLflow's own server calls each status.
ERROR_CODES: Mapping[int, str] = {503: "TEMPORARILY_UNAVAILABLE", 500: "INTERNAL_ERROR"}
_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(_Body).decode


def accept_invocation(schema: Schema, body: bytes, *, max_rows: int) -> Rows | None:
    """The rows of a body that is right in every way and made of lists of numbers, which is how large ones come;
    None for one that `read_invocation` has to look at. Fifteen times as fast, and never of another opinion."""
    try:
        decoded = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    split, names = decoded.dataframe_split, list(schema.names)
    given = [lists for lists in (decoded.instances, decoded.inputs) if lists is not msgspec.UNSET]
    keys = len(given)
    if split is not msgspec.UNSET:
        given.append(split.data)
        names = split.columns
        keys += 3 + (split.index is not msgspec.UNSET)
    # No name has a colon in it, so one too many is a key that stands twice: msgspec keeps the last without a word.
    if len(given) != 1 or sorted(names) != sorted(schema.names) or body.count(b":") != keys:
        return None
    if any(feature.type == "category" for feature in schema.features):  # then no list of numbers is a row
        return None
    [rows] = given
    width = len(names)
    if len(rows) > max_rows or any(len(row) != width for row in rows):
        return None
    X = np.fromiter(itertools.chain.from_iterable(rows), np.float64, len(rows) * width).reshape(-1, width)
    judged = judge_columns(schema, {name: Column(X[:, j]) for j, name in enumerate(names)}, len(rows))
    return None if judged.faults else judged


def read_invocation(schema: Schema, value: object, *, max_rows: int) -> Rows:
    """The rows in the value of a body of JSON: an object with exactly one of `FORMS`, and no parameters.

    Raises BadRows where it is none, TooLarge for more rows than are taken at once.
    """
    forms = [form for form in FORMS if form in value] if isinstance(value, dict) else []
    if not isinstance(value, dict) or len(forms) != 1:
        got = " and ".join(forms) or ("an object without any" if isinstance(value, dict) else show(value))
        raise BadRows([("", f"wanted an object with one of {', '.join(FORMS)}, got {got}")])
    [form] = forms
    for name in value:
        if name not in {form, "params"}:
            raise BadRows([(f"/{escape(name[:100])}", f"wanted nothing beside {form!r} and 'params'")])
    if value.get("params"):
        raise BadRows([("/params", "this model takes no parameters; leave them out")])
    data = value[form]
    if form == "dataframe_split":
        return _read_split(schema, data, max_rows)
    if form == "inputs" and isinstance(data, dict):
        check_names(schema, data)
        return judge_objects(schema, _transposed(data, max_rows))
    if not isinstance(data, list) or (form == "dataframe_records" and not all(isinstance(row, dict) for row in data)):
        what = "a list of objects" if form == "dataframe_records" else "a list of objects or of lists"
        raise BadRows([(f"/{form}", f"wanted {what}, got {show(data)}")])
    check_count(len(data), max_rows)
    is_named = form == "dataframe_records" or any(isinstance(row, dict) for row in data)
    return judge_objects(schema, data) if is_named else judge_lists(schema, data)


def _read_split(schema: Schema, data: object, max_rows: int) -> Rows:
    """pandas' `to_dict(orient="split")`: columns, data, and an index that says nothing here."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise BadRows([("/dataframe_split", "wanted an object with `columns` and `data`, a list of rows")])
    rows, columns = data["data"], data.get("columns")
    for name in data:
        if name not in {"columns", "data", "index"}:
            wanted = "wanted `columns`, `data` and `index`, and nothing else"
            raise BadRows([(f"/dataframe_split/{escape(name[:100])}", wanted)])
    if not isinstance(data.get("index", []), list):
        raise BadRows([("/dataframe_split/index", f"wanted a list, got {show(data['index'])}")])
    check_count(len(rows), max_rows)
    if "columns" not in data:
        return judge_lists(schema, rows)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadRows([("/dataframe_split/columns", "wanted a list of names")])
    if len(set(columns)) != len(columns):
        raise BadRows([("/dataframe_split/columns", "a name stands twice")])
    check_names(schema, columns)
    return judge_lists(schema, rows, columns)


def _transposed(columns: Mapping[str, object], max_rows: int) -> Sequence[object]:
    """The rows of {name: list of values}."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    wrong = [name for name in columns if name not in lists]
    if wrong:
        raise BadRows([(f"/inputs/{escape(n)}", f"wanted a list of values, got {show(columns[n])}") for n in wrong])
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise BadRows(
            [("/inputs", f"columns of {' and '.join(map(str, sorted(lengths)))} values; wanted equal lengths")]
        )
    check_count(max(lengths, default=0), max_rows)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def write_invocation(predictions: Sequence[float]) -> bytes:
    """`{"predictions": [...]}`."""
    return _encode({"predictions": predictions})
