"""Make the tables of this folder, each with one kind of entry.

`NAME.csv` is the table as a person has it. `NAME.json` has its rows as JSON would: one object for each row, `null` for
a row that has to be refused. Run `python tests/data/tables/make.py` after a change.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROWS = 60

Row = dict[str, Any]
Made = tuple[bytes, list[Row | None]]


def bags_of(numbers: random.Random, *parts: float) -> float:
    """Return a target that no column gives away: a sum with noise."""
    return round(sum(parts) + numbers.gauss(0, 1.5), 1)


def text_of(rows: Sequence[Sequence[object]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue()


def rows_of(seed: int) -> Iterator[tuple[int, random.Random, int, float]]:
    """Yield (number, random numbers, doors, hours) of each row of a drive."""
    numbers = random.Random(seed)
    for i in range(ROWS):
        yield i, numbers, numbers.randrange(20, 400), numbers.randrange(4, 40) / 4


def gaps() -> Made:
    """Missing values: empty cells, a word, a number, and no target."""
    lines: list[list[object]] = [["doors", "hours", "value", "bags"]]
    truth: list[Row | None] = []
    for i, numbers, doors, hours in rows_of(1):
        value = None if i % 5 == 2 else numbers.randrange(90, 900) * 1000
        row: Row = {"doors": None if i % 7 == 3 else doors, "hours": None if i % 6 == 1 else hours, "value": value}
        lines.append(
            [
                "" if row["doors"] is None else doors,
                "n/a" if row["hours"] is None else hours,
                -999 if value is None else value,
                "NA" if i % 20 == 19 else bags_of(numbers, doors / 9, hours),
            ]
        )
        truth.append(row)
    return text_of(lines).encode(), truth


def words() -> Made:
    """Words with blanks, yes and no, and codes that begin with 0."""
    lines: list[list[object]] = [["doors", "street", "ward", "rain", "bags"]]
    truth: list[Row | None] = []
    for i, numbers, doors, _ in rows_of(2):
        street = ("Oak", "Elm", "Ash")[i % 3]
        ward = f"0{numbers.randrange(1, 5)}70"
        rain = numbers.random() < 0.4
        shown = (street, f" {street} ")[i % 2]
        lines.append([doors, shown, ward, "yes" if rain else "no", bags_of(numbers, doors / 9, 3 * (i % 3), -4 * rain)])
        truth.append({"doors": doors, "street": street, "ward": ward, "rain": rain})
    return text_of(lines).encode(), truth


def dates() -> Made:
    """Dates with the day first, compact dates, and times of ISO 8601."""
    lines: list[list[object]] = [["drive", "planned", "begin", "doors", "bags"]]
    truth: list[Row | None] = []
    for _, numbers, doors, _ in rows_of(3):
        day = dt.date(2023, 1, 1) + dt.timedelta(numbers.randrange(700))
        planned = day - dt.timedelta(numbers.randrange(1, 60))
        begin = dt.datetime(day.year, day.month, day.day, numbers.randrange(8, 19), numbers.choice((0, 15, 30)))
        bags = bags_of(numbers, doors / 9, 6 * (day.month == 12), begin.hour > 12)
        lines.append([f"{day:%d.%m.%Y}", f"{planned:%Y%m%d}", begin.isoformat(), doors, bags])
        truth.append(
            {
                "drive": day.isoformat(),
                "planned": planned.isoformat(),
                "begin": begin.isoformat(),
                "doors": doors,
            }
        )
    return text_of(lines).encode(), truth


def decimal_commas() -> Made:
    """Numbers as Europe writes them: commas, currency, percents, brackets."""
    lines: list[list[object]] = [["Fläche", "Wert", "Anteil", "Saldo", "Spenden"]]
    truth: list[Row | None] = []
    for _, numbers, _, hours in rows_of(4):
        value = numbers.randrange(9_000_000, 90_000_000) / 100
        share, balance = numbers.randrange(1, 1000) / 10, numbers.randrange(-9_999, 9_999) / 100
        wert = f"{value:,.2f} €".translate(str.maketrans(",.", ".,"))
        saldo = f"{abs(balance):.2f}".replace(".", ",")
        cells = [f"{hours * 10:.1f}", wert, f"{share:.1f} %", f"({saldo})" if balance < 0 else saldo]
        plain = bags_of(numbers, value / 1e5, hours)
        lines.append(
            [
                *(cell.replace(".", ",") if at in (0, 2) else cell for at, cell in enumerate(cells)),
                f"{plain:.1f}".replace(".", ","),
            ]
        )
        truth.append({"fläche": hours * 10, "wert": value, "anteil": share, "saldo": balance})
    return text_of(lines, ";", "\r\n").encode("cp1252"), truth


def titles() -> Made:
    """Titles above the header, the header once more, and totals."""
    header = ["route", "doors", "hours", "bags"]
    lines: list[list[object]] = [["Food drive"], ["made in May", "by hand"], [], list(header)]
    truth: list[Row | None] = []
    bags: list[int] = []
    for i, numbers, doors, hours in rows_of(5):
        if i == 30:
            lines.append(list(header))
            truth.append(None)
        bags.append(round(bags_of(numbers, doors / 9, hours)))
        lines.append([f"route {i + 1}", doors, hours, bags[-1]])
        truth.append({"doors": doors, "hours": hours})
    known = [row for row in truth if row]
    lines.append(["Total", sum(row["doors"] for row in known), sum(row["hours"] for row in known), sum(bags)])
    truth.append(None)
    return ("sep=;\r\n" + text_of(lines, ";", "\r\n")).encode(), truth


def old_mac() -> Made:
    """Lone carriage returns, and `|` between cells."""
    lines: list[list[object]] = [["doors", "hours", "bags"]]
    truth: list[Row | None] = []
    for _, numbers, doors, hours in rows_of(6):
        lines.append([doors, hours, bags_of(numbers, doors / 9, hours)])
        truth.append({"doors": doors, "hours": hours})
    return text_of(lines, "|", "\r").encode(), truth


def scripts() -> Made:
    """Headers of two scripts, one with accents apart, as on a Mac."""
    lines: list[list[object]] = [["двери", unicodedata.normalize("NFD", "Säcke je Straße"), "мешки"]]
    truth: list[Row | None] = []
    for _, numbers, doors, hours in rows_of(7):
        lines.append([doors, hours, bags_of(numbers, doors / 9, hours)])
        truth.append({"двери": doors, "säcke_je_straße": hours})
    return text_of(lines).encode("utf-8-sig"), truth


def encoded(encoding: str, header: str, chosen: Sequence[str], seed: int) -> Made:
    lines: list[list[object]] = [["doors", header, "bags"]]
    truth: list[Row | None] = []
    for i, numbers, doors, _ in rows_of(seed):
        word = chosen[i % len(chosen)]
        lines.append([doors, word, bags_of(numbers, doors / 9, 3 * (i % len(chosen)))])
        truth.append({"doors": doors, header: word})
    return text_of(lines).encode(encoding), truth


def leaks() -> Made:
    """Columns to leave out: ids, a constant, a double, a sum."""
    lines: list[list[object]] = [["id", "year", "doors", "doors again", "members", "guests", "hours", "people"]]
    truth: list[Row | None] = []
    for i, numbers, doors, hours in rows_of(8):
        members, guests = numbers.randrange(1, 90) + doors // 4, numbers.randrange(1, 90)
        lines.append([4000 + i, 2024, doors, doors, members, guests, hours, members + guests])
        truth.append({"doors": doors, "hours": hours})
    return text_of(lines).encode(), truth


TABLES: dict[str, Callable[[], Made]] = {
    "gaps": gaps,
    "words": words,
    "dates": dates,
    "decimal-commas": decimal_commas,
    "titles": titles,
    "old-mac": old_mac,
    "scripts": scripts,
    "cp1250": lambda: encoded("cp1250", "ulica", ["Łąkowa", "Świętojańska", "Źródlana"], 9),
    "cp1251": lambda: encoded("cp1251", "улица", ["Садовая", "Лесная", "Школьная"], 10),
    "cp949": lambda: encoded("cp949", "동네", ["종로구", "강남구", "마포구"], 11),
    "utf-16": lambda: encoded("utf-16", "rue", ["Église", "Forêt", "Marché"], 12),
    "leaks": leaks,
}


def main() -> None:
    for name, make in TABLES.items():
        body, truth = make()
        (FOLDER / f"{name}.csv").write_bytes(body)
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in truth)
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
