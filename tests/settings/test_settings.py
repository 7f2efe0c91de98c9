"""Settings: one object from every source, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from projects import REAL_ROUTES, ROOT, needs_real_routes

from gleaner.errors import BadSetting, environment_name, nearest
from gleaner.settings.describe import describe_settings, show_settings
from gleaner.settings.environment import prepare_mlflow, read_authorization
from gleaner.settings.file import find_settings
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings
from gleaner.table.csv import read_table
from gleaner.table.feature import Feature
from gleaner.table.notation import Notation

MODEL = '[model]\nname = "made"\ntarget = "bags"\nmin = 0.0\n'
FEATURE = '[[features]]\nname = "time_spent"\n'


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Delete the variables of the person who runs the tests."""
    for name in list(os.environ):
        if name.lower().startswith("gleaner_"):
            monkeypatch.delenv(name)


def load(tmp_path: Path, text: str = "", *, flags: Mapping[str, Any] | None = None, whole: bool = False) -> Settings:
    """Load a file of a model, a feature and `text`.

    whole: `text` is the whole file.
    """
    path = tmp_path / "gleaner.toml"
    path.write_text(text if whole else MODEL + FEATURE + text, encoding="utf-8")
    return load_settings(path, flags)


def refusal(tmp_path: Path, text: str = "", *, flags: Mapping[str, Any] | None = None, whole: bool = False) -> str:
    """Return the error of such a file, without the folder's name."""
    with pytest.raises(BadSetting) as caught:
        load(tmp_path, text, flags=flags, whole=whole)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


# The order of sources


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path, monkeypatch):
    assert 5 == load(tmp_path).training.folds
    assert 6 == load(tmp_path, "[training]\nfolds = 6").training.folds

    monkeypatch.setenv("GLEANER_TRAINING__FOLDS", "7")
    assert 7 == load(tmp_path, "[training]\nfolds = 6").training.folds
    assert 8 == load(tmp_path, "[training]\nfolds = 6", flags={"training": {"folds": 8}}).training.folds


def test_a_source_leaves_the_other_keys_of_a_section_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_TRAINING__SEED", "3")
    training = load(tmp_path, "[training]\nfolds = 6", flags={"training": {"repeats": 2}}).training

    assert (6, 3, 2) == (training.folds, training.seed, training.repeats)


def test_a_list_in_the_environment_is_json(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_TRAINING__CANDIDATES", '["linear", "spline"]')

    assert ("linear", "spline") == load(tmp_path).training.candidates


def test_a_whole_section_in_the_environment_is_json(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_TRAINING", '{"folds": 9}')

    assert 9 == load(tmp_path, "[training]\nfolds = 6").training.folds


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("GLEANER_TRAINING__CANDIDATES", ", got 'linear'"),
        ("GLEANER_SERVING__SLOTS", ", got 'linear'"),
        ("GLEANER_TRAINING", ""),  # a whole section can hold a secret
    ],
)
def test_plain_text_in_the_environment_is_no_list_and_no_table(tmp_path, monkeypatch, name, got):
    monkeypatch.setenv(name, "linear")

    assert f"environment: {name}: wanted a list or a table as JSON{got}" == refusal(tmp_path)


def test_a_stronger_source_replaces_the_whole_table_of_accuracy(tmp_path, monkeypatch):
    text = "[scores]\naccuracy = { within_factor = 3.0 }"
    monkeypatch.setenv("GLEANER_SCORES__ACCURACY__WITHIN", "10")

    assert {"within": 10.0} == load(tmp_path, text).scores.accuracy.model_dump()
    flags = {"scores": {"accuracy": {"within_factor": 4.0}}}
    assert {"within_factor": 4.0} == load(tmp_path, text, flags=flags).scores.accuracy.model_dump()


def test_the_port_of_serving_is_the_port_of_ml_app(tmp_path, monkeypatch):
    text = "[serving]\nport = 6001"

    assert 6001 == load(tmp_path, text).ports.ml_app
    assert 8010 == load(tmp_path, text).ports.ml_app_metrics
    monkeypatch.setenv("GLEANER_SERVING__PORT", "6002")
    assert 6002 == load(tmp_path, "[ports]\nml_app = 6000").ports.ml_app
    assert 6003 == load(tmp_path, text, flags={"serving": {"port": 6003}}).ports.ml_app
    assert 6004 == load(tmp_path, text, flags={"ports": {"ml_app": 6004}}).ports.ml_app


