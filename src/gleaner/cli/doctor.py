"""`gleaner doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from gleaner.cli.options import json_option
from gleaner.doctor.examine import examine
from gleaner.doctor.locations import fix_locations
from gleaner.settings.load import load_settings

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@json_option
@click.option("--fix", is_flag=True, help="First repair the locations of MLflow's files in its database.")
@click.pass_obj
def doctor(config: Path | None, as_json: bool, fix: bool) -> None:
    """Find what is wrong on this machine, and how to fix it.

    Exits with 1 if something is wrong.
    """
    settings = load_settings(config)
    if fix and (done := fix_locations(settings)):
        click.echo(f"fixed {done}", err=True)
    findings = list(examine(settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.secho(f"{finding.verdict:4}", fg=_COLOURS[finding.verdict], nl=False)
            click.echo(f" {finding.what}: {finding.detail}")
            if finding.fix:
                click.echo(f"     fix: {finding.fix}")
    if any(finding.verdict == "FAIL" for finding in findings):
        sys.exit(1)
