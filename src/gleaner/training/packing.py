"""The packing of a fitted candidate as an artifact."""

from __future__ import annotations

import datetime as dt
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gleaner import __version__
from gleaner.errors import BadArtifact, BadTraining
from gleaner.model.artifact import Artifact, write_artifact
from gleaner.model.histogram import histogram
from gleaner.model.manifest import Data, Gaps, Golden, Manifest, format_of, parameters_of
from gleaner.model.scores import Scores
from gleaner.model.selftest import check_golden
from gleaner.model.signing import SigningKey
from gleaner.settings.sections import Settings
from gleaner.table.numbers import Array
from gleaner.table.schema import Schema
from gleaner.table.tables import Table
from gleaner.training.events import Fitted
from gleaner.training.export import export

GOLDEN_ROWS = 32
_LIBRARIES = ("numpy", "scikit-learn", "onnx", "onnxruntime")


def pack(
    fitted: Fitted,
    table: Table,
    constant: Scores,
    settings: Settings,
    folder: Path,
    *,
    run_id: str = "",
    key: SigningKey | None = None,
) -> Artifact:
    """Write the artifact of a fitted candidate into a new folder.

    constant: the scores of always predicting the median.
    key: signs the manifest.
    Raises BadTraining if the exported model's predictions differ from the estimator's by more than 1e-9, relative.
    """
    schema = table.schema
    estimator: Any = fitted.estimator
    rows = _golden_rows(table.X, schema)
    answers = np.asarray(estimator.predict(rows), dtype=np.float64)
    if settings.model.min is not None:
        answers = np.maximum(answers, settings.model.min)
    values = {**{name: table.X[:, j] for j, name in enumerate(schema.columns)}, schema.target.name: table.y}
    manifest = Manifest(
        format=format_of(schema),
        model=settings.model.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        candidate=fitted.candidate,
        parameters=parameters_of(fitted.parameters),
        features=schema.features,
        target=schema.target,
        scores=fitted.scores.named(),
        constant=constant.named(),
        training_loss=fitted.training_loss,
        epochs=fitted.epochs,
        seconds=fitted.seconds,
        data=Data(table.path.name, table.sha256, len(table.y), table.refused),
        seed=settings.training.seed,
        run_id=run_id,
        libraries={"gleaner": __version__, **{name: version(name) for name in _LIBRARIES}},
        histograms={name: histogram(column[~np.isnan(column)]) for name, column in values.items()},
        golden=Golden(_with_gaps(rows), tuple(answers.tolist())),
        files={},
        gaps=(fitted.gaps or Gaps(table.missing, {}, {})) if format_of(schema) > 1 else None,
    )
    model = export(estimator, len(schema.columns), floor=settings.model.min, gaps=schema.gaps).SerializeToString()
    artifact = write_artifact(folder, model, manifest, key.sign if key else None)
    try:
        check_golden(artifact)
    except (BadArtifact, ArithmeticError) as e:
        raise BadTraining(f"the exported {fitted.candidate} predicts otherwise than the fitted one: {e}") from e
    return artifact


def _golden_rows(X: Array, schema: Schema) -> Array:
    """Return rows from all over the table, with every column's extremes.

    For each feature that allows gaps there is also a row without it, and there is one without any of them.
    """
    order = np.lexsort(X.T[::-1])
    spread = order[np.unique(np.linspace(0, len(X) - 1, GOLDEN_ROWS).astype(int))]
    least, most = np.where(np.isnan(X), np.inf, X), np.where(np.isnan(X), -np.inf, X)
    rows: Array = X[np.unique(np.r_[spread, least.argmin(axis=0), most.argmax(axis=0)])]
    features = np.repeat(np.arange(len(schema.features)), [len(feature.columns) for feature in schema.features])
    gaps = np.array(schema.gaps)
    empty = [gaps & (features == feature) for feature in np.unique(features[gaps])]
    without = [np.where(mask, np.nan, rows[i % len(rows)]) for i, mask in enumerate([*empty, gaps] if empty else [])]
    return np.vstack([rows, *without])


def _with_gaps(rows: Array) -> tuple[tuple[float | None, ...], ...]:
    """Return rows with None in the place of NaN."""
    return tuple(tuple(None if number != number else number for number in row) for row in rows.tolist())
