"""A first gleaner.toml, guessed from real files; every one of them has to load."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from gleaner.draft import draft_settings
from gleaner.errors import BadTable
from gleaner.settings import Settings, load_settings
from gleaner.tables import Table, read_table

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


def load(path: Path, target: str) -> Settings:
    """The draft for a file, loaded as the settings that it is meant to be."""
    toml = path.parent / "gleaner.toml"
    toml.write_text(draft_settings(path, target), encoding="utf-8")
    return load_settings(toml)


def train_on(settings: Settings) -> Table:
    assert settings.data
    return read_table(settings.data, settings.schema_)


@pytest.fixture
def routes(tmp_path):
    path = tmp_path / "Routes of 2023.csv"
    path.write_text(ROUTES)
    return path


def test_numbers_words_and_the_target_are_told_apart(routes):
    settings = load(routes, "Donation Bags Collected")

    assert "routes-of-2023" == settings.model.name
    assert ("donation_bags_collected", 0.0) == (settings.model.target, settings.model.min)
    assert ("ward", "doors_in_route", "time_to_complete_min") == settings.schema_.names
    assert ["category", "int", "float"] == [feature.type for feature in settings.features]
    assert ("north", "south") == settings.features[0].values


def test_a_draft_reads_the_file_that_it_was_made_from(routes):
    table = train_on(load(routes, "Donation Bags Collected"))

    assert [14.0] == table.y.tolist()
    assert [3, 4, 5] == sorted({fault.number for fault in table.faults})
    assert "Time to Complete (min)" == table.taken["time_to_complete_min"]


def test_a_column_that_is_no_feature_is_left_out_by_name(routes):
    assert '# "Note" is left out: its only word is "-".\n' in draft_settings(routes, "Donation Bags Collected")


def test_an_empty_column_is_called_so(tmp_path):
    text = draft_settings(write(tmp_path / "a.csv", ["a", "b", "y"], ["1", " ", "2"], ["1", "", "2"]), "y")

    assert '# "b" is left out: it is empty.\n' in text


def test_a_column_of_dates_is_no_feature_and_tells_training_the_days(routes):
    settings = load(routes, "Donation Bags Collected")

    assert ("Date",) == settings.schema_.date_sources
    assert dt.date(2023, 9, 23).toordinal() == train_on(settings).days[0]
    assert '# "Date" is left out: dates are no feature; ' in draft_settings(routes, "Donation Bags Collected")


def test_of_several_columns_of_dates_the_first_that_stands_once_tells_the_days(tmp_path):
    header = ["seen", "SEEN", "Begun", "Reading Date", "a", "y"]
    rows = [
        ["2024-01-01", "2024-01-01", f"2024-{month:02}-01 08:00", f"2024-{month:02}-01", "5", "7"]
        for month in range(1, 13)
    ]
    rows[3][2] = rows[4][2] = "unknown"
    settings = load(write(tmp_path / "a.csv", header, *rows), "y")

    assert ("Begun",) == settings.schema_.date_sources
    assert ("a",) == settings.schema_.names
    assert 10 == sum(day == day for day in train_on(settings).days.tolist())


@pytest.mark.parametrize("date", ["31.01.2024", "1/31/24", "2024/1/31 8:00", "2024-01"])
def test_dates_that_training_does_not_read_are_no_words_of_a_category(tmp_path, date):
    path = write(tmp_path / "a.csv", ["a", "when", "y"], ["1", date, "2"], ["1", date.replace("3", "2"), "2"])
    said = (
        f'# "when" is left out: dates are no feature, and "{date}" is none that date_sources reads: wanted 2024-01-31.'
    )

    assert said in draft_settings(path, "y").splitlines()
    assert (("a",), ()) == (load(path, "y").schema_.names, load(path, "y").schema_.date_sources)


def test_a_column_of_decimal_commas_is_no_category(tmp_path):
    path = tmp_path / "euro.csv"
    path.write_text("Fl\u00e4che;Ort;Preis\n12,5;Ulm;100\n13,5;Bonn;200.5\n", encoding="utf-8")
    text = draft_settings(path, "Preis")

    assert (
        '# "Fl\u00e4che" is left out: its cells are no numbers here, such as "12,5"; a decimal comma is not read: 12.5.'
        in text
    )
    assert ("ort",) == load(path, "Preis").schema_.names


def test_the_first_line_of_a_target_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "euro.csv"
    path.write_text("Fl\u00e4che;Preis\n12;7\n\n13; \n14;123,45\n15;99,00\n", encoding="utf-8")

    with pytest.raises(BadTable) as caught:
        draft_settings(path, "Preis")
    assert (
        f"{path}: the target 'Preis' is not a number in most of its rows; "
        "the first that is none, in line 5, is '123,45'; "
        "a decimal comma is not read: 123.45"
    ) == str(caught.value)


def test_what_a_draft_says_of_empty_cells_holds(routes):
    text = draft_settings(routes, "Donation Bags Collected")
    assert 'map = { "" = 0 }' in text
    toml = routes.parent / "gleaner.toml"
    toml.write_text(
        text.replace('name = "doors_in_route"\n', 'name = "doors_in_route"\nmap = { "" = 0 }\n'), encoding="utf-8"
    )

    assert [50.0, 0.0] == train_on(load_settings(toml)).X[:, -2].tolist()


def test_a_column_of_numbers_may_be_mostly_empty(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "y"], ["1.5", "2"], ["", "2"], ["", "2"], [" ", "2"])

    assert "float" == load(path, "y").features[0].type


def test_a_column_of_many_words_is_left_out(tmp_path):
    rows = [[f"name {i}", str(i), str(i)] for i in range(13)]
    text = draft_settings(write(tmp_path / "a.csv", ["who", "a", "y"], *rows), "y")

    assert '# "who" is left out: it has 13 different words.\n' in text


def test_the_target_is_found_as_a_header_is(routes):
    settings = load(routes, "donation  bags COLLECTED")

    assert ("Donation Bags Collected",) == settings.model.target_sources


def test_a_target_that_can_be_negative_gets_scores_that_take_it(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "y"], ["1", "-10"], ["2", "10"])
    settings = load(path, "y")

    assert settings.model.min is None
    assert "standardised_squared_error" == settings.scores.loss
    assert {"within": 5.0} == settings.scores.accuracy.model_dump()


def test_a_constant_negative_target_still_makes_a_draft_that_loads(tmp_path):
    assert {"within": 1.0} == load(
        write(tmp_path / "a.csv", ["a", "y"], ["1", "-2"], ["2", "-2"]), "y"
    ).scores.accuracy.model_dump()


def test_headers_that_only_punctuation_tells_apart_become_features_of_their_own(tmp_path):
    path = write(tmp_path / "a.csv", ["A b", "a-b", "a_b", "y!", "y"], ["1", "2", "3", "4", "5"])
    settings = load(path, "y")

    assert ("a_b", "a_b_", "a_b__", "y_") == settings.schema_.names
    assert [[1.0, 2.0, 3.0, 4.0]] == train_on(settings).X.tolist()


def test_a_header_that_stands_twice_is_left_out(tmp_path):
    path = write(tmp_path / "a.csv", ["a", "b", " A", "y"], ["1", "2", "3", "4"])

    assert ("b",) == load(path, "y").schema_.names
    assert '# "a" is left out: that header stands twice.\n' in draft_settings(path, "y")


def test_a_long_name_of_a_file_still_names_a_model(tmp_path):
    path = write(tmp_path / f"{'long ' * 40}.csv", ["a", "y"], ["1", "2"])

    assert load(path, "y").model.name.startswith("long-long-")


def test_only_the_first_rows_are_looked_at(tmp_path):
    rows = [["1", "2"]] * 10_000 + [["1.5", "x"]] * 20_000

    assert "int" == load(write(tmp_path / "a.csv", ["a", "y"], *rows), "y").features[0].type


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["a", "bags"], ["1", "2"]], ", line 1: no column for 'bag': wanted 'bag'; did you mean 'bags'?"),
        ([["bag", "a", "BAG"], ["1", "2", "3"]], ", line 1: header 'bag' stands twice, as columns 1 and 3; rename one"),
        (
            [["a", "bag"], ["1", "7"], ["1", "many"], ["2", "few"]],
            ": the target 'bag' is not a number in most of its rows; the first that is none, in line 3, is 'many'",
        ),
        ([["a", "bag"]], ": has a header and no rows below it"),
        ([["a", "bag"], ["1"]], ": the target 'bag' is empty in every row"),
        ([["a", "bag"], ["1", ""], ["2", " "]], ": the target 'bag' is empty in every row"),
        ([["bag"], ["1"]], ": no column beside 'bag' holds numbers, or 2 to 12 different words"),
        ([["bag", "a"], ["1", "x"]], ": no column beside 'bag' holds numbers, or 2 to 12 different words"),
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
def test_whatever_the_table_a_draft_is_made_that_loads_or_the_reason_said(tmp_path, data):
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
