"""A check of trees: every row ends at a finite leaf."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gleaner.model.graph import Numbers

# Of ai.onnx.ml's TreeEnsemble: x <= threshold, x is one of a set, and the mean or the sum of all trees.
AT_MOST, MEMBER = 0, 6
_AGGREGATES = (0, 1)

_PER_SPLIT = (
    "nodes_modes", "nodes_featureids", "nodes_splits", "nodes_truenodeids", "nodes_trueleafs", "nodes_falsenodeids",
    "nodes_falseleafs",
)  # fmt: skip
_PER_LEAF = ("leaf_targetids", "leaf_weights")
_OTHERS = ("n_targets", "aggregate_function", "tree_roots")
ATTRIBUTES = frozenset((*_PER_SPLIT, *_PER_LEAF, *_OTHERS))
"""The attributes that every export writes; one that is missing is refused."""

GAPS = "nodes_missing_value_tracks_true"
MEMBERS = "membership_values"
ALLOWED = ATTRIBUTES | {GAPS, MEMBERS}
"""These, the side of a missing value, and the sets of words' positions.

The side is 1 for that of a passed comparison; without it, no missing value passes. Each set ends with NaN.
"""


def check_trees(attributes: Mapping[str, int | Numbers], width: int) -> None:
    """Check the trees that the attributes of a TreeEnsemble describe.

    Each split has its own column and finite children, is reached on one path only, and each leaf adds a finite number.
    width: the number of columns of the rows.
    Raises ValueError.
    """
    if missing := ATTRIBUTES - attributes.keys():
        raise ValueError(f"the trees lack {', '.join(sorted(missing))}")
    if attributes["n_targets"] != 1 or attributes["aggregate_function"] not in _AGGREGATES:
        raise ValueError("the trees predict more than one number, or neither a sum nor a mean")
    arrays = {name: value for name, value in attributes.items() if isinstance(value, np.ndarray) and value.ndim == 1}
    if arrays.keys() != attributes.keys() - {"n_targets", "aggregate_function"}:
        raise ValueError("the trees have an attribute of another type than exports write")
    splits, leaves, roots = len(arrays["nodes_splits"]), len(arrays["leaf_weights"]), arrays["tree_roots"]
    gaps = (GAPS,) if GAPS in arrays else ()
    for names, count in ((_PER_SPLIT + gaps, splits), (_PER_LEAF, leaves)):
        if any(len(arrays[name]) != count for name in names):
            raise ValueError("the trees' lists differ in their lengths")
    if arrays["leaf_targetids"].any():
        raise ValueError("the trees have another target")
    _check_modes(arrays["nodes_modes"], arrays.get(MEMBERS, np.empty(0)))
    if not all(_are_places(arrays[name], 2) for name in gaps):
        raise ValueError("the trees send a missing value neither way")
    if not _are_places(arrays["nodes_featureids"], width) or not _are_places(roots, splits) or not splits:
        raise ValueError("the trees compare a column, or start at a split, that is not there")
    if np.isnan(arrays["nodes_splits"]).any() or not np.isfinite(arrays["leaf_weights"]).all():
        raise ValueError("the trees have a threshold that is no number, or a leaf that is not finite")
    reached = np.bincount(roots, minlength=splits)
    for way in ("true", "false"):
        children, to_leaf = arrays[f"nodes_{way}nodeids"], arrays[f"nodes_{way}leafs"]
        if not _are_places(to_leaf, 2) or not _are_places(children[to_leaf == 1], leaves):
            raise ValueError("the trees lead to a leaf that is not there")
        if not _are_places(children[to_leaf == 0], splits):
            raise ValueError("the trees lead to a split that is not there")
        reached += np.bincount(children[to_leaf == 0], minlength=splits)
    if not (reached == 1).all():
        raise ValueError("the trees reach a split on several paths, or on none")


def _check_modes(modes: Numbers, members: Numbers) -> None:
    """Check that splits compare by <=, or with sets of their own."""
    if not np.isin(modes, (AT_MOST, MEMBER)).all():
        raise ValueError("the trees compare otherwise than by <= or with a set")
    ends = np.flatnonzero(np.isnan(members))
    sizes = np.diff(ends, prepend=-1) - 1
    if len(ends) != np.count_nonzero(modes == MEMBER) or len(members) != len(ends) + sizes.sum() or not sizes.all():
        raise ValueError("the trees have more or fewer sets than splits that need one, or an empty one")
    if np.isinf(members).any():
        raise ValueError("the trees have a set with a member that is not finite")


def _are_places(numbers: Numbers, count: int) -> bool:
    """Return whether all numbers are places in a list of `count`."""
    return bool(((numbers >= 0) & (numbers < count)).all())
