"""The events of a training, in order.

TableRead, then for each candidate Started, Tuned, Validated, Epoch and Fitted with Steps between them, then Suspects
and Chosen. Finished comes last, once the models are registered, or Failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gleaner.model.manifest import Gaps
from gleaner.model.scores import Scores
from gleaner.table.numbers import Array
from gleaner.table.tables import Table


@dataclass(frozen=True, slots=True)
class TableRead:
    """The table is read.

    constant: the scores of always predicting the median.
    steps: the number of Step events to come, for a progress bar.
    forward: the scores of predicting the median of earlier rows; None for a table with too few days.
    """

    table: Table
    constant: Scores
    steps: int
    forward: Scores | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A candidate's first event."""

    candidate: str


@dataclass(frozen=True, slots=True)
class Step:
    """One fit is done.

    what: `grid`, `fold`, `forward` or `model`, the final fit.
    """

    candidate: str
    what: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best parameters of the grid, which the folds then use."""

    candidate: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Validated:
    """Out-of-fold scores, averaged over the repeats so far. repeat: counts from 1."""

    candidate: str
    repeat: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class Epoch:
    """A fit, a batch of trees, or a boosting round.

    epoch: counts from 1.
    loss: on the training rows.
    """

    candidate: str
    epoch: int
    loss: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate fitted on all rows.

    out_of_fold: the predictions of the first repeat, shape (n,).
    forward: the scores of later rows, predicted from earlier ones; None for a table with too few days.
    importances: by matrix column, or empty.
    gaps: the gaps of the table, and the scores of rows with and without them; None if no feature allows gaps.
    """

    candidate: str
    estimator: object
    parameters: Mapping[str, object]
    scores: Scores
    out_of_fold: Array
    training_loss: float
    epochs: int
    seconds: float
    importances: Mapping[str, float] = field(default_factory=dict)
    gaps: Gaps | None = None
    forward: Scores | None = None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that a person should look at. Training used the row."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The candidates that are to serve. challenger: None if only one serves."""

    champion: Fitted
    challenger: Fitted | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: the versions are registered, the aliases moved.

    Only this event is kept on the disk.
    versions: by alias.
    candidate, scores, training_loss: the champion's.
    rows, refused: the numbers of used and refused rows of the file.
    seconds: the duration of the training.
    at: the end of the training, in Unix time.
    """

    versions: Mapping[str, int]
    candidate: str
    scores: Scores
    training_loss: float
    rows: int
    refused: int
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a training that failed.

    kind: the name of the error's class; empty if the process ended without an error of its own.
    reason: the error's message.
    """

    kind: str
    reason: str


Event = TableRead | Started | Step | Tuned | Validated | Epoch | Fitted | Suspect | Chosen | Finished | Failed
