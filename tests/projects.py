"""Settings and tables of the small projects that tests train."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file without a licence, so it is not in the repository: the one part whose absence skips a test, under CI too.
REAL_ROUTES = Path(os.environ.get("GLEANER_REAL_ROUTES", ""))
needs_real_routes = pytest.mark.skipif(
    "GLEANER_REAL_ROUTES" not in os.environ, reason="GLEANER_REAL_ROUTES names no file"
)


ROUTE = {"time_spent": 30, "doors_in_route": 50, "assessed_value": 200000}


NUMBER = 6091 / 276  # 22.068840579710145, every digit


SETTINGS = """
[model]
name = "made"
target = "bags"
min = 0.0

[[features]]
name = "time_spent"
min = 0.0
max = 1440.0
monotone = "up"

[[features]]
name = "doors_in_route"
min = 0.0
max = 10000.0

[[features]]
name = "assessed_value"
min = 0.0
max = 1e9

[training]
data = "made.csv"
candidates = ["linear", "decision_tree"]
champion = "decision_tree"
challenger = "linear"
repeats = 1
"""


MIXED = """
[model]
name = "mixed"
target = "change"

[[features]]
name = "share"
min = -1.0
max = 1.0

[[features]]
name = "balance"

[[features]]
name = "people"
type = "int"
min = 0
max = 50

[[features]]
name = "zone"
type = "category"
values = ["north", "South, west", "été \\"2\\""]

[training]
data = "mixed.csv"
candidates = ["linear", "decision_tree"]
champion = "linear"
challenger = "decision_tree"
folds = 2
repeats = 1

[scores]
loss = "standardised_squared_error"
accuracy = { within = 10.0 }
"""


GAPPY = """
[model]
name = "gappy"
target = "price"
target_missing_values = ["n/a"]
min = 0.0

[[features]]
name = "rooms"
min = 0.0
max = 100.0
missing = "allow"
missing_values = ["n/a"]

[[features]]
name = "zone"
type = "category"
values = "learn"
unknown = "other"
missing = "allow"

[[features]]
name = "sold"
type = "date"
parts = ["month", "days_since"]
missing = "allow"

[[features]]
name = "size"
min = 0.0
max = 1000.0

[training]
data = "gappy.csv"
candidates = ["linear", "decision_tree"]
champion = "linear"
challenger = "decision_tree"
folds = 2
repeats = 1

[scores]
loss = "standardised_squared_error"
accuracy = { within = 10.0 }
"""


def write_gappy_table(path: Path) -> None:
    """Make 300 rows with gaps in every feature but `size`."""
    random = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rooms", "zone", "sold", "size", "price"])
        for _ in range(300):
            rooms, zone = int(random.integers(1, 9)), str(random.choice(["north", "south", "west"]))
            sold, size = (
                f"2024-{random.integers(1, 13):02}-{random.integers(1, 29):02}",
                round(random.uniform(20, 300), 1),
            )
            price = 10 * rooms + size + (zone == "north") * 50 + random.normal(0, 5)
            gap = random.random(3) < 0.2
            if random.random() < 0.05:
                price = "n/a"
            writer.writerow(["n/a" if gap[0] else rooms, "" if gap[1] else zone, "" if gap[2] else sold, size, price])


ZONES = ("north", "South, west", 'été "2"')


def write_mixed_table(path: Path) -> None:
    """Make 200 rows of every type of feature; targets can be negative."""
    random = np.random.default_rng(0)
    share, balance = random.uniform(-1, 1, 200), random.normal(0, 1e6, 200)
    people, zone = random.integers(0, 51, 200), random.integers(0, 3, 200)
    change = 40 * share + balance / 1e5 - people + 10 * zone
    rows = zip(
        share.tolist(), balance.tolist(), people.tolist(), [ZONES[i] for i in zone], change.tolist(), strict=True
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["share", "balance", "people", "zone", "change"], *rows])


def write_made_table(path: Path) -> None:
    """Make 600 rows that any tree splits into two groups.

    276 of them are alike, and their bags sum to 6091.
    """
    random = np.random.default_rng(0)
    alike = [[30, 50, 200000, 23 if i < 19 else 22] for i in range(276)]
    others = [
        [t, d, v, t // 2 + d // 20] for t, d, v in random.integers((100, 60, 100000), (300, 900, 900000), (324, 3))
    ]
    rows = [*alike, *others]
    random.shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["time_spent", "doors_in_route", "assessed_value", "bags"], *rows])
