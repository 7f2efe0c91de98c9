"""`gleaner status`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from gleaner.cli.options import DONE_IN_PART, json_option
from gleaner.errors import Refused
from gleaner.programs.terminal import ago, print_table
from gleaner.running.run_file import RunFile, read_run_file
from gleaner.settings.file import USER, find_state, stack_folder


@click.command()
@json_option
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show the processes that `gleaner up` started here.

    Exits with 1 if nothing runs, and with 3 if a process is not healthy.
    """
    folder = stack_folder(_find_state(config))
    run = read_run_file(folder)
    if as_json:
        click.echo(json.dumps(asdict(run) if run else None, indent=2))
    elif run is None:
        raise Refused("nothing runs here; `gleaner up` starts the stack")
    else:
        _print_run(run, folder)
    if run is None:
        sys.exit(1)
    if not run.alive or any(entry.health != "ok" for entry in run.entries):
        sys.exit(DONE_IN_PART)


def _find_state(config: Path | None) -> Path:
    state = find_state(config)
    if state is None:
        from gleaner.settings.load import load_settings  # half a second, which few folders need

        state = load_settings(config).state
    return state


def _print_run(run: RunFile, folder: Path) -> None:
    now, rows = time.time(), []
    for e in run.entries:
        age = ago(now - e.since) if e.pid else ""
        rows.append((e.name, str(e.pid or ""), e.state, e.health, str(e.restarts), age, e.address))
    print_table(("name", "pid", "state", "health", "restarts", "up", "address"), rows)
    for e in run.entries:
        if e.password_file:
            click.echo(f"{e.name} asks for the user {USER} and the password in {e.password_file}")
    if run.alive:
        click.echo(f"kept by pid {run.pid} for {ago(now - run.since)}; logs in {folder / 'logs'}")
    else:
        click.echo(f"`gleaner up`, pid {run.pid}, was killed; `gleaner down` stops what it left")
