"""Packing: the artifact describes its candidate and predicts as fitted."""

from __future__ import annotations

import hashlib

import made
import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from gleaner.errors import BadTraining
from gleaner.model.predictor import Predictor
from gleaner.model.selftest import check_golden, selftest
from gleaner.training.packing import GOLDEN_ROWS, pack


@pytest.mark.parametrize("candidate", made.CANDIDATES)
def test_a_packed_candidate_predicts_as_fitted(candidate):
    packed, rows = made.artifact(candidate), made.questions(500)

    check_golden(packed)

    expected = np.maximum(made.fitted(candidate).estimator.predict(rows), 0.0)
    np.testing.assert_allclose(Predictor(packed).predict(rows), expected, rtol=1e-9, atol=1e-12)


def test_the_manifest_says_where_the_model_came_from():
    manifest, table = made.artifact("decision_tree").manifest, made.table()

    assert ("made", "decision_tree", "r") == (manifest.model, manifest.candidate, manifest.run_id)
    assert made.settings().features == manifest.features
    assert ("made.csv", 600, 0) == (manifest.data.name, manifest.data.rows, manifest.data.refused)
    assert hashlib.sha256(table.path.read_bytes()).hexdigest() == manifest.data.sha256
    assert made.fitted("decision_tree").scores.named() == manifest.scores
    assert {"gleaner", "numpy", "scikit-learn", "onnx", "onnxruntime"} == set(manifest.libraries)
    assert {"time_spent", "doors_in_route", "assessed_value", "bags"} == set(manifest.histograms)
    assert {600} == {sum(histogram.counts) for histogram in manifest.histograms.values()}


def test_golden_rows_are_rows_of_the_table_and_include_every_columns_extremes():
    golden, table = made.artifact("linear").manifest.golden, made.table()
    rows = np.array(golden.rows)

    assert {tuple(row) for row in table.X} >= set(golden.rows)
    np.testing.assert_array_equal(rows.min(axis=0), table.X.min(axis=0))
    np.testing.assert_array_equal(rows.max(axis=0), table.X.max(axis=0))
    assert len(golden.answers) == len(rows) <= GOLDEN_ROWS + 6


def test_no_golden_prediction_is_below_the_targets_minimum():
    rows = np.array(made.artifact("linear").manifest.golden.rows)
    falling = made.describe("decision_tree", DecisionTreeRegressor().fit(rows, -rows[:, 0]))
    assert falling.estimator.predict(rows).max() < 0

    answers = pack_here(falling).manifest.golden.answers

    assert {0.0} == set(answers)


def pack_here(fitted):
    folder = made.shared_folder() / f"packed-{id(fitted)}"
    return pack(fitted, made.table(), made.scores_of_a_constant(), made.settings(), folder)


class OneMore(DecisionTreeRegressor):
    """A tree whose `predict` differs from its nodes."""

    def predict(self, X):
        return super().predict(X) + 1


def test_an_export_that_does_not_predict_as_the_estimator_is_refused(tmp_path):
    table = made.table()
    fitted = made.describe("decision_tree", OneMore(max_depth=3).fit(table.X, table.y))

    with pytest.raises(BadTraining, match="the exported decision_tree predicts otherwise than the fitted one"):
        pack(fitted, table, made.scores_of_a_constant(), made.settings(), tmp_path / "new")


@pytest.mark.parametrize("candidate", made.CANDIDATES)
def test_a_packed_candidate_that_takes_gaps_has_a_golden_row_without_each_column(candidate, tmp_path):
    table, rows = made.gappy_table(), made.gappy_table().X[:200]
    fitted = made.fitted_on(table, candidate)

    packed = pack(fitted, table, made.scores_of_a_constant(), made.settings(), tmp_path / "new")

    selftest(packed.folder)
    golden = np.array(packed.manifest.golden.numbers)
    assert np.isnan(golden).sum(axis=0).tolist()[1] == 0
    assert (np.isnan(golden).sum(axis=0)[[0, 2]] >= 2).all()
    assert "null" in (packed.folder / "manifest.json").read_text()
    expected = np.maximum(fitted.estimator.predict(rows), 0.0)
    np.testing.assert_allclose(Predictor(packed).predict(rows), expected, rtol=1e-9, atol=1e-12)
