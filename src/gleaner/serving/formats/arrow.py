"""Arrow streams as bodies and as responses."""

from __future__ import annotations

import numpy as np

from gleaner.serving.formats.predictions import Predictions
from gleaner.table.arrow.reader import Stream
from gleaner.table.arrow.writer import Values, write_stream
from gleaner.table.rows import Rows, read_columns
from gleaner.table.schema import Schema


def read_arrow(body: bytes, schema: Schema, max_rows: int, named: int) -> Rows:
    """Read the rows of an Arrow stream. Raises BadTable, BadRows, TooLarge."""
    stream = Stream(body, text=[feature.name for feature in schema.features if not feature.is_number])
    read_columns(schema, stream.declared, 0)  # refuses a table of other columns before any row is read
    return read_columns(schema, *stream.read(max_rows=max_rows), named=named)


def write_arrow(predictions: Predictions) -> bytes:
    """Write a stream with `prediction` and the columns that were asked for."""
    return write_stream({"prediction": predictions.spread(), **more_columns(predictions)}, predictions.rows.count)


def more_columns(predictions: Predictions) -> dict[str, Values]:
    """Return the columns beside the prediction."""
    more: dict[str, Values] = {}
    if predictions.detail:
        more["prediction_id"] = predictions.ids
        more["version"] = np.full(predictions.rows.count, predictions.version)
    if predictions.partial:
        more["problem"] = predictions.reasons()
    return more
