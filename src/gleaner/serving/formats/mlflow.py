"""MLflow's scoring protocol: the bodies of `POST /invocations`, and its response.

Source: MLflow 3, "Deploy MLflow Model as a Local Inference Server", and `mlflow.pyfunc.scoring_server`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from gleaner.errors import BadRows, wanted
from gleaner.table.messages import show
from gleaner.table.rows import Column, Rows, check_count, check_names, escape, read_columns, read_lists, read_objects
from gleaner.table.schema import Schema


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[str]
    data: list[list[float]]
    index: list[int] | msgspec.UnsetType = msgspec.UNSET


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    instances: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    inputs: list[list[float]] | msgspec.UnsetType = msgspec.UNSET


FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")

# MLflow's own words for a status; every other one is BAD_REQUEST.
ERROR_CODES: Mapping[int, str] = {503: "TEMPORARILY_UNAVAILABLE", 500: "INTERNAL_ERROR"}
_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(_Body).decode


def accept_invocation(schema: Schema, body: bytes, *, max_rows: int) -> Rows | None:
    """Return the rows of faultless lists of numbers; None for other bodies.

    Large bodies have this form. This takes a fifteenth of the time of `read_invocation`, and returns the same rows.
    """
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
    # No name contains a colon, so one colon too many is a repeated key, of which msgspec silently keeps the last.
    if len(given) != 1 or sorted(names) != sorted(schema.names) or body.count(b":") != keys:
        return None
    if not all(feature.is_number for feature in schema.features):
        return None
    [rows] = given
    width = len(names)
    if len(rows) > max_rows or any(len(row) != width for row in rows):
        return None
    X = np.fromiter(itertools.chain.from_iterable(rows), np.float64, len(rows) * width).reshape(-1, width)
    table = read_columns(schema, {name: Column(X[:, j]) for j, name in enumerate(names)}, len(rows))
    return None if table.faults else table


def read_invocation(schema: Schema, value: object, *, max_rows: int) -> Rows:
    """Read the rows of a JSON object with exactly one of `FORMS`.

    Raises BadRows for any other value, TooLarge for more rows than one request takes.
    """
    forms = [form for form in FORMS if form in value] if isinstance(value, dict) else []
    if not isinstance(value, dict) or len(forms) != 1:
        got = " and ".join(forms) or ("an object without any" if isinstance(value, dict) else show(value))
        raise BadRows([("", wanted(f"an object with one of {', '.join(FORMS)}", got))])
    [form] = forms
    for name in value:
        if name not in {form, "params"}:
            raise BadRows([(f"/{escape(name[:100])}", f"wanted no member beside {form!r} and 'params'")])
    if value.get("params"):
        raise BadRows([("/params", "this model takes no parameters; leave them out")])
    data = value[form]
    if form == "dataframe_split":
        return _read_split(schema, data, max_rows)
    if form == "inputs" and isinstance(data, dict):
        check_names(schema, data)
        return read_objects(schema, _transposed(data, max_rows))
    if not isinstance(data, list) or (form == "dataframe_records" and not all(isinstance(row, dict) for row in data)):
        what = "a list of objects" if form == "dataframe_records" else "a list of objects or of lists"
        raise BadRows([(f"/{form}", wanted(what, show(data)))])
    check_count(len(data), max_rows)
    is_named = form == "dataframe_records" or any(isinstance(row, dict) for row in data)
    return read_objects(schema, data) if is_named else read_lists(schema, data)


def _read_split(schema: Schema, data: object, max_rows: int) -> Rows:
    """Read pandas' `to_dict(orient="split")`: columns, data, and an index that is ignored."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise BadRows([("/dataframe_split", "wanted an object with `columns` and `data`, a list of rows")])
    rows, columns = data["data"], data.get("columns")
    for name in data:
        if name not in {"columns", "data", "index"}:
            reason = "wanted `columns`, `data` and `index`, and nothing else"
            raise BadRows([(f"/dataframe_split/{escape(name[:100])}", reason)])
    if not isinstance(data.get("index", []), list):
        raise BadRows([("/dataframe_split/index", wanted("a list", show(data["index"])))])
    check_count(len(rows), max_rows)
    if "columns" not in data:
        return read_lists(schema, rows)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadRows([("/dataframe_split/columns", "wanted a list of names")])
    if len(set(columns)) != len(columns):
        raise BadRows([("/dataframe_split/columns", "a name stands twice")])
    check_names(schema, columns)
    return read_lists(schema, rows, columns)


def _transposed(columns: Mapping[str, object], max_rows: int) -> Sequence[object]:
    """Return the rows of {name: list of values}."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    wrong = [name for name in columns if name not in lists]
    if wrong:
        raise BadRows([(f"/inputs/{escape(n)}", wanted("a list of values", show(columns[n]))) for n in wrong])
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise BadRows([("/inputs", f"wanted columns of one length, got {' and '.join(map(str, sorted(lengths)))}")])
    check_count(max(lengths, default=0), max_rows)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def write_invocation(predictions: Sequence[float]) -> bytes:
    """Write `{"predictions": [...]}`."""
    return _encode({"predictions": predictions})
