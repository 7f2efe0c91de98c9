"""The version that a command uses, and the data of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import click

from gleaner.errors import BadTraining, NoModel
from gleaner.model.store import Store, open_store
from gleaner.programs.terminal import cell
from gleaner.settings.sections import Settings


def find_data(settings: Settings, data: Path | None) -> Path:
    """Return the CSV file to train on, `data` or `training.data`.

    Raises BadTraining if neither names a file.
    """
    source = data or settings.data
    if source is None:
        raise BadTraining("no data to train on: name a CSV file, or set training.data in gleaner.toml")
    return source


def has_version(settings: Settings, data: Path | None, given: Mapping[str, object]) -> bool:
    """Return whether there is a champion, and print what it leaves undone.

    data: the file that was named. given: the training options that were given.
    """
    if data and not data.exists():
        raise BadTraining(f"{data}: no such file")
    store, source = open_store(settings), data or settings.data
    version = store.aliases().get("champion")
    if version is None:
        return False
    about = store.read(version).manifest.data
    click.echo(f"not training: version {version}, trained on {about.name}, is there; `gleaner train` trains a new one")
    if source and source.is_file() and _sha256(source) != about.sha256:
        click.echo(f"  {source} has changed since; to train on it: gleaner train {source}")
    if given:
        options = " ".join(f"--{name} {value}" for name, value in given.items())
        click.echo(f"  ignored: {options}; to train with it: gleaner train {source or 'DATA.csv'} {options}")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_version(store: Store, alias: str, version: int | None) -> int:
    """Return the version, by default that of the alias. Raises NoModel."""
    if version is None:
        version = store.aliases().get(alias)
        if version is None:
            fix = "run `gleaner train DATA.csv`, or `gleaner models promote`"
            raise NoModel(f"no version has the alias {alias!r}; {fix}")
    elif version not in store.versions():
        raise NoModel(f"no version {version} in {store.root}; there is {cell(store.versions()) or 'none'}")
    return version
