"""The way of the scripts at the root and under `src/` into the project's `.venv`; nothing but the standard library."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


def enter_venv(root: Path) -> None:
    """Go on under `root/.venv` if this Python lacks what the service needs; make it first if it is not there.

    Replaces the process, so it returns only where nothing has to be done.
    """
    python = root / ".venv" / "bin" / "python"
    if Path(sys.prefix) == python.parents[1] or importlib.util.find_spec("granian"):
        return
    if not python.exists():
        print("making .venv, once; this takes a minute", file=sys.stderr)  # noqa: T201
        if subprocess.run(["make", "--silent", "venv"], cwd=root, check=False).returncode:
            sys.exit("error: .venv could not be made; `make venv` says why")
    os.execv(python, [str(python), *sys.argv])


def run(root: Path, command: list[str]) -> None:
    """Run a command of `gleaner` with the settings of `root`, unless there are some in this folder."""
    enter_venv(root)
    from gleaner.cli import main

    config = [] if Path("gleaner.toml").exists() else ["--config", str(root / "gleaner.toml")]
    main([*config, *command])
