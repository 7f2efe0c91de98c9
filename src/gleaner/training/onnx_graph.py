"""An ONNX graph under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gleaner.model.manifest import INPUT, OUTPUT


class Graph:
    """An ONNX graph under construction.

    Operators run in the order of the calls, and the last makes the prediction. Each call returns the new name.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, operator: str, name: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def as_model(self, columns: int) -> onnx.ModelProto:
        self.nodes[-1].output[0] = OUTPUT
        rows = helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, ["n", columns])
        prediction = helper.make_tensor_value_info(OUTPUT, TensorProto.DOUBLE, ["n", 1])
        graph = helper.make_graph(self.nodes, "gleaner", [rows], [prediction], self.constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)]
        model = helper.make_model(graph, producer_name="gleaner", ir_version=9, opset_imports=opsets)
        onnx.checker.check_model(model)
        return model
