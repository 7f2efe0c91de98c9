"""Predictors: one row, batches and threads agree; and self-tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import made
import numpy as np
import pytest

from gleaner.errors import BadArtifact
from gleaner.model import predictor
from gleaner.model.artifact import read_artifact
from gleaner.model.predictor import ENGINE, Predictor
from gleaner.model.selftest import check_golden, selftest


@pytest.fixture(scope="module", params=made.CANDIDATES)
def candidate(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def bits(numbers: object) -> bytes:
    return np.asarray(numbers, dtype=np.float64).tobytes()


@pytest.mark.parametrize("name", ["model.predictor", "model.selftest", "programs.service", "programs.pipeline"])
def test_the_engine_keeps_no_telemetry_in_the_home_folder_whatever_is_imported_first(tmp_path, name):
    # Of the environment only these: with a variable such as CI, onnxruntime keeps quiet by itself.
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    code = f"import gleaner.{name}, onnxruntime; onnxruntime.SessionOptions()"

    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, timeout=300, check=True)

    assert [] == [str(path) for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "matplotlib"]


# Predictions


def test_the_number_of_the_guide_has_every_digit():
    tree = Predictor(made.artifact("decision_tree"))

    assert 22.068840579710145 == made.NUMBER == tree.predict_row(made.ROW)
    assert [made.NUMBER] == tree.predict(np.array([made.ROW])).tolist()


def test_a_row_alone_gets_the_same_prediction_as_in_a_batch(candidate):
    asked, rows = Predictor(made.artifact(candidate)), made.questions(300)

    alone, together = [asked.predict_row(row) for row in rows.tolist()], asked.predict(rows)

    assert bits(alone) == bits(together)


def test_a_rows_prediction_does_not_depend_on_the_other_rows(candidate):
    asked, rows = Predictor(made.artifact(candidate)), made.questions(300, seed=1)
    together = asked.predict(rows)

    for n in range(1, 40):
        for start in (0, 1, 2, 3, 101, 260):
            part = rows[start : start + n]
            assert bits(asked.predict(part)) == bits(together[start : start + n])
            assert bits(asked.predict(part[::-1])) == bits(together[start : start + n][::-1])


def test_many_threads_at_once_each_get_their_own_rows_prediction(candidate):
    asked, rows = Predictor(made.artifact(candidate)), made.questions(400)
    alone = {tuple(row): asked.predict_row(row) for row in rows.tolist()}
    together = asked.predict(rows)
    start = Barrier(8)

    def ask(seed: int) -> bool:
        start.wait()
        order = np.random.default_rng(seed).permutation(rows).tolist()
        return all(alone[tuple(row)] == asked.predict_row(row) for row in order) and bits(together) == bits(
            asked.predict(rows)
        )

    with ThreadPoolExecutor(8) as threads:
        assert [True] * 8 == list(threads.map(ask, range(8)))


def test_the_most_rows_of_a_request_and_no_rows_are_predicted(candidate):
    asked = Predictor(made.artifact(candidate))

    many = asked.predict(made.questions(10_000))

    assert (10_000,) == many.shape
    assert np.isfinite(many).all()
    assert (0,) == asked.predict(np.empty((0, 3))).shape


@pytest.mark.parametrize("number", [0.0, -0.0, 5e-324, 2.0**53 + 1, 3.4028234663852886e38, -3.4028234663852886e38])
def test_the_edges_of_what_a_column_accepts_get_a_number(number):
    asked = Predictor(made.artifact("random_forest"))

    assert np.isfinite(asked.predict_row((number, number, number)))


def test_a_prediction_that_is_not_finite_is_an_error(tmp_path):
    asked = Predictor(read_artifact(made.exploding_artifact(tmp_path / "new")))
    assert np.exp(2.0) == pytest.approx(asked.predict_row((2.0, 0.0, 0.0)))

    with pytest.raises(ArithmeticError, match="not finite"):
        asked.predict_row((1440.0, 0.0, 0.0))
    with pytest.raises(ArithmeticError, match="not finite"):
        asked.predict(np.array([(2.0, 0.0, 0.0), (1440.0, 0.0, 0.0)]))

    assert np.exp(2.0) == pytest.approx(asked.predict_row((2.0, 0.0, 0.0)))


def test_a_predictor_outlives_the_files_it_was_made_of(tmp_path):
    folder = made.copy(made.artifact("decision_tree"), tmp_path / "new")
    asked = Predictor(read_artifact(folder))
    shutil.rmtree(folder)

    assert made.NUMBER == asked.predict_row(made.ROW)


# The engine for one row


def test_a_tree_is_walked_in_python_and_everything_else_is_left_to_the_engine(candidate):
    expected = "python" if candidate == "decision_tree" else ENGINE

    assert expected == Predictor(made.artifact(candidate)).row_engine


@pytest.mark.parametrize("wrong", [7.0, (0, 30.0, 1.0, 2.0), (0, 30.0, float("nan"), 2.0)])
def test_a_tree_that_does_not_predict_as_the_engine_is_not_walked(monkeypatch, wrong):
    monkeypatch.setattr(predictor, "read_tree", lambda _: wrong)

    asked = Predictor(made.artifact("decision_tree"))

    assert ENGINE == asked.row_engine
    assert made.NUMBER == asked.predict_row(made.ROW)


def test_a_tree_with_its_rounding_and_its_floor_as_operators_is_served_as_before(tmp_path):
    before = made.rewrite(made.copy(made.artifact("decision_tree"), tmp_path / "before"), made.tree_with_casts())
    rows = np.concatenate([made.questions(300), made.beside_thresholds()])

    selftest(before)
    then, now = Predictor(read_artifact(before)), Predictor(made.artifact("decision_tree"))

    assert (ENGINE, "python") == (then.row_engine, now.row_engine)
    assert bits(then.predict(rows)) == bits(now.predict(rows)) == bits([now.predict_row(row) for row in rows.tolist()])
    assert bits([then.predict_row(row) for row in rows.tolist()]) == bits(now.predict(rows))


# Models that are refused


def refusal(folder: Path) -> BadArtifact:
    with pytest.raises(BadArtifact) as caught:
        Predictor(read_artifact(folder))
    return caught.value


def test_a_model_that_the_engine_cannot_load_is_refused(tmp_path):
    folder = made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), b"no model at all")

    assert "load" == refusal(folder).reason


def test_a_model_of_another_width_than_its_schemas_is_refused(tmp_path):
    folder = made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), made.of_two_columns())

    assert "wanted 3 double columns as input and one as output" in refusal(folder).detail


# The self-test


def failure(folder: Path) -> str:
    with pytest.raises(BadArtifact) as caught:
        selftest(folder)
    assert "selftest" == caught.value.reason
    return caught.value.detail


def test_a_good_artifact_passes_its_self_test():
    selftest(made.artifact("random_forest").folder)


def test_a_golden_row_with_a_wrong_prediction_is_named(tmp_path):
    answers = list(made.artifact("linear").manifest.golden.answers)
    answers[3] += 1e-6
    golden = {"rows": made.artifact("linear").manifest.golden.rows, "answers": answers}
    folder = made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), golden=golden)

    detail = failure(folder)

    assert detail.startswith("golden row 3: wanted the prediction ")
    with pytest.raises(BadArtifact, match="golden row 3"):
        check_golden(read_artifact(folder))


def test_a_model_that_crashes_its_process_is_refused(tmp_path):
    folder = made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), made.killing())

    assert "its self-test was ended by signal 11" == failure(folder)


def test_a_self_test_that_does_not_end_in_time_is_refused(monkeypatch):
    # Python and the engine alone need longer to start.
    monkeypatch.setattr("gleaner.model.selftest.SELFTEST_SECONDS", 0.05)

    assert "its self-test took longer than 0 s" == failure(made.artifact("linear").folder)


def test_a_model_whose_prediction_is_not_finite_fails_its_self_test(tmp_path):
    golden = {"rows": [[1440.0, 0.0, 0.0]], "answers": [1.0]}
    folder = made.rewrite(made.copy(made.artifact("linear"), tmp_path / "new"), made.exploding(), golden=golden)

    assert "the model's prediction is not finite" == failure(folder)
