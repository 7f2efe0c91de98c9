"""Arrow streams from and for other libraries, and damaged ones."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nanoarrow
import nanoarrow.ipc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from gleaner.errors import BadBody, BadRows, GleanerError, TooLarge, WrongType
from gleaner.serving.formats.json import RowReader
from gleaner.serving.formats.tables import read_rows
from gleaner.table.arrow.format import ARROW
from gleaner.table.arrow.reader import Stream
from gleaner.table.arrow.writer import write_stream
from gleaner.table.feature import Feature, Target
from gleaner.table.rows import Column
from gleaner.table.schema import Schema

DATA = Path(__file__).parent / "data"

properties = of_hypothesis(max_examples=150, deadline=None, derandomize=True, database=None)


def stream(table: pa.Table, rows_a_batch: int = 1000, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return sink.getvalue().to_pybytes()


def plain(column: Column) -> list[object]:
    """Return a column as a list, with None for missing values."""
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

    columns, rows = Stream(stream(table, rows_a_batch)).read(max_rows=7)

    assert (["x"], 7) == (list(columns), rows)
    assert values == plain(columns["x"])


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint32(), pa.large_string()),
        pa.dictionary(pa.uint8(), pa.string_view()),
    ],
)
@pytest.mark.parametrize("rows_a_batch", [1, 2, 1000])
def test_text_is_read_in_every_form(type_, rows_a_batch):
    words = ["north", None, "été", "", "north", "x" * 70]
    of_words = type_.value_type if pa.types.is_dictionary(type_) else type_
    zone = pa.array(words, of_words)
    if type_ != of_words:
        indexes = pa.array([0, None, 1, 2, 0, 3], type_.index_type)
        zone = pa.DictionaryArray.from_arrays(indexes, pa.array(["north", "été", "", "x" * 70], of_words))
    table = pa.table({"a": [1.5] * 6, "zone": zone, "b": range(6)})

    columns, _ = Stream(stream(table, rows_a_batch)).read(max_rows=6)

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

        columns, _ = Stream(sink.getvalue().to_pybytes()).read(max_rows=100)

        assert [word for batch in batches for word in batch] == plain(columns["zone"])


@properties
@given(st.lists(st.floats() | st.none(), max_size=30), st.integers(1, 9))
def test_every_bit_of_a_number_is_read(values, rows_a_batch):
    table = pa.table({"x": pa.array(values, pa.float64(), from_pandas=False)})

    columns, _ = Stream(stream(table, rows_a_batch)).read(max_rows=30)

    column = columns["x"]
    there = [value for value in values if value is not None]
    kept = column.values if column.valid is None else column.values[column.valid]
    assert np.array(there, dtype=np.float64).tobytes() == np.asarray(kept, dtype=np.float64).tobytes()


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([b"x"]), "Binary"),
        (pa.array([[1.0]]), "List"),
        (pa.array([{"a": 1}]), "Struct"),
        (pa.array([1]).cast(pa.time64("us")), "Time"),
        (pa.array([b"x"], pa.binary_view()), "BinaryView"),
        (pa.array([1.0]).dictionary_encode(), "dictionary of FloatingPoint"),
    ],
)
def test_a_column_of_another_type_says_which(array, kind):
    read = Stream(stream(pa.table({"x": array, "y": [1.0]})))

    assert (None, kind) == (read.declared["x"].values, read.declared["x"].kind)
    with pytest.raises(BadBody, match=f"the column 'x' is of type {kind}"):
        read.read(max_rows=1)


@pytest.mark.parametrize("rows_a_batch", [1, 1000])
def test_a_column_of_nothing_is_refused_row_by_row_whatever_was_wanted(rows_a_batch):
    features = [Feature(name=name) for name in "xz"] + [Feature(name=n, type="category", values=("a",)) for n in "st"]
    schema = Schema(tuple(features), Target(name="y"))
    empty = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.nulls(0))
    table = pa.table({"x": [1.0, 2.0], "z": pa.nulls(2), "s": pa.nulls(2), "t": empty})
    reader = RowReader(schema, max_rows=2, max_depth=9)

    rows = read_rows(ARROW, stream(table, rows_a_batch), reader, max_rows=2)

    assert {0, 1} == set(rows.faults)
    for faults in rows.faults.values():
        assert [("z", "wanted a number, got null"), *[(name, "wanted one of 'a', got null") for name in "st"]] == [
            (fault.column, fault.reason) for fault in faults
        ]


def test_rows_of_nulls_are_not_more_than_the_bytes_that_were_sent():
    with pytest.raises(TooLarge, match="1,000,000 rows of nulls alone in "):
        Stream(stream(pa.table({"x": pa.nulls(1_000_000)}), 1_000_000)).read(max_rows=1_000_000)


def test_what_polars_writes_is_read():
    # By `write_ipc_stream` of polars 2.1.0, which weighs 180 MB; it writes text and the words of categories as views.
    columns, rows = Stream((DATA / "polars-2.1.0.arrows").read_bytes()).read(max_rows=5)

    zone = ["north", None, "the far side of the river", "north", ""]
    assert {"x": [1.5, None, 2.5, 3.5, 4.5], "text": zone, "category": zone, "enum": zone} == {
        name: plain(column) for name, column in columns.items()
    }
    assert 5 == rows


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

    columns, _ = Stream(sink.getvalue()).read(max_rows=2)

    assert [1.5, 2.5] == plain(columns["x"])


def test_a_stream_without_a_batch_has_no_rows():
    body = stream(pa.table({"x": pa.array([], pa.float64()), "s": pa.array([], pa.string())}))

    columns, rows = Stream(body).read(max_rows=1)

    assert ([], [], 0) == (plain(columns["x"]), plain(columns["s"]), rows)


def test_more_rows_than_are_taken_are_refused():
    body = stream(pa.table({"x": [1.0] * 6}), 2)

    Stream(body).read(max_rows=6)
    with pytest.raises(TooLarge, match="more than 5 rows"):
        Stream(body).read(max_rows=5)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused(compression):
    with pytest.raises(WrongType, match="compressed"):
        Stream(stream(pa.table({"x": [1.0] * 1000}), compression=compression)).read(max_rows=1000)


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
        Stream(body).read(max_rows=1)


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(BadBody, match="'x' stands twice"):
        Stream(stream(pa.table([[1.0], [2.0]], names=["x", "x"]))).read(max_rows=1)


def test_a_stream_that_is_cut_anywhere_is_refused_or_shorter():
    whole = stream(pa.table({"x": [1.0, 2.0, 3.0, 4.0]}), 2)
    found = set()
    for end in range(len(whole)):
        try:
            _, rows = Stream(whole[:end]).read(max_rows=4)
        except BadBody:
            rows = -1
        found.add(rows)

    assert {-1, 0, 2, 4} == found


def test_damage_is_always_an_error_of_the_senders():
    sources = [
        stream(pa.table({"x": [1.0, None, 3.0], "i": [1, 2, 3], "s": ["a", None, "bb"]}), 2),
        stream(
            pa.table({"s": pa.array(["a", None, "a"]).dictionary_encode(), "i": pa.array([1, None, 3], pa.uint8())})
        ),
        stream(pa.table({"x": pa.array([1, 2, 3], pa.uint8())}), compression="lz4"),
        stream(pa.table({"b": [True, None, False]})),
        stream(pa.table({"n": pa.nulls(3), "x": [1.0, 2.0, 3.0]})),
        stream(pa.table({"v": pa.array(["a", None, "b" * 20, "c" * 30], pa.string_view())}), 3),
        (DATA / "polars-2.1.0.arrows").read_bytes(),
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
            read = Stream(bytes(body))
            _ = read.declared
            read.read(max_rows=1000)
            outcomes["read"] += 1
        except GleanerError:
            outcomes["refused"] += 1

    assert min(outcomes.values()) > 1_000


# Memory


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Assert that the block holds at most `most` bytes at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"


def repeated(batch: pa.RecordBatch, times: int) -> bytes:
    """Return a stream that repeats one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(times):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_dictionary_is_held_once_however_many_batches_point_into_it():
    zone = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["north"] + [""] * 89_999))
    batch = pa.record_batch({"zone": zone})
    body = repeated(batch, 1000)

    with little_memory(50_000_000):
        columns, _ = Stream(body).read(max_rows=1000)

    assert (90_000, ["north"] * 1000) == (len(columns["zone"].words), plain(columns["zone"]))


