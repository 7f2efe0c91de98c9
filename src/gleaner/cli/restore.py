"""`gleaner restore`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from gleaner.backup.restore import Restored, restore_folder, restore_state
from gleaner.cli.options import PATH
from gleaner.errors import GleanerError, Refused
from gleaner.model.store import Store
from gleaner.programs.terminal import count
from gleaner.settings.file import FILE
from gleaner.settings.load import load_settings

_PIPE = "-"


@click.command()
@click.argument("file", type=PATH)
@click.argument("folder", required=False, type=PATH)
@click.option("--state-only", is_flag=True, help="Restore the state for the settings that are here.")
@click.option("--mlflow", type=PATH, help="The folder for the mlflow.db and artifacts of an MLflow server.")
@click.pass_obj
def restore(config: Path | None, file: Path, folder: Path | None, state_only: bool, mlflow: Path | None) -> None:
    """Restore a backup into an empty folder.

    FOLDER, by default the current one, may have no settings file and no state yet. Every file is verified by its hash
    before it is put in place. A damaged backup changes nothing. `-` reads standard input.
    """
    if state_only and folder:
        raise click.UsageError("--state-only restores into the folder of the settings; --config names them")
    try:
        opened = os.fdopen(os.dup(sys.stdin.fileno()), "rb") if str(file) == _PIPE else file.open("rb")
    except OSError as e:
        raise Refused(f"{file} cannot be read: {e.strerror}; name a file that `gleaner backup` made") from e
    with opened:
        name = "standard input" if str(file) == _PIPE else str(file)
        if state_only:
            done = restore_state(opened, name, load_settings(config), mlflow=mlflow)
        else:
            done = restore_folder(opened, name, folder or Path(), mlflow=mlflow)
    _report(done, folder if folder and not state_only else None, state_only=state_only)


def _report(done: Restored, folder: Path | None, *, state_only: bool) -> None:
    manifest, settings = done.manifest, done.settings
    about = f"backed up on {manifest.created} by gleaner {manifest.gleaner}"
    click.echo(f"restored {manifest.model}, {count(len(manifest.files), 'file')}, {about}")
    if not state_only:
        click.echo(f"settings: {settings.file}")
    store = Store(settings.store)
    try:
        aliases = ", ".join(f"{alias} is {version}" for alias, version in store.aliases().items())
    except GleanerError as e:
        aliases = str(e)
    click.echo(f"state: {settings.state}, with {count(len(store.versions()), 'version')}; {aliases or 'no alias'}")
    for setting, path in done.outside.items():
        click.echo(f"{setting} names a place outside the folder; the file is {path}: move it, or change the setting")
    go = f"cd {shlex.quote(str(folder))} && " if folder else ""
    config = "" if settings.file.name == FILE or state_only else f" --config {shlex.quote(settings.file.name)}"
    click.echo(f"next: {go}gleaner{config} doctor, then gleaner{config} serve or gleaner{config} up")
