"""The page of versions: its commands print the output shown.

They run in the page's order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from projects import ROOT, SETTINGS, write_made_table
from started import gleaner

PAGE = (ROOT / "docs" / "versions.md").read_text()
SHELL = "".join(re.findall(r"^```\n(\$ .*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", SHELL, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project after its first training."""
    folder = tmp_path_factory.mktemp("versions")
    (folder / "gleaner.toml").write_text(SETTINGS)
    write_made_table(folder / "made.csv")
    done = gleaner("train", "--metrics-port", 0, folder=folder)
    assert 0 == done.returncode, done.stderr
    return folder


def plain(text: str) -> str:
    """Return an output without its changing parts.

    Those depend on the table, the time and the widths of columns.
    """
    for pattern, name in (
        (r"examples/food-drive/routes\.csv|routes\.csv|made\.csv", "TABLE"),
        (r"linear|decision_tree|random_forest|gradient_boosting|spline", "CANDIDATE"),
        (r"\d{4}-\d\d-\d\dT[\d:+]+", "TIME"),
        (r"\d+\.\d+", "NUMBER"),
        (r"\d+ rows", "ROWS"),
        (r" +", " "),
    ):
        text = re.sub(pattern, name, text)
    return text


def test_the_commands_of_the_page_print_what_it_shows(folder):
    assert len(COMMANDS) == 8
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GLEANER_PORTS__TRAIN_METRICS": "0",
    }
    for command, shown in COMMANDS:
        here = command.replace("examples/food-drive/routes.csv", "made.csv")
        done = subprocess.run(
            ["bash", "-c", f"{here} 2>&1"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert plain(shown) == plain(done.stdout), command
