"""The sample: its bytes, its errors, and the claims about it."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gleaner.settings.load import load_settings
from gleaner.table.csv import read_table
from gleaner.table.tables import Table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "food-drive"
ROUTES = FOLDER / "routes.csv"


@pytest.fixture(scope="module")
def make_routes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_routes", FOLDER / "make_routes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_routes"] = module  # a dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table() -> Table:
    return read_table(ROUTES, load_settings(ROOT / "gleaner.toml").schema_)


@pytest.fixture(scope="module")
def measured(make_routes: ModuleType) -> Any:
    return make_routes.measure(ROUTES)


def test_the_script_makes_the_committed_file_byte_for_byte(make_routes, tmp_path):
    make_routes.write_routes(tmp_path / "routes.csv")

    assert ROUTES.read_bytes() == (tmp_path / "routes.csv").read_bytes()


def test_another_seed_makes_another_file(make_routes):
    assert make_routes.make_rows(make_routes.SEED) != make_routes.make_rows(make_routes.SEED + 1)


def test_no_row_is_refused_and_none_is_lost(table):
    assert (450, 0) == (len(table.y), table.refused)
    assert list(range(2, 452)) == list(table.lines)


def test_the_minutes_are_read_and_not_the_clock_times_beside_them(table):
    assert "Time to Complete (min)" == table.taken["time_spent"]
    assert table.X[:, 0].max() <= 270


def test_the_file_has_the_errors_that_its_page_lists(make_routes):
    with ROUTES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(make_routes.HEADER) == list(rows[0])
    assert 0.05 <= sum(row["Doors in Route"] == "194" for row in rows) / 450 <= 0.1
    assert 0.35 <= sum(row["Ward"] == "" for row in rows) / 450 <= 0.45
    assert any("\u00c3\u00b4" in row["Ward/Branch"] for row in rows)  # an o with a circumflex, decoded wrongly
    assert 1 == sum(row["Donation Bags Collected"] == "555" for row in rows)
    assert 1 == sum(row["Date"] >= "2025" for row in rows)
    assert any(float(row["Time Spent"]) > 600 for row in rows)
    assert any("." in row["Time Spent"] for row in rows)
    assert 12 == len({row["Assessed Value"] for row in rows})


def test_the_typo_and_the_test_row_are_suspects(measured):
    assert {measured.typo_line, measured.test_line} <= measured.suspects
    assert 555 == measured.table.y[measured.typo_line - 2]
    assert 451 == measured.test_line


def test_every_claim_about_the_sample_holds(make_routes, measured):
    wrong = [(what, wanted, got) for what, wanted, got, right in make_routes.claims(measured) if not right]

    assert [] == wrong


def test_a_claim_that_does_not_hold_exits_with_1(make_routes, measured, monkeypatch, capsys):
    monkeypatch.setattr(make_routes, "measure", lambda path: measured)
    monkeypatch.setattr(make_routes, "WANTED_R2", {"linear": 0.9})
    monkeypatch.setattr(sys, "argv", ["make_routes.py", "--check"])

    assert 1 == make_routes.main()
    assert "WRONG  clean r2 of linear: wanted 0.9 +- 0.06" in capsys.readouterr().out
