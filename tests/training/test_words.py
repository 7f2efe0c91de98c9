"""Words of categories in the exported model, against the fitted estimator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from grown import Array, predict, properties
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import TargetEncoder
from threadpoolctl import threadpool_limits

from gleaner.model.forest import MEMBERS, check_trees
from gleaner.model.graph import read_graph
from gleaner.model.operators import check_operators
from gleaner.model.tree import read_tree
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema
from gleaner.table.words import MOST_COLUMNS
from gleaner.training.candidates import FAMILIES, Task
from gleaner.training.export import export

PARAMETERS = {"decision_tree": {"max_depth": 6}, "random_forest": {"max_depth": 6, "n_estimators": 5}}
SETS = {"words": "sets"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpool_limits(1):
        yield


def schema_of(words: Sequence[int], *, gaps: bool = False) -> Schema:
    """Return a schema of categories between two numbers.

    words: the number of words of each category.
    """
    kinds = ["refuse", "allow"]
    categories = [
        Feature(
            name=f"word_{i}",
            type="category",
            values=tuple(f"w{j}" for j in range(count)),
            missing=kinds[gaps],
            unknown="other",
        )
        for i, count in enumerate(words)
    ]
    numbers = [Feature(name=name, missing=kinds[gaps]) for name in ("first", "last")]
    return Schema((numbers[0], *categories, numbers[1]), Target(name="y"))


def numbers_of(schema: Schema, n: int, seed: int, *, gaps: bool = False) -> Array:
    """Return accepted numbers of n rows, one per feature."""
    random = np.random.default_rng(seed)
    columns = [
        random.integers(len(f.words) + 1, size=n).astype(float) if f.type == "category" else random.normal(size=n)
        for f in schema.features
    ]
    numbers = np.column_stack(columns)
    return np.where(random.random(numbers.shape) < 0.1, np.nan, numbers) if gaps else numbers


def target_of(numbers: Array, seed: int) -> Array:
    """Return a target to which each word adds its amount."""
    random = np.random.default_rng(seed)
    filled = np.where(np.isnan(numbers), 0, numbers)
    words = sum(random.normal(size=6_000)[column.astype(int)] for column in filled.T[1:-1])
    return 20 + 3 * words + filled[:, 0] + random.normal(size=len(numbers)) / 10


def fit(name: str, schema: Schema, X: Array, y: Array, parameters: Any = None, *, log: bool = False) -> Any:
    task = Task(
        monotone=schema.monotone,
        log=log,
        counts=bool(y.min() >= 0),
        seed=0,
        gaps=schema.gaps if any(schema.gaps) else (),
        categories=schema.categories,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = FAMILIES[name].make(task, PARAMETERS.get(name, {}) if parameters is None else parameters, X)
        for _ in FAMILIES[name].fit(estimator, X, y, X[:1]):
            pass
        return estimator


def check(estimator: Any, schema: Schema, X: Array, *, exactly: bool) -> bytes:
    model = export(estimator, X.shape[1], gaps=schema.gaps)
    got, wanted = predict(model, X), estimator.predict(X)
    np.testing.assert_allclose(got, wanted, rtol=0 if exactly else 1e-9, atol=0 if exactly else 1e-12)
    return model.SerializeToString()


@settings(properties, max_examples=15)
@given(
    words=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    seed=st.integers(0, 1_000),
    gaps=st.booleans(),
    log=st.booleans(),
)
def test_boosting_with_sets_of_words_is_exported_to_the_bit(words, seed, gaps, log):
    schema = schema_of(words, gaps=gaps)
    numbers = numbers_of(schema, 150, seed, gaps=gaps)
    y = np.abs(target_of(numbers, seed))
    # The training rows lack the last word of each category.
    unseen = np.any([numbers[:, i + 1] == count for i, count in enumerate(words)], axis=0)
    X = schema.matrix(numbers)
    estimator = fit("gradient_boosting", schema, X[~unseen], y[~unseen], SETS, log=log)

    check(estimator, schema, schema.matrix(numbers_of(schema, 500, seed + 1, gaps=gaps)), exactly=not log)


def test_a_category_of_255_words_is_a_set_and_the_check_of_trees_takes_it(tmp_path):
    schema = schema_of([MOST_COLUMNS - 1])  # and one for other words
    numbers = numbers_of(schema, 3_000, 0)
    estimator = fit("gradient_boosting", schema, schema.matrix(numbers), target_of(numbers, 0), SETS)
    every = np.zeros((MOST_COLUMNS, 3))
    every[:, 1] = np.arange(MOST_COLUMNS)

    model = check(estimator, schema, schema.matrix(np.concatenate([every, numbers])), exactly=True)

    (tmp_path / "model.onnx").write_bytes(model)
    check_operators(tmp_path)
    [trees] = [node for node in read_graph(model).nodes if node.operator == "TreeEnsemble"]
    attributes = trees.attributes()
    members = attributes[MEMBERS]
    check_trees(attributes, 3)
    assert np.nanmax(members) > 200
    assert read_tree(model) is None
    for wrong, said in (
        (members[:-1], "more or fewer sets"),
        (np.append(members, np.nan), "more or fewer sets"),
        (np.where(members == 3, np.inf, members), "not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            check_trees({**attributes, MEMBERS: wrong}, 3)
    with pytest.raises(ValueError, match="otherwise than by <= or with a set"):
        check_trees({**attributes, "nodes_modes": attributes["nodes_modes"] * 0 + 1}, 3)
    with pytest.raises(ValueError, match="more or fewer sets"):
        check_trees({name: value for name, value in attributes.items() if name != MEMBERS}, 3)


def test_the_grid_of_boosting_tries_sets_and_columns_where_there_are_few_words():
    def grid(schema: Schema) -> Any:
        task = Task(monotone=schema.monotone, log=False, counts=False, seed=0, categories=schema.categories)
        return FAMILIES["gradient_boosting"].grid(task)

    assert {"words": ("sets", "columns")} == grid(schema_of([3]))
    assert {} == grid(schema_of([]))
    assert {} == grid(schema_of([MOST_COLUMNS]))  # with the one for other words there are too many
    assert {} == grid(schema_of([2_000]))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_many_words_become_their_mean_target_in_every_family(name, gaps, tmp_path):
    schema = schema_of([300, 4, 900], gaps=gaps)
    numbers = numbers_of(schema, 2_000, 0, gaps=gaps)
    X, y = schema.matrix(numbers), target_of(numbers, 0)

    estimator = fit(name, schema, X, y)

    assert X.shape[1] == 1 + 1 + (5 + gaps) + 1 + 1
    asked = schema.matrix(numbers_of(schema, 3_000, 1, gaps=gaps))
    model = check(estimator, schema, asked, exactly=name in ("decision_tree", "random_forest", "gradient_boosting"))
    (tmp_path / "model.onnx").write_bytes(model)
    check_operators(tmp_path)
    # The step is scikit-learn's encoder, told about all words.
    encoder = TargetEncoder(
        categories=[np.arange(301.0 + gaps), np.arange(901.0 + gaps)], target_type="continuous"
    ).fit(X[:, [1, 7 + gaps]], y)
    for got, wanted in zip(estimator[0].means, encoder.encodings_, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_no_row_sees_its_own_target_in_the_mean_of_its_word():
    schema = schema_of([300])
    numbers = numbers_of(schema, 300, 0)
    numbers[:, 1] = np.arange(300)  # each word has one row
    y = np.random.default_rng(0).normal(size=300)
    X = schema.matrix(numbers)
    estimator = fit("linear", schema, X, y)

    fitted = estimator[0].fit_transform(X, y)[:, 1]

    assert abs(np.corrcoef(fitted, y)[0, 1]) < 0.2
    assert np.corrcoef(estimator[0].transform(X)[:, 1], y)[0, 1] > 0.9


def test_a_row_and_a_table_get_the_same_columns_for_many_words():
    schema = schema_of([300, 3], gaps=True)
    numbers = numbers_of(schema, 200, 0, gaps=True)

    rows = [schema.expand(row) for row in numbers.tolist()]

    np.testing.assert_array_equal(schema.matrix(numbers), np.array(rows))
    assert {"word_0", "word_1=(other)", "word_1=(missing)"} <= set(schema.columns)
    small = replace(schema.features[1], values=tuple(f"w{i}" for i in range(MOST_COLUMNS)))
    assert MOST_COLUMNS + 2 == len(small.columns)
