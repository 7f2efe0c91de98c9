"""Proof of the wheel in a fresh environment, extras included.

`make dist` builds the files, checks their metadata, and runs this. It needs a package index, and one to two minutes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "src" / "gleaner" / "__init__.py").read_text())[0]


def run(*command: object, folder: Path, code: int = 0) -> str:
    """Run a command, check its exit code, and return its output."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != code:
        sys.exit(f"error: {shlex.join(map(str, command))} exited {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def prove(wheel: Path, folder: Path) -> None:
    """Install a wheel as the images do, and use it."""
    run(sys.executable, "-m", "venv", "venv", folder=folder)
    python, gleaner = folder / "venv" / "bin" / "python", folder / "venv" / "bin" / "gleaner"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*install, "--require-hashes", "--requirement", ROOT / "requirements" / "serve.lock", folder=folder)
    run(*install, "--no-deps", wheel, folder=folder)
    assert run(gleaner, "--version", folder=folder) == f"gleaner, version {VERSION}\n"
    assert "Usage: gleaner" in run(gleaner, "--help", folder=folder)
    (folder / "routes.csv").write_text("a,y\n1,2\n2,3\n")
    run(gleaner, "init", "routes.csv", "--target", "y", folder=folder)

    render = [gleaner, "config", "render", "--for", "local", "--out", "rendered"]
    hint = run(*render, folder=folder, code=1).strip().partition("to install the extra 'monitoring': ")[2]
    run(*shlex.split(hint), folder=folder)
    assert "wrote " in run(*render, folder=folder)
    print(f"{wheel.name}: installs, runs, and `{hint.replace(str(python), 'python')}` adds what it says")


if __name__ == "__main__":
    (found,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory() as scratch:
        prove(found, Path(scratch).resolve())