def test_a_dictionary_that_grows_with_every_batch_is_held_once():
    schema = pa.schema({"zone": pa.dictionary(pa.int32(), pa.string())})
    words = [f"zone {i}" for i in range(3000)]
    every, sink = pa.array(words), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for i in range(3000):
            zone = pa.DictionaryArray.from_arrays(pa.array([i], pa.int32()), every[: i + 1])
            writer.write_batch(pa.record_batch([zone], schema=schema))
    body = sink.getvalue().to_pybytes()

    with little_memory(10_000_000):
        columns, _ = Stream(body).read(max_rows=3000)

    assert words == plain(columns["zone"])


def test_batches_without_rows_take_no_memory():
    batch = pa.record_batch({"x": pa.array([], pa.float64()), "s": pa.array([], pa.string())})
    body = repeated(batch, 10_000)

    with little_memory(100_000):
        _, rows = Stream(body).read(max_rows=1000)

    assert 0 == rows


def changed(body: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    """Return a body with other bytes in some unique places."""
    for before, after in changes:
        assert 1 == body.count(before)
        body = body.replace(before, after)
    return body


def places(offset: int, size: int) -> bytes:
    return struct.pack("<qq", offset, size)


def test_the_batches_of_a_stream_share_no_text():
    schema, small = split(stream(pa.table({"s": ["x" * 77]})))
    _, large = split(stream(pa.table({"s": ["x" * 1_000_000]})))
    ends = struct.pack("<ii", 0, 77), struct.pack("<ii", 0, 900_000)
    borrowing = changed(small, (places(8, 77), places(len(small) * 101, 900_000)), ends)

    with little_memory(5_000_000), pytest.raises(BadBody, match="beyond its message"):
        Stream(schema + borrowing * 100 + large).read(max_rows=200)


def test_the_columns_of_a_batch_share_no_text():
    body = stream(pa.table({"s": ["x" * 700], **{f"t{i}": ["y" * 77] for i in range(20)}}))
    for i in range(20):
        body = changed(body, (places(720 + i * 88, 77), places(8, 700)))
    body = body.replace(struct.pack("<ii", 0, 77), struct.pack("<ii", 0, 700))

    with pytest.raises(BadBody, match="texts overlap"):
        Stream(body).read(max_rows=1)


def view(size: int, buffer: int, offset: int) -> bytes:
    return struct.pack("<i4sii", size, b"xxxx", buffer, offset)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (view(20, 1, 0), "a text is in no buffer"),
        (view(20, -1, 0), "a text is in no buffer"),
        (view(-1, 0, 0), "a text is in no buffer"),
        (view(20, 0, 1), "a buffer of 20 bytes for 21"),
        (view(20, 0, -1), "a buffer of 20 bytes for 19"),
        (view(2**31 - 1, 0, 0), "texts overlap"),
    ],
    ids=["no such buffer", "below the first", "no size", "beyond its end", "before its start", "beyond all"],
)
def test_a_view_of_what_is_not_there_is_damage(other, reason):
    body = stream(pa.table({"s": pa.array(["x" * 20], pa.string_view())}))

    with pytest.raises(BadBody, match=reason):
        Stream(changed(body, (view(20, 0, 0), other))).read(max_rows=1)


