"""Reports of a training about the bounds of its alerts."""

from __future__ import annotations

import numpy as np
import pytest

from gleaner.model.scores import Scores
from gleaner.programs.report import check_bounds
from gleaner.settings.sections import Alerts
from gleaner.training.events import Fitted


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
