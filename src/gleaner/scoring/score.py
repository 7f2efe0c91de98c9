"""Scoring of a table of any size, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gleaner.errors import BadArtifact
from gleaner.model.loading import Loaded
from gleaner.scoring.csv import FaultsFile
from gleaner.scoring.output import Output, Writer
from gleaner.scoring.source import Source
from gleaner.table.numbers import Array
from gleaner.table.tables import Chunk, Tally


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a scoring.

    rows: the number of predicted rows.
    refused: the number of refused rows.
    tally: the number of faults by column and kind.
    done: the share of the table that has been read, from 0 to 1.
    """

    rows: int
    refused: int
    tally: Tally
    done: float


def score(source: Source, loaded: Loaded, writer: Writer, output: Output, faults: FaultsFile) -> Iterator[Progress]:
    """Predict every accepted row.

    Yields the progress after each chunk and at the end.
    The outputs get their names at the very end.
    Raises BadTable, BadArtifact, Unwritable, Refused.
    """
    rows = refused = 0
    tally = Counter[tuple[str, str]]()
    for chunk in source.chunks(loaded.manifest.schema):
        writer.write(chunk, _predict(loaded, chunk, source.place) if len(chunk.X) else np.empty(0))
        faults.write(chunk.refused)
        rows, refused = rows + len(chunk.X), refused + len(chunk.refused)
        for row in chunk.refused:
            tally.update(row.kinds)
        yield Progress(rows, refused, tally, source.done)
    writer.close()
    output.finish()
    faults.finish()
    faults.move()
    output.move()
    yield Progress(rows, refused, tally, 1.0)


def _predict(loaded: Loaded, chunk: Chunk, place: str) -> Array:
    try:
        return loaded.predictor.predict(chunk.X)
    except ArithmeticError as e:
        where = f"{place} {chunk.lines[0]} to {chunk.lines[-1]}"
        raise BadArtifact(f"version {loaded.version}", "selftest", f"{e}, for a row from {where}") from e