def test_the_environment_moves_a_port_by_its_own_name_too(tmp_path, monkeypatch):
    monkeypatch.setenv(environment_name("ports.ml_app"), "6002")

    assert 6002 == load(tmp_path, "[serving]\nport = 6001").ports.ml_app


def test_settings_cannot_be_changed(tmp_path):
    settings = load(tmp_path)

    with pytest.raises(ValueError, match="frozen"):
        settings.training.folds = 9
    with pytest.raises(ValueError, match="frozen"):
        settings.ports = settings.ports


# Files and folders


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir("/")
    settings = load(tmp_path / "project", '[paths]\nstate = "kept"\n[training]\ndata = "../routes.csv"')

    assert tmp_path / "project" / "kept" == settings.state
    assert tmp_path / "project" / "kept" / "store" == settings.store
    assert tmp_path / "project" / ".." / "routes.csv" == settings.data
    assert f"sqlite:///{tmp_path}/project/kept/mlflow.db" == settings.tracking_uri


def test_absolute_paths_stay_as_they_are(tmp_path):
    settings = load(tmp_path, f'[paths]\nstate = "{tmp_path}/elsewhere"\n[tracking]\nuri = "http://mlflow:5000"')

    assert tmp_path / "elsewhere" == settings.state
    assert "http://mlflow:5000" == settings.tracking_uri
    assert settings.data is None


def test_the_file_is_the_named_one_or_the_variables_or_this_folders(monkeypatch):
    assert Path("gleaner.toml") == find_settings()
    monkeypatch.setenv("GLEANER_CONFIG", "/etc/gleaner.toml")

    assert Path("/etc/gleaner.toml") == find_settings()
    assert Path("mine.toml") == find_settings(Path("mine.toml"))


def test_the_file_of_the_variable_is_read(tmp_path, monkeypatch):
    load(tmp_path)
    monkeypatch.setenv("GLEANER_CONFIG", str(tmp_path / "gleaner.toml"))

    assert tmp_path / "gleaner.toml" == load_settings().file


