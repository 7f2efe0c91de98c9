"""Gaps and learned words, from the file to a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
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
