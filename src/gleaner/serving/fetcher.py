"""Versions of an MLflow server, fetched into the store, verified and tested."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import quote

from gleaner.errors import BadArtifact
from gleaner.machine.files import scratch_folder
from gleaner.model.artifact import Artifact, read_artifact
from gleaner.model.manifest import (
    ARTIFACT_FOLDER,
    LARGEST_MANIFEST,
    LARGEST_MODEL,
    MANIFEST,
    MODEL,
    SIGNATURE,
    SIGNATURE_BYTES,
    Manifest,
    digest_of,
    read_manifest,
)
from gleaner.model.predictor import ENGINE
from gleaner.model.signature import read_signature, unsigned
from gleaner.model.store import Store
from gleaner.serving.registry import MlflowServer
from gleaner.table.schema import Schema

_MOST_FILES = 16


class Fetcher:
    """A store's supplier of versions from an MLflow server.

    schema: the columns that a version must have.
    test: the self-test, which raises BadArtifact.
    limit_seconds: the time for all files of one version.
    """

    def __init__(
        self, server: MlflowServer, store: Store, schema: Schema, test: Callable[[Path], None], limit_seconds: float
    ) -> None:
        self._server, self._store, self._schema = server, store, schema
        self._test, self._limit_seconds = test, limit_seconds
        # Why each manifest's files failed their self-test for good, by the manifest's hash.
        self._failed: dict[str, BadArtifact] = {}

    def fetch(self, version: int) -> None:
        """Add a version to the store, or compare the stored one.

        Raises BadArtifact for a version that must not be served; Trouble and OSError for a failure that may pass.
        """
        files, until = f"{self._server.location(version)}/{ARTIFACT_FOLDER}", time.monotonic() + self._limit_seconds
        with scratch_folder(self._store.root) as folder:
            self._server.fetch(f"{files}/{MANIFEST}", folder / MANIFEST, LARGEST_MANIFEST, until)

            def trust(folder: Path, described: bytes) -> None:
                self._check_signature(version, files, folder, described, until)

            manifest, digest = read_manifest(folder, trust)
            self._check_manifest(manifest)
            if digest in self._failed:
                raise self._failed[digest]
            stored = self._read_stored(version) if version in self._store.versions() else None
            if stored:
                if stored.digest != digest:
                    reason = f"{stored.folder} is another model of the same number, so the registry was replaced"
                    raise BadArtifact(folder, "conflict", f"{reason}; move {self._store.root} away")
                folder = stored.folder
            else:
                for name, file in manifest.files.items():
                    self._server.fetch(f"{files}/{quote(name, safe='')}", folder / name, file.size, until)
                _check_files(folder)
            # Tested before an alias points at it: a start must never find an alias of a bad version in the store.
            has_passed = self._store.has_passed(version, digest, ENGINE)
            if not has_passed:
                self._check_predictions(folder, digest)
            if not stored:
                self._store.add(version, folder)
        if not has_passed:
            with contextlib.suppress(OSError):
                self._store.remember_passed(version, digest, ENGINE)

    def _check_signature(self, version: int, files: str, folder: Path, described: bytes, until: float) -> None:
        """Check that a manifest is signed, if the store has a signer.

        A version that the store has may be signed there alone, or at the server alone.
        files: the path of the version's files at the server.
        until: the end of all waiting, as a reading of the monotonic clock.
        """
        signer, digest = self._store.signer, digest_of(described)
        if signer is None or self._store.is_signed(version, digest):
            return
        try:
            self._server.fetch(f"{files}/{SIGNATURE}", folder / SIGNATURE, SIGNATURE_BYTES, until)
        except BadArtifact as e:
            if e.reason == "missing":
                raise unsigned(e.folder) from e
            raise BadArtifact(e.folder, "signature", e.detail) from e
        signer.check(folder, described)
        if self._store.has(version, digest):
            self._store.sign(version, read_signature(folder))

    def _check_predictions(self, folder: Path, digest: str) -> None:
        try:
            self._test(folder)
        except BadArtifact as e:
            if not e.transient:
                self._failed[digest] = e
            raise

    def _read_stored(self, version: int) -> Artifact:
        try:
            return self._store.read(version)
        except BadArtifact as e:
            detail = f"the copy in the store is damaged: {e.detail}; move {e.folder} away and start the service again"
            raise BadArtifact(e.folder, e.reason, detail) from e

    def _check_manifest(self, manifest: Manifest) -> None:
        """Raise BadArtifact for another model, other columns, or too large files."""
        where, model = self._server.name, self._server.model
        if manifest.model != model:
            raise BadArtifact(where, "model", f"its manifest is of {manifest.model!r}, not of {model!r}")
        learned = [feature.name for feature in self._schema.features if feature.values == "learn"]
        theirs, ours = _columns(manifest.schema, learned), _columns(self._schema, learned)
        if theirs != ours:
            raise BadArtifact(where, "columns", f"it has {', '.join(theirs)}; gleaner.toml here has {', '.join(ours)}")
        sizes = [file.size for file in manifest.files.values()]
        if MODEL not in manifest.files or len(sizes) > _MOST_FILES:
            wanted = f"wanted {MODEL} and at most {_MOST_FILES - 1} others"
            raise BadArtifact(where, "files", f"its manifest declares {len(sizes)} files; {wanted}")
        if min(sizes) < 0 or sum(sizes) > LARGEST_MODEL:
            raise BadArtifact(where, "size", f"its manifest declares {sum(sizes):,} bytes; at most {LARGEST_MODEL:,}")


def _check_files(folder: Path) -> None:
    """Check fetched files. Raises BadArtifact, after which another fetch may help."""
    try:
        read_artifact(folder)
    except BadArtifact as e:
        e.transient = True  # the bytes may have changed on their way
        raise


def _columns(schema: Schema, learned: Collection[str]) -> list[str]:
    """Describe the columns, the target last.

    A request means the same to two models only if these agree.
    learned: the features whose words each training learns.
    """
    words = {f.name: "" if f.name in learned else ", ".join(f.words) for f in schema.features}
    features = [f"{f.name} ({words[f.name] or f.type})" for f in schema.features]
    return [*features, f"target {schema.target.name}"]
