"""Gaps and learned words, from the file to a prediction."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import mlflow
import pytest
from projects import GAPPY, write_gappy_table
from started import gleaner, serving

from gleaner.model.store import Store


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gappy")
    (folder / "gleaner.toml").write_text(GAPPY)
    write_gappy_table(folder / "gappy.csv")
    done = gleaner("train", "--metrics-port", "0", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "train.out").write_text(done.stdout)
    return folder


def test_a_training_prints_missing_shares_scores_by_gaps_and_the_rows_without_a_target(gappy):
    lines = (gappy / "train.out").read_text().splitlines()

    [used] = [line for line in lines if line.startswith("gappy.csv: ")]
    found = re.fullmatch(r"gappy.csv: (\d+) rows used, 0 refused, (\d+) without price", used)
    assert found
    assert 300 == int(found[1]) + int(found[2])
    assert 5 <= int(found[2]) <= 30
    shares = [re.fullmatch(r"  (\w+) from '\w+', missing in (\d+)\.\d%", line) for line in lines]
    assert ["rooms", "zone", "sold"] == [share[1] for share in shares if share]
    assert all(14 <= int(share[2]) <= 26 for share in shares if share)
    assert [1, 1] == [sum(f"linear, rows {which} gaps" in line for line in lines) for which in ("with", "without")]


def test_the_record_and_the_manifest_have_missing_shares_and_scores_by_gaps(gappy):
    client = mlflow.MlflowClient(f"sqlite:///{gappy / '.gleaner' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gappy")
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    gaps = Store(gappy / ".gleaner" / "store").read(1).manifest.gaps

    assert {"rooms", "zone", "sold"} == set(gaps.missing)
    assert gaps.missing["zone"] == pytest.approx(float(runs["train gappy.csv"].params["missing.zone"]), rel=1e-5)
    assert runs["train gappy.csv"].params["rows_without_target"] != "0"
    for run in (runs["train gappy.csv"], runs["linear"]):
        assert gaps.with_gaps["mae"] == run.metrics["validation_mae_with_gaps"]
        assert gaps.without_gaps["mae"] == run.metrics["validation_mae_without_gaps"]
    assert gaps.without_gaps["mae"] < gaps.with_gaps["mae"]


ROW = {"rooms": 3, "zone": "north", "sold": "2024-05-06", "size": 80.0}


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_takes_gaps_has_golden_rows_with_gaps_and_format_2(gappy, version):
    described = json.loads((Store(gappy / ".gleaner" / "store").folder(version) / "manifest.json").read_bytes())
    rows = described["golden"]["rows"]

    assert 2 == described["format"]
    assert {0, 6, 7, 8} == {i for row in rows for i, number in enumerate(row) if number is None}


def test_the_words_of_the_training_data_are_the_columns_of_the_model(gappy):
    schema = Store(gappy / ".gleaner" / "store").read(1).manifest.schema

    assert ("zone=north", "zone=south", "zone=west", "zone=(other)", "zone=(missing)") == schema.columns[1:6]


def test_null_an_absent_key_and_an_unknown_word_are_predicted(gappy):
    with serving(gappy) as service:

        def predict(slot: str, **changes: object) -> float:
            row = {name: value for name, value in (ROW | changes).items() if value != "absent"}
            done = httpx.post(f"{service.url}/{slot}/predict", json=row)
            assert 200 == done.status_code, done.text
            [prediction] = done.json()["prediction"]
            return prediction

        for slot in ("v1", "v2"):
            known = predict(slot)
            assert known > predict(slot, zone="south") + 20
            assert predict(slot, rooms=None) == predict(slot, rooms="absent")
            assert predict(slot, sold=None) == predict(slot, sold="absent")
            assert predict(slot, zone="of no row") > 0
            assert predict(slot, rooms=None, zone=None, sold=None) > 0
        assert 422 == httpx.post(f"{service.url}/v1/predict", json=ROW | {"size": None}).status_code
