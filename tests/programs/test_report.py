"""Reports of a training about the bounds of its alerts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made import table

from gleaner.model.scores import Scores
from gleaner.programs.report import TrainingReport, check_bounds
from gleaner.settings.sections import Alerts
from gleaner.training.events import Fitted, TableRead


def bounds(*, median: float, champion: float, loss: float = 0.1) -> list[str]:
    constant, scores = Scores(0.4, median, 0.0, 10.0), Scores(0.2, champion, 0.6, 5.0)
    fitted = Fitted("linear", None, {}, scores, np.empty(0), loss, 1, 0.1)
    return [text.partition(":")[0] for text in check_bounds(Alerts(), constant, fitted)]


def test_bounds_between_the_median_and_the_champion_need_no_word():
    assert [] == bounds(median=0.75, champion=0.88)


@pytest.mark.parametrize("median", [0.8, 1.0])
def test_an_alert_that_cannot_fire_is_reported(median):
    assert ["LowValidationAccuracy cannot fire"] == bounds(median=median, champion=1.0)


def test_an_alert_that_fires_for_every_model_like_this_is_reported():
    assert ["LowValidationAccuracy will fire"] == bounds(median=0.3, champion=0.79)
    assert ["HighTrainingLoss will fire"] == bounds(median=0.3, champion=0.9, loss=0.51)


@pytest.mark.parametrize("later", [None, Scores(0.5, 0.6, 0.2, 7.25)])
def test_the_forward_score_stands_beside_the_shuffled_one(capsys, later):
    report = TrainingReport(Alerts(), quiet=False)
    scores = Scores(0.2, 0.85, 0.6, 5.0)
    report.show(TableRead(table(), Scores(0.4, 0.75, 0.0, 10.0), 1, later and Scores(0.6, 0.5, 0.0, 12.5)))
    report.show(Fitted("linear", None, {}, scores, np.empty(0), 0.1, 1, 0.1, forward=later))
    report.done({"champion": {"version": 1, "candidate": "linear", "mae": 5.0}}, 1.0)
    head, median, linear, *rest = capsys.readouterr().out.splitlines()
    assert ("forward mae" in head) == bool(later)
    assert ("12.500" in median) == ("7.250" in linear) == bool(later)
    assert ("forward mae: each later part of the table, predicted from the rows before it" in rest) == bool(later)


def test_at_most_ten_columns_are_shown(capsys):
    many = {f"c{i}": f"C {i}" for i in range(500)}
    TrainingReport(Alerts(), quiet=False).read(replace(table(), taken=many))

    _, *shown = capsys.readouterr().out.splitlines()
    assert [*(f"  c{i} from 'C {i}'" for i in range(10)), "  ... and 490 more columns"] == shown
