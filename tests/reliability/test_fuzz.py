"""Every reader of foreign bytes on damaged input, by fixed seeds.

A reader may accept an input or refuse it with one of the package's own errors, within a bounded time and memory.
Every reader gets 200 inputs; MOMENTS=20 in the environment adds 250 for each moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import made
import numpy as np
import psutil
import pytest
from projects import MIXED, write_mixed_table

from gleaner.errors import GleanerError
from gleaner.model.manifest import MANIFEST, MODEL, read_manifest
from gleaner.model.operators import check_operators, measure
from gleaner.model.tree import read_tree
from gleaner.serving.formats.csv import CSV
from gleaner.serving.formats.json import JSON, RowReader, read_json
from gleaner.serving.formats.mlflow import accept_invocation, read_invocation
from gleaner.serving.formats.open_inference import read_inference, split_body
from gleaner.serving.formats.tables import read_rows
from gleaner.settings.load import load_settings
from gleaner.table.arrow.format import ARROW
from gleaner.table.arrow.writer import write_stream
from gleaner.table.csv import read_table

INPUTS = 200 + 250 * int(os.environ.get("MOMENTS", "0"))
MOST_SECONDS = 20.0  # for one input of a few kilobytes: a thousand times what it takes on idle cores
MOST_BYTES = 512 << 20
MOST_ROWS = 1_000

WORDS = (
    *(b"1e999", b"-1e-999", b"NaN", b"Infinity", b"-0.0", b"null", b"true", b"9" * 400, b"0x10", b"1_000"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\r", b"\n", b'"', b"'", b",", b";", b"\t", b"\\u d800", b"\\ud800"),
    *(b"[" * 40, b"{" * 40, b"]", b"}", b'{"":', b"[[features]]\n", b'"""', b"= 1\n", b"inputs", b"columns"),
    *(struct.pack("<q", n) for n in (-1, 0, 1, 2**31 - 1, -(2**31), 2**62, -(2**63))),
    *(struct.pack("<i", n) for n in (-1, 0, 8, 2**30, -(2**31))),
    *(b"\xff" * 9 + b"\x01", b"\x80" * 12, b"\x0a\xff\xff\xff\xff\x0f"),  # varints, and a long member
)


class Reader(NamedTuple):
    """A reader of bytes, and inputs that it accepts."""

    read: Callable[[bytes], object]
    valid: Sequence[bytes]


class Result(NamedTuple):
    """The numbers of accepted and refused inputs, and the faults found."""

    accepted: int
    refused: int
    faults: list[str]