# Files that cannot be read


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(
        BadSetting, match=r"nowhere.toml: no such file .*; `gleaner init DATA.csv --target COLUMN` writes"
    ):
        load_settings(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("named", [None, Path("nope.toml"), Path("below/nope.toml")])
def test_a_missing_file_names_the_searched_folder_and_the_ways_to_name_another(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSetting) as caught:
        load_settings(named)
    path = named or Path("gleaner.toml")

    assert str(caught.value).startswith(
        f"{path}: no such file in {tmp_path / path.parent}; "
        "go to the folder of gleaner.toml, or name a file with --config or GLEANER_CONFIG; "
    )


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(BadSetting, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize("content", [b"[model\n", b"a = 1\na = 2\n", b"a = \x00"])
def test_a_file_that_is_not_toml_is_refused_with_the_place(tmp_path, content):
    (tmp_path / "gleaner.toml").write_bytes(content)

    with pytest.raises(BadSetting, match=r"gleaner.toml: is not TOML: ") as caught:
        load_settings(tmp_path / "gleaner.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "gleaner.toml").write_bytes((MODEL + FEATURE + 'unit = "m\u00b2"').encode(encoding))

    with pytest.raises(BadSetting, match=r"gleaner.toml: is not UTF-8; save it as UTF-8$"):
        load_settings(tmp_path / "gleaner.toml")


def test_a_byte_order_mark_is_ignored(tmp_path):
    assert "made" == load(tmp_path, "\ufeff" + MODEL + FEATURE, whole=True).model.name


# Unknown keys


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[servng]\nhost = 'x'", "servng: no such setting; did you mean 'serving'?"),
        ("[serving]\nhots = 'x'", "serving.hots: no such setting; did you mean 'host'?"),
        ("[serving]\nprot = 1", "serving.prot: no such setting; did you mean 'port'?"),
        ("[training]\nfods = 3", "training.fods: no such setting; did you mean 'folds'?"),
        ("[scores]\naccuracy = { withn = 3 }", "scores.accuracy.withn: no such setting; did you mean 'within'?"),
        (
            "[scores]\naccuracy = { within_fctor = 3 }",
            "scores.accuracy.within_fctor: no such setting; did you mean 'within_factor'?",
        ),
        (
            "[ports]\nqqq = 3",
            "ports.qqq: no such setting; known: 'alertmanager', 'grafana', 'ml_app', 'ml_app_metrics', 'mlflow', "
            "'prometheus', 'train_metrics'",
        ),
        ("mni = 3", "feature 'time_spent': mni: no such setting; did you mean 'min'?"),
        (f"{FEATURE}moonotone = 'up'", "feature 'time_spent': moonotone: no such setting; did you mean 'monotone'?"),
    ],
)
def test_an_unknown_key_in_the_file_names_the_nearest(tmp_path, text, said):
    assert refusal(tmp_path, text).startswith(f"gleaner.toml: {said}")


def test_the_name_of_the_file_is_no_key_of_it(tmp_path):
    assert refusal(tmp_path, 'file = "x"\n' + MODEL + FEATURE, whole=True).startswith("gleaner.toml: file: no such")


def test_a_misspelt_required_key_is_reported_as_misspelt(tmp_path):
    text = '[model]\nname = "made"\ntarget = "bags"\nmin = 0\n[[features]]\nnmae = "a"\n'

    assert "gleaner.toml: feature 1: nmae: no such setting; did you mean 'name'?" == refusal(tmp_path, text, whole=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("GLEANER_SERVNG__HOST", "'GLEANER_SERVING'"),
        ("GLEANER_CONFG", "'GLEANER_CONFIG'"),
        ("gleaner_trainig__folds", "'GLEANER_TRAINING'"),
        ("GLEANER_SERVING__HOTS", "'host'"),
        ("GLEANER_SCORES__ACCURACY__WITHN", "'within'"),
    ],
)
def test_an_unknown_variable_names_the_nearest(tmp_path, monkeypatch, name, near):
    monkeypatch.setenv(name, "x")

    assert f"environment: {name}: no such setting; did you mean {near}?" == refusal(tmp_path)


@pytest.mark.parametrize("name", ["GLEANER", "GLEANERS_FOLDS", "OTHER_GLEANER_X", "GLEANER_REAL_ROUTES"])
def test_variables_of_others_are_left_alone(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "x")

    assert 5 == load(tmp_path).training.folds


def test_an_unknown_flag_names_the_nearest(tmp_path):
    said = refusal(tmp_path, flags={"training": {"foldz": 3}})

    assert "flag: training.foldz: no such setting; did you mean 'folds'?" == said


@given(st.sampled_from(sorted(Settings.model_fields)), st.integers(0, 30), st.sampled_from("abcdexyz"))
@profile(max_examples=60, deadline=None, derandomize=True, database=None)
def test_one_wrong_letter_is_near_enough(name, at, letter):
    misspelt = name[: at % len(name)] + letter + name[at % len(name) + 1 :]

    assert f"; did you mean {name!r}?" == nearest(misspelt, [name, "something_else"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("", None), ("30s", 30), ("90m", 5_400), ("24h", 86_400), ("7d", 604_800)]
)
def test_a_duration_is_a_number_and_its_unit(tmp_path, text, seconds):
    assert seconds == load(tmp_path, f'[training]\nevery = "{text}"').training.every_seconds


