"""Steps of a pipeline that turn the words of categories into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.model_selection import KFold
from sklearn.preprocessing import TargetEncoder

from gleaner.table.numbers import Array
from gleaner.table.schema import Category

_ENCODING_FOLDS = 5


class WordMeans(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A step that replaces positions of words by their mean targets.

    The means shrink towards that of all rows, the more the rarer the word is: see scikit-learn's `TargetEncoder`.
    In `fit_transform` the mean of each row comes from other folds, so that no row sees its own target.
    categories: those whose column holds positions.
    """

    def __init__(self, categories: Sequence[Category], seed: int) -> None:
        self.categories, self.seed = categories, seed

    def fit(self, X: Array, y: Array) -> WordMeans:
        """Learn the means. X: shape (n, k); y: (n,)."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: Array, y: Array) -> Array:
        """Learn the means; return X with those of other folds."""
        self.encoder_ = TargetEncoder(
            categories=[np.arange(float(category.words)) for category in self.categories],
            target_type="continuous",
            cv=KFold(_ENCODING_FOLDS, shuffle=True, random_state=self.seed),
        )
        return self._replaced(X, self.encoder_.fit_transform(X[:, self.columns], y))

    def transform(self, X: Array) -> Array:
        """Return X with the means, shape (n, k)."""
        return self._replaced(X, self.encoder_.transform(X[:, self.columns]))

    @property
    def columns(self) -> list[int]:
        return [category.first for category in self.categories]

    @property
    def means(self) -> list[Array]:
        """The mean of each word, one array per category."""
        return [np.asarray(each, dtype=np.float64) for each in self.encoder_.encodings_]

    def _replaced(self, X: Array, means: Array) -> Array:
        replaced = X.copy()
        replaced[:, self.columns] = means
        return replaced


class WordPlaces(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A step that joins the 0/1 columns of each category.

    The joined columns hold positions of words and stand first; the other columns stand behind them.
    categories: those that have 0/1 columns.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self.categories = categories

    def fit(self, X: Array, y: Array | None = None) -> WordPlaces:
        """Remember the number of columns. X: shape (n, k)."""
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: Array) -> Array:
        """Return the positions and the other columns, shape (n, c)."""
        places = X[:, self.ones] @ self.weights
        return np.ascontiguousarray(np.hstack([places, X[:, others_of(self.categories, X.shape[1])]]))

    @property
    def ones(self) -> list[int]:
        """The 0/1 columns of all categories."""
        return [first + word for first, words, _ in self.categories for word in range(words)]

    @property
    def weights(self) -> Array:
        """The weights that make positions of `ones`.

        Shape (ones, categories).
        """
        weights, at = np.zeros((len(self.ones), len(self.categories))), 0
        for i, (_, words, _) in enumerate(self.categories):
            weights[at : at + words, i] = np.arange(words)
            at += words
        return weights


def others_of(categories: Sequence[Category], columns: int) -> list[int]:
    """Return the columns outside the 0/1 columns of some categories."""
    taken = {first + word for first, words, _ in categories for word in range(words)}
    return [column for column in range(columns) if column not in taken]


def encoding_steps(categories: Sequence[Category], seed: int) -> list[tuple[str, Any]]:
    """Return the step for categories of many words, if any."""
    coded = tuple(category for category in categories if category.is_coded)
    return [("words", WordMeans(coded, seed))] if coded else []
