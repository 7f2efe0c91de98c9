"""The Open Inference Protocol: tensors -> rows, predictions -> tensors, and metadata.

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
from gleaner.errors import BadBody, BadRows, TooLarge, wanted
from gleaner.serving.formats.json import JSON, read_length
from gleaner.table.feature import Feature
from gleaner.table.messages import show
from gleaner.table.numbers import Array
from gleaner.table.rows import Column, Rows, check_count, read_columns
from gleaner.table.schema import Schema

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


@dataclass(frozen=True, slots=True)
class Options:
    """The members of a request beside its tensors.

    id: the caller's id, which the response repeats.
    is_binary: whether the response's tensor is sent as bytes.
    """

    id: str | None = None
    is_binary: bool = False


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input.

    column: all of its values, in row-major order.
    is_listed: whether the values are in the JSON.
    """

    name: str
    shape: tuple[int, ...]
    column: Column
    is_listed: bool


def split_body(body: bytes, header_length: str | None, *, max_bytes: int) -> tuple[bytes, bytes]:
    """Return (the JSON, the tensors' bytes behind it).

    header_length: the length of the JSON as the header has it; None for a body without bytes.
    Raises BadBody for a length that is no number, or beyond the body; TooLarge for JSON of more than `max_bytes`.
    """
    if header_length is None:
        return body, b""
    length = read_length(header_length)
    if length is None or length > len(body):
        raise BadBody(f"{HEADER_LENGTH} is the length of the JSON at the start: wanted at most {len(body)}")
    if length > max_bytes:
        raise TooLarge(f"{length:,} bytes of JSON; one request takes {max_bytes:,}, so send the tensors as bytes")
    return body[:length], body[length:]


def read_inference(
    schema: Schema, value: object, data: bytes, *, max_rows: int, max_table_rows: int
) -> tuple[Rows, Options]:
    """Read the rows of a request.

    A request has a tensor of shape [n] or [n, 1] for each feature, or one of [n, k] for all of them.

    value: the value of the JSON.
    data: the bytes behind the JSON; tensors with `binary_data_size` are cut from it in their order.
    max_rows: the limit if a tensor has its values in the JSON.
    max_table_rows: the limit if all tensors are sent as bytes.
    Raises BadRows for a malformed request or tensor, TooLarge for more rows than the limit.
    """
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise _fault("/inputs", "wanted a list of tensors")
    tensors, at = [], 0
    for i, about in enumerate(value["inputs"]):
        tensor, at = _read_tensor(about, f"/inputs/{i}", data, at)
        tensors.append(tensor)
    if at != len(data):
        raise BadBody(f"{len(data)} bytes of tensors, and the tensors' binary_data_size sum to {at}")
    options = _read_options(value)
    is_listed = any(tensor.is_listed for tensor in tensors)
    return _rows_of(schema, tensors, max_rows if is_listed else max_table_rows), options


def _read_tensor(about: object, pointer: str, data: bytes, at: int) -> tuple[_Tensor, int]:
    """Return (a tensor, the start of the next tensor's bytes in `data`)."""
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise _fault(pointer, "wanted a tensor with name, shape, datatype and data")
    name, shape, datatype = about["name"], about.get("shape"), about.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise _fault(f"{pointer}/datatype", wanted(f"one of {', '.join(DATATYPES)}", show(datatype)))
    if not (isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(n) is int and n >= 0 for n in shape)):
        got = f"{shape if shape else show(shape)!s:.60}"
        raise _fault(f"{pointer}/shape", wanted("[rows] or [rows, columns]", got))
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
        column = Column(np.frombuffer(piece, DATATYPES[datatype]), kind="BOOL" * (datatype == "BOOL"))
    return _Tensor(name, tuple(shape), column, is_listed=False), at + size


