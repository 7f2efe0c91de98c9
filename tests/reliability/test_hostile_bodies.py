"""Bodies of JSON that mean harm, and extreme numbers and counts."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import made
from clients import Answer, ask, request_of
from projects import ROUTE
from started import serving

from gleaner.table.numbers import LARGEST

CORPUS = Path(__file__).parent / "data" / "json_parsing.tsv"


def corpus() -> dict[str, bytes]:
    """Return the bodies of JSONTestSuite, by name.

    n_ is invalid, y_ is valid, i_ may be either.
    """
    lines = csv.reader(CORPUS.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    bodies = {name: json.loads(text).encode("latin-1") for name, text in lines}
    bodies["i_structure_500_nested_arrays"] = b"[" * 500 + b"]" * 500
    bodies["n_structure_100000_opening_arrays"] = b"[" * 100_000
    bodies["n_structure_open_array_object"] = b'[{"":' * 50_000 + b"\n"
    return bodies


def whole(body: bytes) -> bytes:
    return body


def as_value(body: bytes) -> bytes:
    return b'{"time_spent": ' + body + b', "doors_in_route": 50, "assessed_value": 200000}'


def as_tensor(body: bytes) -> bytes:
    return b'{"inputs": [{"name": "time_spent", "datatype": "FP64", "shape": [1], "data": ' + body + b"}]}"


# MLflow's own clients write NaN for a missing value, so at /invocations it is read, and refused as a value.
LITERAL_NAN = "n_number_NaN"

PLACES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "v1": ("/v1/predict", whole),
    "v2": ("/v2/predict", whole),
    "a value in v1": ("/v1/predict", as_value),
    "a value in v2": ("/v2/predict", as_value),
    "MLflow": ("/invocations", whole),
    "tensors": ("/v2/models/made/infer", whole),
    "a tensor": ("/v2/models/made/infer", as_tensor),
}


def misread(port: int, places: Iterable[str] = PLACES) -> list[str]:
    """Return the files of the corpus that get another status than wanted."""
    faults = []
    for place_ in places:
        path, wrap = PLACES[place_]
        bodies = corpus()
        answers = ask(port, [request_of(wrap(body), path=path) for body in bodies.values()])
        for name, answer in zip(bodies, answers, strict=True):
            wanted = {400} if name.startswith("n_") else {200, 400, 422}
            if (place_, name) == ("MLflow", LITERAL_NAN):
                wanted = {422}
            if answer is None or answer.status not in wanted:
                faults.append(f"{place_}: {name}: {answer and answer.status}")
    return faults


def test_every_invalid_file_of_the_corpus_is_400_and_none_a_5xx(tmp_path, figure):
    bodies = corpus()
    assert [188, 95, 35] == [sum(name.startswith(kind) for name in bodies) for kind in ("n_", "y_", "i_")]
    made.place(tmp_path)
    with serving(tmp_path) as service:
        faults = misread(service.port)

    assert [] == faults
    figure("J1", f"{len(bodies)} files in {len(PLACES)} places: every invalid one 400, no 5xx")


# Python's own reader: NaN is a number, and deep nesting a RecursionError
LENIENT = """
import json
from gleaner.serving.formats import json as strict
strict.read_json = lambda body, *, max_depth: json.loads(body)
"""


def test_a_lenient_reader_is_found(tmp_path):
    made.place(tmp_path)
    with serving(tmp_path, patch=LENIENT) as service:
        faults = misread(service.port, ["v1", "MLflow"])

    assert "v1: n_number_NaN: 422" in faults
    assert "MLflow: n_structure_100000_opening_arrays: 500" in faults


# Extreme numbers and counts

# Without bounds of its own, a column takes numbers up to the largest of single precision.
SMALL = ("3e38", "-3e38", "5e-324", "-5e-324", "2.2e-308", "-0.0", "9007199254740993", repr(LARGEST), repr(-LARGEST))
GREAT = ("1e308", "-1e308", "1e309", "-1e309", "1" + "0" * 400, repr(math.nextafter(LARGEST, math.inf)))
NUMBERS = {
    **dict.fromkeys((*SMALL, "0"), 200),
    **dict.fromkeys((*GREAT, "null", '"1"', "true", "[]"), 422),
    **dict.fromkeys(("NaN", "Infinity", "-Infinity", "0x10", "1_000", "01", ".5", "1."), 400),
}
MOST_ROWS, MOST_TABLE_ROWS = 10_000, 20_000
HEADER = b"time_spent,doors_in_route,assessed_value\n"
COUNTS = {
    **{("JSON", rows): 200 for rows in (0, 1, MOST_ROWS)},
    **{("CSV", rows): 200 for rows in (0, 1, MOST_TABLE_ROWS)},
    ("JSON", MOST_ROWS + 1): 413,
    ("CSV", MOST_TABLE_ROWS + 1): 413,
}


def unbounded(folder: Path, name: str) -> Path:
    """Write an artifact whose columns have no bounds."""
    folder = made.copy(made.artifact(name), folder)
    features = json.loads((folder / "manifest.json").read_bytes())["features"]
    return made.rewrite(folder, features=[{"name": each["name"], "type": "float"} for each in features])


def not_finite(answer: Answer) -> bool:
    """Return whether a response has a prediction that is not finite."""
    if answer.status != 200:
        return False
    found = json.loads(answer.content)["prediction"]
    return not all(isinstance(number, int | float) and math.isfinite(number) for number in found)


def ask_for_numbers(port: int) -> dict[str, Answer]:
    """Send every number alone and beside a good row, to both slots."""
    requests = {}
    for path in ("/v1/predict", "/v2/predict"):
        for value in NUMBERS:
            row = as_value(value.encode())
            requests[f"{path} {value}"] = request_of(row, path=path)
            requests[f"{path} {value} in a list"] = request_of(
                b"[%s,%s]" % (json.dumps(ROUTE).encode(), row), path=path
            )
    return {name: answer for name, answer in zip(requests, ask(port, list(requests.values())), strict=True) if answer}


def test_extreme_numbers_and_counts_have_their_status_and_finite_predictions(tmp_path, figure):
    made.place(tmp_path, *(unbounded(tmp_path / name, name) for name in ("decision_tree", "linear")))
    with serving(tmp_path, GLEANER_SERVING__MAX_TABLE_ROWS=str(MOST_TABLE_ROWS)) as service:
        answers = ask_for_numbers(service.port)
        counted = ask(
            service.port,
            [
                request_of(json.dumps([ROUTE] * rows).encode())
                if kind == "JSON"
                else request_of(HEADER + b"30,50,200000\n" * rows, kind="text/csv")
                for kind, rows in COUNTS
            ],
        )

    assert 4 * len(NUMBERS) == len(answers)
    assert [] == [name for name, answer in answers.items() if not_finite(answer)]
    assert {} == {name: a.status for name, a in answers.items() if a.status != NUMBERS[name.split(" ")[1]]}
    assert list(COUNTS.values()) == [answer.status for answer in counted]
    assert [0, 1, MOST_ROWS] == [len(json.loads(answer.content)["prediction"]) for answer in counted[:3]]
    figure("J4", f"{len(answers)} requests with extreme numbers, {len(COUNTS)} with extreme counts: as documented")


# A predictor that sends what the model says
UNCHECKED = """
import math
math.isfinite = lambda number: True
from gleaner.serving.formats import json as written
written._encode = lambda value: __import__("json").dumps(value).encode()
"""


def test_a_prediction_that_is_not_finite_is_found(tmp_path):
    made.place(tmp_path, made.exploding_artifact(tmp_path / "exploding"))
    long_route = request_of(json.dumps({**ROUTE, "time_spent": 1_440}).encode())
    with serving(tmp_path) as service:
        [checked] = ask(service.port, [long_route])
    with serving(tmp_path, patch=UNCHECKED) as service:
        [unchecked] = ask(service.port, [long_route])

    assert (500, False) == (checked.status, not_finite(checked))
    assert not_finite(unchecked)
