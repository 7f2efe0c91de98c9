"""Tables as people have them, from `gleaner init` to the served number."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from formats import FORMATS, Asked, as_json, table_of
from projects import ROOT
from started import command_of, gleaner, serving

from gleaner.cli import main as cli
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.table.csv import open_csv
from gleaner.table.tables import names_of

FOLDER = ROOT / "tests" / "data" / "tables"
TARGETS = {"decimal-commas": "Spenden", "scripts": "мешки", "leaks": "people"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.csv"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Yield a function that runs a command within this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLEANER_TRAINING__CANDIDATES", '["linear", "decision_tree"]')
    monkeypatch.setenv("GLEANER_TRAINING__REPEATS", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, arguments)])
        return int(ended.value.code or 0)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def column_of(path: Path, encoding: str, names: list[tuple[str, ...]], header: str) -> list[str]:
    """Return the cells of a column of a CSV file."""
    with open_csv(path, encoding=encoding, names=[*names, (header,)]) as file:
        at = file.header.index(header)
        return [cells[at] for _, cells in file.rows()]


def test_the_tables_are_those_that_the_script_makes(tmp_path):
    script = (FOLDER / "make.py").read_text(encoding="utf-8")
    (tmp_path / "make.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, "make.py"], cwd=tmp_path, check=True, timeout=60)

    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_drafted_trained_and_served_in_every_format(tmp_path, run, name):
    original = (FOLDER / f"{name}.csv").read_bytes()
    truth: list[dict[str, Any] | None] = json.loads((FOLDER / f"{name}.json").read_bytes())
    rows = [row for row in truth if row is not None]
    code, status = (0, 200) if None not in truth else (3, 207)
    (tmp_path / "table.csv").write_bytes(original)

    assert 0 == run("init", "table.csv", "--target", TARGETS.get(name, "bags"))
    settings = load_settings(tmp_path / "gleaner.toml")
    assert sorted(rows[0]) == sorted(settings.schema_.names)
    assert 0 == run("train", "--metrics-port", 0)
    schema = Store(tmp_path / ".gleaner" / "store").read(1).manifest.schema

    assert code == run("score", "table.csv", "scored.csv")
    columns, encoding = names_of(schema.features), settings.table.encoding
    scored = column_of(tmp_path / "scored.csv", encoding, columns, "prediction")
    assert [row is not None for row in truth] == [cell != "" for cell in scored]
    numbers = [float(cell) for cell in scored if cell]

    piped = subprocess.run(command_of("score", "-", "-"), cwd=tmp_path, input=original, capture_output=True, timeout=60)
    assert (code, (tmp_path / "scored.csv").read_bytes()) == (piped.returncode, piped.stdout)

    pq.write_table(table_of(schema, rows), tmp_path / "rows.parquet")
    assert 0 == run("score", "rows.parquet", "scored.parquet")
    assert numbers == pq.read_table(tmp_path / "scored.parquet")["prediction"].to_pylist()

    with serving(tmp_path) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        ask = Asked(client, settings.model.name)
        expected = as_json(ask, schema, rows)
        assert np.array(numbers).tobytes() == expected.predictions
        for form, send in FORMATS.items():
            if "csv" not in form:  # which has the original itself
                assert expected == send(ask, schema, rows), form

        kind = f"text/csv; charset={encoding}" if encoding else "text/csv"
        whole = ask("/v1/predict?partial=true", original, Content_Type=kind)
        assert status == whole.status_code, whole.text
        assert scored == [line.split(",")[0] for line in whole.text.split("\r\n")[1:-1]]
        invoked = ask("/invocations", original, Content_Type=kind)
        if None in truth:
            assert 400 <= invoked.status_code < 500
        else:
            assert numbers == invoked.json()["predictions"]


def test_a_table_without_a_header_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "table.csv").write_text("12,3.5,4\n40,1.5,9\n22,2.0,5\n")

    done = gleaner("init", "table.csv", "--target", "bags", folder=tmp_path)

    said = "table.csv, line 1: holds values, not names; wanted a header above the rows, with 'bags', got none"
    assert (1, f"error: {said}\n") == (done.returncode, done.stderr)
    assert not (tmp_path / "gleaner.toml").exists()
