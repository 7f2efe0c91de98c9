"""The folder that is served: `model.onnx` and `manifest.json`; written whole, verified before use."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gleaner.drift import Histogram
from gleaner.errors import BadArtifact
from gleaner.schema import Feature, Schema, Target

MODEL, MANIFEST = "model.onnx", "manifest.json"
FORMAT = 1
LARGEST_MODEL = 1 << 30
LARGEST_MANIFEST = 16 << 20
INPUT, OUTPUT = "rows", "prediction"

# Why an artifact is refused, in words fit for a metric's label.
REASONS = ("missing", "manifest", "files", "size", "hash", "operator", "selftest", "load")

# All that an exported model may do. None of them branches, loops, reads a file or draws a random number.
OPERATORS = frozenset(
    {
        "Add", "Cast", "Exp", "Gather", "Gemm", "GreaterOrEqual", "Max", "Mul", "ReduceSum", "Sub", "Tanh",
        "TreeEnsemble", "Unsqueeze",
    }
)  # fmt: skip


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows, shape (n, k), and the fitted estimator's own answers to them, shape (n,)."""

    rows: tuple[tuple[float, ...], ...]
    answers: tuple[float, ...]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the artifact must be."""

    sha256: str
    size: int


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model was trained on: the file's name and hash, the rows used and the rows refused."""

    name: str
    sha256: str
    rows: int
    refused: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of a model. Scores are out of fold; `constant` are those of the median, for comparison."""

    format: int
    model: str
    created: str
    candidate: str
    parameters: dict[str, str | int | float | bool | None]
    features: tuple[Feature, ...]
    target: Target
    scores: dict[str, float]
    constant: dict[str, float]
    training_loss: float
    epochs: int
    seconds: float
    data: Data
    seed: int
    run_id: str
    libraries: dict[str, str]
    histograms: dict[str, Histogram]
    golden: Golden
    files: dict[str, File]

    @property
    def schema(self) -> Schema:
        return Schema(self.features, self.target)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose every file has been held against its manifest. `digest` is the manifest's own sha256."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def model(self) -> Path:
        return self.folder / MODEL


def write_artifact(folder: Path, model: bytes, manifest: Manifest) -> Artifact:
    """The artifact in a new folder, whole or not at all; the manifest's `files` are filled in here.

    Raises FileExistsError if the folder exists, BadArtifact if what was written is not what `read_artifact` takes.
    """
    manifest = msgspec.structs.replace(manifest, files={MODEL: File(hashlib.sha256(model).hexdigest(), len(model))})
    described = msgspec.json.format(msgspec.json.encode(_plain(manifest)), indent=1)
    with whole_folder(folder) as half:
        (half / MODEL).write_bytes(model)
        (half / MANIFEST).write_bytes(described)
        written = read_artifact(half)
    return dataclasses.replace(written, folder=folder)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in a folder, held against its own manifest; what the model does is for `check_operators`.

    Raises BadArtifact: missing, a broken manifest, other files than declared, a wrong size or hash.
    """
    manifest, digest = read_manifest(folder)
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError as e:
        raise BadArtifact(folder, "missing", f"cannot be read: {e.strerror}") from e
    if present != {MANIFEST, *manifest.files} or MODEL not in manifest.files:
        named = ", ".join(sorted(present ^ {MANIFEST, MODEL, *manifest.files}))
        raise BadArtifact(folder, "files", f"its files are not those in its manifest: {named}")
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BadArtifact(folder, "files", f"{name} is not a plain file")
        if path.stat().st_size != file.size or file.size > LARGEST_MODEL:
            raise BadArtifact(folder, "size", f"{name} has {path.stat().st_size:,} bytes, not {file.size:,}")
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                raise BadArtifact(folder, "hash", f"{name} is not what its manifest's sha256 says")
    return Artifact(folder, manifest, digest)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest in a folder, and its sha256; the files that it declares need not be there yet.

    Raises BadArtifact.
    """
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadArtifact(folder, "files", f"{MANIFEST} is not a plain file")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise BadArtifact(folder, "size", f"{MANIFEST} is larger than {LARGEST_MANIFEST:,} bytes")
        described = path.read_bytes()
    except OSError as e:
        raise BadArtifact(folder, "missing", f"no {MANIFEST}: {e.strerror}") from e
    try:
        manifest = msgspec.json.decode(described, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadArtifact(folder, "manifest", f"{MANIFEST} is not a manifest: {e}") from e
    _check_manifest(folder, manifest)
    return manifest, hashlib.sha256(described).hexdigest()


def _check_manifest(folder: Path, manifest: Manifest) -> None:
    if manifest.format != FORMAT:
        reason = f"its format is {manifest.format}; this version of Gleaner reads {FORMAT}"
        raise BadArtifact(folder, "manifest", reason)
    golden, width = manifest.golden, len(manifest.schema.columns)
    if not golden.rows or len(golden.rows) != len(golden.answers) or {len(row) for row in golden.rows} != {width}:
        raise BadArtifact(folder, "manifest", f"its golden rows are not rows of {width} columns with one answer each")
    if not all(map(math.isfinite, golden.answers)):
        raise BadArtifact(folder, "manifest", "a golden answer is not finite")
    if not all(_is_name(name) for name in manifest.files):
        raise BadArtifact(folder, "manifest", "a file's name leads out of the folder, or is none")


def _is_name(name: str) -> bool:
    """Whether a declared file can only lie in the artifact's own folder, beside the manifest."""
    plain = name.isprintable() and len(name) <= 100 and not {"/", "\\"} & set(name)
    return plain and name not in {"", ".", "..", MANIFEST}


