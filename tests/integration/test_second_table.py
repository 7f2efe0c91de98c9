"""Other tables than the food drive, from one `gleaner.toml` each."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from projects import ROOT
from sklearn.linear_model import LinearRegression
from started import gleaner, serving

from gleaner.client import Client, Rejected
from gleaner.model.predictor import Predictor
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.settings.modelling import CANDIDATES
from gleaner.table.csv import read_table
from gleaner.table.schema import Schema
from gleaner.training.events import Fitted, TableRead
from gleaner.training.packing import pack
from gleaner.training.train import train

EXACT = {"decision_tree", "random_forest", "gradient_boosting"}  # exact to the last bit; the others differ by rounding


def request_of(schema: Schema, columns: list[float]) -> dict[str, object]:
    """Return the request whose row has these matrix columns."""
    rest, row = list(columns), {}
    for feature in schema.features:
        mine = [rest.pop(0) for _ in feature.columns]
        row[feature.name] = feature.values[mine.index(1.0)] if feature.values else mine[0]
    return row


def golden_of(folder: Path, version: int) -> tuple[str, list[dict[str, object]], list[float]]:
    """Return (candidate, requests, the fitted estimator's own predictions) of a version."""
    manifest = Store(folder / ".gleaner" / "store").read(version).manifest
    rows = [request_of(manifest.schema, list(row)) for row in manifest.golden.rows]
    return manifest.candidate, rows, list(manifest.golden.answers)


def assert_equal_predictions(candidate: str, golden: list[float], found: list[float]) -> None:
    if candidate in EXACT:
        assert golden == found
    else:
        np.testing.assert_allclose(found, golden, rtol=1e-12, atol=1e-9)


# scikit-learn's diabetes


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    """Return a folder with the example, its data and a store."""
    folder = tmp_path_factory.mktemp("diabetes")
    shutil.copy(ROOT / "examples" / "diabetes" / "gleaner.toml", folder)
    command = re.search(r"^#   (python -c .*)$", (folder / "gleaner.toml").read_text(), re.MULTILINE)[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, check=True, timeout=120)
    # One repeat instead of three is enough for this test of the table.
    arguments = ("train", "--metrics-port", 0, "--champion", "linear")
    done = gleaner(*arguments, folder=folder, GLEANER_TRAINING__REPEATS="1")
    assert 0 == done.returncode, done.stderr
    return folder


@pytest.fixture(scope="module")
def diabetes_service(diabetes):
    with serving(diabetes) as running:
        yield running


def test_the_example_is_one_file_and_its_data_is_not_committed():
    folder = ROOT / "examples" / "diabetes"

    assert ["gleaner.toml"] == [path.name for path in folder.iterdir() if path.suffix != ".csv"]
    assert "examples/diabetes/*.csv" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_row_of_diabetes_is_used_and_the_models_beat_the_median(diabetes):
    store = Store(diabetes / ".gleaner" / "store")

    for version in (1, 2):
        manifest = store.read(version).manifest
        assert (442, 0) == (manifest.data.rows, manifest.data.refused)
        # Least squares alone has an r2 of 0.49 on rows that it has not seen.
        assert manifest.scores["mae"] < 0.8 * manifest.constant["mae"]
        assert 0.35 < manifest.scores["r2"] < 0.6
        assert manifest.constant["accuracy"] < manifest.scores["accuracy"] < 1


@pytest.mark.parametrize(("slot", "version"), [("v1", 1), ("v2", 2)])
def test_diabetes_is_predicted_as_by_the_estimator(diabetes, diabetes_service, slot, version):
    candidate, rows, golden = golden_of(diabetes, version)

    with Client(diabetes_service.url) as client:
        found = client.predict(rows, slot=slot)

    assert_equal_predictions(candidate, golden, found.tolist())


def test_diabetes_is_predicted_as_by_scikit_learn_alone(diabetes, diabetes_service):
    with (diabetes / "diabetes.csv").open() as file:
        cells = list(csv.DictReader(file))
    X = np.array([[float(cell) for name, cell in row.items() if name != "target"] for row in cells])
    own = LinearRegression().fit(X, [float(row["target"]) for row in cells]).predict(X)

    schema = load_settings(diabetes / "gleaner.toml").schema_
    rows = [
        {
            feature.name: row["sex"] if feature.values else float(row[(*feature.sources, feature.name)[0]])
            for feature in schema.features
        }
        for row in cells
    ]
    with Client(diabetes_service.url) as client:
        found = client.predict(rows)

    np.testing.assert_allclose(found, own, rtol=1e-9)


def test_check_predicts_diabetes_and_names_refused_values(diabetes, diabetes_service):
    _, rows, golden = golden_of(diabetes, 1)

    done, refused = (
        gleaner("check", "--data", json.dumps(row), "--port", diabetes_service.port, folder=diabetes)
        for row in (rows[0], rows[0] | {"sex": "3", "bmi": 5})
    )

    shown = json.loads(done.stderr.split("Response:\n")[1])
    assert golden[0] == pytest.approx(shown["prediction"][0], rel=1e-12)
    assert 1 == refused.returncode
    assert "/sex: wanted one of '1', '2', got '3'" in refused.stderr
    assert "/bmi: wanted a number of kg/m2 from 10 to 100, got 5" in refused.stderr


# A made table: a category, words for whole numbers, and a target on both sides of 0


SETTINGS = """
[model]
name = "balance"
target = "balance"
unit = "euros"

[[features]]
name = "district"
type = "category"
values = ["north", "Old Town", "Süd", "never seen"]

[[features]]
name = "rooms"
type = "int"
min = 1
max = 9
map = { "one" = 1, "two" = 2, "many" = 6 }

[[features]]
name = "temperature"
unit = "degrees"
min = -60.0
max = 60.0
monotone = "down"

[training]
data = "balance.csv"
repeats = 1

[scores]
loss = "standardised_squared_error"
accuracy = { within = 40.0 }
"""


def write_balance(path: Path) -> None:
    """Write 400 rows around 0, and three that a column refuses."""
    random, districts, words = np.random.default_rng(0), ("north", "Old Town", "Süd"), {1: "one", 2: "two", 6: "many"}
    rows: list[list[object]] = []
    for _ in range(400):
        district, rooms = int(random.integers(3)), int(random.integers(1, 7))
        degrees = round(float(random.normal(10, 12)), 1)
        balance = (-120, 0, 120)[district] + 25 * (rooms - 3) - 2 * (degrees - 10) + random.normal(0, 20)
        rows.append([districts[district], words.get(rooms, rooms), degrees, round(float(balance), 2)])
    rows += [["west", 1, 2.0, 3.0], ["north", 3.5, 2.0, 3.0], ["north", "several", 2.0, 3.0]]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["district", "rooms", "temperature", "balance"], *rows])


