"""A synthetic food drive: writes routes.csv, and checks models of it.

    python examples/food-drive/make_routes.py            write it, then check it (half a minute)
    python examples/food-drive/make_routes.py --check    only check the present file

Every name is invented. The distributions follow the statistics of a real drive's table. For one route:

    routes   1, or 2 to 8; the share of people with several depends on their stake, 0.28 or 0.6
    doors    ln doors = 4.70 + 0.92 ln routes + a residual with a long tail of short routes (a mirrored gamma, sd 0.75)
    minutes  ln minutes = 2.94 + 0.39 ln routes + 0.16 ln doors + a heavy-tailed residual (0.32 times Student's t with
             3 degrees of freedom); at most 270, and 92 % of them rounded to 5
    bags     (7.82 + 0.192 minutes + 0.0473 doors + 8.49 (routes - 1)) times the stake's generosity, 0.9 to 1.6, times
             log-normal noise of mean 1, whose sigma runs from 0.25 to 0.7 and is 0.385 on average (a beta); a quarter
             rounded to 5, at most 200

Then the errors: 7 % of doors imputed with 194, no city ward (and the stake's value) for 4 rows in 10, a mojibake name,
2 for "Routes Completed" where the routes were not counted, one 555 instead of about 55, and a test row a year later.
"Time Spent" looks like "Time to Complete (min)", and is not: 7 % are imputed with a mean, 5 % are a time of day in
minutes (655 is 10:55).

Generosity, the noise's beta, the tail of minutes and the place of the typo were tuned over seeds 0 to 19, until the
mean r2 was near the real drive's. Over seeds 0 to 14 it is: linear 0.45 (the real drive: 0.47), decision_tree 0.28
(0.34), random_forest 0.45 (0.51), gradient_boosting 0.51 (0.47). A single seed moves these by 0.05 to 0.1. SEED is the
first of 0, 1, 2, ... for which every claim below holds, and the only one of those fifteen.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROUTES = Path(__file__).with_name("routes.csv")
SETTINGS = Path(__file__).parents[2] / "gleaner.toml"
SEED = 8

HEADER = (
    "Date",
    "Location",
    "Stake",
    "Ward/Branch",
    "# of Adult Volunteers",
    "# of Youth Volunteers",
    "Donation Bags Collected",
    "Time to Complete (min)",
    "Completed More Than One Route",
    "Routes Completed",
    "Doors in Route",
    "Time Spent",
    "Neighbourhood",
    "Ward",
    "Assessed Value",
    "New Route Number/Name",
)

# Meeting places; the assessed value where the city ward is missing; the share of people who take several routes;
# generosity.
STAKES = {
    "Lanternfield": (("Lanternfield Hall", "Tollgate House"), "851000", 0.28, 0.9),
    "Harrowmere": (("Harrowmere Hall", "Saltmarket Hall", "The Old Granary"), "6480500", 0.28, 1.0),
    "Quillmoor": (("Quillmoor Hall", "Ropewalk House"), "1169500", 0.28, 0.9),
    "Thistledown": (("Thistledown Hall",), "729406.4516", 0.6, 1.6),
}
CITY_WARDS = {
    "Avocet Ward": "298000",
    "Curlew Ward": "144500",
    "Dipper Ward": "812500",
    "Dunlin Ward": "509000",
    "Knot Ward": "27940000",
    "Plover Ward": "167000",
    "Sanderling Ward": "121500",
    "Whimbrel Ward": "6811240.75",
}
# Each ward of the church: its stake, its ward of the city (or none), and its routes, 449 in all.
WARDS = (
    ("Amberbrook Ward", "Lanternfield", "Curlew Ward", 44),
    ("Copperwell Ward", "Lanternfield", "Curlew Ward", 32),
    ("Dovecote Ward", "Lanternfield", "", 31),
    ("Fiddler's Green Ward", "Lanternfield", "Dunlin Ward", 34),
    ("Gorse Lane Ward", "Lanternfield", "", 31),
    ("Côte Verte Ward".encode().decode("cp1252"), "Lanternfield", "", 19),
    ("Hobnail Branch", "Lanternfield", "Sanderling Ward", 1),
    ("Inkwell Ward", "Harrowmere", "Plover Ward", 43),
    ("Juniper Rise Ward", "Harrowmere", "", 32),
    ("Kilnside Ward", "Harrowmere", "Plover Ward", 28),
    ("Larkspur Ward", "Harrowmere", "Dipper Ward", 17),
    ("Mossgate Branch", "Harrowmere", "Whimbrel Ward", 6),
    ("Nettlebank Ward", "Quillmoor", "Knot Ward", 42),
    ("Orchard Steps Ward", "Quillmoor", "", 20),
    ("Pepperfield Ward", "Quillmoor", "Avocet Ward", 15),
    ("Rushlight Ward", "Thistledown", "", 22),
    ("Sorrel Bridge Ward", "Thistledown", "", 20),
    ("Tinker's Cross Ward", "Thistledown", "", 12),
)

DRIVE, STRAY = dt.datetime(2024, 9, 14), dt.datetime(2025, 8, 30, 16, 3)
LONGEST, MOST_DOORS, MOST_BAGS, TYPO, IMPUTED_DOORS = 270, 2_500, 200, 555, 194


def make_rows(seed: int = SEED) -> list[list[str]]:
    """Return the rows below the header, in the order of their dates."""
    # The old generator, since NumPy promises that its numbers for a seed never change.
    random = np.random.RandomState(seed)
    of_ward = random.permutation([i for i, (*_, count) in enumerate(WARDS) for _ in range(count)])
    n = len(of_ward)

    def happens(share: Any) -> Any:
        return random.random_sample(n) < share

    # The facts: the routes that people took, the doors along them, the minutes, the bags.
    several = happens([STAKES[WARDS[i][1]][2] for i in of_ward])
    routes = np.where(several, random.choice(range(2, 9), n, p=[0.72, 0.18, 0.04, 0.02, 0.02, 0.01, 0.01]), 1)
    short = 0.75 * (1.5 - random.standard_gamma(1.5, n)) / np.sqrt(1.5)
    doors = np.clip(np.exp(4.70 + 0.92 * np.log(routes) + short), 1, MOST_DOORS).round()
    minutes = np.exp(2.94 + 0.39 * np.log(routes) + 0.16 * np.log(doors) + 0.32 * random.standard_t(3, n))
    minutes = np.where(happens(0.92), np.maximum(5, 5 * np.round(minutes / 5)), np.maximum(1, np.round(minutes)))
    minutes = np.minimum(minutes, LONGEST)
    sigma = 0.25 + 0.45 * random.beta(0.6, 1.4, n)
    bags = 7.82 + 0.192 * minutes + 0.0473 * doors + 8.49 * (routes - 1)
    bags *= [STAKES[WARDS[i][1]][3] for i in of_ward]
    bags *= np.exp(sigma * random.standard_normal(n) - sigma**2 / 2)
    bags = np.minimum(np.where(happens(0.25), 5 * np.round(bags / 5), np.round(bags)), MOST_BAGS)
    adults = random.choice(range(8), n, p=[0.01, 0.22, 0.59, 0.11, 0.04, 0.015, 0.01, 0.005])
    youth = random.choice(range(8), n, p=[0.39, 0.17, 0.19, 0.14, 0.07, 0.02, 0.01, 0.01])
    reported = 615 + random.exponential(25, n).round() + minutes
    days_late = happens(0.05) * random.randint(1, 6, n)

    # The file: the facts with their errors.
    noted = np.where(routes > 2, routes, 2)
    listed = np.where(happens(0.07), IMPUTED_DOORS, doors)
    spent = np.where(happens(0.45), minutes, np.maximum(5, minutes - random.randint(-15, 20, n)))
    spent = np.where(happens(0.07), spent.mean().round(8), spent)
    spent = np.where(happens(0.05), reported, spent)
    # The typo is in a route of ordinary size, since trees would learn an unusual route by heart.
    unlike = np.abs(np.log([(bags + 1) / 56, minutes / 45, listed / 194])).sum(axis=0)
    bags[np.argmin(unlike)] = TYPO

    numbers_of = zip(adults, youth, bags, minutes, several, noted, listed, spent, strict=True)
    rows = [
        _row(WARDS[i], DRIVE + dt.timedelta(days=int(late), minutes=int(at)), [f"{number:.10g}" for number in numbers])
        for i, at, late, numbers in zip(of_ward, reported, days_late, numbers_of, strict=True)
    ]
    rows.append(_row(WARDS[0], STRAY, ["2", "2", "5", "2", "0", "2", "194", "2"]))
    rows.sort(key=lambda row: row[0])
    numbered: Counter[str] = Counter()
    for row in rows:
        numbered[row[2]] += 1
        row.append(f"{row[2]} {numbered[row[2]]}")
    return rows


def _row(ward: tuple[str, str, str, int], reported: dt.datetime, numbers: Sequence[str]) -> list[str]:
    """Return one row without its last cell, the route's new name."""
    name, stake, city_ward, _ = ward
    places, value, *_ = STAKES[stake]
    place = places[WARDS.index(ward) % len(places)]
    neighbourhood = name.removesuffix(" Ward").upper()
    return [
        f"{reported:%Y-%m-%d %H:%M}",
        place,
        f"{stake} Stake",
        name,
        *numbers,
        neighbourhood,
        city_ward,
        CITY_WARDS.get(city_ward, value),
    ]


