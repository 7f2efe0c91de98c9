"""`gleaner serve`."""

from __future__ import annotations

from pathlib import Path

import click

from gleaner.cli.options import flags
from gleaner.programs.service import run_service
from gleaner.settings.load import load_settings


@click.command()
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=int, help="The API's port; 0 takes any free one.")
@click.option("--metrics-port", type=int, help="The port of the metrics; 0 takes any free one.")
@click.option(
    "--insecure", is_flag=True, default=None, help="Allow an address beyond loopback, although nothing asks for a key."
)
@click.option("--log", type=click.Choice(["human", "json"]), help="The format of log lines.")
@click.pass_obj
def serve(
    config: Path | None,
    host: str | None,
    port: int | None,
    metrics_port: int | None,
    insecure: bool | None,
    log: str | None,
) -> None:
    """Serve predictions over HTTP until Ctrl-C.

    SIGTERM stops the service, too.
    """
    serving = {"host": host, "insecure": insecure, "log": log}
    ports = {"ml_app": port, "ml_app_metrics": metrics_port}
    run_service(load_settings(config, flags(serving=serving, ports=ports)))
