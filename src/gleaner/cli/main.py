"""The command `gleaner`: the table of its commands, and its exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from gleaner import __version__
from gleaner.cli.lazy import LazyGroup
from gleaner.cli.options import PATH
from gleaner.errors import GleanerError
from gleaner.redaction import guard_output, redact

COMMANDS = {
    "backup": ("gleaner.cli.backup:backup", "Write everything of this folder into one file"),
    "check": ("gleaner.cli.check:check", "Ask a running service for one prediction"),
    "doctor": ("gleaner.cli.doctor:doctor", "Find what is wrong on this machine, and how to fix it"),
    "down": ("gleaner.cli.down:down", "Stop what `gleaner up` started here"),
    "drill": ("gleaner.cli.drill:drill", "Prove that an alert works, in a private copy of the stack"),
    "init": ("gleaner.cli.init:init", "Write a first gleaner.toml for a CSV file"),
    "restore": ("gleaner.cli.restore:restore", "Restore a backup into an empty folder"),
    "score": ("gleaner.cli.score:score", "Predict every row of a CSV or Parquet file"),
    "serve": ("gleaner.cli.serve:serve", "Serve predictions over HTTP until Ctrl-C"),
    "status": ("gleaner.cli.status:status", "Show the processes that `gleaner up` started here"),
    "train": ("gleaner.cli.train:train", "Train on a CSV file and register the two best candidates"),
    "up": ("gleaner.cli.up:up", "Run the whole stack on this machine until Ctrl-C"),
}
CONFIG = {
    "describe": ("gleaner.cli.config:describe", "Print a Markdown page of every setting"),
    "render": ("gleaner.cli.config:render_config", "Write the files of Prometheus, Alertmanager and Grafana"),
    "show": ("gleaner.cli.config:show", "Print every setting with its current value"),
}
KEYS = {
    "add": ("gleaner.cli.keys:add", "Add an API key, and print it once"),
    "list": ("gleaner.cli.keys:list_keys", "List the API keys, without their secrets"),
    "revoke": ("gleaner.cli.keys:revoke", "Revoke the key with an id, or all keys of a name"),
    "signing": ("gleaner.cli.signing:signing", "Make a key pair that signs versions"),
}
MODELS = {
    "list": ("gleaner.cli.models:list_models", "List the versions in the store"),
    "promote": ("gleaner.cli.models:promote", "Point an alias at a version"),
    "sign": ("gleaner.cli.signing:sign", "Sign a version that is in the store"),
}


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="gleaner")
@click.option("--config", type=PATH, help="The settings file; default: GLEANER_CONFIG, else ./gleaner.toml.")
@click.pass_context
def gleaner(context: click.Context, config: Path | None) -> None:
    """Put one tabular regression model into production and keep watch over it."""
    context.obj = config


@gleaner.group("config", cls=LazyGroup, table=CONFIG)
def config_group() -> None:
    """Show the settings, or render what is made from them."""


@gleaner.group("keys", cls=LazyGroup, table=KEYS)
def keys_group() -> None:
    """Make, list or revoke keys of callers, or a key that signs."""


@gleaner.group("models", cls=LazyGroup, table=MODELS)
def models_group() -> None:
    """List the versions, sign them, or choose which of them serve."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Exit codes: 0 done, 1 an error that the user can fix, 2 wrong usage, 3 done in part, 130 interrupted.
    """
    guard_output()
    command: Callable[..., Any] = gleaner.main
    try:
        command(args=list(arguments) if arguments is not None else None, prog_name="gleaner", standalone_mode=False)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.UsageError as e:
        e.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ImportError as e:
        # A C extension that Ctrl-C interrupts while it loads raises an ImportError.
        if not isinstance(e.__cause__, KeyboardInterrupt):
            raise
        click.echo("interrupted", err=True)
        sys.exit(130)
    except GleanerError as e:
        click.secho("error: ", fg="red", nl=False, err=True)
        click.echo(redact(str(e)), err=True)
        sys.exit(1)
    finally:
        logging.shutdown()
    sys.exit(0)