# Values out of range


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nfolds = 1", "training.folds: wanted 2 or more, got 1"),
        ("[training]\nseed = -1", "training.seed: wanted 0 or more, got -1"),
        ("[training]\nseed = 4294967296", "training.seed: wanted less than 4294967296, got 4294967296"),
        *(
            (
                f'[training]\nevery = "{text}"',
                f"training.every: wanted a duration such as 90m, 24h or 7d, or an empty text, got '{text}'",
            )
            for text in ("24", "0h", "1.5h", "24 h", "h", "daily", "9999999d", "1w")
        ),
        ("[ports]\nml_app = 65536", "ports.ml_app: wanted 65535 or less, got 65536"),
        ("[serving]\nport = 65536", "serving.port: wanted 65535 or less, got 65536"),
        ("[serving]\npoll_seconds = 0", "serving.poll_seconds: wanted more than 0, got 0"),
        ("[serving]\ndrain_seconds = inf", "serving.drain_seconds: wanted a finite number, got inf"),
        ("[scores]\naccuracy = { within = -1 }", "scores.accuracy.within: wanted more than 0, got -1"),
        (
            "[scores]\naccuracy = { within_factor = 1.0 }",
            "scores.accuracy.within_factor: wanted more than 1, got 1.0",
        ),
        (
            "[scores]\naccuracy = { within_factor = 2.0, within = 1.0 }",
            "scores.accuracy.within: wanted only one of 'within_factor', 'within'",
        ),
        (
            '[training]\nchampion = "bets"',
            "training.champion: wanted 'best', 'linear', 'decision_tree', 'random_forest', "
            "'gradient_boosting' or 'spline', got 'bets'",
        ),
        (
            '[serving.slots]\nfirst = "champion"',
            "serving.slots.first: wanted a slot such as v1 or v2, got 'first'",
        ),
        (
            '[training]\ncandidates = ["linear", "forest"]',
            "training.candidates: wanted 'linear', 'decision_tree', 'random_forest', 'gradient_boosting' or "
            "'spline', got 'forest'",
        ),
        ("[training]\ncandidates = []", "training.candidates: wanted at least one"),
        ('[training]\ncandidates = "linear"', "training.candidates: wanted a list, such as [\"...\"], got 'linear'"),
        ("[training]\ndata = 3", "training.data: wanted a path in quotes, got 3"),
        *(
            (
                f"[scores]\naccuracy = {value}",
                "scores.accuracy: wanted { within_factor = 2.0 }, or { within = 10.0 } in the target's unit, "
                f"got {value}",
            )
            for value in ("2", "'high'", "{}")
        ),
    ],
)
def test_a_value_out_of_range_names_the_file_the_key_and_the_value(tmp_path, text, said):
    assert f"gleaner.toml: {said}" == refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("GLEANER_TRAINING__FOLDS", "1", ""),
        ("GLEANER_TRAINING__FOLDS", "many", "[training]\nfolds = 6"),
        ("GLEANER_SERVING__PORT", "65536", "[serving]\nport = 5001"),
        ("GLEANER_SERVING__PORT", "65536", "[ports]\nml_app = 5001"),
        ("GLEANER_PORTS__ML_APP", "-1", "[serving]\nport = 5001"),
        ("GLEANER_MODEL__NAME", "../x", ""),
    ],
)
def test_a_bad_value_names_the_environment_whatever_the_file_holds(tmp_path, monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    said = refusal(tmp_path, text)

    assert said.startswith(f"environment: {name}: ")
    assert said.endswith(f", got {value!r}")


@pytest.mark.parametrize(("section", "key"), [("serving", "port"), ("ports", "ml_app"), ("ports", "train_metrics")])
def test_a_bad_value_names_the_flag_whatever_the_others_hold(tmp_path, monkeypatch, section, key):
    monkeypatch.setenv(environment_name(f"{section}.{key}"), "5001")
    said = refusal(tmp_path, f"[{section}]\n{key} = 5001", flags={section: {key: 70_000}})

    assert f"flag: {section}.{key}: wanted 65535 or less, got 70000" == said


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_a_list_is_named_as_its_source_spells_it_without_a_position(tmp_path, monkeypatch, source):
    names = ["linear", "forest"]
    key = environment_name("training.candidates") if source == "environment" else "training.candidates"
    if source == "environment":
        monkeypatch.setenv(key, json.dumps(names))
    said = refusal(tmp_path, flags={"training": {"candidates": names}} if source == "flag" else None)

    assert said.startswith(f"{source}: {key}: wanted 'linear', ")
    assert said.endswith(", got 'forest'")


def test_a_feature_of_the_environment_is_named_behind_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_FEATURES", '[{"name": "a"}, {"name": "b", "type": "text"}]')

    assert refusal(tmp_path).startswith("environment: GLEANER_FEATURES: feature 'b': type: wanted 'float', ")


def test_the_parts_of_a_refusal_stay_on_it(tmp_path):
    with pytest.raises(BadSetting) as caught:
        load(tmp_path, "[training]\nfolds = 1")

    assert (str(tmp_path / "gleaner.toml"), "training.folds") == (caught.value.source, caught.value.key)
    assert "wanted 2 or more, got 1" == caught.value.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FEATURE, "model: is missing"),
        (MODEL, "features: is missing"),
        ('[model]\nname = "made"\n' + FEATURE, "model.target: is missing"),
        (MODEL + '[[features]]\ntype = "int"', "feature 1: name: is missing"),
        ("features = []\n" + MODEL, "features: wanted one or more [[features]], a table for each column"),
    ],
)
def test_a_missing_key_is_named(tmp_path, text, said):
    assert f"gleaner.toml: {said}" == refusal(tmp_path, text, whole=True)


