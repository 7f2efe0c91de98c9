"""The optional parts of an installation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from gleaner.errors import MissingExtra
from gleaner.settings.sections import Settings

_MODULES = {
    "train": (
        "mlflow",
        "sklearn",
        "onnx",
        "matplotlib",
        "threadpoolctl",
        "scipy",
        "cryptography",
        "charset_normalizer",
    ),
    "monitoring": ("grafana_foundation_sdk", "yaml"),
    "parquet": ("pyarrow",),
    "signing": ("cryptography",),
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import of an extra's module into MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] in _MODULES[name]:
            raise MissingExtra(name, e.name) from e
        raise


def write_monitoring(
    settings: Settings,
    where: Literal["compose", "local"],
    folder: Path,
    hurry: float = 1.0,
    services: Collection[str] | None = None,
    *,
    guarded: bool = False,
) -> tuple[int, list[str]]:
    """Write the files of Prometheus, Alertmanager and Grafana under a folder.

    The arguments are those of `watching.render.render`.
    Returns the number of files written, and the paths of foreign files in folders where only rendered files belong.
    """
    with extra("monitoring"):
        from gleaner.watching.password import write_password
        from gleaner.watching.render import RECEIVERS, render, write_tree
    files = render(settings, where, folder, hurry, services, guarded=guarded)
    # In compose, Alertmanager runs as another user.
    others = write_tree(folder, files, {RECEIVERS} if where == "local" and settings.alerts.webhook else ())
    if guarded:
        write_password(folder)
    return len(files), others