@pytest.mark.parametrize("count", [-1, 6, 2**40])
def test_buffers_of_views_that_are_not_there_are_damage(count):
    body = stream(pa.table({name: pa.array(["x" * 20], pa.string_view()) for name in "abc"}))
    counts = struct.pack("<I3q", 3, 1, 1, 1), struct.pack("<I3q", 3, 1, count, 1)

    with pytest.raises(BadBody, match=f"a column of views has {count} buffers, and its message has "):
        Stream(changed(body, counts)).read(max_rows=1)


def test_the_view_of_a_null_may_be_anything():
    buffers = [bytes([0b01]), view(1, 0, 0) + view(2**31 - 1, -7, -7)]
    table = pa.table({"s": pa.Array.from_buffers(pa.string_view(), 2, list(map(pa.py_buffer, buffers)))})

    columns, _ = Stream(stream(table)).read(max_rows=2)

    assert ["x", None] == plain(columns["s"])


def test_views_of_the_same_bytes_are_one_word_and_others_do_not_overlap():
    text = "".join(map(chr, range(97, 123))) * 200
    table = pa.table({"s": pa.array([text] + [f"{i:020}" for i in range(1000)], pa.string_view())})
    body = stream(table, 2000)
    same = distinct = body
    for i in range(1000):
        own = struct.pack("<i4sii", 20, b"0000", 0, len(text) + 20 * i)
        same = changed(same, (own, struct.pack("<i4sii", len(text), b"abcd", 0, 0)))
        distinct = changed(distinct, (own, struct.pack("<i4sii", len(text) - 26 - i, b"abcd", 0, i)))

    with little_memory(1_000_000):
        columns, _ = Stream(same).read(max_rows=2000)
    assert [text] * 1001 == plain(columns["s"])
    with little_memory(1_000_000), pytest.raises(BadBody, match="texts overlap"):
        Stream(distinct).read(max_rows=2000)