def _flattened(data: object, shape: Sequence[int], pointer: str) -> list[object]:
    """Return a tensor's values, from one list or a list per row."""
    values = data if isinstance(data, list) else []
    if any(isinstance(row, list) for row in values):
        width = math.prod(shape[1:])
        for i, row in enumerate(values):
            if not isinstance(row, list) or len(row) != width:
                raise _fault(f"{pointer}/{i}", f"wanted a list of {width} for the shape {shape}, like other rows")
        values = list(itertools.chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise _fault(pointer, wanted(f"{math.prod(shape)} values for the shape {shape}", str(len(values))))
    return values


def _listed(values: list[object], datatype: str, pointer: str) -> Column:
    """Return the column of JSON values, rounded to their datatype.

    Raises BadRows for a number that does not fit an integer datatype. A value that is no number refuses its row later.
    """
    if datatype == "BYTES":
        return _words(values)
    if datatype == "BOOL":
        return replace(_words(values), kind="BOOL")
    numbers = np.fromiter(map(_number, values), np.float64, len(values))
    is_other = np.fromiter((n != n and v is not None for n, v in zip(numbers, values, strict=True)), bool, len(values))
    kind = np.dtype(DATATYPES[datatype])
    if kind.kind != "f":
        bounds = np.iinfo(kind)
        for i in map(int, np.flatnonzero(~np.isnan(numbers))):
            value = values[i]
            if not (isinstance(value, int) and bounds.min <= value <= bounds.max):
                raise _fault(f"{pointer}/{i}", wanted(f"a value of {datatype}", show(value)))
    elif kind.itemsize < numbers.itemsize:
        with np.errstate(over="ignore"):
            numbers = numbers.astype(kind).astype(np.float64)
        values = [number if number == number else value for number, value in zip(numbers.tolist(), values, strict=True)]
    # NaN is a missing value, and infinity is refused by every feature.
    return Column(np.where(is_other, np.inf, numbers), sent=values)


def _number(value: object) -> float:
    """Return a number as a float, or NaN for any other value.

    A number beyond all floats is infinity.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _words(texts: list[object]) -> Column:
    return Column(np.arange(len(texts)), words=tuple(texts))


def _texts(data: bytes, count: int, pointer: str) -> list[object]:
    """Return a BYTES tensor's texts, each after its length in four bytes."""
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
    return read_columns(schema, columns, rows)


def _every(column: Column, first: int, step: int) -> Column:
    """Return the column of every `step`-th value, from the `first`."""
    if column.values is None:
        return column
    some = slice(first, None, step)
    return replace(column, values=column.values[some], sent=column.sent and column.sent[some])


def _read_options(value: Mapping[str, Any]) -> Options:
    id_, outputs, parameters = value.get("id"), value.get("outputs"), value.get("parameters") or {}
    if id_ is not None and not isinstance(id_, str):
        raise _fault("/id", wanted("a text", show(id_)))
    if not isinstance(parameters, dict):
        raise _fault("/parameters", wanted("an object", show(parameters)))
    is_binary = parameters.get("binary_data_output") is True
    if outputs is not None:
        if not isinstance(outputs, list):
            raise _fault("/outputs", wanted("a list", show(outputs)))
        for i, output in enumerate(outputs):
            if not isinstance(output, dict) or output.get("name") != OUTPUT:
                raise _fault(f"/outputs/{i}", f"wanted the output {OUTPUT!r}, the only one")
            about = output.get("parameters") or {}
            if not isinstance(about, dict) or "classification" in about or "shared_memory_region" in about:
                raise _fault(f"/outputs/{i}/parameters", "wanted none but binary_data")
            is_binary = about.get("binary_data", is_binary) is True
    return Options(id_, is_binary)


def write_inference(options: Options, name: str, version: int, numbers: Array) -> tuple[dict[str, Any], bytes]:
    """Return (the JSON value, the bytes that follow it if `is_binary`)."""
    tensor: dict[str, Any] = {"name": OUTPUT, "datatype": "FP64", "shape": [len(numbers)]}
    data = b""
    if options.is_binary:
        data = numbers.astype("<f8", copy=False).tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        tensor["data"] = numbers.tolist()
    about = {} if options.id is None else {"id": options.id}
    return {"model_name": name, "model_version": str(version), **about, "outputs": [tensor]}, data


def server_metadata() -> dict[str, Any]:
    """Describe the server, for `GET /v2`."""
    return {"name": "gleaner", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(name: str, versions: Iterable[int], schema: Schema) -> dict[str, Any]:
    """Describe a model, for `GET /v2/models/{name}`: one input per feature, one output."""
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": f.name, "datatype": datatype_of(f), "shape": [-1]} for f in schema.features],
        "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1]}],
    }


def datatype_of(feature: Feature) -> str:
    """Return the datatype that takes every value of a feature.

    A missing value is an empty text, null, or NaN.
    """
    if feature.is_number:
        return "INT64" if feature.type == "int" and not feature.allows_gaps else "FP64"
    return "BOOL" if feature.type == "bool" and not feature.allows_gaps else "BYTES"


def _fault(pointer: str, detail: str) -> BadRows:
    return BadRows([(pointer, detail)])