@pytest.mark.parametrize(
    "text",
    ["ports = 5001\n[serving]\nport = 5001\n", "serving = 3\n", "model = 'x'\n", "features = 1\n", "features = [1]\n"],
)
def test_a_value_where_a_table_is_wanted_is_refused_in_one_line(tmp_path, text):
    rest = "".join(part for part in (MODEL, FEATURE) if text.split(" ")[0] not in part)

    said = refusal(tmp_path, text + rest, whole=True)
    key = "feature 1" if "[1]" in text else text.split(" ")[0]
    wanted = "one or more [[features]], a table for each column" if "features" in text else "a table of `key = value`"
    assert said.startswith(f"gleaner.toml: {key}: wanted {wanted}, got ")


# Settings that have to fit together


NEGATIVE = '[model]\nname = "made"\ntarget = "change"\n' + FEATURE


def test_a_target_that_can_be_negative_has_no_log_score(tmp_path):
    assert refusal(tmp_path, NEGATIVE, whole=True).startswith(
        "gleaner.toml: scores.loss: squared_log_error needs model.min above -1; "
    )


@pytest.mark.parametrize("low", ["-1", "-1.0", "-7"])
def test_a_minimum_of_minus_one_is_too_low_for_a_logarithm(tmp_path, low):
    assert "scores.loss: squared_log_error needs model.min above -1" in refusal(
        tmp_path, MODEL.replace("0.0", low) + FEATURE, whole=True
    )


@pytest.mark.parametrize("low", ["", "min = -1\n", "min = -7.5\n"])
def test_a_target_that_can_be_negative_has_no_factor(tmp_path, low):
    text = NEGATIVE.replace("[[", low + "[[") + '[scores]\nloss = "standardised_squared_error"\n'

    assert "gleaner.toml: scores.accuracy: within_factor needs model.min above -1; use { within = ... }" == refusal(
        tmp_path, text, whole=True
    )


def test_a_target_that_can_be_negative_has_the_other_scores(tmp_path):
    text = NEGATIVE + '[scores]\nloss = "standardised_squared_error"\naccuracy = { within = 10 }\n'

    assert load(tmp_path, text, whole=True).schema_.target.min is None


def test_a_fault_of_a_section_does_not_repeat_the_section(tmp_path):
    said = refusal(tmp_path, '[alerts]\nwebhook_token_file = "/run/token"\nslow_window_seconds = 30')

    assert "gleaner.toml: alerts: slow_window_seconds: wanted 60 or more, 4 times scrape_seconds, got 30" == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[table]\ndecimal = ";"', "table.decimal: wanted a point or a comma, got ';'"),
        ('[table]\nthousands = "."', "table.thousands: wanted another sign than `decimal`, which is '.', got '.'"),
        (
            '[table]\nthousands = "_"',
            "table.thousands: wanted a point, a comma, a blank, an apostrophe, or an empty text for none, got '_'",
        ),
        (
            '[table]\nstrip = "€ -"',
            "table.strip: wanted signs such as `€ $ %`, without digits, brackets, signs of numbers and points alone, "
            "got '-'",
        ),
        (
            '[table]\ndecimal = ","\n[[features]]\nname = "a"\nthousands = ","',
            "'a': thousands: wanted another sign than `decimal`, which is ',', got ','",
        ),
    ],
)
def test_the_signs_of_numbers_can_be_told_apart(tmp_path, text, said):
    assert f"gleaner.toml: {said}" == refusal(tmp_path, text)


