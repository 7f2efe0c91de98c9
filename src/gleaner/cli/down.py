"""`gleaner down`."""

from __future__ import annotations

from pathlib import Path

import click

from gleaner.running.run_file import end_stack
from gleaner.settings.load import load_settings


@click.command()
@click.pass_obj
def down(config: Path | None) -> None:
    """Stop what `gleaner up` started here.

    Stops the processes in order, and waits until they have exited.
    """
    settings = load_settings(config)
    # The API finishes requests in flight, and the trainer marks its runs.
    seconds = 60 + settings.serving.unready_seconds + settings.serving.drain_seconds
    ended = end_stack(settings.stack_folder, seconds=seconds)
    click.echo(f"stopped {', '.join(reversed(ended))}" if ended else "nothing runs here")