class whole_folder:  # noqa: N801  # reads as a verb: `with whole_folder(path) as half:`
    """A new folder that appears under its name only when all is written and on the disk; on an error, not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        if self.folder.exists():
            raise FileExistsError(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.half = Path(tempfile.mkdtemp(prefix=".half-", dir=self.folder.parent))
        return self.half

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.half.chmod(0o755)
                for path in self.half.iterdir():
                    sync(path)
                sync(self.half)
                self.half.rename(self.folder)
                sync(self.folder.parent)
        finally:
            shutil.rmtree(self.half, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees it either as it was or as it will be, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(prefix=".half-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(half).chmod(0o644)
        Path(half).rename(path)
        sync(path.parent)
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(manifest: Manifest) -> dict[str, object]:
    """The manifest without the empty parts of its columns."""
    plain: dict[str, object] = msgspec.to_builtins(manifest)
    features = [dataclasses.asdict(feature) for feature in manifest.features]
    plain["features"] = [{k: v for k, v in feature.items() if v not in (None, "", (), {})} for feature in features]
    return plain


# What of ONNX's protobuf matters here: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_GRAPH, _FUNCTIONS = 7, 25  # of a ModelProto
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of a GraphProto
_OP_TYPE, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of a NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS = 5, 6, 10, 11  # of an AttributeProto
_EXTERNAL, _LOCATION = 13, 14  # of a TensorProto


def check_operators(folder: Path) -> None:
    """Refuse a model that does more than `OPERATORS`, or that reads data from outside its own file.

    It reads the protobuf's wire format itself, since the onnx package is larger than all of serving. A forest of
    4 MB takes a second, so it is done once per artifact, before its self-test.
    Raises BadArtifact.
    """
    try:
        for number, graph in members((folder / MODEL).read_bytes()):
            if number == _FUNCTIONS:
                raise BadArtifact(folder, "operator", f"{MODEL} defines functions of its own")
            if number != _GRAPH:
                continue
            for kind, part in members(graph):
                if kind == _NODE:
                    _check_node(folder, part)
                elif kind == _INITIALIZER:
                    _check_tensor(folder, part)
                elif kind == _SPARSE:
                    raise BadArtifact(folder, "operator", f"{MODEL} holds sparse tensors")
    except (IndexError, ValueError) as e:
        raise BadArtifact(folder, "operator", f"{MODEL} is not an ONNX model") from e


def operators(model: bytes) -> frozenset[str]:
    """The operators of a model; all there could be, where `check_operators` does not take it."""
    try:
        graphs = [part for number, part in members(model) if number == _GRAPH]
        nodes = [part for graph in graphs for kind, part in members(graph) if kind == _NODE]
        return frozenset(bytes(value).decode() for node in nodes for kind, value in members(node) if kind == _OP_TYPE)
    except (IndexError, ValueError):
        return OPERATORS


def _check_node(folder: Path, node: memoryview) -> None:
    # Every one that is stated: which of two counts depends on the reader, so none may be outside the list.
    operators, domains = (
        {bytes(value).decode("ascii", "replace") for number, value in members(node) if number == wanted}
        for wanted in (_OP_TYPE, _DOMAIN)
    )
    if not operators or not operators <= OPERATORS or not domains <= {"", "ai.onnx", "ai.onnx.ml"}:
        operator = ", ".join(sorted(operators - OPERATORS or operators))
        raise BadArtifact(folder, "operator", f"{MODEL} uses the operator {operator!r}, which no export of ours emits")
    for number, attribute in members(node):
        if number != _ATTRIBUTE:
            continue
        for kind, part in members(attribute):
            if kind in {_SUBGRAPH, _SUBGRAPHS}:
                raise BadArtifact(folder, "operator", f"{MODEL} holds a graph inside {operators.pop()!r}")
            if kind in {_TENSOR, _TENSORS}:
                _check_tensor(folder, part)


def _check_tensor(folder: Path, tensor: memoryview) -> None:
    for number, value in members(tensor):
        if number == _EXTERNAL or (number == _LOCATION and bytes(value) != b"\0"):
            raise BadArtifact(folder, "operator", f"{MODEL} keeps data outside its file")


def members(message: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of each member of a protobuf message; a varint's content is its bytes.

    Raises IndexError or ValueError where the bytes are no message.
    Source: https://protobuf.dev/programming-guides/encoding/
    """
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _varint(view, at)
        if tag >> 32:
            raise ValueError("a tag of more than 32 bits")  # protobuf's own readers cut it off there
        kind, start = tag & 7, at
        if kind == 0:
            _, at = _varint(view, at)
        elif kind == 1:
            at += 8
        elif kind == 2:
            size, start = _varint(view, at)
            at = start + size
        elif kind == 5:
            at += 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(view):
            raise IndexError
        yield tag >> 3, view[start:at]


def varints(content: memoryview) -> Iterator[int]:
    """The whole numbers in the content of a member, one or many."""
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def parameters_of(parameters: Mapping[str, object]) -> dict[str, str | int | float | bool | None]:
    """Parameters as a manifest keeps them: plain values, the rest as text."""
    return {k: v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in parameters.items()}
