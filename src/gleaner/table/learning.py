"""Words of categories, learned from the training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gleaner.errors import BadTable
from gleaner.table.feature import Feature
from gleaner.table.schema import Schema
from gleaner.table.words import MISSING, OTHER, name_words, plain_text, plain_word

# Each word stands in the manifest and in the contract.
MOST_WORDS = 5_000
_MOST_COUNTED = 100_000


class Learner:
    """The learner of the words of a file's categories.

    path: the file, for errors.
    found: the position of each feature's column.
    """

    def __init__(self, path: Path | str, schema: Schema, found: Sequence[int]) -> None:
        self._path, self._schema = path, schema
        self._learned = [
            (feature, at, Counter[str](), dict[str, str]())
            for feature, at in zip(schema.features, found, strict=False)
            if feature.values == "learn"
        ]

    def add(self, cells: Sequence[str]) -> None:
        """Count the words of one row. Raises BadTable."""
        for feature, at, counts, spelled in self._learned:
            text = plain_text(cells[at]) if at < len(cells) else ""
            word = plain_word(text, fold=feature.folds)
            if word in feature.gaps.words:
                continue
            if word not in counts and len(counts) >= _MOST_COUNTED:
                reason = f"more than {_MOST_COUNTED:,} different words: the column has no categories; leave it out"
                raise BadTable(self._path, f"{feature.name!r}: {reason}")
            counts[word] += 1
            spelled.setdefault(word, text)

    def schema(self) -> Schema:
        """Return the schema with the learned words, in their order. Raises BadTable."""
        learned = {f.name: self._values(f, counts, spelled) for f, _, counts, spelled in self._learned}
        features = [
            replace(feature, values=learned[feature.name]) if feature.name in learned else feature
            for feature in self._schema.features
        ]
        return replace(self._schema, features=tuple(features))

    def _values(self, feature: Feature, counts: Counter[str], spelled: dict[str, str]) -> tuple[str, ...]:
        words = sorted(word for word, count in counts.items() if count >= feature.min_count)
        if taken := {OTHER, MISSING} & set(words):
            raise BadTable(self._path, f"{feature.name!r}: the word {min(taken)!r} is taken; rename it in the table")
        if not words:
            reason = "every cell is empty" if not counts else f"no word has {feature.min_count} rows: lower `min_count`"
            raise BadTable(self._path, f"{feature.name!r}: no word to learn: {reason}")
        if len(words) > MOST_WORDS:
            often = sorted(counts.values(), reverse=True)[MOST_WORDS] + 1
            fix = f'set `unknown = "other"` and `min_count = {often}`, and rarer words become one'
            got = f"{len(words):,} different words, such as {name_words(words, 3)}"
            raise BadTable(self._path, f"{feature.name!r}: wanted at most {MOST_WORDS:,} words, got {got}; {fix}")
        return tuple(spelled[word] for word in words)
