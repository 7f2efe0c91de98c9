"""Versions and aliases on disk: what serving trusts, and all that it watches.

store/versions/3/model.onnx, manifest.json    one artifact each, never changed
store/passed/3.json                           which artifact passed its self-test, and under which engine
store/aliases.json                            {"champion": 3, "challenger": 2}
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gleaner.artifact import MANIFEST, Artifact, read_artifact, read_manifest, replace_file, whole_folder
from gleaner.errors import BadArtifact, BadStore

Stamp = tuple[int, int, int]

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Store:
    """The versions under a folder, and the aliases that point at them. The folder need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[int]:
        """The versions there are, in their order."""
        folder = self.root / "versions"
        try:
            return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def folder(self, version: int) -> Path:
        return self.root / "versions" / str(int(version))

    def read(self, version: int) -> Artifact:
        """A version's artifact, verified. Raises BadArtifact."""
        return read_artifact(self.folder(version))

    def stamp(self, version: int) -> Stamp | None:
        """What tells a version from another one under its number, of a store that was begun anew; None: not there."""
        try:
            about = (self.folder(version) / MANIFEST).stat()
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns, about.st_size

    def aliases(self) -> dict[str, int]:
        """Which version each alias points at. Raises BadStore if the file is not what this class writes."""
        path = self.root / "aliases.json"
        try:
            aliases = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError, RecursionError) as e:
            raise BadStore(f"{path}: cannot be read as aliases: {e}") from e
        if not isinstance(aliases, dict) or not all(type(version) is int for version in aliases.values()):
            raise BadStore(f'{path}: wanted {{"alias": version}}')
        return aliases

    def check_model(self, name: str) -> None:
        """Raises BadStore if an alias points at a version of another model than the one of that name."""
        for alias, version in self.aliases().items():
            try:
                manifest, _ = read_manifest(self.folder(version))
            except BadArtifact:
                continue  # whoever loads it says so
            if manifest.model != name:
                raise BadStore(
                    f"{self.root}: {alias} is a version of {manifest.model!r}, but model.name is {name!r}; one folder "
                    "keeps one model, so set paths.state to another folder, or move this one away"
                )

    def add(self, version: int, source: Path) -> Artifact:
        """A copy of the artifact in `source` as a version: whole, verified, or not there at all.

        The same artifact under the same number is left as it is.
        Raises BadArtifact for a bad source, BadStore if the version is there with other content.
        """
        given = read_artifact(source)
        folder = self.folder(version)
        with self._locked():
            if not folder.exists():
                with whole_folder(folder) as half:
                    for name in (MANIFEST, *given.manifest.files):
                        shutil.copyfile(source / name, half / name)
                    read_artifact(half)
            there = read_artifact(folder)
        if there.digest != given.digest:
            raise BadStore(
                f"{folder} holds another model than the registry's version {version}; "
                f"the registry was begun anew, so move {self.root} away and train again"
            )
        return there

    def point(self, aliases: Mapping[str, int | None]) -> None:
        """Point aliases at versions, all in one step; None takes an alias away.

        Raises BadStore for a version that is not there or a name that is no alias.
        """
        for alias, version in aliases.items():
            if not _ALIAS.fullmatch(alias):
                raise BadStore(f"{alias!r} is no alias: letters, digits, '_' and '-', at most 64")
            if version is not None and version not in self.versions():
                known = ", ".join(map(str, self.versions())) or "none"
                raise BadStore(f"no version {version} in {self.root}; there is {known}")
        with self._locked():
            moved = {name: version for name, version in {**self.aliases(), **aliases}.items() if version is not None}
            replace_file(self.root / "aliases.json", json.dumps(moved).encode())

    def has_passed(self, version: int, digest: str, engine: str) -> bool:
        """Whether this very artifact passed its self-test under this very engine."""
        try:
            return bool(json.loads(self._passed(version).read_bytes()) == {"digest": digest, "engine": engine})
        except (OSError, ValueError):
            return False

    def remember_passed(self, version: int, digest: str, engine: str) -> None:
        replace_file(self._passed(version), json.dumps({"digest": digest, "engine": engine}).encode())

    def _passed(self, version: int) -> Path:
        return self.root / "passed" / f"{version}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, over all processes; the lock goes with its process."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
