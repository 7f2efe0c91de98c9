"""The draft of a gleaner.toml loads, whatever file it was guessed from."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.drafting.draft import draft_settings
from gleaner.errors import BadTable
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.feature import Feature
from gleaner.table.tables import Table

ROUTES = """Date,Ward,Doors in Route,Time to Complete (min),Note,Donation Bags Collected
2023-09-23,north,50,30.5,-,14
2023-09-24,south,,25,-,18
2023-09-25,north,144,about 20,-,7
2023-09-26,,60,20,-,0
"""


def write(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def text_of(path: Path, target: str) -> str:
    return draft_settings(path, target).text


def load(path: Path, target: str) -> Settings:
    """Load the draft for a file as settings."""
    toml = path.parent / "gleaner.toml"
    toml.write_text(text_of(path, target), encoding="utf-8")
    return load_settings(toml)


def train_on(settings: Settings) -> Table:
    assert settings.data
    return read_table(settings.data, settings.schema_)


@pytest.fixture
def routes(tmp_path):
    path = tmp_path / "Routes of 2023.csv"
    path.write_text(ROUTES)
    return path


def test_numbers_words_dates_and_the_target_become_their_own_kind_of_column(routes):
    settings = load(routes, "Donation Bags Collected")

    assert "routes-of-2023" == settings.model.name
    assert ("donation_bags_collected", 0.0) == (settings.model.target, settings.model.min)
    assert ("date", "ward", "doors_in_route", "time_to_complete_min") == settings.schema_.names
    assert ["date", "category", "int", "float"] == [feature.type for feature in settings.features]
    assert ("north", "south") == settings.features[1].values
    assert ["refuse", "allow", "allow", "refuse"] == [feature.missing for feature in settings.features]


def test_a_draft_reads_the_file_that_it_was_guessed_from(routes):
    table = train_on(load(routes, "Donation Bags Collected"))

    assert [14.0, 18.0, 0.0] == table.y.tolist()
    assert [4] == [fault.number for fault in table.faults]
    assert "Time to Complete (min)" == table.taken["time_to_complete_min"]
    assert dt.date(2023, 9, 23).toordinal() == table.days[0]


def test_every_column_has_its_reason(routes):
    text = text_of(routes, "Donation Bags Collected")

    for said in (
        "# \"Note\" is left out: it is empty, but for '-'.",
        '# "Doors in Route": whole numbers; 1 of 4 cells is empty.',
        "# \"Time to Complete (min)\": numbers; 1 cell is no number, such as 'about 20': see `map`.",
        '# "Ward": words: 2 different ones; 1 of 4 cells is empty.',
        "# \"Date\": dates such as '2023-09-23'.",
    ):
        assert said in text.splitlines(), text


def column(*cells: object) -> list[list[object]]:
    """Return rows of a column beside a feature and a target."""
    random = [(i * 7_919) % 31 for i in range(len(cells))]
    return [["c", "x", "y"], *([cell, n, 3 + n % 5 * 2.5] for cell, n in zip(cells, random, strict=True))]


def feature(tmp_path: Path, *cells: object) -> Feature | None:
    """Return the drafted feature of a column, if it has one."""
    settings = load(write(tmp_path / "a.csv", *column(*cells)), "y")
    return next((feature for feature in settings.features if feature.name == "c"), None)


EUROPE = """Fläche;Preis;Anteil;Höhe;Menge;Kosten
80,5;2.891,57 €;64 %;2.25;1.234;56.350,50 €
353,2;812,00 €;5 %;3.1;2.345;247.240,00 €
1.020,0;9.000,10 €;7 %;2.75;5.125;714.000,00 €
95,4;1.500,00 €;12 %;2.8;1.500;66.780,00 €
"""


def test_a_european_table_is_drafted_in_its_own_notation(tmp_path):
    path = tmp_path / "haus.csv"
    path.write_text(EUROPE, encoding="utf-8")
    settings = load(path, "Kosten")
    table = train_on(settings)

    assert (",", ".", "€") == (settings.table.decimal, settings.table.thousands, settings.table.strip)
    assert ("fläche", "preis", "anteil", "höhe") == settings.schema_.names
    assert [[80.5, 2891.57, 64.0, 2.25], [353.2, 812.0, 5.0, 3.1]] == table.X[:2].tolist()
    assert [56350.5, 247240.0, 714000.0, 66780.0] == table.y.tolist()
    assert 0 == table.refused


def test_numbers_in_brackets_are_drafted_as_negative(tmp_path):
    rows = [(f"({i}.50)" if i % 3 else i, f"(€{i * 7 % 23})" if i % 2 else f"€{i}", i % 5) for i in range(1, 31)]
    table = train_on(load(write(tmp_path / "ledger.csv", ["balance", "profit", "y"], *rows), "y"))

    assert ("balance", "profit") == table.schema.names
    assert [[-i - 0.5 if i % 3 else i, -(i * 7 % 23) if i % 2 else i] for i in range(1, 31)] == table.X.tolist()


def test_a_column_wholly_in_brackets_is_left_to_a_person(tmp_path):
    assert feature(tmp_path, *[f"({i * 7 % 23 + 2})" for i in range(30)]) is None


def test_a_column_with_a_currency_sign_is_read_as_other_columns_settle_it(tmp_path):
    rows = [[f"{20 + i},5", f"{100 + i * i % 37}.{i:03} €"] for i in range(30)]
    path = tmp_path / "house.csv"
    path.write_text("\n".join(map(";".join, [["area", "price"], *rows])), encoding="utf-8")

    table = train_on(load(path, "price"))

    assert [(100 + i * i % 37) * 1000 + i for i in range(30)] == table.y.tolist()


def test_a_target_that_the_file_leaves_open_is_refused_with_the_way_to_answer(tmp_path):
    path = write(
        tmp_path / "open.csv", ["rooms", "price"], *([str(1 + i % 5), f"{100 + i}.{i:03} €"] for i in range(30))
    )

    with pytest.raises(BadTable, match=r"decide, and add .*`gleaner init --interactive` asks"):
        draft_settings(path, "price")


def test_a_column_that_reads_otherwise_than_the_others_is_left_to_a_person(tmp_path):
    path = tmp_path / "haus.csv"
    path.write_text(EUROPE, encoding="utf-8")
    [menge] = [one for one in draft_settings(path, "Kosten").decisions if one.header == "Menge"]
    [asked] = [one for one in draft_settings(path, "Kosten", lambda *_: 1).decisions if one.header == "Menge"]

    assert menge.feature is None
    assert menge.why.startswith("'1.234' is 1.234, or 1,234 as in other columns: decide, and add decimal = ")
    assert asked.feature is not None
    assert "int" == asked.feature.type


NUMBERS = [f"{i / 7:.2f}" for i in range(40)]
LARGE = [f"{i * 1000}" for i in range(90)] * 2


@pytest.mark.parametrize(
    ("cells", "keys"),
    [
        (["", "n/a", "NA", *NUMBERS], {"type": "float", "missing": "allow", "missing_values": ("n/a", "NA")}),
        (["-200"] * 3 + NUMBERS, {"type": "float", "missing": "allow", "missing_values": ("-200",), "min": 0.0}),
        (["999"] * 3 + NUMBERS, {"missing_values": ("999",)}),
        (["-999"] * 3 + LARGE, {"missing": "allow", "missing_values": ("-999",), "min": 0.0}),
        (["-999", "-9999"] * 3 + LARGE, {"missing_values": ("-9999", "-999")}),
        (["-999"] * 3 + ["-4", *LARGE], {"missing": "refuse", "min": None}),
        (["999"] * 3 + LARGE, {"missing": "refuse"}),
        (["-3", *NUMBERS], {"min": None, "missing": "refuse"}),
        (["yes", "No", "YES", "no"], {"type": "bool"}),
        (["20240131", "20231224", "20240501"], {"type": "date", "formats": ("%Y%m%d",)}),
        (["31.01.2024", "24.12.2023", "05.06.2024"], {"type": "date", "formats": ("%d.%m.%Y",)}),
        (["1/31/24", "12/24/23", "6/5/24"], {"type": "date", "formats": ("%m/%d/%y",)}),
        (["2024-01-31 08:00", "2024-02-01 09:30", "2024-07-01 09:30"], {"type": "datetime"}),
        (["01069", "10115", "01069", "80331"], {"type": "category", "values": ("01069", "10115", "80331")}),
        (["Petrol ", "petrol", "Diesel"], {"type": "category", "values": ("Diesel", "Petrol"), "fold": True}),
        ([f"w{i % 20}" for i in range(200)], {"values": "learn", "unknown": "other", "min_count": 5}),
        (["None", "Brick", "None", ""], {"values": ("Brick", "None"), "missing": "allow"}),
    ],
)
def test_a_column_is_taken_for_what_its_cells_are(tmp_path, cells, keys):
    found = feature(tmp_path, *cells)

    assert found is not None
    assert keys == {key: getattr(found, key) for key in keys}


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["only"] * 4, "its only value is 'only'"),
        (["", " ", ""], "it is empty"),
        ([f"name {i}" for i in range(40)], "it has 40 different words, and most are rare"),
        (list(range(1, 41)), "its numbers count the rows"),
        (
            ["01/02/2024", "03/04/2024", "05/06/2024"],
            "the file does not settle which date '01/02/2024' is: decide, and add "
            'formats = ["%d/%m/%Y"] or formats = ["%m/%d/%Y"]',
        ),
    ],
)
def test_a_column_that_is_no_feature_is_left_out_with_the_reason(tmp_path, cells, why):
    path = write(tmp_path / "a.csv", *column(*cells))

    assert f'# "c" is left out: {why}.' in text_of(path, "y").splitlines()
    assert ("x",) == load(path, "y").schema_.names


def test_what_the_file_leaves_open_can_be_answered(tmp_path):
    path = write(tmp_path / "a.csv", *column("01/02/2024", "03/04/2024", "05/06/2024"))
    asked = []

    def ask(question: str, answers: Sequence[str]) -> int:
        asked.append((question, list(answers)))
        return 1

    draft = draft_settings(path, "y", ask)

    assert [("'c': how is the date '01/02/2024' written?", ["%d/%m/%Y", "%m/%d/%Y"])] == asked
    assert 'formats = ["%m/%d/%Y"]' in draft.text


def test_a_unique_number_is_an_id_only_if_its_header_says_so(tmp_path):
    rows = [["house_id", "area", "y"], *([i * 37 + 11, i * 53 + 7, i % 9] for i in range(40))]

    assert ("area",) == load(write(tmp_path / "a.csv", *rows), "y").schema_.names


def test_columns_that_give_the_target_away_and_copies_are_left_out(tmp_path):
    header = ["casual", "registered", "cents", "x", "same", "y"]
    rows = [[i % 7, i * i % 11, (i % 7 + i * i % 11) * 100, i * 5 % 13, i * 5 % 13] for i in range(40)]
    path = write(tmp_path / "a.csv", header, *([*row, row[0] + row[1]] for row in rows))
    text = text_of(path, "y")

    assert ("x",) == load(path, "y").schema_.names
    for said in (
        "# \"cents\" is left out: it gives 'y' away: one is a straight line of the other.",
        "# \"casual\" is left out: with 'registered' it gives 'y' away: they add up to it.",
        "# \"same\" is left out: it has the same values as 'x'.",
    ):
        assert said in text.splitlines(), text


def test_two_columns_whose_rounded_mean_is_the_target_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    low, x = random.uniform(5, 60, 90).round(1), random.uniform(0, 9, 90).round(1)
    high = (low * random.uniform(1, 1.5, 90)).round(1)
    rows = np.column_stack([low, high, x, ((low + high) / 2).round(1)]).tolist()
    path = write(tmp_path / "a.csv", ["low", "high", "x", "y"], *rows)

    text = text_of(path, "y")

    assert ("x",) == load(path, "y").schema_.names
    assert "# \"low\" is left out: with 'high' it gives 'y' away: it is a weighted sum of the two." in text


def test_two_columns_that_come_close_to_the_target_stay(tmp_path):
    random = np.random.default_rng(0)
    a, b = random.uniform(0, 100, (2, 90)).round(1)
    rows = np.column_stack([a, b, (a + b + random.normal(0, 0.2, 90)).round(1)]).tolist()

    assert ("a", "b") == load(write(tmp_path / "a.csv", ["a", "b", "y"], *rows), "y").schema_.names


def test_a_word_for_a_missing_target_is_drafted(tmp_path):
    rows = [[i % 7, i * 5 % 13, "NA" if i % 9 == 0 else i] for i in range(40)]
    path = write(tmp_path / "a.csv", ["a", "b", "y"], *rows)

    assert ("NA",) == load(path, "y").model.target_missing_values
    assert 0 == draft_settings(path, "y").table.refused


def test_headers_of_any_script_are_names(tmp_path):
    rows = [["двери", "Łódź (km)", "y"], *([i * 5 % 13, i * 7 % 11, i] for i in range(20))]

    assert ("двери", "łódź_km") == load(write(tmp_path / "a.csv", *rows), "y").schema_.names


def test_the_bound_of_accuracy_lies_between_the_median_and_a_good_model(tmp_path):
    random = np.random.default_rng(0)
    x = random.uniform(0, 100, 400)
    for name, y in (("level", 1000 + x / 10), ("counts", np.round(x * 3)), ("signed", x - 50)):
        path = write(
            tmp_path / f"{name}.csv", ["x", "y"], *np.column_stack([x, y + random.normal(0, 0.2, 400)]).tolist()
        )
        text = text_of(path, "y")

        [said] = [line for line in text.splitlines() if line.startswith("# Out of fold")]
        good, median = (float(number) for number in re.findall(r"[01]\.\d\d", said)[:2])
        assert median < 0.8 < good, text


def test_the_target_is_found_as_a_header_is(routes):
    settings = load(routes, "donation  bags COLLECTED")

    assert ("Donation Bags Collected",) == settings.model.target_sources


def test_a_target_that_can_be_negative_gets_scores_that_take_it(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "y"], *([i * 3 % 17, i * 7 % 20 - 10] for i in range(40)))
    settings = load(path, "y")

    assert settings.model.min is None
    assert "standardised_squared_error" == settings.scores.loss
    assert {"within"} == settings.scores.accuracy.model_dump().keys()


def test_a_constant_negative_target_still_makes_a_draft_that_loads(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "y"], ["1", "-2"], ["2", "-2"])

    assert {"within": 1.0} == load(path, "y").scores.accuracy.model_dump()


def test_headers_that_differ_in_punctuation_alone_become_separate_features(tmp_path):
    rows = ["1", "2", "3", "4", "5"], ["7", "1", "2", "9", "6"]
    settings = load(write(tmp_path / "a.csv", ["A b", "a-b", "a_b", "y!", "y"], *rows), "y")

    assert ("a_b", "a_b_", "a_b__", "y_") == settings.schema_.names
    assert [1.0, 2.0, 3.0, 4.0] == train_on(settings).X[0].tolist()


def test_a_header_that_the_file_has_twice_is_left_out(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "b", " A", "y"], ["1", "2", "3", "4"])

    assert ("b",) == load(path, "y").schema_.names
    assert '# "a" is left out: the file has this header twice.\n' in text_of(path, "y")


def test_a_long_name_of_a_file_still_names_a_model(tmp_path):
    path = write(tmp_path / f"{'long ' * 40}.csv", ["a", "y"], ["1", "2"])

    assert load(path, "y").model.name.startswith("long-long-")


def test_a_draft_reads_every_row(tmp_path):
    rows = [[str(i), "2"] for i in range(10_000)] + [["1.5", "2"]] * 3

    assert "float" == load(write(tmp_path / "a.csv", ["a", "y"], *rows), "y").features[0].type


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["a", "bags"], ["1", "2"]], ", line 1: no column for 'bag': wanted 'bag'; did you mean 'bags'?"),
        ([["bag", "a", "BAG"], ["1", "2", "3"]], ", line 1: header 'bag' stands twice, as columns 1 and 3; rename one"),
        (
            [["a", "bag"], ["1", "7"], ["1", "many"], ["2", "few"]],
            ", line 3: wanted numbers in most rows of the target 'bag', got 'many'",
        ),
        ([["a", "bag"]], ": has a header and no rows below it"),
        ([["a", "bag"], ["1"]], ": the target 'bag' is empty in every row"),
        ([["a", "bag"], ["1", ""], ["2", " "]], ": the target 'bag' is empty in every row"),
        ([["bag"], ["1"]], ": no column can be a feature"),
        (
            [["bag", "a", "b"], *[["1", "x", ""]] * 3],
            ": no column can be a feature:\n  'a': its only value is 'x'\n  'b': it is empty",
        ),
    ],
)
def test_a_file_without_a_usable_target_or_feature_makes_no_draft(tmp_path, rows, said):
    path = write(tmp_path / "a.csv", *rows)

    with pytest.raises(BadTable) as caught:
        draft_settings(path, "bag")
    assert f"{path}{said}" == str(caught.value)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["1", "2.5", "-3", "1e400", "", "x", "é\U0001f600", '"\\', "\x7f", "\n", "[[features]]"]
)
FILES = itertools.count()


@profile(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_table_gives_a_draft_that_loads_or_a_reason(tmp_path, data):
    width = data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5))
    header = data.draw(st.lists(CELLS, min_size=width, max_size=width))
    path = tmp_path / f'{next(FILES)} \u00e9\U0001f600\x7f".csv'
    write(path, [*header, "the target"], *([*row, "7"] for row in rows))
    try:
        draft_settings(path, "the target")
    except BadTable as e:
        said = str(e)
    else:
        settings = load(path, "the target")
        assert path == settings.data
        known = {" ".join(cell.split()).casefold() for cell in header}
        assert all(" ".join(f.sources[0].split()).casefold() in known for f in settings.features)
        return

    assert said.startswith(str(path))
