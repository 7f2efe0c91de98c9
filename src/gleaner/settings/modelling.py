"""The sections of the model, its table, its training and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from gleaner.settings import checks
from gleaner.settings.section import SecretPath, Section

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Candidate = Literal["linear", "decision_tree", "random_forest", "gradient_boosting", "spline"]
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)

Duration = Annotated[str, AfterValidator(checks.check_duration)]
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Model(Section):
    """The model's name in the registry, and the column that it predicts."""

    name: str = Field(pattern=NAME_PATTERN, description="The model's name in the registry.")
    target: str = Field(description="The column to predict.")
    target_sources: tuple[str, ...] = Field((), description="Headers of the target in files; the first one found wins.")
    target_missing_values: tuple[str, ...] = Field(
        (), description="Entries for a missing target, beside an empty cell; training leaves such rows out."
    )
    unit: str = Field("", description="The target's unit.")
    min: float | None = Field(None, description="The least value that a target can have; predictions stop there.")
    date_sources: tuple[str, ...] = Field(
        (), description="Headers of a row's date in files, if no feature has it; the first one found wins."
    )
    date_formats: Annotated[tuple[str, ...], AfterValidator(checks.check_formats)] = Field(
        (), description="Formats of these dates, such as `%d.%m.%Y`; an ISO date needs none."
    )


class TableFiles(Section):
    """The notation and encoding of files; a feature's own keys come first."""

    encoding: Annotated[str, AfterValidator(checks.check_encoding)] = Field(
        "", description="The encoding of CSV files beside UTF-8, and UTF-16 with a mark: `cp1250`."
    )
    decimal: str = Field(".", description="The sign before the decimals of a number: `.` or `,`.")
    thousands: str = Field("", description="The sign between groups of three digits; empty for none.")
    strip: str = Field("", description="Signs beside a number that mean nothing, with blanks between them: `€ $ %`.")
    brackets: bool = Field(False, description="Whether a number in brackets is negative: `(12)` is -12.")


class Training(Section):
    """The candidates of a training, and the choice between them."""

    candidates: tuple[Candidate, ...] = Field(CANDIDATES, min_length=1, description="The model families to try.")
    champion: Literal["best", Candidate] = Field("best", description="For `v1`: `best`, or a candidate.")
    challenger: Literal["second", "none", Candidate] = Field(
        "second", description="The candidate for `v2`: `second`, a candidate's name, or `none`."
    )
    folds: int = Field(5, ge=2, le=50, description="The folds of the cross-validation.")
    repeats: int = Field(3, ge=1, le=50, description="The repeats of the cross-validation, each with another shuffle.")
    group: str = Field("", description="The column whose equal entries stay in one fold; empty for none.")
    seed: int = Field(0, ge=0, lt=2**32, description="The seed of every random number.")
    data: Path | None = Field(None, description="The CSV file for a training when the command line names none.")
    signing_key: SecretPath = Field(
        "",
        description="The file of the private key that signs versions; only training and `models sign` read it.",
    )
    max_rows: int = Field(1_000_000, ge=1, description="The most rows in a file; all of them are in memory.")
    suspect_gap_days: int = Field(90, ge=1, description="Training reports a row this many days from all others.")
    suspect_deviation: float = Field(
        5.0, gt=0, description="Training reports a row whose residual is this many robust standard deviations off."
    )
    every: Duration = Field(
        "", description="The wait of `gleaner train --resident` between trainings, such as `24h`; empty for none."
    )

    @property
    def every_seconds(self) -> float | None:
        return float(self.every[:-1]) * _SECONDS[self.every[-1]] if self.every else None


class WithinFactor(Section):
    """Accuracy by factor: max((1+y)/(1+p), (1+p)/(1+y)) <= within_factor."""

    within_factor: float = Field(gt=1)


class Within(Section):
    """Accuracy by distance: abs(y - p) <= within, in the target's unit."""

    within: float = Field(gt=0)


class Scores(Section):
    """The loss and the accuracy of a model; docs/metrics.md has the formulas."""

    loss: Literal["squared_log_error", "standardised_squared_error"] = Field(
        "squared_log_error", description="The training loss; the second takes negative targets, too."
    )
    accuracy: WithinFactor | Within = Field(
        WithinFactor(within_factor=2.0),
        description="The error up to which a prediction is accurate, or `{ within = 10.0 }` in the target's unit.",
    )
