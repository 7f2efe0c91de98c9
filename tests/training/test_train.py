"""Training: events, choices, epochs and suspects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from projects import REAL_ROUTES, needs_real_routes
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from gleaner.errors import BadTraining
from gleaner.model.scores import Scores
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.tables import Table
from gleaner.training.candidates import FAMILIES, Forest, Task
from gleaner.training.events import Chosen, Epoch, Fitted, Step, Suspect, TableRead, Tuned, Validated
from gleaner.training.suspects import suspects
from gleaner.training.train import train

ROOT = Path(__file__).resolve().parents[2]
TASK = Task(monotone=(1, 1, 0), log=True, counts=True, seed=0)


def settings(**training: object) -> Settings:
    flags = {"training": {"candidates": ["linear", "decision_tree"], "repeats": 1, **training}}
    return load_settings(ROOT / "gleaner.toml", flags)


def table(rows: int = 200, *, seed: int = 0, y: np.ndarray | None = None, days: np.ndarray | None = None) -> Table:
    random = np.random.default_rng(seed)
    X = np.column_stack(
        [random.integers(5, 120, rows), random.integers(10, 600, rows), random.choice([2e5, 4e5, 9e5], rows)]
    ).astype(float)
    noise = random.lognormal(0, 0.3, rows)
    return Table(
        path=Path("made.csv"),
        schema=settings().schema_,
        X=X,
        y=np.round((8 + 0.2 * X[:, 0] + 0.05 * X[:, 1]) * noise) if y is None else y,
        lines=np.arange(rows) + 2,
        days=np.full(rows, np.nan) if days is None else days,
        taken={},
        faults=(),
        refused=0,
        tally={},
        sha256="",
        encoding="utf-8",
    )


def run(of: Table, **training: object) -> list[object]:
    return list(train(of, settings(**training)))


def of(kind: type, events: list[object]) -> list:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def all_five() -> list[object]:
    return run(table(), candidates=list(FAMILIES))


def test_it_begins_with_the_table_and_ends_with_the_choice(all_five):
    assert isinstance(all_five[0], TableRead)
    assert isinstance(all_five[-1], Chosen)


def test_every_announced_step_is_made(all_five):
    assert all_five[0].steps == len(of(Step, all_five))


def test_every_candidate_is_fitted_and_validated(all_five):
    assert list(FAMILIES) == [event.candidate for event in of(Fitted, all_five)]
    assert list(FAMILIES) == [event.candidate for event in of(Validated, all_five)]


def test_the_champion_has_the_least_error_and_the_challenger_the_next(all_five):
    ranked = sorted(of(Fitted, all_five), key=lambda fitted: fitted.scores.mae)

    assert ranked[0] is all_five[-1].champion
    assert ranked[1] is all_five[-1].challenger


def test_every_candidate_beats_the_median_on_a_table_with_something_to_learn(all_five):
    constant = all_five[0].constant.mae

    assert [] == [fitted.candidate for fitted in of(Fitted, all_five) if fitted.scores.mae >= constant]


def test_the_median_of_a_fold_is_that_of_the_other_folds():
    made, at = table(60), settings(repeats=2)
    by_repeat = []
    for repeat in range(2):
        errors = []
        for others, fold in KFold(5, shuffle=True, random_state=repeat).split(made.X):
            errors += np.abs(made.y[fold] - np.median(made.y[others])).tolist()
        by_repeat.append(np.mean(errors))

    constant = next(iter(train(made, at))).constant

    assert pytest.approx(np.mean(by_repeat), rel=1e-12) == constant.mae
    assert constant.mae > 1.001 * np.abs(made.y - np.median(made.y)).mean()  # the error of the median of all rows


def test_no_candidate_beats_the_median_by_much_on_noise():
    noise = np.random.default_rng(1).permutation(table(400).y)
    events = run(table(400, y=noise))

    assert all(fitted.scores.r2 < 0.05 for fitted in of(Fitted, events))


def test_a_boosting_round_a_batch_of_trees_and_a_fit_are_epochs(all_five):
    epochs = {name: [e.epoch for e in of(Epoch, all_five) if e.candidate == name] for name in FAMILIES}
    forest = next(fitted for fitted in of(Fitted, all_five) if fitted.candidate == "random_forest")

    assert [1] == epochs["linear"] == epochs["decision_tree"] == epochs["spline"]
    assert len(epochs["random_forest"]) == -(-forest.parameters["n_estimators"] // 20)
    assert list(range(1, 101)) == epochs["gradient_boosting"]


def test_the_last_epochs_loss_is_the_models(all_five):
    last = {event.candidate: event.loss for event in of(Epoch, all_five)}

    assert last == pytest.approx({fitted.candidate: fitted.training_loss for fitted in of(Fitted, all_five)})


def test_boosting_keeps_to_the_declared_direction(all_five):
    boosting = next(fitted for fitted in of(Fitted, all_five) if fitted.candidate == "gradient_boosting").estimator
    up = np.column_stack([np.linspace(0, 200, 400), np.full(400, 100.0), np.full(400, 4e5)])
    with threadpool_limits(1):
        predictions = boosting.predict(up)

    assert (np.diff(predictions) >= 0).all()
    assert predictions[-1] > predictions[0]


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("decision_tree", DecisionTreeRegressor(random_state=0)),
        ("random_forest", RandomForestRegressor(random_state=0)),
    ],
)
def test_the_grid_chooses_what_scikit_learns_search_chooses(name, estimator):
    made = table(120, seed=3)
    grid = {parameter: list(values) for parameter, values in FAMILIES[name].grid(TASK).items()}
    search = GridSearchCV(estimator, grid, cv=3, scoring="r2").fit(made.X, made.y)

    tuned = of(Tuned, run(made, candidates=[name], challenger="none"))

    assert [search.best_params_] == [dict(event.parameters) for event in tuned]


def test_the_first_trees_of_a_large_forest_are_the_small_forest():
    made = table(100)
    trials = {tuple(p.values()): predictions for p, predictions in Forest().trials(TASK, made.X, made.y, made.X)}
    small = RandomForestRegressor(50, max_depth=10, random_state=0).fit(made.X, made.y)

    np.testing.assert_allclose(trials[10, 50], small.predict(made.X), rtol=1e-13)


def test_a_forest_grown_in_batches_is_the_forest_grown_at_once():
    made, parameters = table(100), {"n_estimators": 50, "max_depth": 5}
    batches = Forest().make(TASK, parameters, made.X)
    losses = list(Forest().fit(batches, made.X, made.y, made.X))
    at_once = RandomForestRegressor(50, max_depth=5, random_state=0).fit(made.X, made.y)

    np.testing.assert_array_equal(at_once.predict(made.X), batches.predict(made.X))
    np.testing.assert_allclose(losses[-1], at_once.predict(made.X), rtol=1e-13)


def test_candidates_can_be_named():
    chosen = run(table(), champion="linear", challenger="decision_tree")[-1]

    assert ("linear", "decision_tree") == (chosen.champion.candidate, chosen.challenger.candidate)


def test_the_champion_is_another_than_the_named_challenger():
    made = table()
    best = run(made)[-1].champion.candidate

    chosen = run(made, challenger=best)[-1]

    assert best == chosen.challenger.candidate != chosen.champion.candidate


def test_there_may_be_no_challenger():
    assert run(table(), challenger="none")[-1].challenger is None
    assert run(table(), candidates=["linear"])[-1].challenger is None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"champion": "spline"}, "spline cannot serve, since it is no candidate"),
        ({"champion": "linear", "challenger": "linear"}, "both"),
        ({"folds": 50}, "50 folds need at least 100"),
    ],
)
def test_a_training_that_cannot_work_is_refused_before_it_begins(training, said):
    with pytest.raises(BadTraining, match=said):
        run(table(60), **training)


def test_a_target_of_zeros_is_learnt():
    events = run(table(60, y=np.zeros(60)), candidates=list(FAMILIES))

    assert [0.0] * 5 == [fitted.scores.mae for fitted in of(Fitted, events)]


def test_two_trainings_with_one_seed_are_the_same():
    once, again = (run(table())[-1].champion for _ in range(2))

    assert once.scores == again.scores
    np.testing.assert_array_equal(once.estimator.predict(table().X), again.estimator.predict(table().X))


def test_a_typo_in_the_target_is_a_suspect_with_its_line():
    made = table()
    y = made.y.copy()
    y[17] = 5000

    suspects = of(Suspect, run(table(y=y)))

    assert 19 == suspects[0].line
    assert "5000 bags" in suspects[0].reason


def test_a_row_a_year_from_the_others_is_a_suspect():
    days = np.arange(200.0) % 7 + 738_000
    days[30] += 365

    assert [32] == [suspect.line for suspect in of(Suspect, run(table(days=days)))]


def test_rows_without_dates_are_not_suspects():
    assert [] == of(Suspect, run(table()))


def test_where_most_residuals_are_equal_only_far_rows_are_suspects_and_the_worst_comes_first():
    y = np.zeros(200)
    y[:66] = np.arange(66) % 7 + 1
    y[[3, 5]] = 900, 4000

    found = list(suspects(table(y=y), fitted(np.zeros(200)), settings()))

    assert [7, 5] == [suspect.line for suspect in found]


def test_a_row_whose_value_reads_like_its_expectation_is_no_suspect():
    y = np.full(200, 7.0)
    expected = y.copy()
    expected[:4] += 0.4

    assert [] == list(suspects(table(y=y), fitted(expected), settings()))


def fitted(out_of_fold: np.ndarray) -> Fitted:
    return Fitted("linear", None, {}, Scores(0.1, 1.0, 0.9, 1.0), out_of_fold, 0.1, 1, 0.1)


@needs_real_routes
def test_the_real_routes_give_the_number():
    real = settings(champion="decision_tree", challenger="linear")
    routes = read_table(REAL_ROUTES, real.schema_)

    events = list(train(routes, real))

    predictions = events[-1].champion.estimator.predict([[30, 50, 200000], [1.5, 10, 100000]])
    assert [22.068840579710145, 22.068840579710145] == predictions.tolist()
    assert {408, 451} <= {suspect.line for suspect in of(Suspect, events)}
