"""Artifacts: written whole, read back equal, and refused if damaged."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import made
import msgspec
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gleaner.errors import BadArtifact
from gleaner.model.artifact import read_artifact, write_artifact
from gleaner.model.manifest import LARGEST_MANIFEST, LARGEST_MODEL, MANIFEST, MODEL, REASONS
from gleaner.model.operators import OPERATORS, check_operators
from gleaner.model.predictor import Predictor
from gleaner.model.selftest import selftest
from gleaner.training.export import export

properties = of_hypothesis(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of a good artifact."""
    return made.copy(made.artifact("decision_tree"), tmp_path / "artifact")


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A copy of a good artifact of ONNX's own operators."""
    return made.copy(made.artifact("linear"), tmp_path / "linear")


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that property tests overwrite many times."""
    return made.copy(made.artifact("decision_tree"), tmp_path_factory.mktemp("workbench") / "artifact")


def refusal(folder: Path, check: Callable[[Path], object] = read_artifact) -> str:
    """Return the reason for a refusal, as in the metric's label."""
    with pytest.raises(BadArtifact) as caught:
        check(folder)
    assert caught.value.reason in REASONS
    return caught.value.reason


def model_of(folder: Path) -> onnx.ModelProto:
    return onnx.load_from_string((folder / MODEL).read_bytes())


# Writing


def test_an_artifact_is_read_back_as_it_was_written(tmp_path):
    source = made.artifact("spline")

    written = write_artifact(tmp_path / "new", source.model.read_bytes(), source.manifest)

    assert written == read_artifact(tmp_path / "new")
    assert source.manifest == written.manifest
    assert tmp_path / "new" / MODEL == written.model
    assert {MODEL, MANIFEST} == {path.name for path in (tmp_path / "new").iterdir()}


def test_the_digest_of_an_artifact_does_not_depend_on_its_folder(tree):
    assert made.artifact("decision_tree").digest == read_artifact(tree).digest


def test_an_artifact_that_could_not_be_read_is_not_written(tmp_path):
    source = made.artifact("linear")
    unreadable = msgspec.structs.replace(source.manifest, training_loss=float("nan"))

    with pytest.raises(BadArtifact):
        write_artifact(tmp_path / "new", source.model.read_bytes(), unreadable)

    assert [] == list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(tree):
    before = {path.name: path.read_bytes() for path in tree.iterdir()}

    with pytest.raises(FileExistsError):
        write_artifact(tree, b"", made.artifact("linear").manifest)

    assert before == {path.name: path.read_bytes() for path in tree.iterdir()}


# Files


def truncate(folder: Path) -> None:
    with (folder / MODEL).open("r+b") as file:
        file.truncate((folder / MODEL).stat().st_size - 1)


def change_a_byte(folder: Path) -> None:
    model = bytearray((folder / MODEL).read_bytes())
    model[-1] ^= 1
    (folder / MODEL).write_bytes(model)


def link(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return replace


def pipe(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


def hollow(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).mkdir()


def huge(folder: Path) -> None:
    """Make the model a sparse file of more than a gigabyte."""
    with (folder / MODEL).open("r+b") as file:
        file.truncate(LARGEST_MODEL + 1)
    made.rewrite(folder, files={MODEL: {"sha256": "0" * 64, "size": LARGEST_MODEL + 1}})


def huge_manifest(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(LARGEST_MANIFEST + 1)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no manifest": ("missing", lambda folder: (folder / MANIFEST).unlink()),
    "no model": ("files", lambda folder: (folder / MODEL).unlink()),
    "a truncated model": ("size", truncate),
    "one byte changed": ("hash", change_a_byte),
    "a file too many": ("files", lambda folder: (folder / "model.pkl").write_bytes(b"")),
    "a folder too many": ("files", lambda folder: (folder / "__pycache__").mkdir()),
    "a link for a model": ("files", link(MODEL)),
    "a link for a manifest": ("files", link(MANIFEST)),
    "a pipe for a manifest": ("files", pipe),
    "a folder for a model": ("files", hollow),
    "a huge model": ("size", huge),
    "a huge manifest": ("size", huge_manifest),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_with_their_reason(tree, damage):
    reason, change = DAMAGES[damage]
    read_artifact(tree)

    change(tree)

    assert reason == refusal(tree)


def test_a_missing_folder_is_refused_as_missing(tmp_path):
    assert "missing" == refusal(tmp_path / "nowhere")


@properties
@given(st.data())
def test_a_flipped_byte_of_the_model_is_always_found(workbench, data):
    whole = made.artifact("decision_tree").model.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    made.rewrite(workbench, whole)
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]

    (workbench / MODEL).write_bytes(flipped)

    assert "hash" == refusal(workbench)


# The manifest


@pytest.mark.parametrize(
    "described",
    [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 1e999}', b"\x00" * 100],
    ids=repr,
)
def test_an_invalid_manifest_is_refused(tree, described):
    (tree / MANIFEST).write_bytes(described[:200_000])

    assert "manifest" == refusal(tree)


GOLDEN_ROW = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "members",
    [
        {"format": 2},
        {"format": 3},
        {"gaps": {"missing": {}, "with_gaps": {}, "without_gaps": {}}},
        {"format": 0},
        {"format": "1"},
        {"surprise": 1},
        {"seed": None},
        {"features": {}},
        {"golden": {"rows": [], "answers": []}},
        {"golden": {"rows": [GOLDEN_ROW], "answers": []}},
        {"golden": {"rows": [GOLDEN_ROW], "answers": [1.0, 2.0]}},
        {"golden": {"rows": [GOLDEN_ROW, [1.0, 2.0]], "answers": [1.0, 2.0]}},
        {"golden": {"rows": [[1.0, 2.0]], "answers": [1.0]}},
        {"golden": {"rows": [GOLDEN_ROW], "answers": [None]}},
        {"golden": {"rows": [[1.0, None, 3.0]], "answers": [1.0]}},
    ],
    ids=str,
)
def test_a_manifest_with_a_wrong_member_is_refused(tree, members):
    made.rewrite(tree, **members)

    assert "manifest" == refusal(tree)


def test_a_manifest_of_another_format_is_refused_with_the_format_that_is_read(tree):
    made.rewrite(tree, format=3, later="member")

    with pytest.raises(BadArtifact, match="its format is 3; this version of Gleaner reads 1 and 2"):
        read_artifact(tree)


def test_a_manifest_without_a_member_is_refused(tree):
    whole = json.loads((tree / MANIFEST).read_bytes())
    for name in whole:
        (tree / MANIFEST).write_text(json.dumps({key: value for key, value in whole.items() if key != name}))

        assert "manifest" == refusal(tree), name


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", ".", "", "a/b", "a\0b", "\ud800", "model.onnx "])
def test_a_hostile_file_name_leads_nowhere(tree, name):
    (tree.parent / "secret").write_bytes(b"x")
    files = json.loads((tree / MANIFEST).read_bytes())["files"]
    made.rewrite(tree, files={**files, name: {"sha256": "0" * 64, "size": 1}})

    assert refusal(tree) in {"manifest", "files"}


# The model


def test_the_allowed_operators_are_those_of_the_exported_candidates():
    models = [export(made.fitted(candidate).estimator, 3, floor=0.0) for candidate in made.CANDIDATES]
    gappy = made.gappy_table()
    with_gaps = made.fitted_on(gappy, "linear").estimator
    models.append(export(with_gaps, 3, floor=0.0, gaps=gappy.schema.gaps))

    assert {node.op_type for model in models for node in model.graph.node} == set(OPERATORS)


def with_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Erf"


def with_foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.microsoft"


def with_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "inner", [], [])
    model.graph.node[-1].attribute.append(helper.make_attribute("body", inner))


