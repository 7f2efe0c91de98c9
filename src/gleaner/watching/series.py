"""Time series as promtool's cases write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gleaner.serving.metrics import BUCKETS
from gleaner.settings.services import ML_APP, TRAIN_METRICS
from gleaner.watching.alerts import number

APP, TRAINER = (
    {"job": service.job, "instance": f"{service.name}:{service.inside}", "service": service.name}
    for service in (ML_APP, TRAIN_METRICS)
)
OTHER_APP = {**APP, "instance": "other:8010"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a time series: constant, growing, or without values.

    seconds: the length of the part.
    value: the constant value.
    per_second: the growth, from the value that the counter has reached.
    """

    seconds: float
    value: float | None = None
    per_second: float | None = None


Pieces = Sequence[Piece]


def hold(value: float, *, for_: float) -> Piece:
    """Make a part with a constant value."""
    return Piece(for_, value=value)


def grow(per_second: float, *, for_: float) -> Piece:
    """Make a part in which a counter grows."""
    return Piece(for_, per_second=per_second)


def missing(*, for_: float) -> Piece:
    """Make a part without values."""
    return Piece(for_)


def write_pieces(pieces: Pieces, step: float) -> str:
    """Write a series for promtool: a value every `step` seconds, ends included."""
    words, total, first, ends = [], 0.0, 0, 0.0
    for i, piece in enumerate(pieces, start=1):
        ends += piece.seconds
        # The first step of the next piece.
        after = math.floor(ends / step + 1e-6) + 1 if i == len(pieces) else math.ceil(ends / step - 1e-6)
        steps = after - first
        if steps <= 0:
            continue
        first = after
        if piece.value is not None:
            words.append(f"{number(piece.value)}x{steps - 1}")
        elif piece.per_second is not None:
            words.append(f"{number(total)}+{number(piece.per_second * step)}x{steps - 1}")
            total += piece.per_second * step * steps
        else:
            words.append(f"_x{steps}")
    return " ".join(words)


def up_series(*, for_: float) -> dict[str, Pieces]:
    """Make series in which Prometheus reaches the API and the trainer."""
    return {write_series("up", labels): [hold(1, for_=for_)] for labels in (APP, TRAINER)}


def write_series(name: str, *labels: Mapping[str, str], **more: str) -> str:
    """Write a series' name and labels as PromQL does."""
    pairs = sorted({key: value for part in (*labels, more) for key, value in part.items()}.items())
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


def request_series(
    parts: Sequence[tuple[float, float]],
    per_second: float,
    *,
    status: str = "500",
    route: str = "/v1/predict",
    method: str = "POST",
    instance: str = APP["instance"],
) -> dict[str, Pieces]:
    """Make series of http_requests_total.

    parts: (share of failures, seconds).
    status: the status of the failures.
    """
    name, about = "http_requests_total", {**APP, "method": method, "route": route, "instance": instance}
    return {
        write_series(name, about, status=status): [grow(s * per_second, for_=t) for s, t in parts],
        write_series(name, about, status="200"): [grow((1 - s) * per_second, for_=t) for s, t in parts],
    }


def duration_series(
    i: int, parts: Sequence[tuple[float, float]], per_second: float, *, slot: str = "v1"
) -> dict[str, Pieces]:
    """Make series of the histogram of prediction durations.

    i: the index of a bucket's bound. Slow predictions fall into the bucket above it, the others below.
    parts: (share of slow predictions, seconds).
    """
    name, about = "model_prediction_duration_seconds", {**APP, "model_version": slot}
    all_, quick = (
        [grow(per_second * share, for_=t) for share, t in shares]
        for shares in ([(1.0, t) for _, t in parts], [(1 - s, t) for s, t in parts])
    )
    bounds = [*map(str, BUCKETS), "+Inf"]
    buckets = {write_series(f"{name}_bucket", about, le=b): quick if k <= i else all_ for k, b in enumerate(bounds)}
    return {**buckets, write_series(f"{name}_count", about): all_}
