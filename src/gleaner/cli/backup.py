"""`gleaner backup`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from gleaner.backup.create import make_backup
from gleaner.cli.options import DONE_IN_PART, PATH
from gleaner.errors import Refused
from gleaner.programs.terminal import count
from gleaner.settings.load import load_settings

_PIPE = "-"


@click.command()
@click.argument("file", type=PATH)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--mlflow", type=PATH, help="The folder of an MLflow server's mlflow.db and artifacts.")
@click.pass_obj
def backup(config: Path | None, file: Path, overwrite: bool, mlflow: Path | None) -> None:
    """Write everything of this folder into one file.

    FILE, such as gleaner.tar.gz, has the settings, the store, MLflow's database and files, the last training, the
    training data, and the files with secrets that settings name. So keep it as you keep those. `-` writes to standard
    output. Services and trainings may run meanwhile.
    """
    settings = load_settings(config)
    to_pipe = str(file) == _PIPE
    if to_pipe and sys.stdout.isatty():
        raise Refused("standard output is a terminal; write to a file, or into a pipe")
    if to_pipe:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
            made = make_backup(settings, out, mlflow=mlflow)
    else:
        made = make_backup(settings, file, mlflow=mlflow, overwrite=overwrite)
    where = "standard output" if to_pipe else str(file)
    versions = count(made.versions, "version")
    click.echo(f"{where}: {count(made.files, 'file')}, {made.size / 1e6:.1f} MB, {versions}", err=to_pipe)
    for reason in made.left_out:
        click.echo(f"not in the backup: {reason}", err=True)
    if made.left_out:
        sys.exit(DONE_IN_PART)
