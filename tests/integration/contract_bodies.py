"""Bodies that schemathesis cannot make: CSV, Arrow, columns of one length."""

import numpy as np
import schemathesis
from hypothesis import strategies as st

from gleaner.table.arrow.format import ARROW
from gleaner.table.arrow.writer import write_stream

NAMES = ("time_spent", "doors_in_route", "assessed_value")
ROWS = st.lists(st.tuples(st.integers(0, 1440), st.integers(0, 10_000), st.integers(0, 10**9)), min_size=1)


def as_csv(rows: list[tuple[int, ...]]) -> bytes:
    return "\n".join([",".join(NAMES), *(",".join(map(str, row)) for row in rows)]).encode()


def as_arrow(rows: list[tuple[int, ...]]) -> bytes:
    return write_stream(dict(zip(NAMES, np.array(rows, dtype=np.float64).T.copy(), strict=True)), len(rows))


schemathesis.openapi.media_type("text/csv", ROWS.map(as_csv))
schemathesis.openapi.media_type(ARROW, ROWS.map(as_arrow))


@schemathesis.serializer("text/csv", ARROW)
def as_it_is(context, value):
    return value


@schemathesis.hook
def filter_case(context, case):
    """Keep only columns of one length, which a schema cannot require."""
    columns = case.body.get("inputs") if isinstance(case.body, dict) else None
    lists = [values for values in columns.values() if isinstance(values, list)] if isinstance(columns, dict) else []
    return len({len(values) for values in lists}) <= 1
