"""The predictor: an artifact in memory and its engines."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

import numpy as np

from gleaner.errors import BadArtifact, wanted
from gleaner.machine.memory import release
from gleaner.model.artifact import Artifact
from gleaner.model.manifest import INPUT, OUTPUT
from gleaner.model.operators import BYTES_PER_NUMBER, measure
from gleaner.model.tree import corners, read_tree, walk
from gleaner.settings.telemetry import disable_telemetry
from gleaner.table.numbers import Array

disable_telemetry()

import onnxruntime  # noqa: E402  (it reads the variable while it loads)

ENGINE = f"onnxruntime {onnxruntime.__version__}"

# The engine computes these in packets of up to eight values, and the rest one by one with other last bits. Padding
# to whole packets leaves no rest, so a prediction does not depend on the rows beside it.
_IN_PACKETS, _PACKET = frozenset({"Exp", "Tanh"}), 8

# A batch is computed in blocks, so that its memory has a limit, whatever the model and the number of rows.
_BLOCK_BYTES = 32 << 20


class Predictor:
    """An artifact's model in memory, for any number of threads."""

    def __init__(self, artifact: Artifact) -> None:
        """Load the model.

        Raises BadArtifact if the engine refuses the model, or if its inputs and outputs are not those of its manifest.
        """
        options = onnxruntime.SessionOptions()
        # More threads are slower for one row, and a forest's sums would depend on how the threads share the rows.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # The arena keeps the memory of the largest batch for ever; without it the allocator returns that memory.
        options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its errors have no common class
            raise BadArtifact(artifact.folder, "load", f"onnxruntime cannot load the model: {e}") from e
        self.width = len(artifact.manifest.schema.columns)
        shapes = [(port.name, port.type, port.shape[1:]) for port in (*session.get_inputs(), *session.get_outputs())]
        if shapes != [(INPUT, "tensor(double)", [self.width]), (OUTPUT, "tensor(double)", [1])]:
            raise BadArtifact(
                artifact.folder,
                "load",
                wanted(f"{self.width} double columns as input and one as output", str(shapes)),
            )
        release()
        model = artifact.model.read_bytes()
        self._session, work = session, measure(model)
        self._packet = _PACKET if work.operators & _IN_PACKETS else 1
        self._block = max(1, _BLOCK_BYTES // (BYTES_PER_NUMBER * max(1, work.numbers) * _PACKET)) * _PACKET
        self._pack = struct.Struct(f"{self.width}d").pack_into
        self._spare: list[_RowBuffers] = []
        self.row_engine, self.predict_row = self._choose(artifact, model)

    def predict(self, X: Array) -> Array:
        """Return the predictions, shape (n,), in the target's unit.

        X: accepted rows, shape (n, k).
        A row's prediction is the same to the bit, whichever other rows X has.
        Raises ArithmeticError if a prediction is not finite.
        """
        predictions = self._run(X)
        if not np.isfinite(predictions).all():
            raise ArithmeticError("the model's prediction is not finite")
        return predictions

    def _choose(self, artifact: Artifact, model: bytes) -> tuple[str, Callable[[Sequence[float]], float]]:
        """Choose how to predict one row; return its name and the function.

        The function predicts to the bit as `predict`. A single tree is walked in Python: a tenth of the engine's time
        for one row, and the GIL is not released. Before that, the walk must equal the engine for the golden rows and on
        both sides of every threshold.
        """
        tree = read_tree(model)
        if tree is not None:
            predict_row, rows = walk(tree), [*artifact.manifest.golden.numbers, *corners(tree, self.width)]
            walked = np.array([predict_row(row) for row in rows])
            if np.isfinite(walked).all() and walked.tobytes() == self._run(np.array(rows)).tobytes():
                return "python", predict_row
        return ENGINE, self._run_row

    def _run(self, X: Array) -> Array:
        if len(X) <= self._block:
            return self._run_block(X)
        starts = range(0, len(X), self._block)
        return np.concatenate([self._run_block(X[start : start + self._block]) for start in starts])

    def _run_block(self, X: Array) -> Array:
        n = len(X)
        if missing := -n % self._packet:
            X = np.concatenate([X, np.broadcast_to(X[-1:], (missing, self.width))])
        predictions: Array = self._session.run([OUTPUT], {INPUT: X})[0][:n, 0]
        return predictions

    def _run_row(self, row: Sequence[float]) -> float:
        """Predict one row through buffers, the last used ones first."""
        try:
            buffers = self._spare.pop()  # atomic, as `append` is
        except IndexError:
            buffers = _RowBuffers(self._session, self._packet, self.width)
        self._pack(buffers.row, 0, *row)
        buffers.run(buffers.binding, None)
        prediction: float = buffers.prediction.item(0)
        self._spare.append(buffers)
        if not math.isfinite(prediction):
            raise ArithmeticError("the model's prediction is not finite")
        return prediction


class _RowBuffers:
    """Buffers for one row and its prediction.

    The engine is bound to them. The other rows of the packet are zeros.
    """

    __slots__ = ("binding", "keep", "prediction", "row", "run")

    def __init__(self, session: onnxruntime.InferenceSession, packet: int, width: int) -> None:
        row, self.prediction = np.zeros((packet, width)), np.zeros((packet, 1))
        # Kept, since the engine holds only addresses. Calling the methods below the wrappers saves a third of the time.
        self.keep = session.io_binding()
        self.keep.bind_input(INPUT, "cpu", 0, np.float64, row.shape, row.ctypes.data)
        self.keep.bind_output(OUTPUT, "cpu", 0, np.float64, self.prediction.shape, self.prediction.ctypes.data)
        self.row, self.binding, self.run = row.data, self.keep._iobinding, session._sess.run_with_iobinding
