"""What a training says while it runs, in its order: Loaded, then for each candidate Started, Validated, Epochs and
Fitted, then Suspects and Chosen; and Finished, once its models are registered and served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gleaner.schema import Array
from gleaner.scores import Scores
from gleaner.tables import Table


@dataclass(frozen=True, slots=True)
class Loaded:
    """The table is read. `steps` is the number of Step events to come, for a progress bar."""

    table: Table
    constant: Scores
    steps: int


@dataclass(frozen=True, slots=True)
class Started:
    """A candidate's turn."""

    candidate: str


@dataclass(frozen=True, slots=True)
class Step:
    """One fit is done: of the grid, of a fold, or of the final model."""

    candidate: str
    what: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """The grid's best parameters, which the folds then use: their scores are a little optimistic for it."""

    candidate: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Validated:
    """Out-of-fold scores, averaged over the repeats so far; `repeat` counts from 1."""

    candidate: str
    repeat: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class Epoch:
    """A real pass over the training rows: a fit, a batch of trees, a boosting round. `epoch` counts from 1."""

    candidate: str
    epoch: int
    loss: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate fitted on all rows, with what is known of it.

    out_of_fold: (n,) predictions of the first repeat. importances: by matrix column, or empty.
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


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that a person should look at; it was used all the same."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The end of the computing: which candidates serve. `challenger` is None where there is only one."""

    champion: Fitted
    challenger: Fitted | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The very end: the versions are registered, and the aliases moved. It is small, and all that is kept.

    versions: by alias. candidate, scores, training_loss: the champion's. rows, refused: of the file.
    seconds: what it all took. at: when it was done, in Unix time.
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
    """Instead of Finished, what the user can fix: the name of the error's class, and its message."""

    kind: str
    reason: str


Event = Loaded | Started | Step | Tuned | Validated | Epoch | Fitted | Suspect | Chosen | Finished | Failed
