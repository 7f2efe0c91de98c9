"""The lint of words finds what it is there to find, and passes over what only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lint_words import count_words, find_long_sentences, find_long_summaries, find_markers, lint

LONG = " ".join(["word"] * 31)


@pytest.mark.parametrize(
    "text",
    [
        "The forest is trained anew.",
        "Whoever asks, waits.",
        "def test_nobody_is_there(): ...",
        "the model is told to stop",
        "those of ours",
        "every setting that there is",
        "class Judge:",
        "a judged row",
        "through every door",
        "no room for a body",
        "a way to mend it",
        "It is said of a table.",
    ],
)
def test_a_marker_word_is_found_in_prose_and_in_names(text):
    assert [2] == [number for number, _ in find_markers(f"fine\n{text}\n")]


@pytest.mark.parametrize(
    "text", ["a door-to-door route", "doors_in_route = 50", "from door to door", "an amendment", "rooms,price"]
)
def test_the_words_of_the_data_are_no_markers(text):
    assert [] == list(find_markers(text))


def test_a_docstrings_first_line_has_at_most_twelve_words():
    source = 'def f():\n    """{}.\n\n    ' + LONG + '.\n    """\n'

    assert [] == list(find_long_summaries(source.format(" ".join(["word"] * 12))))
    assert [(2, "a docstring's first line has 13 words, at most 12")] == list(
        find_long_summaries(source.format(" ".join(["word"] * 13)))
    )


@pytest.mark.parametrize("start", ["What", "Who", "Whoever", "How", "Of", "So many"])
def test_a_docstring_does_not_start_with_a_clause(start):
    assert [1] == [number for number, _ in find_long_summaries(f'"""{start} it takes."""')]
    assert [] == list(find_long_summaries('"""Offsets, and how to read them."""'))


@pytest.mark.parametrize("page", [f"{LONG}.", f"Short.\n\n- Fine.\n- {LONG}.", LONG.replace(" ", "\n"), f"> {LONG}."])
def test_a_long_sentence_is_found_across_lines_and_in_lists(page):
    (fault,) = find_long_sentences(page)

    assert "a sentence has 31 words, at most 30: " in fault[1]
    assert page.splitlines()[fault[0] - 1].startswith(("word", "- word", "> word"))


@pytest.mark.parametrize(
    "page",
    [
        f"```\n{LONG}\n```",
        f"| {LONG} |",
        f"# {LONG}",
        f"`{LONG}` is code.",
        f"[link]({'a/' * 40}page.md) is one word.",
        " ".join(["word"] * 20) + ". " + " ".join(["Word"] * 20) + ".",
        " ".join(["word"] * 20) + ". `code` " + " ".join(["word"] * 20) + ".",
        "- " + " ".join(["word"] * 20) + "\n- " + " ".join(["word"] * 20),
    ],
)
def test_code_tables_headings_and_short_sentences_are_passed_over(page):
    assert [] == list(find_long_sentences(page))


def test_marks_are_no_words():
    assert 3 == count_words("| one | `two` -- three |")


def test_every_kind_of_file_is_read_and_a_fault_has_its_place(tmp_path):
    for name, text in {
        "src/gleaner/a.py": f'"""{LONG}."""\n',
        "tests/b.py": "# nobody\n",
        "docs/design/c.md": f"fine\n\n{LONG}.\n",
        "CHANGELOG.md": "fine\n",
        "README.md": "word\n" * 601,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = [(str(path.relative_to(tmp_path)), number) for path, number, _ in lint(tmp_path)]

    assert [
        ("src/gleaner/a.py", 1),
        ("tests/b.py", 1),
        ("README.md", 1),
        ("README.md", 1),
        ("docs/design/c.md", 3),
    ] == (found)


def test_the_linter_keeps_its_own_rules():
    source = Path(__file__).with_name("lint_words.py").read_text()

    assert [] == list(find_long_summaries(source))
