"""The making of a backup, also while a training writes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from gleaner import __version__
from gleaner.backup.archive import DATA, FORMAT, SECRETS, SETTINGS, STATE, Manifest, describe_file, write_archive
from gleaner.backup.locations import DATABASE, make_portable
from gleaner.errors import BadStore, Refused, Unwritable
from gleaner.machine.files import scratch_folder, whole_file
from gleaner.model.store import Store
from gleaner.settings.secret_files import secret_files
from gleaner.settings.sections import ARTIFACTS, Settings

# The folders of MLflow's files beside its database: in docker-compose.yml, and in the state folder.
SERVER_ARTIFACTS = "artifacts"

_LOCKED_SECONDS = 30.0  # the longest wait for a process that writes MLflow's database


@dataclass(frozen=True, slots=True)
class Made:
    """The contents of a finished backup.

    size: of all files in it, in bytes, before compression.
    left_out: the files that are not in it, each with the reason.
    """

    files: int
    size: int
    versions: int
    left_out: list[str]


@dataclass(slots=True)
class _Contents:
    """The files of a backup: the source of each member."""

    sources: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    versions: int = 0


def make_backup(
    settings: Settings, out: Path | BinaryIO, *, mlflow: Path | None = None, overwrite: bool = False
) -> Made:
    """Write settings, state and the files that settings name.

    out: the file to write, which appears whole or not at all; or a pipe.
    mlflow: the folder of an MLflow server's database and files, if they are not in the state folder.
    Raises Refused, Unwritable, BadStore.
    """
    if not settings.state.is_dir():
        raise Refused(f"{settings.state}: there is no state to back up; set paths.state, or train first")
    with scratch_folder(settings.state / "scratch") as scratch:
        contents = _collect(settings, mlflow, scratch)
        files = {}
        for name, source in contents.sources.items():
            try:
                files[name] = describe_file(source, private=name.startswith(f"{SECRETS}/"))
            except OSError as e:
                raise Refused(f"{source} cannot be read: {e.strerror}; the backup needs it") from e
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(FORMAT, __version__, created, settings.model.name, files)
        if isinstance(out, Path):
            _write_file(out, manifest, contents.sources, overwrite=overwrite)
        else:
            write_archive(out, manifest, contents.sources)
            out.flush()
    return Made(len(files), sum(file.size for file in files.values()), contents.versions, contents.left_out)


def _write_file(out: Path, manifest: Manifest, sources: dict[str, Path], *, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise Refused(f"{out} exists; name another file, or add --overwrite to replace it")
    try:
        with whole_file(out, mode=0o600) as file:
            write_archive(file, manifest, sources)
    except BlockingIOError as e:
        raise Refused(f"another process writes {out}; wait for it, or name another file") from e
    except OSError as e:
        raise Unwritable(out, f"cannot be written: {e.strerror or e}") from e


def _collect(settings: Settings, mlflow: Path | None, scratch: Path) -> _Contents:
    """Find the files of a backup, and copy those that may change.

    In this order a running training does no harm: every version of the copied store is in the copied database, and
    every version of the database has its files.
    """
    contents = _Contents({f"{SETTINGS}/{settings.file.name}": settings.file})
    if settings.data:
        if settings.data.is_file():
            contents.sources[f"{DATA}/{settings.data.name}"] = settings.data
        else:
            contents.left_out.append(f"training.data: there is no file {settings.data}")
    for setting, path in secret_files(settings).items():
        if os.access(path, os.R_OK) and path.is_file():
            contents.sources[f"{SECRETS}/{setting}"] = path
        else:
            contents.left_out.append(f"{setting}: no readable file {path}")
    for path in (settings.state / "trainer" / "last.json", settings.keys_used):
        if path.exists():
            name = path.relative_to(settings.state)
            contents.sources[f"{STATE}/{name}"] = Path(shutil.copy(path, scratch))
    _add_store(contents, Store(settings.store), scratch / "store")
    if settings.tracking.uri and not mlflow:
        server = settings.tracking_uri
        contents.left_out.append(f"MLflow's database and files, which {server} keeps; --mlflow FOLDER includes them")
    else:
        if mlflow and not (mlflow / DATABASE).is_file():
            raise Refused(f"{mlflow}: there is no {DATABASE}; name the folder of MLflow's database and files")
        _add_mlflow(contents, mlflow or settings.state, scratch)
    return contents


def _add_store(contents: _Contents, store: Store, scratch: Path) -> None:
    if not store.root.is_dir():
        return
    with store.hold():
        versions = store.versions()
        for path in [store.root / "aliases.json", *sorted(store.root.glob("passed/*.json"))]:
            if path.exists():
                copy = scratch / path.relative_to(store.root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
                contents.sources[f"{STATE}/store/{copy.relative_to(scratch)}"] = copy
    contents.versions = len(versions)
    for version in versions:  # versions never change, so they need no lock
        folder = store.folder(version)
        for path in _files(folder):
            contents.sources[f"{STATE}/store/versions/{version}/{path.relative_to(folder)}"] = path


def _add_mlflow(contents: _Contents, folder: Path, scratch: Path) -> None:
    database = folder / DATABASE
    if not database.exists():
        return
    files = next((path for name in (SERVER_ARTIFACTS, ARTIFACTS) if (path := folder / name).is_dir()), None)
    copy = scratch / DATABASE
    _copy_database(database, copy)
    for found in make_portable(copy, files or folder / ARTIFACTS):
        contents.left_out.append(f"{found.location}, which is in another folder; `gleaner doctor --fix` copies it here")
    contents.sources[f"{STATE}/{DATABASE}"] = copy
    if files:
        for path in _files(files):
            contents.sources[f"{STATE}/{ARTIFACTS}/{path.relative_to(files)}"] = path


def _copy_database(database: Path, copy: Path) -> None:
    """Copy a SQLite database that others may write meanwhile."""
    until = time.monotonic() + _LOCKED_SECONDS

    def check(*_: int) -> None:
        if time.monotonic() > until:
            raise BadStore(f"{database}: another process has locked it for {_LOCKED_SECONDS:.0f} s; end that process")

    source = target = None
    try:
        source, target = (
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0),
            sqlite3.connect(copy),
        )
        source.backup(target, progress=check)
        faults = target.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as e:
        raise BadStore(f"{database}: cannot be copied: {e}") from e
    finally:
        for opened in (source, target):
            if opened:
                opened.close()
    if faults != "ok":
        raise BadStore(f"{database} is damaged: {faults}; restore it from an older backup, or move it away")


def _files(folder: Path) -> Iterator[Path]:
    """Yield every plain file below a folder, in order."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path
