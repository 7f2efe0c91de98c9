"""`gleaner train`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from gleaner.cli.extras import extra
from gleaner.cli.options import flags, json_option, training_arguments, training_options, training_section
from gleaner.cli.versions import find_data, has_version
from gleaner.programs.resident import failing_aloud, run_trainer
from gleaner.settings.environment import prepare_mlflow
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.training.resident import ask


@click.command()
@training_options
@click.option("--linger", is_flag=True, help="Expose the training metrics until Ctrl-C.")
@click.option("--metrics-port", type=int, help="The port of the training metrics; 0 takes any free one.")
@click.option("--if-empty", is_flag=True, help="Do nothing if a version exists.")
@json_option
@click.option("--resident", is_flag=True, help="Stay, and train if there is no champion, on --every and on --now.")
@click.option("--every", help="With --resident: the time from one training to the next, such as 24h.")
@click.option("--now", is_flag=True, help="Ask the running resident to train on its own data and settings.")
@click.option("--events-fd", type=int, hidden=True, help="In the resident's child: the descriptor for its events.")
@click.pass_context
def train(
    context: click.Context,
    /,
    data: Path | None,
    linger: bool,
    metrics_port: int | None,
    if_empty: bool,
    as_json: bool,
    resident: bool,
    now: bool,
    events_fd: int | None,
    **training: str | int | None,
) -> None:
    """Train on a CSV file and register the two best candidates.

    DATA is the CSV file; default: training.data of gleaner.toml.
    """
    _check_usage(context)
    if now:
        pid = ask(load_settings(context.obj).state)
        click.echo(f"asked the trainer, pid {pid}, to train; it finishes a running training first")
        return
    with failing_aloud(events_fd):
        ports = {"train_metrics": metrics_port}
        settings = load_settings(context.obj, flags(training=training_section(training), ports=ports))
        if resident:
            _reside(settings, data, training)
            return
        # SIGTERM then interrupts as Ctrl-C does, and the training marks its runs FAILED.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        source = find_data(settings, data)
        if if_empty and has_version(settings, data, {}):
            return
        prepare_mlflow(settings)
        with extra("train"):
            from gleaner.programs.training import run_training  # the resident does without

            own_port = metrics_port is not None
            run_training(settings, source, linger=linger, own_port=own_port, as_json=as_json, events_fd=events_fd)


def _check_usage(context: click.Context) -> None:
    """Refuse options of `train` that make no sense together."""
    given = {name for name, value in context.params.items() if value is not None and value is not False}
    if "now" in given and given != {"now"}:
        raise click.UsageError("--now goes alone: the running resident has its own data and settings")
    if "every" in given and "resident" not in given:
        raise click.UsageError("--every needs --resident")
    if "resident" in given and given & {"linger", "if_empty", "as_json"}:
        raise click.UsageError("--resident stays and logs, so it takes no --linger, --if-empty or --json")


def _reside(settings: Settings, data: Path | None, training: Mapping[str, object]) -> None:
    """Run the resident trainer until SIGTERM or Ctrl-C."""
    # The child reads the settings again, so it gets the arguments of this command; --every is the resident's own.
    command = [sys.executable, "-m", "gleaner", "--config", str(settings.file.absolute()), "train", "--json"]
    run_trainer(settings, [*command, *training_arguments(data, {**training, "every": None})])
