"""`gleaner models list` and `promote`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gleaner.cli.options import DONE_IN_PART, json_option
from gleaner.cli.versions import choose_version
from gleaner.errors import GleanerError, NoModel
from gleaner.model.store import check_alias, open_store
from gleaner.programs.terminal import cell, print_table
from gleaner.serving.registry import MlflowServer
from gleaner.settings.environment import prepare_mlflow
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings


@click.command("list")
@json_option
@click.pass_obj
def list_models(config: Path | None, as_json: bool) -> None:
    """List the versions in the store.

    `constant's` is the mae of always predicting the median.
    """
    store = open_store(load_settings(config))
    aliases = store.aliases()
    rows = []
    for version in store.versions():
        row: dict[str, Any] = {"version": version, "aliases": [a for a, v in aliases.items() if v == version]}
        try:
            manifest = store.read(version).manifest
        except GleanerError as e:
            rows.append({**row, "fault": str(e)})
            continue
        about = {"candidate": manifest.candidate, "created": manifest.created, "data": manifest.data.name}
        rows.append({**row, **about, "mae": manifest.scores["mae"], "constant_mae": manifest.constant["mae"]})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        raise NoModel(f"{store.root} holds no version; run `gleaner train DATA.csv`")
    head = ("version", "aliases", "candidate", "mae", "constant's", "created", "data")
    keys = ("version", "aliases", "candidate", "mae", "constant_mae", "created", "data")
    print_table(head, [[cell(row.get(key, "")) for key in keys] for row in rows])
    for row in rows:
        if "fault" in row:
            click.echo(f"version {row['version']}: {row['fault']}")


@click.command()
@click.argument("version", type=int)
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@click.pass_obj
def promote(config: Path | None, version: int, alias: str) -> None:
    """Point an alias at a version.

    Moves the alias in the registry and in the store. A running service follows within seconds.
    """
    settings = load_settings(config)
    store = open_store(settings)
    check_alias(alias)
    before = store.aliases().get(alias)
    store.read(choose_version(store, alias, version))
    recorded = _move_in_registry(settings, alias, version)
    store.point({alias: version})
    click.echo(f"{alias} is version {version}" + (f", it was {before}" if before else ""))
    if not recorded:
        click.echo("MLflow is not installed here, so its registry keeps the old alias", err=True)
        sys.exit(DONE_IN_PART)


def _move_in_registry(settings: Settings, alias: str, version: int) -> bool:
    """Move an alias in the registry; return False without MLflow."""
    if settings.tracking.is_server:
        # One HTTP request does it, so that a machine that only serves needs no MLflow.
        MlflowServer(settings).move(alias, version)
        return True
    prepare_mlflow(settings)
    try:
        from gleaner.training.tracking import move_alias
    except ImportError:
        return False
    move_alias(settings, alias, version)
    return True
