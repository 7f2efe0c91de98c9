"""The encodings of real files, declared and not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gleaner.drafting.charset import guess_encoding
from gleaner.errors import BadEncoding, BadTable
from gleaner.programs.likely import name_likely
from gleaner.table.csv import open_csv, read_table
from gleaner.table.encodings import find_codec
from gleaner.table.feature import Feature, Target
from gleaner.table.schema import Schema

CITIES = ("Łódź", "Kraków", "Gdańsk")
CITY = Feature(name="miasto", type="category", values=CITIES)
SCHEMA = Schema((CITY,), Target(name="cena"))
TEXT = "miasto,cena\nŁódź,1\nKraków,2\nGdańsk,3\n"


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "miasta.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "declared", "found"),
    [
        (TEXT.encode(), "", "utf-8"),
        (TEXT.encode("utf-8-sig"), "", "utf-8"),
        (TEXT.encode("utf-16"), "", "utf-16-le"),
        ("\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"), "", "utf-16-be"),
        (TEXT.encode("utf-16-le"), "utf-16-le", "utf-16-le"),
        (TEXT.encode("cp1250"), "cp1250", "cp1250"),
        (TEXT.encode("iso8859-2"), "iso8859-2", "iso8859-2"),
        (TEXT.encode(), "cp1250", "utf-8"),
        (TEXT.encode("utf-16"), "cp1250", "utf-16-le"),
    ],
)
def test_a_table_is_read_in_its_own_or_the_declared_encoding(tmp_path, content, declared, found):
    table = read_table(write(tmp_path, content), SCHEMA, encoding=declared)

    assert found == table.encoding
    assert [0, 1, 2] == table.X.argmax(axis=1).tolist()
    assert [2, 3, 4] == table.lines.tolist()
    assert hashlib.sha256(content).hexdigest() == table.sha256


def test_the_charset_of_a_request_comes_before_utf_8():
    with open_csv("a,b\nä,1\n".encode(), "the body", charset="cp1252") as file:
        assert [(2, ["Ã¤", "1"])] == list(file.rows())


def test_another_encoding_is_refused_with_the_place_of_its_byte(tmp_path):
    with pytest.raises(BadEncoding) as caught:
        read_table(write(tmp_path, b"miasto,cena\nKrak,1\nx" + TEXT.encode("cp1250")), SCHEMA)
    said = str(caught.value)

    assert ", line 4: byte 33 of the file, 0xa3, is not UTF-8; name the encoding by encoding = " in said


def test_a_file_that_is_not_of_the_declared_encoding_is_refused(tmp_path):
    with pytest.raises(BadTable, match="line 1: byte 1 of the file, 0xff, is not SHIFT_JIS; "):
        read_table(write(tmp_path, b"\xff,miasto,cena\n"), SCHEMA, encoding="shift_jis")


def test_the_likely_encoding_of_a_refused_file_is_named(tmp_path):
    path = write(tmp_path, TEXT.encode("cp1250"))
    with pytest.raises(BadEncoding) as caught:
        read_table(path, SCHEMA)

    fix = 'the file is likely cp1250: add encoding = "cp1250" under [table] in gleaner.toml and check some words'
    assert fix in str(name_likely(path, caught.value))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "größe,ward\n5 €,Côte\nnaïve,Straße\n"),
        ("cp1252", "München,5\nKöln,6\nDüsseldorf,7\nWürzburg,5 €\n"),
        ("cp1252", "São Paulo,5\nEspaña,6\nMálaga,7\n"),
        ("cp1250", TEXT),
        ("cp1250", "Łódź;1,5 €\nKraków;2,5 €\n" * 9),
        ("cp1250", "Plzeň,5\nČeské Budějovice,7\nPříbram\nŽďár\n"),
        ("cp1251", "Москва,5\nНовосибирск,7\nдвери,8\n"),  # noqa: RUF001
        ("cp1253", "Αθήνα,5\nΘεσσαλονίκη\n"),  # noqa: RUF001
        ("cp1254", "İstanbul,5\nŞişli,6\nBeşiktaş\n"),
        ("cp932", "都市,価格\n東京,5\n大阪,6\n"),
        ("cp949", "도시,가격\n서울,5\n부산,6\n"),
        ("cp949", "우편번호,면적(㎡)\n강남구 역삼동,84.5\n해운대구 우동,59.9\n"),
        ("cp949", "이름,값\n" + "서울 부산 대구 인천 광주,1\n" * 5 + "똠방각하,2\n"),
        ("gb18030", "城市,价格\n北京,5\n上海,6\n广州,7\n"),
        ("big5", "城市,價格\n臺北,5\n高雄,6\n"),
        ("mac_roman", "fünf,Straße\nüber,Köln\n"),
    ],
)
def test_the_encoding_of_a_short_table_is_guessed(tmp_path, encoding, text):
    assert encoding == guess_encoding(write(tmp_path, text.encode(encoding)))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("CP1250", "cp1250"), ("latin2", "iso8859-2"), ("windows-1252", "cp1252"), ("UTF8", "utf-8")],
)
def test_an_encoding_has_one_usual_name(name, codec):
    assert codec == find_codec(name)


@pytest.mark.parametrize("name", ["cp99999", "base64", "rot13", "idna", "unicode_escape", "", "a\0b", "ä"])
def test_a_codec_that_no_file_has_is_unknown(name):
    assert find_codec(name) is None
