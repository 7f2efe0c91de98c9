"""manifest.json: the description of a model."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from gleaner.errors import BadArtifact
from gleaner.model.histogram import Histogram
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema

MODEL, MANIFEST, SIGNATURE = "model.onnx", "manifest.json", "manifest.sig"
FORMATS = (1, 2)  # the second is that of models that take gaps
ARTIFACT_FOLDER = "gleaner"  # inside an MLflow model
LARGEST_MODEL = 64 << 20
LARGEST_MANIFEST = 16 << 20
SIGNATURE_BYTES = 64  # of Ed25519, without anything around them
INPUT, OUTPUT = "rows", "prediction"

# Reasons to refuse an artifact; the values of a metric's label.
REASONS = ("missing", "signature", "manifest", "files", "size", "hash", "operator", "selftest", "load")

# Raises BadArtifact unless a manifest may be decoded; gets its folder and its bytes.
Trust = Callable[[Path, bytes], None]


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows and the fitted estimator's predictions for them.

    rows: shape (n, k); None is a gap.
    answers: the predictions, shape (n,).
    """

    rows: tuple[tuple[float | None, ...], ...]
    answers: tuple[float, ...]

    @property
    def numbers(self) -> list[list[float]]:
        """The rows as a model takes them, with NaN for a gap."""
        return [[math.nan if number is None else number for number in row] for row in self.rows]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hash and the size in bytes of one file."""

    sha256: str
    size: int


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The training data: a file.

    rows, refused: the numbers of used and refused rows.
    """

    name: str
    sha256: str
    rows: int
    refused: int


class Gaps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gaps of the training data.

    missing: the share of rows without a value, for each column that has gaps.
    with_gaps, without_gaps: the out-of-fold scores of rows with a gap and of those without; empty for fewer than two
    rows.
    """

    missing: dict[str, float]
    with_gaps: dict[str, float]
    without_gaps: dict[str, float]


class _Format(msgspec.Struct, frozen=True):
    """The part of a manifest that every version of Gleaner reads."""

    format: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description of a model.

    scores: out of fold.
    constant: the scores of always predicting the median.
    gaps: None for a model that takes none, whose format is 1.
    """

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
    gaps: Gaps | None = None

    @property
    def schema(self) -> Schema:
        return Schema(self.features, self.target)


def read_bytes(folder: Path) -> bytes:
    """Read the manifest in a folder without decoding it. Raises BadArtifact."""
    path = folder / MANIFEST
    try:
        if folder.is_symlink():
            raise BadArtifact(folder, "files", "is a link; wanted a folder")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadArtifact(folder, "files", f"{MANIFEST} is not a regular file")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise BadArtifact(folder, "size", f"{MANIFEST} is larger than {LARGEST_MANIFEST:,} bytes")
        return path.read_bytes()
    except OSError as e:
        raise BadArtifact(folder, "missing", f"cannot read {MANIFEST}: {e.strerror}") from e


def read_manifest(folder: Path, trust: Trust | None = None) -> tuple[Manifest, str]:
    """Read the manifest in a folder; return it and its sha256.

    The files that the manifest declares need not be there yet.
    trust: called before the manifest is decoded.
    Raises BadArtifact.
    """
    described = read_bytes(folder)
    if trust:
        trust(folder, described)
    try:
        # A later format may have other members, and this reason says more than the first of them.
        found = msgspec.json.decode(described, type=_Format).format
        if found not in FORMATS:
            reason = f"its format is {found}; this version of Gleaner reads {' and '.join(map(str, FORMATS))}"
            raise BadArtifact(folder, "manifest", reason)
        manifest = msgspec.json.decode(described, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadArtifact(folder, "manifest", f"{MANIFEST} is not a valid manifest: {e}") from e
    _check_manifest(folder, manifest)
    return manifest, digest_of(described)


def digest_of(described: bytes) -> str:
    """Return the sha256 of a manifest, which stands for the whole artifact."""
    return hashlib.sha256(described).hexdigest()


def _check_manifest(folder: Path, manifest: Manifest) -> None:
    golden, width = manifest.golden, len(manifest.schema.columns)
    if manifest.format != format_of(manifest.schema) or (manifest.gaps is None) != (manifest.format == 1):
        raise BadArtifact(folder, "manifest", "its format is 2 and it describes gaps, or neither")
    if not golden.rows or len(golden.rows) != len(golden.answers) or {len(row) for row in golden.rows} != {width}:
        raise BadArtifact(folder, "manifest", f"its golden rows need {width} columns and one prediction each")
    columns = zip(zip(*golden.rows, strict=True), manifest.schema.gaps, strict=True)
    if any(None in numbers and not allowed for numbers, allowed in columns):
        raise BadArtifact(folder, "manifest", "a golden row has a gap in a column that allows none")
    if not all(map(math.isfinite, golden.answers)):
        raise BadArtifact(folder, "manifest", "a golden prediction is not finite")
    if not all(_is_name(name) for name in manifest.files):
        raise BadArtifact(folder, "manifest", "a file's name is invalid or leads out of the folder")


def format_of(schema: Schema) -> int:
    """Return the first format that can describe a model of these columns."""
    return 2 if any(feature.allows_gaps for feature in schema.features) else 1


def _is_name(name: str) -> bool:
    """Return whether a name is that of a file beside the manifest."""
    is_plain = name.isprintable() and len(name) <= 100 and not {"/", "\\"} & set(name)
    return is_plain and name not in {"", ".", "..", MANIFEST, SIGNATURE}


def plain(manifest: Manifest) -> dict[str, object]:
    """Return a manifest as builtin types, without empty parts of columns."""
    members: dict[str, object] = msgspec.to_builtins(manifest)
    features = [dataclasses.asdict(feature) for feature in manifest.features]
    if manifest.gaps is None:
        del members["gaps"]
    members["features"] = [{k: v for k, v in feature.items() if v not in (None, "", (), {})} for feature in features]
    return members


def parameters_of(parameters: Mapping[str, object]) -> dict[str, str | int | float | bool | None]:
    """Return parameters as plain values or as text."""
    return {k: v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in parameters.items()}
