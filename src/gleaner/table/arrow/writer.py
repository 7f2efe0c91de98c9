"""A writer of Arrow streams of one batch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from gleaner.table.arrow.format import BATCH, CONTINUES, FLOAT, INT, SCHEMA, UTF8, V5

Values = NDArray[Any] | Sequence[str | None]

# Numbers that occur nowhere else in a message.
_MARK = 0x5A5A_5A5A_5A5A_0000


def write_stream(columns: Mapping[str, Values], rows: int) -> bytes:
    """Write columns as a stream of one batch.

    columns: {name: values}: float64 (NaN becomes null), int64, or texts and None.
    rows: the number of values of each column.
    """
    nodes, buffers = [], list[bytes]()
    for column in columns.values():
        valid, values = _parts(column)
        nodes.append((rows, 0 if valid is None else rows - int(valid.sum())))
        buffers += [b"" if valid is None else np.packbits(valid, bitorder="little").tobytes(), *values]
    padded = [buffer + bytes(-len(buffer) % 8) for buffer in buffers]
    places, at = [], 0
    for buffer, whole in zip(buffers, padded, strict=True):
        places.append((at, len(buffer)))
        at += len(whole)
    head, batch, holes = _template(tuple((name, _kind(column)) for name, column in columns.items()))
    filled = bytearray(batch)
    numbers = [rows, at, *(number for pair in (*nodes, *places) for number in pair)]
    for hole, number in zip(holes, numbers, strict=True):
        struct.pack_into("<q", filled, hole, number)
    return b"".join([head, filled, *padded, CONTINUES, bytes(4)])


@lru_cache
def _template(columns: tuple[tuple[str, int], ...]) -> tuple[bytes, bytes, list[int]]:
    """Return (schema message, batch message, positions of its numbers).

    columns: (name, kind) of each column.
    Building a message takes longer than writing 10,000 rows, and two batches differ in these numbers only.
    """
    buffers = sum(3 if kind == UTF8 else 2 for _, kind in columns)
    marks = iter(range(_MARK, _MARK + 2 + 2 * (len(columns) + buffers)))
    rows, length = next(marks), next(marks)
    nodes, places = ([(next(marks), next(marks)) for _ in range(n)] for n in (len(columns), buffers))
    head = _message(SCHEMA, lambda builder: _write_schema(builder, columns), 0)
    batch = _message(BATCH, lambda builder: _write_batch(builder, rows, nodes, places), length)
    holes = [rows, length, *(mark for pair in (*nodes, *places) for mark in pair)]
    return head, batch, [batch.index(struct.pack("<q", mark)) for mark in holes]


def _parts(column: Values) -> tuple[NDArray[np.bool_] | None, list[bytes]]:
    """Return (a mask of the present values or None, the other buffers)."""
    if isinstance(column, np.ndarray):
        valid = ~np.isnan(column) if column.dtype.kind == "f" else np.ones(len(column), bool)
        return (None if valid.all() else valid), [column.tobytes()]
    valid = np.array([text is not None for text in column], dtype=bool)
    encoded = [(text or "").encode() for text in column]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return (None if valid.all() else valid), [offsets.tobytes(), b"".join(encoded)]


def _message(kind: int, write: Callable[[flatbuffers.Builder], int], length: int) -> bytes:
    builder = flatbuffers.Builder(512)
    header = write(builder)
    builder.StartObject(5)
    builder.PrependInt16Slot(0, V5, 0)
    builder.PrependUint8Slot(1, kind, 0)
    builder.PrependUOffsetTRelativeSlot(2, header, 0)
    builder.PrependInt64Slot(3, length, 0)
    builder.Finish(builder.EndObject())
    flat = bytes(builder.Output())
    flat += bytes(-len(flat) % 8)
    return CONTINUES + len(flat).to_bytes(4, "little") + flat


def _kind(column: Values) -> int:
    if isinstance(column, np.ndarray):
        return FLOAT if column.dtype.kind == "f" else INT
    return UTF8


def _write_schema(builder: flatbuffers.Builder, columns: Sequence[tuple[str, int]]) -> int:
    fields = [_write_field(builder, name, kind) for name, kind in columns]
    builder.StartVector(4, len(fields), 4)
    for field in reversed(fields):
        builder.PrependUOffsetTRelative(field)
    members = builder.EndVector()
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(1, members, 0)
    return int(builder.EndObject())


def _write_field(builder: flatbuffers.Builder, name: str, kind: int) -> int:
    label = builder.CreateString(name)
    builder.StartVector(4, 0, 4)  # no children; some readers want the empty list
    children = builder.EndVector()
    builder.StartObject(2)
    if kind == FLOAT:
        builder.PrependInt16Slot(0, 2, 0)
    elif kind == INT:
        builder.PrependInt32Slot(0, 64, 0)
        builder.PrependBoolSlot(1, True, False)
    about = builder.EndObject()
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, label, 0)
    builder.PrependBoolSlot(1, True, False)
    builder.PrependUint8Slot(2, kind, 0)
    builder.PrependUOffsetTRelativeSlot(3, about, 0)
    builder.PrependUOffsetTRelativeSlot(5, children, 0)
    return int(builder.EndObject())


def _write_batch(
    builder: flatbuffers.Builder, rows: int, nodes: list[tuple[int, int]], places: list[tuple[int, int]]
) -> int:
    vectors = []
    for pairs in (nodes, places):
        builder.StartVector(16, len(pairs), 8)
        for first, second in reversed(pairs):
            builder.Prep(8, 16)
            builder.PrependInt64(second)
            builder.PrependInt64(first)
        vectors.append(builder.EndVector())
    builder.StartObject(5)
    builder.PrependInt64Slot(0, rows, 0)
    builder.PrependUOffsetTRelativeSlot(1, vectors[0], 0)
    builder.PrependUOffsetTRelativeSlot(2, vectors[1], 0)
    return int(builder.EndObject())
