"""The start of the scripts in the clone, under its `.venv`.

It uses only the standard library, because it runs before `.venv` exists.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


def enter_venv(root: Path) -> None:
    """Restart the script under `root/.venv` if this Python lacks httptools.

    The virtual environment is made first if it is missing. The process is replaced, so this returns only if nothing
    had to be done.
    """
    python = root / ".venv" / "bin" / "python"
    if Path(sys.prefix) == python.parents[1] or importlib.util.find_spec("httptools"):
        return
    if not python.exists():
        print("making .venv, which happens once and takes about a minute", file=sys.stderr)  # noqa: T201
        if subprocess.run(["make", "--silent", "venv"], cwd=root, check=False).returncode:
            sys.exit("error: .venv could not be made; see the output above, or run `make venv` again")
    os.execv(python, [str(python), *sys.argv])


def run(root: Path, command: list[str]) -> None:
    """Run a command of `gleaner`.

    The settings are those of this folder, or else those of `root`.
    """
    enter_venv(root)
    from gleaner.cli.main import main

    config = [] if Path("gleaner.toml").exists() else ["--config", str(root / "gleaner.toml")]
    main([*config, *command])
