"""The operators that a model may use, and the axes of each.

A prediction must depend on its own row alone, and the memory of a row must have a limit. So the shape of every tensor
is followed from the input to the output: rows x a known shape, or a constant. Whatever is not understood is refused.
A new operator needs a line in OPERATORS, with a rule that says what becomes of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gleaner.errors import BadArtifact
from gleaner.model import onnx_fields as fields
from gleaner.model.forest import ALLOWED as OF_TREES
from gleaner.model.forest import check_trees
from gleaner.model.graph import Graph, Node, Numbers, read_graph
from gleaner.model.manifest import INPUT, MODEL, OUTPUT

ML = "ai.onnx.ml"
BYTES_PER_NUMBER = 8

# A spline of a thousand columns has about 40,000 for each row.
MOST_NUMBERS = 131_072
_LARGEST_BOUND = 1 << 40


class Rows(NamedTuple):
    """A tensor whose first axis is the rows.

    shape: the shape of one row's part.
    least, most: the bounds of whole numbers, of that shape; None for other numbers.
    """

    shape: tuple[int, ...]
    least: Numbers | None = None
    most: Numbers | None = None


Attributes = Mapping[str, int | Numbers]
Rule = Callable[[Sequence[Rows | Numbers], Attributes], Rows]


class Work(NamedTuple):
    """The work of a model for one row.

    operators: the operators in use.
    numbers: the most numbers in memory, each of at most BYTES_PER_NUMBER.
    """

    operators: frozenset[str]
    numbers: int


def check_operators(folder: Path) -> None:
    """Refuse a model that does more than an export.

    A prediction must depend on its own row alone. So this refuses every operator that is not in OPERATORS, and every
    use of an axis that its rule does not allow. It also refuses trees that lead nowhere, and too much memory for one
    row. It holds the whole file in memory, so call it in a process of its own.
    Raises BadArtifact.
    """
    try:
        graph = read_graph((folder / MODEL).read_bytes())
        _follow(graph, read_trees=True)
    except ValueError as e:
        raise BadArtifact(folder, "operator", f"{MODEL} is not as exports are: {e}") from e


def measure(model: bytes) -> Work:
    """Return the work of a model; the most for an unreadable one."""
    try:
        return _follow(read_graph(model), read_trees=False)
    except ValueError:
        return Work(frozenset(OPERATORS), MOST_NUMBERS)


def _follow(graph: Graph, *, read_trees: bool) -> Work:
    """Follow the rows through a graph; return its work. Raises ValueError."""
    if graph.input.name != INPUT or graph.output != (OUTPUT, 1):
        raise ValueError(f"wanted the input {INPUT!r} and the output {OUTPUT!r} of one column")
    known: dict[str, Rows | Numbers] = {INPUT: Rows((graph.input.width,))}
    for name, constant in graph.constants.items():
        if name == INPUT:
            raise ValueError(f"a constant has the input's name {name!r}")
        known[name] = constant
    total = 0
    for node in graph.nodes:
        try:
            made = _apply(node, [known[name] for name in node.inputs], read_trees=read_trees)
        except KeyError as e:
            raise ValueError(f"{node.operator} reads {e}, which no operator before it makes") from e
        if node.output in known or not node.output:
            raise ValueError(f"two tensors have the name {node.output!r}")
        known[node.output] = made
        total += math.prod(made.shape)
        if total > MOST_NUMBERS:
            raise ValueError(f"one row needs more than {MOST_NUMBERS:,} numbers in memory")
    made_last = known.get(OUTPUT)
    if not isinstance(made_last, Rows) or made_last.shape != (1,):
        raise ValueError(f"{OUTPUT!r} is not one number for each row")
    return Work(frozenset(node.operator for node in graph.nodes), total)


def _apply(node: Node, inputs: Sequence[Rows | Numbers], *, read_trees: bool) -> Rows:
    operator = OPERATORS.get(node.operator)
    if operator is None or operator.domain != node.domain:
        name = f"{node.domain}.{node.operator}" if node.domain else node.operator
        raise ValueError(f"it uses the operator {name!r}")
    is_read = read_trees or operator.attributes is not OF_TREES
    attributes = node.attributes() if is_read else {}
    if unknown := attributes.keys() - operator.attributes:
        raise ValueError(f"{node.operator} has the attribute {min(unknown)!r}")
    try:
        return operator.rule(inputs, attributes)
    except Unfit as e:
        raise ValueError(f"{node.operator} {e}") from e


class Unfit(ValueError):
    """A use of an operator that its rule does not allow."""


def _per_number(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow an operator that maps each number on its own."""
    return Rows(_only_rows(inputs).shape)


