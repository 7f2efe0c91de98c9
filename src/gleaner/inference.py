"""The Open Inference Protocol: tensors <-> rows and predictions, with the binary extension; what it says of a model.

Source: Open Inference Protocol, rest/inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gleaner import __version__
from gleaner.errors import BadBody, BadRows, TooLarge
from gleaner.rows import Column, Rows, check_count, judge_columns
from gleaner.schema import Array, Feature, Schema, show
from gleaner.wire import JSON, read_length

OUTPUT = "prediction"
HEADER_LENGTH = "Inference-Header-Content-Length"
BYTES = "application/octet-stream"
TYPES = (JSON, BYTES)
DATATYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    "BYTES": "",
}
_OF_FEATURE = {"float": "FP64", "int": "INT64", "category": "BYTES"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request beside its rows: its id, and whether the answer's tensor is to come as bytes."""

    id: str | None = None
    is_binary: bool = False


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input: its shape, and all of its values, in row-major order, as one column.

    is_listed: whether they stand in the JSON.
    """

    name: str
    shape: tuple[int, ...]
    column: Column
    is_listed: bool


def split_body(body: bytes, header_length: str | None, *, max_bytes: int) -> tuple[bytes, bytes]:
    """(JSON, the tensors' bytes behind it).

    Raises BadBody for a length that is none, or beyond the body; TooLarge for JSON of more than `max_bytes`.
    """
    if header_length is None:
        return body, b""
    length = read_length(header_length)
    if length is None or length > len(body):
        raise BadBody(f"{HEADER_LENGTH} is the length of the JSON in front: wanted at most {len(body)}")
    if length > max_bytes:
        raise TooLarge(f"{length:,} bytes of JSON; one request takes {max_bytes:,}, so send the tensors as bytes")
    return body[:length], body[length:]


def read_inference(
    schema: Schema, value: object, data: bytes, *, max_rows: int, max_table_rows: int
) -> tuple[Rows, Asked]:
    """The rows in a request: a tensor of shape [n] or [n, 1] per feature, or one of [n, k] for all of them.

    value: the JSON's. data: the bytes behind it, from which tensors with `binary_data_size` are cut in their order.
    Raises BadRows for a request or a tensor that is not as it should be, TooLarge for more rows than `max_table_rows`,
    or than `max_rows` where a tensor has its values in the JSON.
    """
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise _fault("/inputs", "wanted a list of tensors")
    tensors, at = [], 0
    for i, about in enumerate(value["inputs"]):
        tensor, at = _read_tensor(about, f"/inputs/{i}", data, at)
        tensors.append(tensor)
    if at != len(data):
        raise BadBody(f"{len(data)} bytes of tensors, of which binary_data_size names {at}")
    asked = _read_asked(value)
    is_listed = any(tensor.is_listed for tensor in tensors)
    return _rows_of(schema, tensors, max_rows if is_listed else max_table_rows), asked


def _read_tensor(about: object, pointer: str, data: bytes, at: int) -> tuple[_Tensor, int]:
    """(a tensor, where the bytes of the next one start)."""
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise _fault(pointer, "wanted a tensor with name, shape, datatype and data")
    name, shape, datatype = about["name"], about.get("shape"), about.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise _fault(f"{pointer}/datatype", f"wanted one of {', '.join(DATATYPES)}, got {show(datatype)}")
    if not (isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(n) is int and n >= 0 for n in shape)):
        raise _fault(
            f"{pointer}/shape", f"wanted [rows] or [rows, columns], got {shape if shape else show(shape)!s:.60}"
        )
    parameters = about.get("parameters") or {}
    if not isinstance(parameters, dict) or "shared_memory_region" in parameters:
        raise _fault(f"{pointer}/parameters", "wanted none but binary_data_size; shared memory is not offered")
    if "binary_data_size" not in parameters:
        values = _flattened(about.get("data"), shape, f"{pointer}/data")
        return _Tensor(name, tuple(shape), _listed(values, datatype, f"{pointer}/data"), is_listed=True), at
    size, count = parameters["binary_data_size"], math.prod(shape)
    if type(size) is not int or not 0 <= size <= len(data) - at:
        raise _fault(f"{pointer}/parameters/binary_data_size", f"wanted at most the {len(data) - at} bytes left")
    piece = data[at : at + size]
    if datatype == "BYTES":
        column = _words(_texts(piece, count, pointer))
    elif size != count * np.dtype(DATATYPES[datatype]).itemsize:
        raise _fault(f"{pointer}/parameters/binary_data_size", f"{size} bytes are not {count} values of {datatype}")
    else:
        column = Column(None, kind="BOOL") if datatype == "BOOL" else Column(np.frombuffer(piece, DATATYPES[datatype]))
    return _Tensor(name, tuple(shape), column, is_listed=False), at + size


def _flattened(data: object, shape: Sequence[int], pointer: str) -> list[object]:
    """The values of a tensor in JSON, which stand in one list or in a list for each row."""
    values = data if isinstance(data, list) else []
    if any(isinstance(row, list) for row in values):
        width = math.prod(shape[1:])
        for i, row in enumerate(values):
            if not isinstance(row, list) or len(row) != width:
                raise _fault(f"{pointer}/{i}", f"wanted a list of {width} for the shape {shape}, as others are lists")
        values = list(itertools.chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise _fault(pointer, f"wanted {math.prod(shape)} values for the shape {shape}, got {len(values)}")
    return values


def _listed(values: list[object], datatype: str, pointer: str) -> Column:
    """The column of values in JSON. Numbers become what the datatype holds: 0.1 in FP32 is not what it is in FP64.

    Raises BadRows for a number that a whole datatype does not hold. What is no number is refused with its row.
    """
    if datatype == "BYTES":
        return _words(values)
    if datatype == "BOOL":
        return Column(None, kind="BOOL")
    numbers = np.fromiter(map(_number, values), np.float64, len(values))
    kind = np.dtype(DATATYPES[datatype])
    if kind.kind != "f":
        bounds = np.iinfo(kind)
        for i in map(int, np.flatnonzero(~np.isnan(numbers))):
            value = values[i]
            if not (isinstance(value, int) and bounds.min <= value <= bounds.max):
                raise _fault(f"{pointer}/{i}", f"wanted a value of {datatype}, got {show(value)}")
    elif kind.itemsize < numbers.itemsize:
        with np.errstate(over="ignore"):
            numbers = numbers.astype(kind).astype(np.float64)
        values = [number if number == number else value for number, value in zip(numbers.tolist(), values, strict=True)]
    return Column(numbers, sent=values)


def _number(value: object) -> float:
    """A number in JSON; infinity for one beyond all floats, and NaN, which JSON does not have, for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _words(texts: list[object]) -> Column:
    return Column(np.arange(len(texts)), words=tuple(texts))


def _texts(data: bytes, count: int, pointer: str) -> list[object]:
    """The values of a BYTES tensor: each has its length in four bytes in front."""
    texts: list[object] = []
    at = 0
    while at < len(data) and len(texts) < count:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            break
        try:
            texts.append(data[at + 4 : end].decode())
        except UnicodeDecodeError as e:
            raise _fault(f"{pointer}/data/{len(texts)}", "is not UTF-8") from e
        at = end
    if len(texts) != count or at != len(data):
        raise _fault(f"{pointer}/parameters/binary_data_size", f"{len(data)} bytes are not {count} texts with lengths")
    return texts


def _rows_of(schema: Schema, tensors: Sequence[_Tensor], max_rows: int) -> Rows:
    width = len(schema.features)
    is_one = len(tensors) == 1 and len(tensors[0].shape) == 2 and tensors[0].name not in schema.names
    columns: dict[str, Column] = {}
    for i, tensor in enumerate(tensors):
        if tensor.name in columns:
            raise _fault(f"/inputs/{i}/name", f"{show(tensor.name)} stands twice")
        if not is_one and tensor.shape[1:] not in {(), (1,)}:
            raise _fault(f"/inputs/{i}/shape", "wanted [rows] or [rows, 1] for one feature")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise _fault(f"/inputs/{i}/shape", f"wanted {tensors[0].shape[0]} rows, as the first tensor has")
        columns[tensor.name] = tensor.column
    if is_one and tensors[0].shape[1] != width:
        raise _fault("/inputs/0/shape", f"wanted [rows, {width}]: {', '.join(map(repr, schema.names))}")
    rows = tensors[0].shape[0] if tensors else 0
    check_count(rows, max_rows)
    if is_one:
        columns = {name: _every(tensors[0].column, j, width) for j, name in enumerate(schema.names)}
    return judge_columns(schema, columns, rows)


def _every(column: Column, first: int, step: int) -> Column:
    """The column of every `step`-th value from the `first` on."""
    if column.values is None:
        return column
    some = slice(first, None, step)
    return replace(column, values=column.values[some], sent=column.sent and column.sent[some])


def _read_asked(value: Mapping[str, Any]) -> Asked:
    id_, outputs, parameters = value.get("id"), value.get("outputs"), value.get("parameters") or {}
    if id_ is not None and not isinstance(id_, str):
        raise _fault("/id", f"wanted a text, got {show(id_)}")
    if not isinstance(parameters, dict):
        raise _fault("/parameters", f"wanted an object, got {show(parameters)}")
    is_binary = parameters.get("binary_data_output") is True
    if outputs is not None:
        if not isinstance(outputs, list):
            raise _fault("/outputs", f"wanted a list, got {show(outputs)}")
        for i, output in enumerate(outputs):
            if not isinstance(output, dict) or output.get("name") != OUTPUT:
                raise _fault(f"/outputs/{i}", f"wanted the output {OUTPUT!r}; there is no other")
            about = output.get("parameters") or {}
            if not isinstance(about, dict) or "classification" in about or "shared_memory_region" in about:
                raise _fault(f"/outputs/{i}/parameters", "wanted none but binary_data")
            is_binary = about.get("binary_data", is_binary) is True
    return Asked(id_, is_binary)


def answer(asked: Asked, name: str, version: int, predictions: Array) -> tuple[dict[str, Any], bytes]:
    """(the JSON, the bytes that follow it; empty where the numbers stand in the JSON)."""
    tensor: dict[str, Any] = {"name": OUTPUT, "datatype": "FP64", "shape": [len(predictions)]}
    data = b""
    if asked.is_binary:
        data = predictions.astype("<f8", copy=False).tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        tensor["data"] = predictions.tolist()
    about = {} if asked.id is None else {"id": asked.id}
    return {"model_name": name, "model_version": str(version), **about, "outputs": [tensor]}, data


def server_metadata() -> dict[str, Any]:
    """What `GET /v2` tells."""
    return {"name": "gleaner", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(name: str, versions: Iterable[int], schema: Schema) -> dict[str, Any]:
    """What `GET /v2/models/{name}` tells: one input per feature, one output."""
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor_metadata(feature) for feature in schema.features],
        "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1]}],
    }


def _tensor_metadata(feature: Feature) -> dict[str, Any]:
    return {"name": feature.name, "datatype": _OF_FEATURE[feature.type], "shape": [-1]}


def _fault(pointer: str, detail: str) -> BadRows:
    return BadRows([(pointer, detail)])
