"""Arrow streams: what others write is read, others read what is written here, and damage is answered, never a crash."""

from __future__ import annotations

import io
import random

import nanoarrow
import nanoarrow.ipc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from gleaner.arrow import read_stream, write_stream
from gleaner.errors import BadBody, GleanerError, TooLarge, WrongType
from gleaner.rows import Column

properties = of_hypothesis(max_examples=150, deadline=None, derandomize=True, database=None)


def stream(table: pa.Table, rows_a_batch: int = 1000, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return sink.getvalue().to_pybytes()


def plain(column: Column) -> list[object]:
    """A column as Python has it."""
    there = column.valid if column.valid is not None else np.ones(len(column.values), bool)
    values = column.values.tolist()
    words = column.words
    return [
        (words[v] if words is not None else v) if is_there else None for v, is_there in zip(values, there, strict=True)
    ]


NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("rows_a_batch", [1, 3, 1000])
def test_numbers_of_every_width_are_read_with_their_nulls(kind, rows_a_batch):
    values = [1, None, 100, 0, 7, None, 3]
    table = pa.table(
        {
            "x": pa.array(
                np.array([0 if v is None else v for v in values], kind), mask=np.array([v is None for v in values])
            )
        }
    )

    columns, rows = read_stream(stream(table, rows_a_batch), max_rows=7)

    assert (["x"], 7) == (list(columns), rows)
    assert values == plain(columns["x"])


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint32(), pa.large_string()),
    ],
)
@pytest.mark.parametrize("rows_a_batch", [1, 2, 1000])
def test_text_is_read_in_every_form(type_, rows_a_batch):
    words = ["north", None, "été", "", "north", "x" * 70]
    table = pa.table({"a": [1.5] * 6, "zone": pa.array(words, pa.string()).cast(type_), "b": range(6)})

    columns, _ = read_stream(stream(table, rows_a_batch), max_rows=6)

    assert words == plain(columns["zone"])
    assert [1.5] * 6 == plain(columns["a"])
    assert list(range(6)) == plain(columns["b"])


def test_a_dictionary_may_be_replaced_or_grow_between_batches():
    pieces = [["a", "b"], ["c", "a"], ["d"]]
    schema = pa.schema({"zone": pa.dictionary(pa.int32(), pa.string())})
    for deltas, batches in ((False, pieces), (True, [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
        with pa.ipc.new_stream(sink, schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(pa.record_batch([pa.array(batch).dictionary_encode()], schema=schema))

        columns, _ = read_stream(sink.getvalue().to_pybytes(), max_rows=100)

        assert [word for batch in batches for word in batch] == plain(columns["zone"])


@properties
@given(st.lists(st.floats() | st.none(), max_size=30), st.integers(1, 9))
def test_every_bit_of_a_number_is_read(values, rows_a_batch):
    table = pa.table({"x": pa.array(values, pa.float64(), from_pandas=False)})

    columns, _ = read_stream(stream(table, rows_a_batch), max_rows=30)

    column = columns["x"]
    there = [value for value in values if value is not None]
    kept = column.values if column.valid is None else column.values[column.valid]
    assert np.array(there, dtype=np.float64).tobytes() == np.asarray(kept, dtype=np.float64).tobytes()


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([True]), "Bool"),
        (pa.array([b"x"]), "Binary"),
        (pa.array([None]), "Null"),
        (pa.array([[1.0]]), "List"),
        (pa.array([{"a": 1}]), "Struct"),
        (pa.array([1]).cast(pa.timestamp("s")), "Timestamp"),
        (pa.array(["x"], pa.string_view()), "Utf8View"),
        (pa.array([1.0]).dictionary_encode(), "dictionary of FloatingPoint"),
    ],
)
def test_a_column_of_another_type_says_which(array, kind):
    columns, rows = read_stream(stream(pa.table({"x": array, "y": [1.0]})), max_rows=1)

    assert (None, kind, 1) == (columns["x"].values, columns["x"].kind, rows)


def test_what_nanoarrow_writes_is_read():
    sink = io.BytesIO()
    array = nanoarrow.c_array_from_buffers(
        nanoarrow.struct({"x": nanoarrow.float64()}),
        2,
        [None],
        children=[nanoarrow.c_array([1.5, 2.5], nanoarrow.float64())],
    )
    with nanoarrow.ipc.StreamWriter.from_writable(sink) as writer:
        writer.write_stream(array)

    columns, _ = read_stream(sink.getvalue(), max_rows=2)

    assert [1.5, 2.5] == plain(columns["x"])


def test_a_stream_without_a_batch_has_no_rows():
    columns, rows = read_stream(
        stream(pa.table({"x": pa.array([], pa.float64()), "s": pa.array([], pa.string())})), max_rows=1
    )

    assert ([], [], 0) == (plain(columns["x"]), plain(columns["s"]), rows)


def test_more_rows_than_are_taken_are_refused():
    body = stream(pa.table({"x": [1.0] * 6}), 2)

    read_stream(body, max_rows=6)
    with pytest.raises(TooLarge, match="more than 5 rows"):
        read_stream(body, max_rows=5)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused(compression):
    with pytest.raises(WrongType, match="compressed"):
        read_stream(stream(pa.table({"x": [1.0] * 1000}), compression=compression), max_rows=1000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PAR1",
        b"ARROW1\0\0",
        b"{}",
        b"\xff" * 40,
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\xff\xff\xff\xff\x10\0\0\0" + bytes(16),
    ],
)
def test_what_is_no_stream_is_refused(body):
    with pytest.raises(BadBody, match=r"not an? (whole )?Arrow stream"):
        read_stream(body, max_rows=1)


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(BadBody, match="'x' stands twice"):
        read_stream(stream(pa.table([[1.0], [2.0]], names=["x", "x"])), max_rows=1)