@pytest.fixture(scope="module")
def balance(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balance")
    (folder / "gleaner.toml").write_text(SETTINGS, encoding="utf-8")
    write_balance(folder / "balance.csv")
    done = gleaner("train", "--metrics-port", 0, folder=folder)
    assert 0 == done.returncode, done.stderr
    (folder / "train.out").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def balance_service(balance):
    with serving(balance) as running:
        yield running


def test_five_candidates_are_tried_and_three_rows_refused_with_the_reason(balance):
    report = (balance / "train.out").read_text()

    assert set(CANDIDATES) <= {line.split()[0] for line in report.splitlines()}
    assert "400 rows used, 3 refused" in report
    for reason in (
        "line 402, column 'district': wanted one of 'north', 'Old Town', 'Süd', 'never seen', got 'west'",
        "line 403, column 'rooms': wanted a whole number from 1 to 9, got '3.5'",
        "line 404, column 'rooms': wanted a whole number from 1 to 9, got 'several'",
    ):
        assert reason in report


@pytest.mark.parametrize(("slot", "version"), [("v1", 1), ("v2", 2)])
def test_predictions_on_both_sides_of_0_are_served(balance, balance_service, slot, version):
    candidate, rows, golden = golden_of(balance, version)

    with Client(balance_service.url) as client:
        found = client.predict(rows, slot=slot).tolist()

    assert min(golden) < -50 < 50 < max(golden)
    assert_equal_predictions(candidate, golden, found)


def test_an_unknown_word_is_refused_and_an_unseen_value_is_not(balance_service):
    row = {"district": "Old Town", "rooms": 2, "temperature": -3.5}
    with Client(balance_service.url) as client:
        assert 2 == len(client.predict([row, row | {"district": "never seen"}]))

        for wrong, column, reason in (
            ({"district": "west"}, "district", "wanted one of 'north', 'Old Town', 'Süd', 'never seen', got 'west'"),
            ({"district": 1}, "district", "wanted one of 'north', 'Old Town', 'Süd', 'never seen', got 1"),
            ({"rooms": "many"}, "rooms", "wanted a whole number from 1 to 9, got 'many'"),
            ({"rooms": 2.5}, "rooms", "wanted a whole number from 1 to 9, got 2.5"),
        ):
            with pytest.raises(Rejected) as caught:
                client.predict([row, row | wrong])
            assert [(1, column, reason)] == [(f.number, f.column, f.reason) for f in caught.value.faults]


def test_every_candidate_predicts_as_its_estimator_does(balance, tmp_path):
    settings = load_settings(balance / "gleaner.toml")
    table = read_table(balance / "balance.csv", settings.schema_)
    events = list(train(table, settings))
    constant = next(event.constant for event in events if isinstance(event, TableRead))
    fitted = [event for event in events if isinstance(event, Fitted)]

    assert list(CANDIDATES) == [each.candidate for each in fitted]
    for each in fitted:
        artifact = pack(each, table, constant, settings, tmp_path / each.candidate)
        found = Predictor(artifact).predict(table.X)
        assert_equal_predictions(each.candidate, each.estimator.predict(table.X).tolist(), found.tolist())
        assert found.min() < -50
        assert each.scores.mae < 0.5 * constant.mae
