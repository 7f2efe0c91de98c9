"""Field numbers of ONNX's protobuf messages, as far as Gleaner reads them.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

MODEL_IR_VERSION, MODEL_PRODUCER, MODEL_GRAPH, MODEL_OPSET = 1, 2, 7, 8
OPSET_DOMAIN, OPSET_VERSION = 1, 2
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
PORT_NAME, PORT_TYPE, TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
SHAPE_DIMENSION, DIMENSION_VALUE, DIMENSION_NAME = 1, 1, 2
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TENSOR, ATTRIBUTE_INTS, ATTRIBUTE_TYPE = 1, 3, 5, 8, 20
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 8, 9

# The values of `type` in an attribute, by the field that then holds its value.
ATTRIBUTE_TYPES = {ATTRIBUTE_INT: 2, ATTRIBUTE_TENSOR: 4, ATTRIBUTE_INTS: 7}

# The types of a tensor's numbers, by numpy's names.
FLOAT, DOUBLE, INT64 = 1, 11, 7
NUMPY_TYPES = {FLOAT: "<f4", 2: "u1", INT64: "<i8", 9: "?", DOUBLE: "<f8"}
