"""`gleaner keys signing` and `gleaner models sign`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gleaner.cli.extras import extra
from gleaner.cli.options import DONE_IN_PART, PATH
from gleaner.cli.versions import choose_version
from gleaner.errors import BadArtifact, BadSetting, Unreachable
from gleaner.model.artifact import read_artifact
from gleaner.model.store import Store
from gleaner.settings.environment import prepare_mlflow
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings


@click.command()
@click.argument("file", type=PATH)
def signing(file: Path) -> None:
    """Make a key pair that signs versions.

    FILE gets the private key, for this user alone, and FILE.pub the public key. Files that exist stay as they are.
    """
    with extra("signing"):
        from gleaner.model.signing import write_key
    public = write_key(file)
    click.echo(f"{file} is the private key: keep it where training runs, and away from the service")
    click.echo(f"{public} is the public key: the service needs a copy")
    click.echo("in gleaner.toml, paths relative to its folder:")
    click.echo(f'  [training]\n  signing_key = "{file}"  # where training runs')
    click.echo(f'  [serving]\n  public_key = "{public}"  # where the service and training run')


@click.command()
@click.argument("version", type=int)
@click.pass_obj
def sign(config: Path | None, version: int) -> None:
    """Sign a version that is in the store.

    Needs the private key, `training.signing_key`. Puts the signature into the store and into MLflow, so that a service
    elsewhere finds it.
    """
    settings = load_settings(config)
    with extra("signing"):
        from gleaner.model.signing import SigningKey
    key = SigningKey.read(settings)
    if key is None:
        fix = "name the file of the private key; `gleaner keys signing FILE` makes one"
        raise BadSetting(str(settings.file), "training.signing_key", f"is not set; {fix}")
    store = Store(settings.store)  # without a signer, since the version is not signed yet
    folder = store.folder(choose_version(store, "", version))
    described: list[bytes] = []
    model = read_artifact(folder, lambda _, manifest: described.append(manifest)).manifest.model
    if model != settings.model.name:
        detail = f"it is a version of {model!r}, and model.name is {settings.model.name!r}"
        raise BadArtifact(folder, "signature", f"not signed: {detail}")
    store.sign(version, key.sign(described[0]))
    click.echo(f"version {version} is signed, by the key {key.public.hex()}")
    if fault := _log_in_mlflow(settings, version, folder):
        click.echo(f"only the store has the signature: {fault}", err=True)
        sys.exit(DONE_IN_PART)


def _log_in_mlflow(settings: Settings, version: int, folder: Path) -> str:
    """Log a signature in MLflow; return the reason of a failure."""
    prepare_mlflow(settings)
    try:
        from gleaner.training.tracking import log_signature
    except ImportError:
        return "MLflow is not installed here"
    try:
        log_signature(settings, version, folder)
    except Unreachable as e:
        return str(e)
    return ""