def _cast(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    rows = _only_rows(inputs)
    kind = _integer(attributes, "to", 0)
    if kind not in (fields.FLOAT, fields.DOUBLE, fields.INT64):
        raise Unfit("casts to another type than exports do")
    return rows if kind == fields.INT64 else Rows(rows.shape)


def _pair(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow two tensors of the same rows, or rows and a constant.

    The constant must be the same for every row.
    Both must have the same number of axes: [n] and [n, k] would mix rows with columns.
    """
    if len(inputs) != 2 or not any(isinstance(each, Rows) for each in inputs):
        raise Unfit("needs two inputs, one of them rows")
    axes = max(len(each.shape) for each in inputs if isinstance(each, Rows))
    shapes = []
    for each in inputs:
        # ONNX aligns shapes at their ends, so a constant of one more axis lies along the rows.
        extra = () if isinstance(each, Rows) else each.shape[: max(0, len(each.shape) - axes)]
        if extra not in ((), (1,)) or (isinstance(each, Rows) and len(each.shape) != axes):
            raise Unfit("would spread rows over another axis")
        shapes.append(each.shape[len(extra) :])
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError as e:
        raise Unfit(f"cannot combine the shapes {shapes[0]} and {shapes[1]}") from e
    return Rows(shape)


def _add(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    made, bounds = _pair(inputs, attributes), [_bounds(each) for each in inputs]
    match bounds:
        case [(least, most), (less, more)]:
            return _whole(made.shape, least + less, most + more)
    return made


def _bounds(value: Rows | Numbers) -> tuple[Numbers, Numbers] | None:
    """Return the bounds of whole numbers; None for other numbers."""
    if isinstance(value, Rows):
        return None if value.least is None or value.most is None else (value.least, value.most)
    return (value, value) if value.dtype.kind == "i" and _are_small(value) else None


def _whole(shape: tuple[int, ...], least: Numbers, most: Numbers) -> Rows:
    """Return rows of whole numbers, without bounds if these might overflow."""
    if not _are_small(least) or not _are_small(most):
        return Rows(shape)
    return Rows(shape, least.reshape(shape), most.reshape(shape))


def _are_small(numbers: Numbers) -> bool:
    return bool(numbers.min(initial=0) > -_LARGEST_BOUND and numbers.max(initial=0) < _LARGEST_BOUND)


def _compare(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    shape = _pair(inputs, attributes).shape
    return Rows(shape, np.zeros(shape, np.int64), np.ones(shape, np.int64))


def _unsqueeze(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow one new axis behind that of the rows."""
    rows, [axis] = _rows_and_axes(inputs, 1)
    if axis > len(rows.shape) + 1:
        raise Unfit("adds an axis beyond the last")
    return Rows((*rows.shape[: axis - 1], 1, *rows.shape[axis - 1 :]))


def _reduce_sum(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow the sum of whole numbers within a row.

    The order of other sums depends on where in memory a row begins, and so on the rows before it.
    """
    rows, axes = _rows_and_axes(inputs, None)
    if rows.least is None or rows.most is None:
        raise Unfit("adds up other than whole numbers")
    if max(axes) > len(rows.shape) or len(set(axes)) < len(axes):
        raise Unfit("adds up over an axis that is not there")
    keep, where = bool(_integer(attributes, "keepdims", 1)), tuple(axis - 1 for axis in axes)
    least, most = (np.sum(each, axis=where, keepdims=keep) for each in (rows.least, rows.most))
    return _whole(least.shape, least, most)


def _gather(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow columns chosen by constants, and constants chosen by whole numbers."""
    if len(inputs) != 2:
        raise Unfit("needs two inputs")
    source, places = inputs
    axis = _integer(attributes, "axis", 0)
    if isinstance(source, Rows) and not isinstance(places, Rows) and axis == 1 and places.ndim == 1:
        bounds, count, shape = _bounds(places), source.shape[0] if source.shape else 0, (len(places), *source.shape[1:])
    elif not isinstance(source, Rows) and isinstance(places, Rows) and axis == 0 and source.ndim == 1:
        bounds, count, shape = _bounds(places), len(source), places.shape
    else:
        raise Unfit("chooses along the rows")
    if bounds is None or bounds[0].min(initial=0) < 0 or bounds[1].max(initial=0) >= count:
        raise Unfit("may choose a place that is not there")
    return Rows(shape)


def _gemm(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow rows times constant weights, plus the same for every row."""
    if len(inputs) not in (2, 3):
        raise Unfit("needs two or three inputs")
    rows, weights, *offsets = inputs
    if not isinstance(rows, Rows) or isinstance(weights, Rows) or any(isinstance(each, Rows) for each in offsets):
        raise Unfit("multiplies other than rows by constants")
    if len(rows.shape) != 1 or weights.ndim != 2 or weights.shape[0] != rows.shape[0]:
        raise Unfit(f"multiplies rows of shape {rows.shape} by constants of shape {weights.shape}")
    width = weights.shape[1]
    if any(each.shape not in ((), (1,), (width,), (1, width)) for each in offsets if not isinstance(each, Rows)):
        raise Unfit("adds a constant that differs from row to row")
    return Rows((width,))


def _trees(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow trees over the columns; without attributes, check only shapes."""
    rows = _only_rows(inputs)
    if len(rows.shape) != 1:
        raise Unfit("reads rows of more than one axis")
    if attributes:
        check_trees(attributes, rows.shape[0])
    return Rows((1,))


def _integer(attributes: Attributes, name: str, default: int) -> int:
    value = attributes.get(name, default)
    if not isinstance(value, int):
        raise Unfit(f"has no whole number {name!r}")
    return value


def _only_rows(inputs: Sequence[Rows | Numbers]) -> Rows:
    match inputs:
        case [Rows() as rows]:
            return rows
    raise Unfit("needs rows as its only input")


def _rows_and_axes(inputs: Sequence[Rows | Numbers], most: int | None) -> tuple[Rows, list[int]]:
    """Return the rows and the constant axes, each behind the rows' own."""
    match inputs:
        case [Rows() as rows, np.ndarray(ndim=1, dtype=np.int64) as axes] if 1 <= len(axes) <= (most or len(axes)):
            if axes.min() < 1:
                raise Unfit("touches the axis of the rows")
            return rows, [int(axis) for axis in axes]
    raise Unfit("needs rows and constant axes")


def _where(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow columns with some numbers replaced by their column's constant."""
    match inputs:
        case [Rows((width,)), np.ndarray(shape=(count,)), Rows((columns,))] if width == count == columns:
            return Rows((width,))
    raise Unfit("needs a condition for each column, a constant for each, and the columns")


def _concat(inputs: Sequence[Rows | Numbers], attributes: Attributes) -> Rows:
    """Allow further columns beside those of the same rows."""
    match inputs:
        case [Rows((width,)), Rows((more,))] if _integer(attributes, "axis", 0) == 1:
            return Rows((width + more,))
    raise Unfit("joins other than the columns of two tensors of rows")


class Operator(NamedTuple):
    """An allowed operator.

    rule: returns what the operator makes of one row.
    attributes: those that it may have.
    """

    rule: Rule
    attributes: frozenset[str] = frozenset()
    domain: str = ""


OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(_add),
    "Cast": Operator(_cast, frozenset({"to"})),
    "Concat": Operator(_concat, frozenset({"axis"})),
    "Exp": Operator(_per_number),
    "Gather": Operator(_gather, frozenset({"axis"})),
    "Gemm": Operator(_gemm),
    "GreaterOrEqual": Operator(_compare),
    "IsNaN": Operator(_per_number),
    "Max": Operator(_pair),
    "Mul": Operator(_pair),
    "ReduceSum": Operator(_reduce_sum, frozenset({"keepdims"})),
    "Sub": Operator(_pair),
    "Tanh": Operator(_per_number),
    "TreeEnsemble": Operator(_trees, OF_TREES, ML),
    "Unsqueeze": Operator(_unsqueeze),
    "Where": Operator(_where),
}
"""All operators that an export writes. None of them branches, loops, reads a file or draws a random number."""