def with_subgraphs(model: onnx.ModelProto) -> None:
    model.graph.node[-1].attribute.append(helper.make_attribute("bodies", [helper.make_graph([], "inner", [], [])]))


def with_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("mine", "Max", ["x"], ["y"], [], []))


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(made.table().X[:1], name)
    onnx.external_data_helper.set_external_data(tensor, "../../../etc/hostname")
    tensor.ClearField("raw_data")
    return tensor


def with_external_data(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("outside"))


def with_external_data_in_an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[-1].attribute.append(helper.make_attribute("value", external("outside")))


def with_external_data_in_a_list(model: onnx.ModelProto) -> None:
    model.graph.node[-1].attribute.append(helper.make_attribute("values", [external("outside")]))


def with_a_location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def with_a_sparse_tensor(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize(
    "change",
    [
        with_operator,
        with_foreign_domain,
        with_subgraph,
        with_subgraphs,
        with_function,
        with_external_data,
        with_external_data_in_an_attribute,
        with_external_data_in_a_list,
        with_a_location_alone,
        with_a_sparse_tensor,
    ],
)
def test_a_model_that_does_more_than_an_export_is_refused(linear, change):
    model = model_of(linear)
    made.rewrite(linear, model.SerializeToString())
    check_operators(linear)

    change(model)
    made.rewrite(linear, model.SerializeToString())

    assert "operator" == refusal(linear, check_operators)
    assert "operator" == refusal(linear, selftest)


def member(tag: bytes, content: bytes) -> bytes:
    """Return a member of a protobuf message, of less than 2 MB."""
    size = len(content)
    return tag + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


def with_abs(model: onnx.ModelProto) -> None:
    """Use another operator of one input, which the engine has."""
    model.graph.node[-1].op_type = "Abs"
    del model.graph.node[-1].input[1:]


def hide_a_graph(model: onnx.ModelProto) -> bytes:
    """Tag the graph with 36 bits, of which protobuf reads 32."""
    with_abs(model)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + member(b"\xba\x80\x80\x80\x10", graph)


def hide_an_operator(model: onnx.ModelProto) -> bytes:
    """Add an allowed operator in a wire type that protobuf's readers skip."""
    with_abs(model)
    nodes = [node.SerializeToString() for node in model.graph.node]
    nodes[-1] += b"\x25" + b"Gemm"
    model.graph.ClearField("node")
    graph = b"".join(member(b"\x0a", node) for node in nodes) + model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + member(b"\x3a", graph)


@pytest.mark.parametrize("hide", [hide_a_graph, hide_an_operator])
def test_an_operator_that_the_engine_reads_cannot_be_hidden_from_the_check(linear, hide):
    hidden = hide(model_of(linear))
    made.rewrite(linear, hidden)

    # The engine reads and runs it: without the check it would be served.
    Predictor(read_artifact(linear)).predict_row(made.ROW)
    assert "operator" == refusal(linear, check_operators)


def operators_seen_by_onnx(model: bytes) -> set[str]:
    """Return the operators that onnx's reader finds, if it reads the model."""
    parsed = onnx.ModelProto()
    try:
        parsed.ParseFromString(model)
    except Exception:  # its class has moved between protobuf's versions
        return set()
    return {node.op_type for node in parsed.graph.node}


@properties
@given(st.data())
def test_bytes_that_are_no_model_are_refused_without_another_error(workbench, data):
    whole = made.artifact("decision_tree").model.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 8)))
    model = data.draw(
        st.one_of(st.binary(max_size=200), st.binary(max_size=8).map(lambda b: whole[:start] + b + whole[end:]))
    )
    made.rewrite(workbench, model)

    with contextlib.suppress(BadArtifact):
        check_operators(workbench)
        assert operators_seen_by_onnx(model) <= set(OPERATORS)
