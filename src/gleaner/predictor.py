"""One artifact, ready to answer: a matrix in, predictions out. Which engine computes them stays in here."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from gleaner.allocator import release
from gleaner.artifact import INPUT, OUTPUT, Artifact, check_operators, operators, read_artifact
from gleaner.errors import BadArtifact
from gleaner.schema import Array
from gleaner.trees import corners, read_tree, walk

ENGINE = f"onnxruntime {onnxruntime.__version__}"
SELFTEST_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 600.0
# Computed in packets of up to eight, and what is left over one by one, to other last bits: so nothing is left over.
_IN_PACKETS, _PACKET = frozenset({"Exp", "Tanh"}), 8
# Another processor may sum in another order; a wrong model is off by much more.
TOLERANCE = 1e-9


class Predictor:
    """An artifact's model in memory, for any number of threads."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises BadArtifact if the engine does not take the model, or it is not one matrix in, one column out."""
        options = onnxruntime.SessionOptions()
        # More threads are slower for a row, and a forest's sums then depend on how the rows were shared out.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # The arena keeps what the largest batch needed for ever; the allocator gives it back.
        options.enable_cpu_mem_arena = False
        try:
            session = onnxruntime.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its errors share no class of their own
            raise BadArtifact(artifact.folder, "load", f"onnxruntime does not load it: {e}") from e
        self.width = len(artifact.manifest.schema.columns)
        shapes = [(port.name, port.type, port.shape[1:]) for port in (*session.get_inputs(), *session.get_outputs())]
        if shapes != [(INPUT, "tensor(double)", [self.width]), (OUTPUT, "tensor(double)", [1])]:
            raise BadArtifact(
                artifact.folder, "load", f"wanted {self.width} double columns in and one out, got {shapes}"
            )
        release()
        model = artifact.model.read_bytes()
        self._session = session
        self._packet = _PACKET if operators(model) & _IN_PACKETS else 1
        self._pack = struct.Struct(f"{self.width}d").pack_into
        self._spare: list[_Bound] = []
        self.row_engine, self.predict_row = self._choose(artifact, model)

    def predict(self, X: Array) -> Array:
        """Predictions, shape (n,), in the target's unit, for accepted rows X, shape (n, k).

        A row's is the same to the bit, whichever other rows there are.
        Raises ArithmeticError if one is not finite: then the model is at fault, and no number is better than it.
        """
        answer = self._run(X)
        if not np.isfinite(answer).all():
            raise ArithmeticError("the model's answer is not finite")
        return answer

    def _choose(self, artifact: Artifact, model: bytes) -> tuple[str, Callable[[Sequence[float]], float]]:
        """What answers one row of k accepted numbers, and its name; the same to the bit as `predict` gives.

        For a model that is one tree, Python: it takes a tenth of the engine's time, and keeps its lock. Once it has
        given the engine's own answers to the golden rows and on both sides of every threshold.
        """
        tree = read_tree(model)
        if tree is not None:
            answer, rows = walk(tree), [*artifact.manifest.golden.rows, *corners(tree, self.width)]
            answers = np.array([answer(row) for row in rows])
            if np.isfinite(answers).all() and answers.tobytes() == self._run(np.array(rows)).tobytes():
                return "python", answer
        return ENGINE, self._run_row

    def _run(self, X: Array) -> Array:
        n = len(X)
        if missing := -n % self._packet:
            X = np.concatenate([X, np.broadcast_to(X[-1:], (missing, self.width))])
        answer: Array = self._session.run([OUTPUT], {INPUT: X})[0][:n, 0]
        return answer

    def _run_row(self, row: Sequence[float]) -> float:
        """Without making arrays: through buffers to which the engine was bound once, the last used ones first."""
        try:
            bound = self._spare.pop()  # atomic, as `append` is
        except IndexError:
            bound = _Bound(self._session, self._packet, self.width)
        self._pack(bound.row, 0, *row)
        bound.run(bound.binding, None)
        answer: float = bound.answer.item(0)
        self._spare.append(bound)
        if not math.isfinite(answer):
            raise ArithmeticError("the model's answer is not finite")
        return answer


class _Bound:
    """Buffers for one row and its answer, and the engine bound to them; of a packet the other rows are zeros."""

    __slots__ = ("answer", "binding", "keep", "row", "run")

    def __init__(self, session: onnxruntime.InferenceSession, packet: int, width: int) -> None:
        row, self.answer = np.zeros((packet, width)), np.zeros((packet, 1))
        # Kept, since the engine holds only the addresses; the methods below the wrappers save a third of the time.
        self.keep = session.io_binding()
        self.keep.bind_input(INPUT, "cpu", 0, np.float64, row.shape, row.ctypes.data)
        self.keep.bind_output(OUTPUT, "cpu", 0, np.float64, self.answer.shape, self.answer.ctypes.data)
        self.row, self.binding, self.run = row.data, self.keep._iobinding, session._sess.run_with_iobinding


class Retry(NamedTuple):
    """When a refused artifact is worth another try, in the monotonic clock's seconds, and how long that is waited."""

    at: float
    wait: float


NEVER = Retry(math.inf, 0.0)


def retry_of(error: BadArtifact, before: Retry | None = None, *, first_seconds: float = 30.0) -> Retry:
    """Never, or where a busy machine may be the reason after a wait that doubles each time, up to ten minutes."""
    if not error.transient:
        return NEVER
    wait = min(2 * before.wait if before and before.wait else first_seconds, _LONGEST_WAIT_SECONDS)
    return Retry(time.monotonic() + wait, wait)


def selftest(folder: Path) -> None:
    """Ask an artifact's model for its golden rows in a process of its own, which may crash or hang.

    A tree of tens of thousands of levels is a valid model, and ends the process that loads it.
    Before that, see that it holds no operator that an export of ours does not emit.
    Raises BadArtifact if it does, or does not give its golden answers in time.
    """
    check_operators(folder)
    command = [sys.executable, "-m", "gleaner.predictor", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SELFTEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as e:
        detail = f"its self-test took longer than {SELFTEST_SECONDS:.0f} s"
        raise BadArtifact(folder, "selftest", detail, transient=True) from e
    if done.returncode < 0:
        detail = f"its self-test was ended by signal {-done.returncode}"
        raise BadArtifact(folder, "selftest", detail, transient=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it failed"]
        raise BadArtifact(folder, "selftest", lines[-1])


def check_golden(artifact: Artifact) -> None:
    """Ask for the golden rows here. Raises BadArtifact if an answer differs by more than 1e-9, relative."""
    golden = artifact.manifest.golden
    wanted = np.array(golden.answers)
    got = Predictor(artifact).predict(np.array(golden.rows, dtype=np.float64))
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=TOLERANCE, atol=1e-12):
        worst = int(np.argmax(np.abs(got - wanted))) if got.shape == wanted.shape else 0
        reason = f"golden row {worst} should give {float(wanted[worst])!r}, gave {float(got.flat[worst])!r}"
        raise BadArtifact(artifact.folder, "selftest", reason)


if __name__ == "__main__":
    try:
        check_golden(read_artifact(Path(sys.argv[1])))
    except BadArtifact as refusal:
        sys.exit(refusal.detail)
    except ArithmeticError as refusal:
        sys.exit(str(refusal))
