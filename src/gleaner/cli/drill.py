"""`gleaner drill`."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from gleaner.cli.extras import write_monitoring
from gleaner.cli.options import PATH, json_option
from gleaner.drills.play import DRILLS, Played, play, prepare
from gleaner.drills.stage import PROGRAMS, Failed, Stage
from gleaner.errors import Refused, nearest
from gleaner.programs.terminal import end_of, print_table
from gleaner.running.process_logs import Lines
from gleaner.running.run_file import hold
from gleaner.settings.load import load_settings


@click.command()
@click.argument("alert", required=False)
@click.option("--data", type=PATH, help="The CSV file to train on with an injected fault.")
@click.option("--limit", default=180.0, show_default=True, help="The seconds in which the alert fires or resolves.")
@json_option
@click.pass_obj
def drill(config: Path | None, alert: str | None, data: Path | None, limit: float, as_json: bool) -> None:
    """Prove that an alert works, in a private copy of the stack.

    Injects a fault, waits until ALERT fires, removes the fault, and waits until ALERT resolves. Without ALERT, lists
    the drills.
    """
    if alert is None:
        print_table(("alert", "injected fault"), [(name, drill.injected) for name, drill in DRILLS.items()])
        return
    if alert not in DRILLS:
        raise Refused(f"no drill for {alert!r}{nearest(alert, DRILLS)}")
    settings = load_settings(config)
    say = partial(click.echo, err=as_json)
    with tempfile.TemporaryDirectory(prefix="gleaner-drill-", ignore_cleanup_errors=True) as scratch:
        stage = prepare(settings, Path(scratch), data)
        write_monitoring(stage.settings, "local", stage.run / "monitoring", stage.hurry, PROGRAMS, guarded=True)
        lines = Lines(stage.run / "logs", lambda *_: None)
        say(f"starting a private copy of the stack; every window, wait and interval is divided by {stage.hurry:g}")
        try:
            played = asyncio.run(_play(alert, stage, lines, say, limit))
        except asyncio.CancelledError as e:
            raise click.Abort from e
        except Failed:
            for name in ("up", *stage.programs):
                click.echo(end_of(lines.file(name), name), err=True, nl=False)
            raise
        finally:
            lines.close()
    if as_json:
        click.echo(json.dumps(asdict(played), indent=2))


async def _play(alert: str, stage: Stage, lines: Lines, say: Callable[[str], None], limit: float) -> Played:
    """Play a drill until it ends; a signal cancels it."""
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with hold(stage.run) as lock:
        return await play(alert, stage, lines, lock, say=say, limit_seconds=limit)
