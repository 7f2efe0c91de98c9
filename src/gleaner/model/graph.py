"""The graph of a model.onnx: its nodes, constants and ports.

Only fields that an export writes are read; a model with any other is refused. So there are no functions, no graph
inside a graph, no sparse tensors and no data outside the file. The onnx package is larger than all of serving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gleaner.model import onnx_fields as names
from gleaner.model.protobuf import Field, Fields, Message, integer, integers, read

Numbers = NDArray[Any]

# The meaning of an operator depends on the version of its set.
OPSETS = {"": 18, "ai.onnx.ml": 5}

MOST_NODES, _MOST_INPUTS, _MOST_ATTRIBUTES, _MOST_DIMENSIONS, _LONGEST_NAME = 1_000, 4, 32, 8, 200

_NUMBER, _TEXT = Field("number"), Field("bytes")
_MODEL: Fields = {
    names.MODEL_IR_VERSION: _NUMBER,
    names.MODEL_PRODUCER: _TEXT,
    names.MODEL_GRAPH: _TEXT,
    names.MODEL_OPSET: Field("bytes", len(OPSETS)),
}
_OPSET: Fields = {names.OPSET_DOMAIN: _TEXT, names.OPSET_VERSION: _NUMBER}
_GRAPH: Fields = {
    names.GRAPH_NODE: Field("bytes", MOST_NODES),
    names.GRAPH_NAME: _TEXT,
    names.GRAPH_INITIALIZER: Field("bytes", MOST_NODES),
    names.GRAPH_INPUT: _TEXT,
    names.GRAPH_OUTPUT: _TEXT,
}
_PORT: Fields = {names.PORT_NAME: _TEXT, names.PORT_TYPE: _TEXT}
_TYPE: Fields = {names.TYPE_TENSOR: _TEXT}
_TENSOR_TYPE: Fields = {names.TENSOR_TYPE_ELEMENT: _NUMBER, names.TENSOR_TYPE_SHAPE: _TEXT}
_SHAPE: Fields = {names.SHAPE_DIMENSION: Field("bytes", 2)}
_DIMENSION: Fields = {names.DIMENSION_VALUE: _NUMBER, names.DIMENSION_NAME: _TEXT}
_NODE: Fields = {
    names.NODE_INPUT: Field("bytes", _MOST_INPUTS),
    names.NODE_OUTPUT: _TEXT,
    names.NODE_NAME: _TEXT,
    names.NODE_OP_TYPE: _TEXT,
    names.NODE_ATTRIBUTE: Field("bytes", _MOST_ATTRIBUTES),
    names.NODE_DOMAIN: _TEXT,
}
_ATTRIBUTE: Fields = {
    names.ATTRIBUTE_NAME: _TEXT,
    names.ATTRIBUTE_INT: _NUMBER,
    names.ATTRIBUTE_TENSOR: _TEXT,
    names.ATTRIBUTE_INTS: Field("numbers"),
    names.ATTRIBUTE_TYPE: _NUMBER,
}
_TENSOR: Fields = {
    names.TENSOR_DIMS: Field("number", _MOST_DIMENSIONS),
    names.TENSOR_TYPE: _NUMBER,
    names.TENSOR_NAME: _TEXT,
    names.TENSOR_RAW_DATA: _TEXT,
}


class Port(NamedTuple):
    """An input or output: any number of rows, each of `width` doubles."""

    name: str
    width: int


class Node(NamedTuple):
    """One operator at work. parts: its attributes, not yet read."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    output: str
    parts: tuple[memoryview, ...]

    def attributes(self) -> Mapping[str, int | Numbers]:
        """Return the attributes by their names. Raises ValueError."""
        found: dict[str, int | Numbers] = {}
        for part in self.parts:
            message = read(part, _ATTRIBUTE)
            name = _text(message, names.ATTRIBUTE_NAME)
            if name in found:
                raise ValueError(f"{self.operator} has two attributes {name!r}")
            found[name] = _value(name, message)
        return found