def write_routes(path: Path, seed: int = SEED) -> None:
    """Write the file in UTF-8, the same bytes every time."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(make_rows(seed))


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of two trainings.

    raw, clean: the event Fitted of each candidate, with the whole file and without its two planted rows.
    raw_constant, clean_constant: the scores of always predicting the median.
    champion: the champion of the whole file.
    suspects: the lines of the suspect rows.
    test_line, typo_line: the lines of the planted rows.
    """

    table: Any
    raw: Mapping[str, Any]
    clean: Mapping[str, Any]
    raw_constant: Any
    clean_constant: Any
    champion: Any
    suspects: frozenset[int]
    test_line: int
    typo_line: int


def measure(path: Path) -> Measured:
    """Train twice, with the project's own gleaner.toml."""
    # Imported here, because writing the file needs NumPy alone.
    from gleaner.settings.load import load_settings
    from gleaner.table.csv import read_table
    from gleaner.training.events import Chosen, Fitted, Suspect, TableRead
    from gleaner.training.train import train

    settings = load_settings(SETTINGS)
    table = read_table(path, settings.schema_)
    test, typo = int(np.argmax(table.days)), int(np.argmax(table.y))
    keep = np.delete(np.arange(len(table.y)), [test, typo])
    parted = replace(table, X=table.X[keep], y=table.y[keep], lines=table.lines[keep], days=table.days[keep])
    raw, clean = list(train(table, settings)), list(train(parted, settings))

    def fitted(events: list[Any]) -> dict[str, Any]:
        return {event.candidate: event for event in events if isinstance(event, Fitted)}

    return Measured(
        table=table,
        raw=fitted(raw),
        clean=fitted(clean),
        raw_constant=next(event.constant for event in raw if isinstance(event, TableRead)),
        clean_constant=next(event.constant for event in clean if isinstance(event, TableRead)),
        champion=next(event.champion for event in raw if isinstance(event, Chosen)),
        suspects=frozenset(event.line for event in raw if isinstance(event, Suspect)),
        test_line=int(table.lines[test]),
        typo_line=int(table.lines[typo]),
    )