def test_a_columns_own_notation_comes_before_that_of_the_table(tmp_path):
    text = '[table]\ndecimal = ","\nstrip = "€"\n[[features]]\nname = "a"\ndecimal = "."\n'
    schema = load(tmp_path, text + '[[features]]\nname = "w"\ntype = "category"\nvalues = ["x"]').schema_

    assert [Notation(",", "", "€"), Notation(".", "", "€"), Notation()] == [one.notation for one in schema.features]
    assert Notation(",", "", "€") == schema.target.notation


def test_the_target_is_no_feature(tmp_path):
    assert "gleaner.toml: model.target: 'bags' is a feature, too; delete it from [[features]]" == refusal(
        tmp_path, '[[features]]\nname = "bags"'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[features]]\nname = "time_spent"', "two features are named 'time_spent'"),
        ('[[features]]\nname = ""', "wanted a feature's name, not empty and without a colon, got ''"),
        ('[[features]]\nname = "a:b"', "wanted a feature's name, not empty and without a colon, got 'a:b'"),
        (
            '[[features]]\nname = "a"\ntype = "category"',
            '\'a\': a category needs its words: add `values = ["...", ...]`, or "learn"',
        ),
        (
            '[[features]]\nname = "a"\ntype = "category"\nvalues = []',
            '\'a\': a category needs its words: add `values = ["...", ...]`, or "learn"',
        ),
        (
            '[[features]]\nname = "a"\nvalues = ["x"]',
            "'a': only a category has `values`: add `type = \"category\"`, or delete `values`",
        ),
        ('[[features]]\nname = "a"\ntype = "category"\nvalues = ["x", "x"]', "'a': `values` has 'x' twice"),
        (
            '[[features]]\nname = "a"\ntype = "category"\nvalues = ["x", " y"]',
            "'a': wanted 'y' without blanks around it, got ' y'",
        ),
        (
            '[[features]]\nname = "a"\ntype = "category"\nvalues = ["x\u00a0"]',
            "'a': wanted 'x' without blanks around it, got 'x\\xa0'",
        ),
        (
            '[[features]]\nname = "a"\nmap = { "half an hour " = 30 }',
            "'a': wanted 'half an hour' without blanks around it, got 'half an hour '",
        ),
        (
            '[[features]]\nname = "a"\ntype = "category"\nvalues = ["x"]\nmin = 0',
            "'a': type 'category' has no `min`; a column of float or int has it",
        ),
        (
            '[[features]]\nname = "a"\ntype = "category"\nvalues = ["x"]\nmonotone = "up"',
            "'a': type 'category' has no `monotone`; a column of float or int or bool has it",
        ),
        ('[[features]]\nname = "a"\nmin = 1\nmax = 1', "'a': `min` has to be below `max`, got 1 and 1"),
        ('[[features]]\nname = "a"\nmin = 2\nmax = 1', "'a': `min` has to be below `max`, got 2 and 1"),
    ],
)
def test_a_feature_has_to_make_sense(tmp_path, text, said):
    assert f"gleaner.toml: features: {said}" == refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('monotone = "sideways"', "feature 'time_spent': monotone: wanted 'up' or 'down', got 'sideways'"),
        (
            'type = "text"',
            "feature 'time_spent': type: wanted 'float', 'int', 'bool', 'category', 'date' or 'datetime', got 'text'",
        ),
        ("max = nan", "feature 'time_spent': max: wanted a finite number, got nan"),
        ("min = -inf", "feature 'time_spent': min: wanted a finite number, got -inf"),
        (
            'map = { soon = "five" }',
            "feature 'time_spent': map.soon: wanted a number, got 'five'",
        ),
    ],
)
def test_a_features_own_keys_are_held_to_their_types(tmp_path, line, said):
    assert f"gleaner.toml: {said}" == refusal(tmp_path, line)


