"""Versions and aliases on disk, the only models that serving reads.

store/versions/3/model.onnx, manifest.json    one artifact each, never changed
store/versions/3/manifest.sig                 the signature of a signed version
store/passed/3.json                           which artifact passed which self-test, under which engine and public key
store/aliases.json                            {"champion": 3, "challenger": 2}
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from gleaner.errors import BadArtifact, BadStore, wanted
from gleaner.machine.files import locked, make_private, mark_of, replace_file, whole_folder
from gleaner.model.artifact import Artifact, read_artifact
from gleaner.model.manifest import MANIFEST, SIGNATURE, Trust, digest_of, read_bytes, read_manifest
from gleaner.model.signature import Signer, read_signature, read_signer
from gleaner.settings.sections import Settings

Stamp = tuple[int, ...]

# To be raised with every stricter self-test, so that no version counts as tested by an older one.
_SELFTEST = 2

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_alias(alias: str) -> None:
    """Raise BadStore for an invalid name of an alias."""
    if not _ALIAS.fullmatch(alias):
        right = "at most 64 letters, digits, '_' and '-', the first a letter or a digit"
        raise BadStore(f"not a valid name of an alias: {wanted(right, repr(alias[:100]))}")


class Store:
    """The versions in a folder, and the aliases that point at them.

    root: the folder; it need not exist yet.
    signer: the signer of all versions; others are refused. None for versions that need no signature.
    """

    def __init__(self, root: Path, signer: Signer | None = None) -> None:
        self.root, self.signer = root, signer

    def versions(self) -> list[int]:
        """Return the versions, ascending."""
        folder = self.root / "versions"
        try:
            return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def folder(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.root / "versions" / str(int(version))

    def read(self, version: int) -> Artifact:
        """Read and verify a version's artifact. Raises BadArtifact."""
        return self._read(self.folder(version), self._trust(version))

    def has(self, version: int, digest: str) -> bool:
        """Return whether a version's manifest has this sha256; nothing is decoded."""
        try:
            return digest_of(read_bytes(self.folder(version))) == digest
        except BadArtifact:
            return False

    def is_signed(self, version: int, digest: str) -> bool:
        """Return whether a version has this manifest and the signer's signature.

        digest: the manifest's sha256. Nothing is decoded.
        """
        trust, folder = self._trust(version), self.folder(version)
        if trust is None or not self.has(version, digest):
            return False
        try:
            trust(folder, read_bytes(folder))
        except BadArtifact:
            return False
        return True

    def stamp(self, version: int) -> Stamp | None:
        """Return a mark of a version's files; None without a version.

        The mark changes if the store is deleted and another artifact takes the version's number, or if the version is
        signed.
        """
        names = (MANIFEST, SIGNATURE) if self.signer else (MANIFEST,)
        marks = [mark_of(self.folder(version) / name) for name in names]
        return tuple(number for mark in marks for number in mark or ()) if marks[0] else None

    def aliases(self) -> dict[str, int]:
        """Return the version of each alias.

        Raises BadStore if the file cannot be read.
        """
        path = self.root / "aliases.json"
        try:
            aliases = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, RecursionError) as e:
            raise BadStore(f"{path}: cannot be read as aliases: {e}; move the file away and promote a version") from e
        if not isinstance(aliases, dict) or not all(type(version) is int for version in aliases.values()):
            raise BadStore(f'{path}: wanted {{"alias": version}}; move the file away and promote a version')
        return aliases

    def check_model(self, name: str) -> None:
        """Raise BadStore if an alias points at a version of another model."""
        for alias, version in self.aliases().items():
            try:
                manifest, _ = read_manifest(self.folder(version), self._trust(version, only_remembered=True))
            except BadArtifact:
                continue  # loading the version reports it
            if manifest.model != name:
                found = f"{alias} is a version of {manifest.model!r}, but model.name is {name!r}"
                fix = "one folder keeps one model, so set paths.state to another folder, or move this one away"
                raise BadStore(f"{self.root}: {found}; {fix}")

    def add(self, version: int, source: Path) -> Artifact:
        """Copy the artifact in `source` into the store, whole and verified.

        A version that is there with the same content stays as it is, but for a missing signature.
        Raises BadArtifact for a bad source, BadStore if the version is there with other content.
        """
        given = self._read(source, self._trust())
        folder, signature = self.folder(version), read_signature(source) if (source / SIGNATURE).exists() else None

        def compare(_: Path, described: bytes) -> None:
            if digest_of(described) != given.digest:
                found = f"holds another model than the registry's version {version}, so the registry was replaced"
                raise BadStore(f"{folder} {found}; move {self.root} away and train again")

        with self.hold():
            if not folder.exists():
                with whole_folder(folder) as half:
                    for name in (MANIFEST, *given.manifest.files):
                        shutil.copyfile(source / name, half / name)
                    if signature:
                        (half / SIGNATURE).write_bytes(signature)
                    read_artifact(half, compare)
            there = read_artifact(folder, compare)
            if signature and (self.signer or not (folder / SIGNATURE).exists()):
                replace_file(folder / SIGNATURE, signature)
        return there

    def sign(self, version: int, signature: bytes) -> None:
        """Put a signature beside a version's manifest; another one is replaced."""
        with self.hold():
            replace_file(self.folder(version) / SIGNATURE, signature)

    def point(self, aliases: Mapping[str, int | None]) -> None:
        """Point aliases at versions, all in one step; None removes an alias.

        Raises BadStore for a missing version or an invalid name of an alias.
        """
        for alias, version in aliases.items():
            check_alias(alias)
            if version is not None and version not in self.versions():
                known = ", ".join(map(str, self.versions())) or "none"
                raise BadStore(f"no version {version} in {self.root}; there is {known}")
        with self.hold():
            moved = {name: version for name, version in {**self.aliases(), **aliases}.items() if version is not None}
            replace_file(self.root / "aliases.json", json.dumps(moved).encode())

    def hold(self) -> AbstractContextManager[None]:
        """Let no other process change versions and aliases in the block."""
        make_private(self.root)
        return locked(self.root / ".lock")

    def has_passed(self, version: int, digest: str, engine: str) -> bool:
        """Return whether this artifact passed its self-test under this engine.

        With a signer, also whether it was found signed by the same key.
        """
        return _describe_test(digest, engine, self.signer).items() <= self._remembered(version).items()

    def remember_passed(self, version: int, digest: str, engine: str) -> None:
        """Remember that an artifact passed its self-test under an engine.

        With a signer, the artifact must have been read by this store, which checks signatures.
        """
        replace_file(self._passed(version), json.dumps(_describe_test(digest, engine, self.signer)).encode())

    def _read(self, source: Path, trust: Trust | None) -> Artifact:
        artifact = read_artifact(source, trust)
        if self.signer:
            self.signer.check_model(source, artifact.manifest)
        return artifact

    def _trust(self, version: int | None = None, *, only_remembered: bool = False) -> Trust | None:
        """Return the check of a manifest's signature; None without a signer.

        version: the version whose earlier checks are remembered.
        only_remembered: refuse instead of checking.
        """
        signer = self.signer
        if signer is None:
            return None
        known = {} if version is None else self._remembered(version)

        def trust(folder: Path, described: bytes) -> None:
            if (known.get("digest"), known.get("key")) == (digest_of(described), signer.fingerprint):
                return
            if only_remembered:
                raise BadArtifact(folder, "signature", "its signature was not checked yet")
            signer.check(folder, described)

        return trust

    def _remembered(self, version: int) -> dict[str, object]:
        """Return what is remembered of a version's last test."""
        try:
            kept = json.loads(self._passed(version).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _passed(self, version: int) -> Path:
        return self.root / "passed" / f"{version}.json"


def _describe_test(digest: str, engine: str, signer: Signer | None) -> dict[str, object]:
    signed = {"key": signer.fingerprint} if signer else {}
    return {"digest": digest, "engine": engine, "selftest": _SELFTEST, **signed}


def open_store(settings: Settings) -> Store:
    """Return the store; `serving.public_key` says whose versions it takes.

    Raises BadSetting for a bad key, MissingExtra without the library that checks signatures.
    """
    return Store(settings.store, read_signer(settings))
