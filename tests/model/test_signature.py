"""Signatures: the versions that a store with a public key takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import made
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from projects import SETTINGS
from signed import ANOTHER_KEY, KEY, of_another_model, sign, signer_of
from started import tool

from gleaner.errors import BadArtifact, BadSetting, BadStore, Refused, Unwritable
from gleaner.model.confinement import Limits
from gleaner.model.loading import load_version
from gleaner.model.manifest import MANIFEST, MODEL, SIGNATURE
from gleaner.model.predictor import ENGINE
from gleaner.model.signature import read_signer
from gleaner.model.signing import SigningKey, write_key
from gleaner.model.store import Store
from gleaner.settings.load import load_settings
from gleaner.settings.sections import Settings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store of two signed versions; nothing is remembered."""
    root = made.fill(tmp_path / "store", made.constant(1.0), made.constant(2.0), tested=False).root
    for version in (1, 2):
        sign(root / "versions" / str(version))
    return Store(root, signer_of())


def refusal(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(BadArtifact) as caught:
        action()
    return caught.value.reason, caught.value.detail


# What is checked


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def by_another_key(folder: Path) -> None:
    sign(folder, ANOTHER_KEY)


def of_another_version(folder: Path) -> None:
    shutil.copy(folder.parent / "2" / SIGNATURE, folder)


def as_a_link(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).symlink_to(folder.parent / "1.sig")
    (folder.parent / "1.sig").write_bytes(KEY.sign((folder / MANIFEST).read_bytes()))


def huge(folder: Path) -> None:
    with (folder / SIGNATURE).open("ab") as file:
        file.truncate(900 << 20)


DAMAGES = {
    "a byte of the manifest": (lambda folder: flip(folder / MANIFEST), "signature", "is not the signature"),
    "a byte of the signature": (lambda folder: flip(folder / SIGNATURE), "signature", "is not the signature"),
    "a byte of the model": (lambda folder: flip(folder / MODEL), "hash", "model.onnx does not match"),
    "no signature": (lambda folder: (folder / SIGNATURE).unlink(), "signature", "`gleaner models sign VERSION`"),
    "another key": (by_another_key, "signature", "is not the signature"),
    "another version's": (of_another_version, "signature", "is not the signature"),
    "a huge file": (huge, "signature", "has 943,718,400 bytes; a signature has 64"),
    "an empty file": (lambda folder: (folder / SIGNATURE).write_bytes(b""), "signature", "has 0 bytes"),
    "a link": (as_a_link, "signature", "is not a regular file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_version_is_read_only_with_its_signature(store, damage):
    spoil, reason, said = DAMAGES[damage]
    store.read(1)

    spoil(store.folder(1))

    found = refusal(lambda: store.read(1))
    assert reason == found[0]
    assert said in found[1]
    store.read(2)


@pytest.mark.parametrize(("is_signed", "reason"), [(False, "signature"), (True, "manifest")])
def test_no_byte_of_an_unsigned_manifest_is_decoded(store, is_signed, reason):
    (store.folder(1) / MANIFEST).write_bytes(b"\xff{" * 1000)
    if is_signed:
        sign(store.folder(1))

    assert reason == refusal(lambda: store.read(1))[0]


def test_a_signed_version_of_another_model_is_refused(tmp_path):
    folder = sign(of_another_model(tmp_path / "other"))

    assert ("signature", "it is a signed version of 'other', not of 'made'") == refusal(
        lambda: Store(tmp_path / "store", signer_of()).add(1, folder)
    )
    Store(tmp_path / "others", signer_of(model="other")).add(1, folder)


def test_the_data_is_signed(store):
    about = json.loads((store.folder(1) / MANIFEST).read_bytes())
    about["data"]["sha256"] = "0" * 64
    (store.folder(1) / MANIFEST).write_text(json.dumps(about))

    assert "signature" == refusal(lambda: store.read(1))[0]


@pytest.mark.parametrize(("make", "reason"), [(hostile.not_finite_elsewhere, "selftest"), (made.killing, "selftest")])
def test_a_signed_but_hostile_model_is_refused(tmp_path, make, reason):
    store = Store(tmp_path / "store", signer_of())
    golden = make is not made.killing
    folder = hostile.pack(tmp_path / "new", make) if golden else made.copy(made.constant(4.0), tmp_path / "new")
    if not golden:
        made.rewrite(folder, make())
    store.add(1, sign(folder))

    assert reason == refusal(lambda: load_version(store, 1))[0]
    assert not store.has_passed(1, store.read(1).digest, ENGINE)


def test_openssl_checks_the_same_signature(store, tmp_path):
    write_key(tmp_path / "key")
    key = SigningKey.read(settings(tmp_path, signing_key="key"))
    sign(store.folder(1), key)
    command = [tool("openssl"), "pkeyutl", "-verify", "-pubin", "-inkey", str(tmp_path / "key.pub"), "-rawin"]
    command += ["-in", str(store.folder(1) / MANIFEST), "-sigfile", str(store.folder(1) / SIGNATURE)]

    assert 0 == subprocess.run(command, capture_output=True, check=False).returncode
    flip(store.folder(1) / MANIFEST)
    assert 0 != subprocess.run(command, capture_output=True, check=False).returncode


def test_a_check_that_the_machine_stops_is_tried_again(store, monkeypatch):
    monkeypatch.setattr("gleaner.model.signature.LIMITS", Limits(256 << 20, 30, 0.0))

    with pytest.raises(BadArtifact, match="the check of its signature took longer than 0 s") as caught:
        store.read(1)
    assert ("signature", True) == (caught.value.reason, caught.value.transient)


def test_the_check_has_a_limit_of_memory(store, monkeypatch):
    monkeypatch.setattr("gleaner.model.signature.LIMITS", Limits(12 << 20, 30, 60.0))
    with (store.folder(1) / MANIFEST).open("ab") as file:
        file.truncate(16 << 20)

    assert ("signature", "MemoryError") == refusal(lambda: store.read(1))


# What the store takes


def test_a_store_with_a_public_key_takes_nothing_unsigned(tmp_path):
    store = Store(tmp_path / "store", signer_of())

    assert "signature" == refusal(lambda: store.add(1, made.constant(1.0).folder))[0]
    assert [] == store.versions()


def test_a_signature_goes_into_the_store_and_without_a_public_key_too(tmp_path):
    folder = sign(made.copy(made.constant(1.0), tmp_path / "new"))
    for name, signer in (("with", signer_of()), ("without", None)):
        store = Store(tmp_path / name, signer)
        store.add(1, folder)

        assert (folder / SIGNATURE).read_bytes() == (store.folder(1) / SIGNATURE).read_bytes()


@pytest.mark.parametrize("signer", [signer_of(), None])
def test_a_version_that_is_there_gets_only_a_missing_or_a_checked_signature(tmp_path, signer):
    store, folder = Store(tmp_path / "store"), made.copy(made.constant(1.0), tmp_path / "new")
    store.add(1, folder)
    store = Store(store.root, signer)

    store.add(1, sign(folder))

    assert (folder / SIGNATURE).read_bytes() == (store.folder(1) / SIGNATURE).read_bytes()
    before = (store.folder(1) / SIGNATURE).read_bytes()
    if signer:
        assert "signature" == refusal(lambda: store.add(1, sign(folder, ANOTHER_KEY)))[0]
    else:
        store.add(1, sign(folder, ANOTHER_KEY))
    assert before == (store.folder(1) / SIGNATURE).read_bytes()


def test_another_version_under_the_number_is_refused_before_it_is_decoded(store, tmp_path):
    (store.folder(1) / MANIFEST).write_bytes(b"{")

    with pytest.raises(BadStore, match="holds another model"):
        store.add(1, sign(made.copy(made.constant(1.0), tmp_path / "new")))


def test_an_unsigned_manifest_is_not_decoded_to_compare_its_models_name(store, tmp_path):
    """`check_model` runs at every start, before the versions are loaded."""
    folder = of_another_model(tmp_path / "other")
    unchecked = Store(store.root)
    unchecked.add(3, folder)
    unchecked.point({"champion": 3})

    with pytest.raises(BadStore, match="'other'"):
        unchecked.check_model("made")
    store.check_model("made")  # loading refuses it
    assert "signature" == refusal(lambda: store.read(3))[0]


# What is remembered


def test_a_start_checks_nothing_again(store, monkeypatch):
    load_version(store, 1)
    monkeypatch.setattr(sys, "executable", "/nowhere")  # no process can start

    load_version(store, 1)

    with pytest.raises(FileNotFoundError):
        load_version(store, 2)


def test_another_key_means_testing_again(store):
    load_version(store, 1)
    another = Store(store.root, signer_of(ANOTHER_KEY))

    assert "signature" == refusal(lambda: load_version(another, 1))[0]
    sign(store.folder(1), ANOTHER_KEY)
    tested: list[Path] = []
    load_version(another, 1, test=tested.append)
    load_version(another, 1, test=tested.append)
    assert [store.folder(1)] == tested


def test_a_test_that_was_remembered_without_a_key_counts_without_a_key_only(store):
    unchecked, digest = Store(store.root), store.read(1).digest
    store.root.joinpath("passed").mkdir()
    old = {"digest": digest, "engine": ENGINE, "selftest": 2}
    (store.root / "passed" / "1.json").write_text(json.dumps(old))

    assert (True, False) == tuple(each.has_passed(1, digest, ENGINE) for each in (unchecked, store))
    load_version(store, 1, test=lambda _: None)
    assert (True, True) == tuple(each.has_passed(1, digest, ENGINE) for each in (unchecked, store))


@pytest.mark.parametrize("content", ["", "[]", '"digest"', "[" * 100_000])
def test_a_remembered_test_that_something_else_wrote_means_testing_again(store, content):
    load_version(store, 1)
    (store.root / "passed" / "1.json").write_text(content)

    assert not store.has_passed(1, store.read(1).digest, ENGINE)


def test_what_was_remembered_of_one_manifest_is_no_signature_of_another(store):
    load_version(store, 1)
    flip(store.folder(1) / MANIFEST)

    assert "signature" == refusal(lambda: store.read(1))[0]


# Keys in files


def settings(folder: Path, *, signing_key: str = "", public_key: str = "") -> Settings:
    (folder / "gleaner.toml").write_text(SETTINGS)
    flags = {"training": {"signing_key": signing_key}, "serving": {"public_key": public_key}}
    return load_settings(folder / "gleaner.toml", flags)


def test_a_new_key_is_for_its_user_alone_and_its_halves_belong_together(tmp_path):
    public = write_key(tmp_path / "key")

    found = settings(tmp_path, signing_key="key", public_key=public.name)
    assert [0o600, 0o644] == [path.stat().st_mode & 0o777 for path in (tmp_path / "key", public)]
    assert SigningKey.read(found).public == read_signer(found).key
    assert "made" == read_signer(found).model


def test_without_settings_there_is_no_key(tmp_path):
    assert (None, None) == (SigningKey.read(settings(tmp_path)), read_signer(settings(tmp_path)))


@pytest.mark.parametrize("name", ["key", "key.pub"])
def test_a_key_is_never_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")

    with pytest.raises(Refused, match=f"{name} exists, and a key is never overwritten"):
        write_key(tmp_path / "key")
    assert [(name, "mine")] == [(path.name, path.read_text()) for path in tmp_path.iterdir()]


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(Unwritable, match="No such file or directory"):
        write_key(tmp_path / "nowhere" / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_private_key_that_others_can_read_is_refused_with_the_remedy(tmp_path, mode):
    write_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)

    with pytest.raises(BadSetting, match=f"mode {mode:04o}.; run: chmod 600 {tmp_path / 'key'}"):
        SigningKey.read(settings(tmp_path, signing_key="key"))


def encrypted() -> bytes:
    return KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "not an Ed25519 private key"),
        (b"\xff" * 9_000, "not an"),
        (encrypted(), "encrypt"),
    ],
)
def test_a_file_that_is_no_private_key_is_named(tmp_path, content, said):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)

    with pytest.raises(BadSetting, match=said) as caught:
        SigningKey.read(settings(tmp_path, signing_key="key"))
    assert "training.signing_key" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "", "not an Ed25519 public key"),
        (lambda text: text.replace("MCow", "MCox"), "not an Ed25519 public key"),
        (lambda text: text.replace("=", ""), "not an Ed25519 public key"),
        (lambda text: text + "x" * 5_000, "not an Ed25519 public key"),
        (lambda text: text.replace("PUBLIC", "PRIVATE"), "is a private key; name .*pub, and move"),
    ],
)
def test_a_file_that_is_no_public_key_is_named(tmp_path, spoil, said):
    public = write_key(tmp_path / "key")
    public.write_text(spoil(public.read_text()))

    with pytest.raises(BadSetting, match=said):
        read_signer(settings(tmp_path, public_key="key.pub"))


@pytest.mark.parametrize("setting", ["signing_key", "public_key"])
def test_a_key_in_place_of_its_file_is_refused_and_not_repeated(tmp_path, setting):
    write_key(tmp_path / "key")
    text = (tmp_path / "key").read_text()

    with pytest.raises(BadSetting, match="wanted the path of a file, not the key itself") as caught:
        settings(tmp_path, **{setting: text})
    assert text.splitlines()[1] not in str(caught.value)
