"""A row of totals that its columns accept."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleaner.drafting.draft import draft_settings
from gleaner.table.csv import open_csv, read_rows, read_table
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema

SCHEMA = Schema((Feature(name="doors"), Feature(name="hours", missing="allow")), Target(name="bags"))
HEAD = "street,doors,hours,bags\n"


def read(tmp_path, text, schema=SCHEMA):
    path = tmp_path / "routes.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path, schema)


@pytest.mark.parametrize("below", ["", "\n\n", ",,,\n,,,\n"])
@pytest.mark.parametrize("total", ["Total,60,,6", "Grand total:,60,6,6", "Summe,60,99,0"])
def test_a_last_row_of_totals_is_refused(tmp_path, total, below):
    table = read(tmp_path, HEAD + "Elm,10,1,1\nOak,20,2,2\nAsh,30,3,3\n" + total + "\n" + below)

    label = total.split(",", 1)[0]
    assert f"line 5, column 'street': is a row of totals, {label!r}; delete this line" == str(table.faults[0])
    assert [2, 3, 4] == table.lines.tolist()


@pytest.mark.parametrize(
    "rows",
    [
        "Elm,10,1,1\nOak,20,2,2\nTotal,31,4,4\n",  # a street of that name
        "Elm,10,1,1\nTotal,30,2,2\nOak,20,3,3\n",  # not the last row
        "Elm,10,1,1\nTotal,10,1,1\n",  # a single row above
        "Elm,0,1,0\nOak,0,2,0\nTotal,0,9,0\n",  # a sum of zeros says nothing
        "Elm,10,1,1\nOak,20,2,2\nTotally,30,3,3\n",
        "Elm,10,1,1\nOak,20,2,2\n,30,3,3\n",
    ],
)
def test_a_row_that_is_no_total_is_kept(tmp_path, rows):
    assert len(rows.splitlines()) == len(read(tmp_path, HEAD + rows).y)


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=60), st.sampled_from([40, 300, 1 << 17]))
def test_totals_are_found_across_chunks(doors, size):
    file = io.StringIO()
    lines = [["street", "doors", "hours"], *(["Elm", n, ""] for n in doors), ["Total", sum(doors), ""]]
    csv.writer(file).writerows(lines)
    with open_csv(file.getvalue().encode(), "routes") as opened:
        chunks = list(read_rows(opened, SCHEMA, block_bytes=size))

    assert doors == [n for chunk in chunks for n in chunk.X[:, 0]]
    assert [len(doors)] == [row.index for chunk in chunks for row in chunk.refused]
    assert len(doors) + 1 == sum(len(chunk.cells) for chunk in chunks)


def test_init_drafts_nothing_from_a_row_of_totals(tmp_path):
    path = tmp_path / "wards.csv"
    rows = [f"{'North' if i % 3 else 'South'},{i % 7 + 1},{(i * 37) % 11 + 0.5}\n" for i in range(90)]
    doors = sum(i % 7 + 1 for i in range(90))
    path.write_text("ward,doors,bags\n" + "".join(rows) + f"Total,{doors},\n", encoding="utf-8")

    draft = draft_settings(path, "bags")
    ward, count = draft.table.schema.features
    assert ("North", "South") == ward.values
    assert not count.allows_gaps
    assert 90 == len(draft.table.y)
    assert ["line 92, column 'ward': is a row of totals, 'Total'; delete this line"] == [
        str(f) for f in draft.table.faults
    ]