END = b"\xff\xff\xff\xff\0\0\0\0"


def split(body: bytes) -> tuple[bytes, bytes]:
    """Return (the schema of a stream, its batches without the end mark)."""
    head = 8 + int.from_bytes(body[4:8], "little")
    return body[:head], body[head:-8]


def test_only_so_many_columns_batches_and_words_are_taken(monkeypatch):
    many = stream(pa.table({str(i): [1.0] for i in range(10_001)}))
    with pytest.raises(TooLarge, match="10,001 columns; one request takes no more than 10,000"):
        Stream(many)

    schema, batch = split(stream(pa.table({"x": [1.0]})))
    Stream(schema + batch * 20_000 + END).read(max_rows=20_001)
    with pytest.raises(TooLarge, match="more than 20,000 batches; put more rows into each batch"):
        Stream(schema + batch * 20_001 + END).read(max_rows=20_001)

    monkeypatch.setattr("gleaner.table.arrow.reader._MOST_WORDS", 3)
    for zone in (pa.array(list("abca")), pa.array(list("abca")).dictionary_encode()):
        Stream(stream(pa.table({"zone": zone}))).read(max_rows=9)
    for zone in (pa.array(list("abcd")), pa.array(list("abcd")).dictionary_encode()):
        with pytest.raises(TooLarge, match="more than 3 different words"):
            Stream(stream(pa.table({"zone": zone}))).read(max_rows=9)


def test_another_table_is_refused_before_any_of_its_rows_is_read():
    features = Feature(name="x"), Feature(name="zone", type="category", values=("north", "south"))
    reader = RowReader(Schema(features, Target(name="y")), max_rows=1, max_depth=9)
    for table, reason in (
        ({"x": [1.0], "zones": ["north"]}, "no such column; did you mean"),
        ({"x": [1.0], "zone": [1.0]}, "wanted one of 'north', 'south', got a column of numbers"),
        ({"x": ["1"], "zone": ["north"]}, "wanted a number, got a column of text"),
        ({"x": [True], "zone": ["north"]}, "wanted a number, got a column of bools"),
    ):
        schema, _ = split(stream(pa.table(table)))

        with pytest.raises(BadRows) as e:
            read_rows(ARROW, schema + b"no batch at all", reader, max_rows=1)

        assert e.value.faults[0][1].startswith(reason)


def test_a_name_is_not_as_long_as_a_body():
    with pytest.raises(BadBody, match="a name has 1001 bytes"):
        Stream(stream(pa.table({"x" * 1001: [1.0]})))


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
    columns, rows = Stream(write_stream(COLUMNS, 3)).read(max_rows=3)

    assert 3 == rows
    assert PLAIN == {name: plain(column) for name, column in columns.items()}
