"""A first gleaner.toml, guessed from real files; every one of them has to load."""

from __future__ import annotations

import csv
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
    assert ("date", "ward", "doors_in_route", "time_to_complete_min") == settings.schema_.names
    assert ["category", "category", "int", "float"] == [feature.type for feature in settings.features]
    assert ("north", "south") == settings.features[1].values


def test_a_draft_reads_the_file_that_it_was_made_from(routes):
    table = train_on(load(routes, "Donation Bags Collected"))

    assert [14.0] == table.y.tolist()
    assert [3, 4, 5] == sorted({fault.number for fault in table.faults})
    assert "Time to Complete (min)" == table.taken["time_to_complete_min"]


def test_a_column_that_is_no_feature_is_left_out_by_name(routes):
    assert '# "Note" is left out: it has 1 different words.\n' in draft_settings(routes, "Donation Bags Collected")


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
        ([["a", "bag"], ["1", "many"], ["2", "few"]], ": the target 'bag' is not a number in most of its rows"),
        ([["a", "bag"]], ": the target 'bag' is not a number in most of its rows"),
        ([["a", "bag"], ["1"]], ": the target 'bag' is not a number in most of its rows"),
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
