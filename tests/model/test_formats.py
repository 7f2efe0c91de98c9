"""Formats of manifests: the first is served for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from projects import SETTINGS
from started import serving

from gleaner.model.predictor import Predictor
from gleaner.model.selftest import selftest
from gleaner.model.store import Store

FIRST = Path(__file__).parents[1] / "data" / "store-format-1"


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_of_format_1_passes_its_self_test_and_predicts_to_the_bit_as_before(version):
    kept, artifact = json.loads((FIRST / "expected.json").read_text()), Store(FIRST).read(version)

    selftest(artifact.folder)

    assert 1 == artifact.manifest.format
    predictions = Predictor(artifact).predict(np.array(kept["rows"])).tolist()
    if version == 1:
        assert kept["predictions"]["1"] == predictions
    else:
        np.testing.assert_allclose(predictions, kept["predictions"]["2"], rtol=1e-9)


def test_a_store_of_format_1_is_served_as_before(tmp_path):
    kept = json.loads((FIRST / "expected.json").read_text())
    shutil.copytree(FIRST, tmp_path / ".gleaner" / "store")
    (tmp_path / "gleaner.toml").write_text(SETTINGS)
    rows = [dict(zip(("time_spent", "doors_in_route", "assessed_value"), row, strict=True)) for row in kept["rows"]]

    with serving(tmp_path) as service:
        for slot, version in (("v1", "1"), ("v2", "2")):
            done = httpx.post(f"{service.url}/{slot}/predict", json=rows)
            assert 200 == done.status_code, done.text
            np.testing.assert_allclose(done.json()["prediction"], kept["predictions"][version], rtol=1e-9)
        refused = httpx.post(f"{service.url}/v1/predict", json=rows[0] | {"time_spent": None})
        assert 422 == refused.status_code
