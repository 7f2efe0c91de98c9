"""`gleaner config show`, `describe` and `render`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from gleaner.cli.extras import write_monitoring
from gleaner.cli.options import PATH, json_option
from gleaner.settings.describe import describe_settings, show_settings
from gleaner.settings.load import load_settings


@click.command()
@json_option
@click.pass_obj
def show(config: Path | None, as_json: bool) -> None:
    """Print every setting with its current value.

    A flag overrides the environment, the environment overrides gleaner.toml, and gleaner.toml overrides a default.
    """
    settings = load_settings(config)
    click.echo(json.dumps(settings.model_dump(mode="json"), indent=2) if as_json else show_settings(settings))


@click.command()
def describe() -> None:
    """Print a Markdown page of every setting.

    docs/settings.md is this page.
    """
    click.echo(describe_settings(), nl=False)


@click.command("render")
@click.option("--for", "where", type=click.Choice(["compose", "local"]), required=True, help="Where the services run.")
@click.option("--out", type=PATH, help="The folder to write; default: deploy/, or for local .gleaner/monitoring.")
@click.pass_obj
def render_config(config: Path | None, where: Literal["compose", "local"], out: Path | None) -> None:
    """Write the files of Prometheus, Alertmanager and Grafana.

    Ports and thresholds come from the settings.
    """
    settings = load_settings(config)
    folder = out or (settings.file.parent / "deploy" if where == "compose" else settings.state / "monitoring")
    written, others = write_monitoring(settings, where, folder)
    click.echo(f"wrote {written} files under {folder}")
    for name in others:
        fix = "Prometheus or Grafana reads it, so delete it if it is not yours"
        click.echo(f"  {folder / name} was not written by this command; {fix}", err=True)