# Out-of-fold r2 on the real drive without its typo and its test row, to be met within 0.06.
WANTED_R2 = {"linear": 0.47, "decision_tree": 0.34, "random_forest": 0.51, "gradient_boosting": 0.47}


def claims(found: Measured) -> Iterator[tuple[str, str, object, bool]]:
    """Yield each claim: its name, wanted, got, and whether it holds."""
    champion, constant = found.champion, found.raw_constant
    yield "rows used", "450", len(found.table.y), len(found.table.y) == 450
    yield "rows refused", "0", found.table.refused, found.table.refused == 0
    for name, wanted in WANTED_R2.items():
        got = found.clean[name].scores.r2
        yield f"clean r2 of {name}", f"{wanted} +- 0.06", f"{got:.3f}", abs(got - wanted) <= 0.06
    for name, raw in found.raw.items():
        half = raw.scores.r2 / found.clean[name].scores.r2
        yield f"raw r2 of {name} as a share of clean", "0.25 to 0.75", f"{half:.2f}", 0.25 <= half <= 0.75
    yield "the champion's accuracy", "0.84 or more", f"{champion.scores.accuracy:.3f}", champion.scores.accuracy >= 0.84
    yield "the champion's training loss", "0.40 or less", f"{champion.training_loss:.3f}", champion.training_loss <= 0.4
    gain = champion.scores.mae / constant.mae
    yield "the champion's mae as a share of the constant's", "0.85 or less", f"{gain:.2f}", gain <= 0.85
    lead = champion.scores.accuracy - constant.accuracy
    yield "the champion's accuracy above the constant's", "0.05 or more", f"{lead:.3f}", lead >= 0.05
    depth = found.raw["decision_tree"].parameters["max_depth"]
    yield "depth of the decision tree", "3", depth, depth == 3
    planted = {found.test_line, found.typo_line}
    yield "planted rows among the suspects", str(sorted(planted)), sorted(found.suspects), planted <= found.suspects
    others = len(found.suspects - planted)
    yield "other suspects", "5 or fewer", others, others <= 5


def main() -> int:
    """Write and check; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description="Write the sample, and check models of it.")
    parser.add_argument("--check", action="store_true", help="write nothing; check the present file")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--to", type=Path, default=ROUTES, metavar="CSV")
    options = parser.parse_args()
    if not options.check:
        write_routes(options.to, options.seed)
    found = measure(options.to)
    print(f"{'candidate':18}  r2 clean    r2 raw   mae raw  accuracy raw  training loss raw")
    for name, raw in [("(constant)", None), *found.raw.items()]:
        clean, scores = (found.clean[name].scores, raw.scores) if raw else (found.clean_constant, found.raw_constant)
        loss = f"{raw.training_loss:18.3f}" if raw else ""
        print(f"{name:18} {clean.r2:9.3f} {scores.r2:9.3f} {scores.mae:9.2f} {scores.accuracy:13.3f} {loss}")
    print(f"champion: {found.champion.candidate}")
    wrong = 0
    for what, wanted, got, right in claims(found):
        wrong += not right
        print(f"{'ok   ' if right else 'WRONG'}  {what}: wanted {wanted}, got {got}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