def damaged(random_: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return one of the valid inputs, changed in one to four places."""
    data = bytearray(random_.choice(valid))
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        end = min(len(data), at + random_.choice((1, 2, 4, 8, 64, 1_000)))
        match random_.randrange(7):
            case 0:
                data[at:end] = b""
            case 1:
                data[at:at] = data[at:end] * random_.randint(1, 4)
            case 2:
                data[at:at] = random_.choice(WORDS)
            case 3:
                word = random_.choice(WORDS)
                data[at : at + len(word)] = word
            case 4 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 5:
                other = random_.choice(valid)
                data[at:end] = other[random_.randrange(len(other)) :][: end - at]
            case _:
                data[at:] = b"" if random_.random() < 0.2 else data[at:]
    return bytes(data)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take MOST_BYTES more than it has.

    Beyond that, an allocation raises MemoryError.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(name: str, reader: Reader, inputs: int = INPUTS) -> Result:
    """Give a reader damaged inputs.

    The name and the number in a fault make its input again.
    """
    accepted, refused, faults = 0, 0, []
    with bounded_memory():
        for seed in range(inputs):
            data, began = damaged(random.Random(f"{name} {seed}"), reader.valid), time.monotonic()
            try:
                reader.read(data)
                accepted += 1
            except GleanerError:
                refused += 1
            except Exception as e:
                faults.append(f"{name} {seed}: {e!r} for {data[:200]!r}")
            if time.monotonic() - began > MOST_SECONDS:
                faults.append(f"{name} {seed}: {time.monotonic() - began:.0f} s")
    return Result(accepted, refused, faults)


def tensors(columns: dict[str, np.ndarray], zones: list[str]) -> bytes:
    """Return a request with binary tensors.

    The length of its JSON, which a header has, stands before it on a line.
    """
    pieces = [column.tobytes() for column in columns.values()]
    pieces.append(b"".join(struct.pack("<I", len(zone.encode())) + zone.encode() for zone in zones))
    names, types = (*columns, "zone"), ("FP64", "FP64", "INT64", "BYTES")
    inputs = [
        {"name": n, "shape": [len(zones)], "datatype": t, "parameters": {"binary_data_size": len(piece)}}
        for n, t, piece in zip(names, types, pieces, strict=True)
    ]
    head = json.dumps({"id": "1", "inputs": inputs}).encode()
    return b"%d\n" % len(head) + head + b"".join(pieces)


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    """Return every reader, for the columns of every type."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    file, model = folder / "gleaner.toml", folder / "model"
    file.write_text(MIXED, encoding="utf-8")
    write_mixed_table(folder / "mixed.csv")
    settings = load_settings(file)
    schema, rows = settings.schema_, RowReader(settings.schema_, max_rows=MOST_ROWS, max_depth=32)
    lines = (folder / "mixed.csv").read_bytes().splitlines(keepends=True)[:30]
    trainable = b"".join(lines)
    objects = [
        {"share": 0.5, "balance": -1e5, "people": 3, "zone": "north"},
        {"share": -1, "balance": 2.5, "people": 50, "zone": 'été "2"'},
    ]
    listed = [json.dumps(value, ensure_ascii=ascii_).encode() for value in (objects[0], objects) for ascii_ in (0, 1)]
    split = {"columns": list(objects[0]), "data": [list(row.values()) for row in objects]}
    by_column = {name: [row[name] for row in objects] for name in objects[0]}
    numbers = {"share": np.array([0.5, -1.0]), "balance": np.array([-1e5, 2.5]), "people": np.array([3, 50])}
    zones = [str(row["zone"]) for row in objects]
    values = {name: column.astype(np.float64) for name, column in numbers.items()}
    types = {"share": "FP64", "balance": "FP32", "people": "INT64", "zone": "BYTES"}
    in_json = [{"name": n, "shape": [2], "datatype": t, "data": by_column[n]} for n, t in types.items()]

    def read_training(data: bytes) -> object:
        (folder / "fuzzed.csv").write_bytes(data)
        return read_table(folder / "fuzzed.csv", schema, max_rows=MOST_ROWS)

    def read_serving(kind: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> object:
            for partial in (False, True):
                found = read_rows(kind, data, rows, max_rows=MOST_ROWS, partial=partial)
                if not partial:
                    found.check()
            return rows.accept(data) if kind == JSON else found

        return read

    def read_mlflow(data: bytes) -> object:
        accept_invocation(schema, data, max_rows=MOST_ROWS)
        return read_invocation(schema, read_json(data, max_depth=32), max_rows=MOST_ROWS).check()

    def read_tensors(data: bytes) -> object:
        length, _, body = data.partition(b"\n")
        head, binary = split_body(body, length.decode("latin-1") or None, max_bytes=10_000)
        value = read_json(head, max_depth=32)
        return read_inference(schema, value, binary, max_rows=MOST_ROWS, max_table_rows=MOST_ROWS)[0].check()

    def read_model(data: bytes) -> object:
        model.mkdir(exist_ok=True)
        (model / MODEL).write_bytes(data)
        measure(data)
        read_tree(data)
        return check_operators(model)

    def read_described(data: bytes) -> object:
        model.mkdir(exist_ok=True)
        (model / MANIFEST).write_bytes(data)
        return read_manifest(model)

    def read_settings(data: bytes) -> object:
        file.write_bytes(data)
        return load_settings(file).schema_

    artifacts = [made.artifact(candidate).folder for candidate in ("linear", "decision_tree")]
    arrow = write_stream({**values, "zone": zones}, 2)
    return {
        "CSV for training": Reader(read_training, [trainable, trainable.replace(b"\n", b"\r\n")]),
        "CSV": Reader(read_serving(CSV), [trainable, "\ufeff".encode() + trainable]),
        "Arrow": Reader(read_serving(ARROW), [arrow]),
        "JSON": Reader(read_serving(JSON), listed),
        "MLflow": Reader(
            read_mlflow,
            [
                json.dumps(body).encode()
                for body in ({"dataframe_split": split}, {"dataframe_records": objects}, {"inputs": by_column})
            ],
        ),
        "tensors": Reader(read_tensors, [tensors(numbers, zones), b"\n" + json.dumps({"inputs": in_json}).encode()]),
        "protobuf": Reader(read_model, [(folder / MODEL).read_bytes() for folder in artifacts]),
        "manifest": Reader(read_described, [(folder / MANIFEST).read_bytes() for folder in artifacts]),
        "TOML": Reader(read_settings, [MIXED.encode()]),
    }


NAMES = ("CSV for training", "CSV", "Arrow", "JSON", "MLflow", "tensors", "protobuf", "manifest", "TOML")


def test_every_reader_is_fuzzed_and_accepts_its_valid_inputs(readers):
    assert set(NAMES) == set(readers)
    for reader in readers.values():
        for valid in reader.valid:
            reader.read(valid)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_damaged_bytes_raises_only_the_packages_own_errors(name, readers):
    accepted, refused, faults = fuzz(name, readers[name])

    assert [] == faults[:10]
    assert INPUTS == accepted + refused
    assert refused > INPUTS // 10  # the damage is seen,
    assert accepted > 0  # and is not always at the first byte


# The negative controls


def test_a_reader_that_raises_another_error_is_found(readers):
    assert fuzz("careless", Reader(json.loads, readers["JSON"].valid), 50).faults


def test_a_reader_that_takes_too_much_memory_is_found(readers):
    greedy = Reader(lambda data: bytearray(2 * MOST_BYTES), readers["JSON"].valid)

    assert "MemoryError" in fuzz("greedy", greedy, 1).faults[0]


def test_a_reader_that_takes_too_long_is_found(readers, monkeypatch):
    monkeypatch.setitem(globals(), "MOST_SECONDS", 0.05)
    slow = Reader(lambda data: time.sleep(0.1), readers["JSON"].valid)

    assert fuzz("slow", slow, 1).faults
