"""`gleaner keys add`, `list` and `revoke`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from gleaner.cli.options import json_option
from gleaner.programs.terminal import cell, print_table
from gleaner.serving.keys import SCOPES, Key, add_key, read_keys, read_last_use, revoke_keys
from gleaner.settings.load import load_settings
from gleaner.settings.modelling import NAME_PATTERN
from gleaner.settings.sections import Settings

DEFAULT_FILE = "api-keys.json"


def _check_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise click.BadParameter(f"wanted at most 64 letters, digits, '.', '_' and '-', got {name!r}")
    return name


def _check_scopes(_: click.Context, __: click.Parameter, text: str) -> Sequence[str]:
    scopes = text.split(",")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise click.BadParameter(f"wanted some of {','.join(SCOPES)}, got {unknown[0]!r}")
    return scopes


def _check_lifetime(_: click.Context, __: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hd])", text)
    if not found:
        raise click.BadParameter(f"wanted hours or days, such as 12h or 90d, got {text!r}")
    return timedelta(hours=int(found[1]) * (24 if found[2] == "d" else 1))


@click.command()
@click.argument("name", callback=_check_name)
@click.option(
    "--scope",
    default="predict",
    show_default=True,
    callback=_check_scopes,
    help="Some of predict,actuals,admin.",
)
@click.option("--expires", callback=_check_lifetime, help="The key's lifetime, such as 90d; default: none.")
@click.pass_obj
def add(config: Path | None, name: str, scope: Sequence[str], expires: timedelta | None) -> None:
    """Add an API key, and print it once.

    NAME is the caller's; it may have two live keys, so that it can change to the new one. The key goes to standard
    output, and the file keeps only its SHA-256. A running service accepts the key within seconds.
    """
    settings = load_settings(config)
    path = settings.keys_file or settings.file.parent / DEFAULT_FILE
    key, text = add_key(path, name, scope, expires)
    until = f"until {_show(key.expires)}" if key.expires else "until it is revoked"
    click.echo(f"key {key.id} of {key.name} for {', '.join(key.scopes)}, {until}, in {path}:", err=True)
    click.echo(text)
    if not settings.keys_file:
        click.echo(f'to ask callers for keys, set keys_file = "{DEFAULT_FILE}" in [serving], and restart', err=True)


@click.command("list")
@json_option
@click.pass_obj
def list_keys(config: Path | None, as_json: bool) -> None:
    """List the API keys, without their secrets."""
    settings = load_settings(config)
    keys = read_keys(_file(settings))
    used = read_last_use(settings.keys_used)
    rows = [_describe(key, used.get(key.id)) for key in keys]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    head = ("id", "name", "scopes", "state", "created", "expires", "last used")
    print_table(head, [[cell(row[name.replace(" ", "_")] or "") for name in head] for row in rows])


@click.command()
@click.argument("which", metavar="ID_OR_NAME")
@click.pass_obj
def revoke(config: Path | None, which: str) -> None:
    """Revoke the key with an id, or all keys of a name.

    A running service refuses them within seconds.
    """
    path = _file(load_settings(config))
    for key in revoke_keys(path, which):
        click.echo(f"revoked key {key.id} of {key.name}")


def _file(settings: Settings) -> Path:
    return settings.keys_file or settings.file.parent / DEFAULT_FILE


def _describe(key: Key, last_used: str | None) -> dict[str, Any]:
    refusal = key.refusal(datetime.now(UTC))
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "state": refusal.value if refusal else "live",
        "created": _show(key.created),
        "expires": _show(key.expires) if key.expires else None,
        "last_used": last_used,
    }


def _show(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
