"""The table of cases, results and figures that `make reliability` writes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
from clients import FULL
from figures import FIGURES
from soaking import Soak

# Each case in a few words.
CASES = {
    "R1": "20 new versions under load",
    "R2": "no response from the old version after a promotion",
    "R3": "damaged and hostile versions",
    "R4": "stops",
    "R5": "a start without MLflow",
    "R6": "50 reloads at once",
    "L1": "slow headers",
    "L2": "slow bodies",
    "L3": "idle connections",
    "L4": "bodies too large, in tiny chunks, compressed, or cut",
    "L5": "overload",
    "L6": "clients that hang up",
    "L7": "costly tables",
    "J1": "the JSON parsing corpus",
    "J2": "schemathesis",
    "J3": "every format gives the same number",
    "J4": "extreme numbers and row counts",
    "C1": "kills under load, and acknowledged ids",
    "C2": "a killed training",
    "C3": "no space left",
    "C4": "a locked file of actuals",
    "C5": "damaged segments",
    "C6": "the supervisor",
    "D1": "a faulty MLflow server",
    "D2": "a training without MLflow",
    "S1": "every route without its key",
    "S2": "hostile names",
    "S3": "forced exceptions",
    "S4": "formulas in CSV",
    "S5": "hostile headers in the log",
    "S6": "hostile hosts and origins",
    "S7": "secrets in every setting, variable and file",
    "O1": "scrapes under load",
    "M1": "a soak",
}
WAITING = {
    **dict.fromkeys(("C1", "C3", "C4", "C5"), "waits for the journal"),
}


SOAK = "test_a_soak_with_reloads_keeps_its_memory"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the soak last, since it runs beside the other tests."""
    if FULL:
        items.sort(key=lambda item: item.name == SOAK)


@pytest.fixture(scope="session")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    with Soak(tmp_path_factory.mktemp("soak")) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _begin_soak(request: pytest.FixtureRequest) -> None:
    """Begin the soak before the first test of `make reliability`."""
    if FULL and any(item.name == SOAK for item in request.session.items):
        request.getfixturevalue("soak")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table to the file that RELIABILITY_TABLE names."""
    if path := os.environ.get("RELIABILITY_TABLE"):
        figures = session.config.stash.get(FIGURES, {})
        rows = [
            f"| {case} | {about} | {'; '.join(figures.get(case, [WAITING.get(case, 'not run')]))} |"
            for case, about in CASES.items()
        ]
        parts = ", ".join(f"{name} {version(name)}" for name in ("httptools", "uvloop", "onnxruntime"))
        outcome = "all passed" if session.exitstatus == 0 else "with failures"
        size = "Full sizes." if FULL else "Small sizes: full ones take an hour, and MOMENTS asks for them."
        text = [
            "# Reliability",
            "",
            "`make reliability` writes this page: the cases that the service must survive, and what was measured.",
            "Each case is a test in `tests/reliability`, against the shipped commands. A second test shows that the",
            "first one fails when the defence is taken out.",
            "",
            f"{date.today():%Y-%m-%d}, {outcome}; Python {platform.python_version()}, {parts}. {size}",
            "",
            "| case | about | figures |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
        Path(path).write_text("\n".join(text))
