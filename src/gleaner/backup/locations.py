"""The locations of MLflow's files, in its database.

MLflow keeps the location of each run and model. `mlflow-artifacts:/PATH` moves with the folder. An older Gleaner
recorded `file:///FOLDER/.gleaner/mlartifacts/PATH`, which is lost with the folder's name.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from gleaner.errors import BadStore
from gleaner.machine.files import whole_folder
from gleaner.settings.sections import ARTIFACTS

FILES = "mlflow-artifacts:"
DATABASE = "mlflow.db"

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
_WAIT_SECONDS = 20.0  # for another process that writes


@dataclass(frozen=True, slots=True)
class Absolute:
    """A location with a folder's full name in it.

    root: the folder of all MLflow files, `.../mlartifacts`.
    rest: the path below it.
    """

    table: str
    column: str
    location: str
    root: Path
    rest: str


def local_folder(location: str) -> Path | None:
    """Return a location's folder on this machine; None for any other."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file") or parts.netloc or not parts.path.startswith("/"):
        return None
    return Path(unquote(parts.path) if parts.scheme else location)


def find_absolute(database: Path) -> list[Absolute]:
    """Return the absolute locations that an older Gleaner recorded.

    Raises BadStore for a file that is no database of MLflow.
    """
    with _opened(database) as opened:
        return list(_read(opened))


def make_portable(database: Path, files: Path) -> list[Absolute]:
    """Record locations as paths below the folder of MLflow's files.

    files: that folder, beside the database.
    A location whose files exist elsewhere, and not here, is left. Returns these. Raises BadStore.
    """
    left = []
    with _opened(database) as opened:
        opened.execute("BEGIN IMMEDIATE")
        for found in list(_read(opened)):
            if not found.rest or (files / found.rest).exists() or not (found.root / found.rest).exists():
                change = f"UPDATE {found.table} SET {found.column} = ? WHERE {found.column} = ?"  # names of a constant
                opened.execute(change, (f"{FILES}/{found.rest}", found.location))
            else:
                left.append(found)
        opened.execute("COMMIT")
    return left


def bring_files(left: list[Absolute], files: Path) -> None:
    """Copy files from another folder to this one.

    left: as `make_portable` returns it. Nothing is removed.
    files: the folder of MLflow's files.
    """
    for source, rest in {found.root / found.rest: found.rest for found in left}.items():
        if not (files / rest).exists():
            with whole_folder(files / rest) as half:
                shutil.copytree(source, half, dirs_exist_ok=True)


def _read(opened: sqlite3.Connection) -> Iterator[Absolute]:
    for table, column in _COLUMNS:
        with contextlib.suppress(sqlite3.OperationalError):  # an older MLflow has no such table or column
            for (location,) in opened.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                folder = local_folder(location or "")
                steps = PurePosixPath(folder or "").parts
                if ARTIFACTS in steps:
                    at = len(steps) - steps[::-1].index(ARTIFACTS)
                    yield Absolute(table, column, location, Path(*steps[:at]), "/".join(steps[at:]))


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    opened = None
    try:
        address = f"{database.absolute().as_uri()}?mode=rw"
        opened = sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
        opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield opened
    except sqlite3.Error as e:
        raise BadStore(f"{database}: cannot be read as MLflow's database: {e}; see docs/troubleshooting.md") from e
    finally:
        if opened:
            opened.close()
