"""Dates and times: read from text, and made into columns.

A moment is a number: the seconds of the clock on the wall since 1970-01-01 00:00, in the column's own time zone.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from gleaner.table.numbers import Array

DAY = 86_400.0
_EPOCH = dt.datetime(1970, 1, 1)
EPOCH_DAY = _EPOCH.toordinal()
_LEAST, _MOST = (dt.datetime(1, 1, 2) - _EPOCH).total_seconds(), (dt.datetime(9999, 12, 30) - _EPOCH).total_seconds()

_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)\s?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)

# The lengths of the parts that come round again. A trained tree or line sees December next to January.
_CYCLES: Mapping[str, int] = {"weekday": 7, "month": 12, "day_of_year": 366, "hour": 24}
PARTS = (*_CYCLES, "days_since")


@lru_cache(maxsize=64)
def _zone(name: str) -> dt.tzinfo:
    return ZoneInfo(name) if name else dt.UTC


def is_zone(name: str) -> bool:
    """Return whether this machine knows a time zone."""
    try:
        _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def explain_format(form: str) -> str:
    """Return why a format of dates is not one; else ""."""
    sample = dt.datetime(2024, 11, 23, 13, 45, 56)
    try:
        text = sample.strftime(form)
        read = dt.datetime.strptime(text, form)
    except (ValueError, re.error) as e:
        return f"{form!r} is no format of strptime: {e}"
    if read.date() != sample.date():
        return f"{form!r} does not tell the day, the month and the year"
    return ""


def read_moment(text: str, formats: Sequence[str], zone: str) -> float:
    """Return the moment of a text.

    text: as in ISO 8601 (2024-01-31, 2024-01-31T13:30:00+01:00), or in one of the formats.
    formats: of `datetime.strptime`; they come first.
    zone: the time zone of a text that names none, and of the moment; empty for UTC.
    Raises ValueError.
    """
    for form in formats:
        try:
            return read_format(text, form, zone)
        except ValueError:
            continue
    match = _ISO.fullmatch(text)
    if not match:
        raise ValueError
    day, time, offset = match.groups(default="")
    # Digits beyond microseconds are cut, as `datetime` has no place for them.
    whole, _, fraction = time.partition(".")
    time = f"{whole}.{fraction[:6]:0<6}" if fraction else whole
    return _moment(dt.datetime.fromisoformat(f"{day}T{time}{offset}" if time else day), zone)


def read_format(text: str, form: str, zone: str) -> float:
    """Return the moment of a text in one format. Raises ValueError."""
    return _moment(dt.datetime.strptime(text, form), zone)


def _moment(value: dt.datetime, zone: str) -> float:
    try:
        local = value.astimezone(_zone(zone)).replace(tzinfo=None) if value.tzinfo else value
    except OverflowError as e:
        raise ValueError from e
    since = local - _EPOCH
    return check_moment(since.days * DAY + since.seconds + since.microseconds / 1_000_000)


def check_moment(moment: float) -> float:
    """Return a moment between the years 1 and 9999. Raises ValueError."""
    if not _LEAST <= moment <= _MOST:
        raise ValueError
    return moment


def day_of(moment: float) -> float:
    """Return the moment at which the day begins."""
    return math.floor(moment / DAY) * DAY


def show_moment(moment: float, *, is_date: bool) -> str:
    """Return a moment as ISO 8601."""
    value = _EPOCH + dt.timedelta(seconds=moment)
    return value.date().isoformat() if is_date else value.isoformat()


def local_moments(seconds: Array, zone: str, *, is_aware: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Return (moments, whether each is accepted), both of shape (n,).

    Moments of the years 1 to 9999 are accepted.
    seconds: (n,) since 1970-01-01 00:00; in UTC if `is_aware`, else of the clock on the wall.
    """
    good = (seconds >= _LEAST) & (seconds <= _MOST)
    if not is_aware or not zone:
        return seconds, good
    # A time zone's offset changes at whole quarters of an hour.
    quarters, places = np.unique(np.floor(np.where(good, seconds, 0) / 900), return_inverse=True)
    offsets = np.array([_offset(quarter * 900, zone) for quarter in quarters.tolist()])
    moments = seconds + offsets[places]
    return moments, good & (moments >= _LEAST) & (moments <= _MOST)


def _offset(seconds: float, zone: str) -> float:
    moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(seconds=seconds)
    try:
        offset = moment.astimezone(_zone(zone)).utcoffset()
    except OverflowError:
        offset = None
    return offset.total_seconds() if offset else 0.0


def part_names(parts: Sequence[str]) -> list[str]:
    """Return the names of the columns that parts become."""
    names: list[str] = []
    for part in parts:
        names += [f"{part}.sin", f"{part}.cos"] if part in _CYCLES else [part]
    return names


def part_columns(moments: Array, parts: Sequence[str]) -> Array:
    """Return the columns of many moments, shape (n, c); NaN for NaN.

    moments: (n,) accepted moments.
    """
    there = ~np.isnan(moments)
    known = np.where(there, moments, 0.0)
    days = np.floor(known / DAY)
    dates = days.astype(np.int64).astype("datetime64[D]")
    columns: list[Array] = []
    for part in parts:
        if part == "days_since":
            columns.append(known / DAY)
            continue
        if part == "weekday":
            place = (days.astype(np.int64) + 3) % 7
        elif part == "month":
            place = dates.astype("datetime64[M]").astype(np.int64) % 12
        elif part == "day_of_year":
            place = (dates - dates.astype("datetime64[Y]")).astype(np.int64)
        else:
            place = np.floor((known - days * DAY) / 3_600).astype(np.int64)
        columns += [_WAVES[part][:, 0][place], _WAVES[part][:, 1][place]]
    return np.where(there[:, None], np.column_stack(columns), np.nan)


def part_row(moment: float, parts: Sequence[str]) -> list[float]:
    """Return the columns of one moment: the same bits as `part_columns`."""
    if moment != moment:
        return [math.nan] * len(part_names(parts))
    day = math.floor(moment / DAY)
    date = dt.date.fromordinal(day + EPOCH_DAY)
    places: Mapping[str, Callable[[], int]] = {
        "weekday": date.weekday,
        "month": lambda: date.month - 1,
        "day_of_year": lambda: date.timetuple().tm_yday - 1,
        "hour": lambda: math.floor((moment - day * DAY) / 3_600),
    }
    columns: list[float] = []
    for part in parts:
        columns += _ROWS[part][places[part]()] if part in _CYCLES else [moment / DAY]
    return columns


def _wave(length: int) -> Array:
    """Return (sine, cosine) of each place in a cycle, shape (length, 2)."""
    turns = [2 * math.pi * i / length for i in range(length)]
    return np.array([[math.sin(turn), math.cos(turn)] for turn in turns])


_WAVES: Mapping[str, Array] = {part: _wave(length) for part, length in _CYCLES.items()}
_ROWS: Mapping[str, list[list[float]]] = {part: wave.tolist() for part, wave in _WAVES.items()}
