"""The artifact: a folder of `model.onnx`, `manifest.json` and perhaps `manifest.sig`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gleaner.errors import BadArtifact
from gleaner.machine.files import whole_folder
from gleaner.model.manifest import (
    LARGEST_MODEL,
    MANIFEST,
    MODEL,
    SIGNATURE,
    File,
    Manifest,
    Trust,
    plain,
    read_manifest,
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose files match its manifest. digest: the manifest's sha256."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def model(self) -> Path:
        return self.folder / MODEL


def write_artifact(
    folder: Path, model: bytes, manifest: Manifest, sign: Callable[[bytes], bytes] | None = None
) -> Artifact:
    """Write an artifact into a new folder, whole or not at all.

    model: the bytes of model.onnx.
    manifest: its `files` are filled in here.
    sign: signs the bytes of the manifest, if the artifact is to be signed.
    Raises FileExistsError if the folder exists, BadArtifact if `read_artifact` refuses the written files.
    """
    manifest = msgspec.structs.replace(manifest, files={MODEL: File(hashlib.sha256(model).hexdigest(), len(model))})
    described = msgspec.json.format(msgspec.json.encode(plain(manifest)), indent=1)
    with whole_folder(folder) as half:
        (half / MODEL).write_bytes(model)
        (half / MANIFEST).write_bytes(described)
        if sign:
            (half / SIGNATURE).write_bytes(sign(described))
        written = read_artifact(half)
    return dataclasses.replace(written, folder=folder)


def read_artifact(folder: Path, trust: Trust | None = None) -> Artifact:
    """Read an artifact and compare its files with its manifest.

    Does not look at the model's operators: see `check_operators`.
    trust: checks the signature, before the manifest is decoded.
    Raises BadArtifact for a missing folder, a broken manifest, undeclared files, a wrong size or hash.
    """
    manifest, digest = read_manifest(folder, trust)
    try:
        present = {path.name for path in folder.iterdir()} - {SIGNATURE}
    except OSError as e:
        raise BadArtifact(folder, "missing", f"cannot be read: {e.strerror}") from e
    if present != {MANIFEST, *manifest.files} or MODEL not in manifest.files:
        named = ", ".join(sorted(present ^ {MANIFEST, MODEL, *manifest.files}))
        raise BadArtifact(folder, "files", f"the files in the folder and in the manifest differ: {named}")
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BadArtifact(folder, "files", f"{name} is not a regular file")
        size = path.stat().st_size
        if size != file.size or size > LARGEST_MODEL:
            wanted = f"{file.size:,}, as in its manifest" if size != file.size else f"at most {LARGEST_MODEL:,}"
            raise BadArtifact(folder, "size", f"{name} has {size:,} bytes; wanted {wanted}")
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                raise BadArtifact(folder, "hash", f"{name} does not match the sha256 in the manifest")
    return Artifact(folder, manifest, digest)
