"""The measurable rules of Gleaner's English, for `make lint`.

Prints `file:line: fault`, one a line, and exits 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_SUMMARY_WORDS, MOST_SENTENCE_WORDS, MOST_README_WORDS = 12, 30, 600

MARKERS = re.compile(
    r"\b(anew|whoever|nobody|(?:is|are) told|of ours|that there is|such a one|is said|counted are|is had"
    r"|said aloud|door|judg(?:e|es|ed|ing|ment)|room|mend(?:s|ed|ing)?)\b",
    re.IGNORECASE,
)
REAL_DOORS = re.compile(r"door[- ]to[- ]door", re.IGNORECASE)  # those of the food drive
CLAUSES = re.compile(r"(what|who|whoever|whose|how|nor|so many|counted|of)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])[)\"*_]*\s+(?=[\"*_(\[]*[A-Z`\d])")

Fault = tuple[int, str]


def find_markers(text: str) -> Iterator[Fault]:
    """Find the marker words in prose, comments, messages and names."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in MARKERS.finditer(REAL_DOORS.sub("", line.replace("_", " "))):
            yield number, f"say it without {match[0]!r}"


def find_long_summaries(source: str) -> Iterator[Fault]:
    """Find docstrings whose first line is long or opens with a clause."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            summary = docstring.splitlines()[0] if docstring else ""
            if (count := count_words(summary)) > MOST_SUMMARY_WORDS:
                yield node.body[0].lineno, f"a docstring's first line has {count} words, at most {MOST_SUMMARY_WORDS}"
            if clause := CLAUSES.match(summary):
                yield node.body[0].lineno, f"a docstring starts with {clause[0].strip()!r}: start with a verb or a noun"


def find_long_sentences(page: str) -> Iterator[Fault]:
    """Find the long sentences of a Markdown page.

    Tables, headings and blocks of code do not count.
    """
    for number, paragraph in read_paragraphs(page):
        plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`code`", paragraph))
        for sentence in SENTENCE_END.split(plain):
            if (count := count_words(sentence)) > MOST_SENTENCE_WORDS:
                start = " ".join(sentence.split()[:6])
                yield number, f"a sentence has {count} words, at most {MOST_SENTENCE_WORDS}: {start} ..."


def read_paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """Yield the first line's number and the text of every paragraph."""
    number, lines, in_code = 0, [], False
    for at, line in enumerate([*page.splitlines(), ""], 1):
        text = line.strip()
        is_fence = text.startswith("```")
        begins = re.match(r"([-*]|\d+\.) ", text)
        if lines and (begins or not text or is_fence or text[0] in "#|"):
            yield number, " ".join(lines)
            lines = []
        in_code ^= is_fence
        if text and not (in_code or is_fence or text[0] in "#|"):
            number = number if lines else at
            lines.append(text)


def count_words(text: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in text.split())


def lint(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Find every fault below a folder, as file, line and fault."""
    own = {Path(__file__).name, f"test_{Path(__file__).name}"}
    code = [path for name in ("src", "tests", "bench", "examples") for path in sorted((root / name).rglob("*.py"))]
    for path in [*code, root / "check_api.py"]:
        if path.exists() and path.name not in own:
            text = path.read_text(encoding="utf-8")
            for fault in sorted([*find_markers(text), *find_long_summaries(text)]):
                yield path, *fault
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
    pages = [path for path in map(root.joinpath, names) if path.exists()]
    for path in [*pages, *sorted((root / "docs").rglob("*.md")), *sorted((root / "examples").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if path == root / "README.md" and (count := count_words(text)) > MOST_README_WORDS:
            yield path, 1, f"the README has {count} words, at most {MOST_README_WORDS}"
        for fault in sorted([*find_markers(text), *find_long_sentences(text)]):
            yield path, *fault


if __name__ == "__main__":
    faults = [f"{path.relative_to(ROOT)}:{number}: {what}" for path, number, what in lint(ROOT)]
    print(*faults, *(["words: every measurable rule holds"] if not faults else []), sep="\n")
    sys.exit(bool(faults))