def test_features_become_the_schema_in_their_order(tmp_path):
    text = """
target_sources = ["Bags"]
unit = "bags"
date_sources = ["Date"]
[[features]]
name = "b"
sources = ["B", "bb"]
map = { soon = 5 }
[[features]]
name = "a"
type = "category"
values = ["x", "y"]
"""
    schema = load(tmp_path, MODEL + text, whole=True).schema_

    assert ("b", "a=x", "a=y") == schema.columns
    assert ("B", "bb") == schema.features[0].sources
    assert {"soon": 5.0} == dict(schema.features[0].map)
    assert ("bags", ("Bags",), "bags", 0.0) == (
        schema.target.name,
        schema.target.sources,
        schema.target.unit,
        schema.target.min,
    )
    assert ("Date",) == schema.date_sources


# The shipped file


def test_the_shipped_file_loads_with_the_guides_ports():
    settings = load_settings(ROOT / "gleaner.toml")

    assert "food-drive" == settings.model.name
    assert ("time_spent", "doors_in_route", "assessed_value") == settings.schema_.columns
    assert (5001, 8010, 8003) == (settings.ports.ml_app, settings.ports.ml_app_metrics, settings.ports.train_metrics)
    assert {"v1": "champion", "v2": "challenger"} == settings.serving.slots


@pytest.mark.parametrize("extremes", [(1.5, 1, 0, 0), (270, 2_500, 28_618_500, 555)], ids=["the least", "the greatest"])
def test_the_shipped_bounds_take_the_extremes_of_real_routes(extremes):
    schema = load_settings(ROOT / "gleaner.toml").schema_
    *row, bags = map(str, extremes)

    cells = [feature.accept_cell(cell) for feature, cell in zip(schema.features, row, strict=True)]
    assert [*extremes] == [*cells, schema.target.accept_cell(bags)]


@needs_real_routes
def test_every_one_of_the_real_routes_is_taken():
    table = read_table(REAL_ROUTES, load_settings(ROOT / "gleaner.toml").schema_)

    assert 450 == len(table.y)
    assert 0 == table.refused
    assert "Time to Complete (min)" == table.taken["time_spent"]
    assert "Donation Bags Collected" == table.taken["donation_bags_collected"]
    assert (1.5, 270.0) == (table.X[:, 0].min(), table.X[:, 0].max())
    assert 555.0 == table.y.max()


# Settings as text