def test_a_stream_that_is_cut_anywhere_is_refused_or_shorter():
    whole = stream(pa.table({"x": [1.0, 2.0, 3.0, 4.0]}), 2)
    found = set()
    for end in range(len(whole)):
        try:
            _, rows = read_stream(whole[:end], max_rows=4)
        except BadBody:
            rows = -1
        found.add(rows)

    assert {-1, 0, 2, 4} == found


def test_damage_is_always_an_error_of_the_senders():
    sources = [
        stream(pa.table({"x": [1.0, None, 3.0], "i": [1, 2, 3], "s": ["a", None, "bb"]}), 2),
        stream(pa.table({"s": pa.array(["a", None, "a"]).dictionary_encode(), "b": [True, None, False]})),
        stream(pa.table({"x": pa.array([1, 2, 3], pa.uint8())}), compression="lz4"),
    ]
    chance = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(20_000):
        body = bytearray(chance.choice(sources))
        for _ in range(chance.choice([1, 1, 2, 4])):
            at = chance.randrange(len(body) - 8)
            match chance.randrange(4):
                case 0:
                    body[at] = chance.randrange(256)
                case 1:
                    body[at : at + 4] = chance.choice([0, 1, 2**31 - 1, 2**32 - 1, len(body)]).to_bytes(4, "little")
                case 2:
                    del body[at : at + chance.randrange(1, 16)]
                case _:
                    body[at:at] = chance.randbytes(chance.randrange(1, 9))
        try:
            read_stream(bytes(body), max_rows=1000)
            outcomes["read"] += 1
        except GleanerError:
            outcomes["refused"] += 1

    assert min(outcomes.values()) > 1_000


# Writing

COLUMNS = {
    "prediction": np.array([1.5, np.nan, -0.0]),
    "prediction_id": ["a-0", "a-1", "a-2"],
    "version": np.array([3, 3, 3]),
    "fault": [None, "line 2: été", None],
}
PLAIN = {
    "prediction": [1.5, None, -0.0],
    "prediction_id": ["a-0", "a-1", "a-2"],
    "version": [3, 3, 3],
    "fault": [None, "line 2: été", None],
}


def test_pyarrow_reads_what_is_written():
    table = pa.ipc.open_stream(write_stream(COLUMNS, 3)).read_all()

    table.validate(full=True)
    assert PLAIN == table.to_pydict()
    assert ["double", "string", "int64", "string"] == list(map(str, table.schema.types))


def test_nanoarrow_reads_what_is_written():
    with nanoarrow.ArrayStream.from_readable(write_stream(COLUMNS, 3)) as read:
        assert [
            dict(zip(PLAIN, row, strict=True)) for row in zip(*PLAIN.values(), strict=True)
        ] == read.read_all().to_pylist()


@properties
@given(st.lists(st.floats(allow_nan=False), max_size=50))
def test_every_bit_of_a_prediction_is_written(numbers):
    table = pa.ipc.open_stream(
        write_stream({"prediction": np.array(numbers, dtype=np.float64)}, len(numbers))
    ).read_all()

    table.validate(full=True)
    assert np.array(numbers, dtype=np.float64).tobytes() == table["prediction"].to_numpy().tobytes()


def test_what_is_written_is_read_again():
    columns, rows = read_stream(write_stream(COLUMNS, 3), max_rows=3)

    assert 3 == rows
    assert PLAIN == {name: plain(column) for name, column in columns.items()}
