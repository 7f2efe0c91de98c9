"""`gleaner check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from gleaner.client import check as check_service
from gleaner.logs import start_logging
from gleaner.running.run_file import read_run_file
from gleaner.settings.environment import read_key
from gleaner.settings.load import load_settings


@click.command()
@click.option("--data", required=True, help="The row, a JSON object, or a JSON list of rows; `-` reads standard input.")
@click.option("--host", default="localhost", show_default=True, help="The host of the service.")
@click.option("--port", type=int, help="The API's port; default: the running stack's, else that of the settings.")
@click.option("--slot", default="v1", show_default=True, help="The slot to ask.")
@click.pass_obj
def check(config: Path | None, data: str, host: str, port: int | None, slot: str) -> None:
    """Ask a running service for one prediction.

    The log shows the request and the response. GLEANER_API_KEY is the key for a service that asks for one.
    """
    try:
        value = json.loads(sys.stdin.read() if data == "-" else data)
    except ValueError as e:
        raise click.BadParameter(f"not JSON: {e}", param_hint="--data") from e
    start_logging()
    tls = False
    if port is None:
        settings = load_settings(config)
        run = read_run_file(settings.stack_folder)
        ports = {name: number for entry in (run.entries if run else ()) for name, number in entry.ports.items()}
        port, tls = ports.get("ports.ml_app", settings.ports.ml_app), settings.tls is not None
    check_service(value, host=host, port=port, slot=slot, key=read_key(), tls=tls)
