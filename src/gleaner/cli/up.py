"""`gleaner up`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from gleaner.cli.extras import write_monitoring
from gleaner.cli.options import DONE_IN_PART, flags, training_arguments, training_options, training_section
from gleaner.cli.versions import find_data, has_version
from gleaner.errors import BadTraining, MissingExtra
from gleaner.machine.ports import check_host
from gleaner.model.store import open_store
from gleaner.programs.terminal import named_line
from gleaner.running.process_logs import Lines
from gleaner.running.program import Program
from gleaner.running.run_file import hold
from gleaner.running.stack import Stack
from gleaner.running.supervisor import UP, Supervisor
from gleaner.serving.keys import read_keys
from gleaner.serving.tls import Tls
from gleaner.settings.load import load_settings


@click.command()
@training_options
@click.option("--every", help="The time from one training to the next, such as 24h.")
@click.option("--auto-ports", is_flag=True, help="For this stack, replace each taken port by the next free one.")
@click.pass_context
def up(context: click.Context, /, data: Path | None, auto_ports: bool, **training: str | int | None) -> None:
    """Run the whole stack on this machine until Ctrl-C.

    Starts the API, the trainer, MLflow, and Prometheus, Alertmanager and Grafana if they are installed. The trainer
    trains on DATA, a CSV file, if there is no version yet.
    """
    given = {name: value for name, value in training.items() if value is not None}
    # The trainer reads the same flags later; this finds a mistake in them now.
    settings = load_settings(context.obj, flags(training=training_section(training)))
    check_host(settings.serving.host, insecure=settings.serving.insecure or settings.keys_file is not None)
    if settings.keys_file:
        read_keys(settings.keys_file)
    if settings.tls:
        Tls(*settings.tls)
    folder = settings.stack_folder
    with hold(folder) as lock:
        stack = Stack(settings)
        moved = stack.place(move=auto_ports)
        open_store(settings).check_model(settings.model.name)
        trained = has_version(settings, data, {name: value for name, value in given.items() if name != "every"})
        if not trained:
            _check_trainable(stack, data)
        _render_monitoring(stack, folder / "monitoring")
        programs = stack.programs(folder, training=training_arguments(data, given), trained=trained)
        lines = Lines(folder / "logs", named_line([UP, *stack.names]))
        for line in filter(None, (*moved, stack.explain_missing())):
            lines.add(UP, line)
        given_up = asyncio.run(_supervise(Supervisor(programs, folder, lines, lock=lock), programs, lines))
        lines.add(UP, "stopped" + (f"; given up before: {', '.join(given_up)}" if given_up else ""))
        lines.close()
    if given_up:
        sys.exit(1 if len(given_up) == len(programs) else DONE_IN_PART)


async def _supervise(supervisor: Supervisor, programs: Sequence[Program], lines: Lines) -> list[str]:
    """Keep the programs running until a signal.

    Returns the names of those that were given up.
    """
    began = time.monotonic()

    def on_settled() -> None:
        lines.add(UP, f"ready in {time.monotonic() - began:.1f} s; Ctrl-C or `gleaner down` stops everything")
        for program in programs:
            about = program.about if supervisor.entry(program.name).health == "ok" else "given up, see above"
            lines.add(UP, f"  {program.name:13}  {program.address:32}  {about}")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            loop.add_signal_handler(number, supervisor.stop)
    return await supervisor.run(on_settled)


def _check_trainable(stack: Stack, data: Path | None) -> None:
    """Refuse to start without a version unless a training can begin."""
    if "mlflow" in stack.missing:
        raise MissingExtra("train", "mlflow")
    source = find_data(stack.settings, data)
    if not source.exists():
        raise BadTraining(f"{source}: no such file")


def _render_monitoring(stack: Stack, folder: Path) -> None:
    """Replace the files of Prometheus, Alertmanager and Grafana."""
    if {"prometheus", "alertmanager", "grafana"} & set(stack.names):
        shutil.rmtree(folder, ignore_errors=True)
        write_monitoring(stack.settings, "local", folder, guarded=True)