def described() -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, meaning) of each setting on its page.

    `[[features]]` is left out; its table has other columns.
    """
    rows, section = [], ""
    for line in describe_settings().splitlines():
        if line.startswith("## "):
            section = line.strip("#` []")
        elif line.startswith("| `") and section != "features":
            name, kind, default, meaning = (cell.strip(" `") for cell in line.strip("| ").split(" | "))
            rows.append((f"{section}.{name}", kind, default, meaning))
    return rows


def test_every_setting_has_a_meaning_and_a_default_that_is_toml():
    for key, kind, default, meaning in described():
        assert kind, key
        assert meaning.endswith((".", "`")), key
        assert all(len(sentence.split()) <= 25 for sentence in meaning.split(". ")), key
        if default not in {"required", "none"}:
            assert tomllib.loads(f"x = {default}"), key


def test_every_key_of_every_section_is_described(tmp_path):
    sections = load(tmp_path).model_dump(exclude={"file", "features"})

    assert [f"{section}.{key}" for section, keys in sections.items() for key in keys] == [
        key for key, *_ in described()
    ]


def test_every_key_of_a_feature_is_described():
    for field in dataclasses.fields(Feature):
        assert f"\n| `{field.name}` | " in describe_settings(), field.name


@pytest.mark.parametrize("key", [key for key, kind, _, _ in described() if kind in {"number", "whole number"}])
def test_every_number_is_refused_by_the_name_of_its_variable(tmp_path, monkeypatch, key):
    monkeypatch.setenv(environment_name(key), "many")

    assert refusal(tmp_path).startswith(f"environment: {environment_name(key)}: wanted a ")


def test_the_settings_in_effect_are_shown_one_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANER_TRAINING__FOLDS", "7")
    lines = show_settings(load(tmp_path, "[serving]\nport = 6001")).splitlines()

    assert "training.folds = 7" in lines
    assert "ports.ml_app = 6001" in lines
    assert 'serving.slots = { v1 = "champion", v2 = "challenger" }' in lines
    assert "scores.accuracy = { within_factor = 2.0 }" in lines
    assert "features = time_spent" in lines
    assert {key for key, *_ in described()} | {"features"} == {line.split(" = ")[0] for line in lines}


# Variables of other programs


def test_mlflow_gets_a_bound_on_its_waits_and_sends_no_telemetry(tmp_path, monkeypatch):
    for name in (  # set here, so that they are as they were afterwards
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "GIT_PYTHON_REFRESH",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    ):
        monkeypatch.setenv(name, "x")
    prepare_mlflow(load(tmp_path, "[tracking]\ntimeout_seconds = 0.2"))

    assert "true" == os.environ["MLFLOW_DISABLE_TELEMETRY"]
    assert "1" == os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]


# An MLflow server and its password

WHOLE = [
    "http://mlflow:5000",
    "https://mlflow.example.com/prefix/",
    "HTTP://[::1]:5000",
    "http://joe:5ecret%40of-joe@mlflow:5000",
]
BROKEN = [
    "http://",
    "http://:5000",
    "http://mlflow:5ecret-of-joe",
    "http://mlflow:0",
    "http://5ecret-of-joe@mlflow:5000",
    "http://joe:@mlflow:5000",
    "http://joe:5ecret/of-joe@mlflow:5000",
    "http://joe:5ecret of-joe@mlflow:5000",
    "http://joe:5ecret-of-joe@ml\u00fcflow:5000",
    "http://mlflow:5000/?key=5ecret-of-joe",
    "http://[mlflow",
]


@pytest.mark.parametrize("uri", WHOLE)
def test_the_address_of_a_server_is_shown_without_its_password(tmp_path, uri):
    settings = load(tmp_path, f'[tracking]\nuri = "{uri}"')

    assert settings.tracking.is_server
    assert uri.replace("joe:5ecret%40of-joe@", "") == settings.tracking_uri
    assert "5ecret" not in show_settings(settings) + json.dumps(settings.model_dump(mode="json"))


@pytest.mark.parametrize("uri", BROKEN)
def test_an_incomplete_address_is_refused_and_not_repeated(tmp_path, uri):
    with pytest.raises(BadSetting, match=r"tracking.uri: wanted http://host:port") as refused:
        load(tmp_path, f'[tracking]\nuri = "{uri}"')

    assert "5ecret" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["http://joe:5ecret-of-joe@mlflow:5000", '{"uri": "http://joe:5ecret-of-joe@mlflow:5000"']
)
def test_a_password_in_the_wrong_place_is_not_repeated_either(tmp_path, monkeypatch, value):
    monkeypatch.setenv("GLEANER_TRACKING", value)

    with pytest.raises(BadSetting) as refused:
        load(tmp_path)

    assert "5ecret-of-joe" not in str(refused.value)


def test_a_databases_address_is_used_whole_and_shown_without_its_password(tmp_path):
    uri = "postgresql://joe:5ecret-of-joe@database/mlflow"
    settings = load(tmp_path, f'[tracking]\nuri = "{uri}"')

    assert not settings.tracking.is_server
    assert uri == settings.tracking_uri
    assert "5ecret-of-joe" not in show_settings(settings) + json.dumps(settings.model_dump(mode="json"))


def test_mlflow_gets_the_password_in_its_own_variables(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")  # so that it is put back afterwards

    prepare_mlflow(load(tmp_path, '[tracking]\nuri = "http://joe:5ecret%40of-joe@mlflow:5000"'))

    assert ("joe", "5ecret@of-joe") == (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])


def test_a_token_that_no_header_can_hold_is_refused_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "5ecret-of-joe\nX: y")

    with pytest.raises(BadSetting, match="MLFLOW_TRACKING_TOKEN") as refused:
        read_authorization(load(tmp_path, '[tracking]\nuri = "http://mlflow:5000"'))

    assert "5ecret-of-joe" not in str(refused.value)