class Graph(NamedTuple):
    """A graph from one input to one output. constants: by their names."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Numbers]
    input: Port
    output: Port


def read_graph(model: bytes | memoryview) -> Graph:
    """Read the graph of a model.

    Raises ValueError for a model with more than exports contain, or for bytes that are no model.
    """
    message = read(model, _MODEL)
    opsets: dict[str, int] = {}
    for part in message[names.MODEL_OPSET]:
        opset = read(part, _OPSET)
        opsets[_text(opset, names.OPSET_DOMAIN)] = _number(opset, names.OPSET_VERSION)
    if opsets != OPSETS:
        raise ValueError(f"wanted the operator sets {OPSETS}, got {opsets}")
    graph = read(_one(message, names.MODEL_GRAPH), _GRAPH)
    constants: dict[str, Numbers] = {}
    for part in graph[names.GRAPH_INITIALIZER]:
        name, numbers = _read_tensor(part)
        if name in constants:
            raise ValueError(f"it has two constants {name!r}")
        constants[name] = numbers
    return Graph(
        tuple(map(_read_node, graph[names.GRAPH_NODE])),
        constants,
        _read_port(_one(graph, names.GRAPH_INPUT)),
        _read_port(_one(graph, names.GRAPH_OUTPUT)),
    )


def _read_node(part: memoryview) -> Node:
    node = read(part, _NODE)
    inputs = tuple(_decode(name) for name in node[names.NODE_INPUT])
    operator, domain = _text(node, names.NODE_OP_TYPE), _text(node, names.NODE_DOMAIN)
    return Node(operator, domain, inputs, _text(node, names.NODE_OUTPUT), tuple(node[names.NODE_ATTRIBUTE]))


def _read_port(part: memoryview) -> Port:
    port = read(part, _PORT)
    tensor = read(_one(read(_one(port, names.PORT_TYPE), _TYPE), names.TYPE_TENSOR), _TENSOR_TYPE)
    shape = read(_one(tensor, names.TENSOR_TYPE_SHAPE), _SHAPE)[names.SHAPE_DIMENSION]
    dimensions = [read(dimension, _DIMENSION) for dimension in shape]
    if len(dimensions) != 2 or dimensions[0][names.DIMENSION_VALUE]:
        raise ValueError("wanted an input and an output of any number of rows")
    return Port(_text(port, names.PORT_NAME), _number(dimensions[1], names.DIMENSION_VALUE))


def _read_tensor(part: memoryview) -> tuple[str, Numbers]:
    tensor = read(part, _TENSOR)
    name, shape = _text(tensor, names.TENSOR_NAME), [integer(size) for size in tensor[names.TENSOR_DIMS]]
    kind = names.NUMPY_TYPES.get(_number(tensor, names.TENSOR_TYPE))
    raw = _one(tensor, names.TENSOR_RAW_DATA)
    if kind is None or len(raw) != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError(f"the tensor {name!r} has not the numbers that it declares")
    return name, np.frombuffer(raw, kind).reshape(shape)


def _value(name: str, message: Message) -> int | Numbers:
    """Return the value of an attribute, which must have exactly one."""
    kinds = [field for field in names.ATTRIBUTE_TYPES if message[field]]
    if [names.ATTRIBUTE_TYPES[kind] for kind in kinds] != [_number(message, names.ATTRIBUTE_TYPE)]:
        raise ValueError(f"the attribute {name!r} has a value of another type than it declares")
    [kind] = kinds
    [content] = message[kind]
    if kind == names.ATTRIBUTE_INTS:
        return integers(content)
    return integer(content) if kind == names.ATTRIBUTE_INT else _read_tensor(content)[1]


def _one(message: Message, field: int) -> memoryview:
    for content in message[field]:
        return content
    raise ValueError(f"it lacks the field {field}")


def _number(message: Message, field: int) -> int:
    return integer(_one(message, field))


def _text(message: Message, field: int) -> str:
    return "".join(map(_decode, message[field]))


def _decode(name: memoryview) -> str:
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a name of more than {_LONGEST_NAME} bytes")
    return bytes(name).decode("ascii")
