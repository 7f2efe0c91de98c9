"""MLflow's scoring protocol: the bodies that `POST /invocations` takes, and its answer.

Source: MLflow 3, "Deploy MLflow Model as a Local Inference Server", and `mlflow.pyfunc.scoring_server`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gleaner.errors import BadRows, TooLarge
from gleaner.rows import Rows, check_names, judge_lists, judge_objects
from gleaner.schema import Schema, show

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# What MLflow's own server calls each status.
ERROR_CODES: Mapping[int, str] = {503: "TEMPORARILY_UNAVAILABLE", 500: "INTERNAL_ERROR"}
_encode = msgspec.json.encode


def read_invocation(schema: Schema, value: object, *, max_rows: int) -> Rows:
    """The rows in the value of a body of JSON: an object with exactly one of `FORMS`, and no parameters.

    Raises BadRows where it is none, TooLarge for more rows than are taken at once.
    """
    forms = [form for form in FORMS if form in value] if isinstance(value, dict) else []
    if not isinstance(value, dict) or len(forms) != 1:
        got = " and ".join(forms) or ("an object without any" if isinstance(value, dict) else show(value))
        raise BadRows([("", f"wanted an object with one of {', '.join(FORMS)}, got {got}")])
    [form] = forms
    for name in value.keys() - {form, "params"}:
        raise BadRows([(f"/{name[:100]}", f"wanted nothing beside {form!r} and 'params'")])
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
    _bound(len(data), max_rows)
    is_named = form == "dataframe_records" or any(isinstance(row, dict) for row in data)
    return judge_objects(schema, data) if is_named else judge_lists(schema, data)


def _read_split(schema: Schema, data: object, max_rows: int) -> Rows:
    """pandas' `to_dict(orient="split")`: columns, data, and an index that says nothing here."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise BadRows([("/dataframe_split", "wanted an object with `columns` and `data`, a list of rows")])
    rows, columns = data["data"], data.get("columns")
    for name in data.keys() - {"columns", "data", "index"}:
        raise BadRows([(f"/dataframe_split/{name[:100]}", "wanted `columns`, `data` and `index`, and nothing else")])
    _bound(len(rows), max_rows)
    if columns is None:
        return judge_lists(schema, rows)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadRows([("/dataframe_split/columns", "wanted a list of names")])
    if len(set(columns)) != len(columns):
        raise BadRows([("/dataframe_split/columns", "a name stands twice")])
    check_names(schema, columns)
    short = [i for i, row in enumerate(rows) if not isinstance(row, list) or len(row) != len(columns)]
    if short:
        raise BadRows([(f"/dataframe_split/data/{i}", f"wanted a list of {len(columns)} values") for i in short[:100]])
    return judge_objects(schema, [dict(zip(columns, row, strict=True)) for row in rows])


def _transposed(columns: Mapping[str, object], max_rows: int) -> Sequence[object]:
    """The rows of {name: list of values}."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    for name in columns.keys() - lists.keys():
        raise BadRows([(f"/inputs/{name[:100]}", f"wanted a list of values, got {show(columns[name])}")])
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise BadRows(
            [("/inputs", f"columns of {' and '.join(map(str, sorted(lengths)))} values; wanted equal lengths")]
        )
    _bound(max(lengths, default=0), max_rows)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _bound(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise TooLarge(f"{rows:,} rows; one request takes {max_rows:,}, so send several")


def write_invocation(predictions: Sequence[float]) -> bytes:
    """`{"predictions": [...]}`."""
    return _encode({"predictions": predictions})
