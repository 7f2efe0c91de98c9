"""The likely encoding of a file that is not UTF-8."""

from __future__ import annotations

from pathlib import Path

from charset_normalizer import from_bytes

from gleaner.table.encodings import texts

# The encodings of spreadsheets and databases; others are guessed wrongly more often than rightly.
_LIKELY = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257"),
    *("mac_roman", "koi8_r", "cp932", "gb18030", "big5"),
]
_SAMPLE = 1 << 16
_CLOSE = 0.07  # short texts leave encodings with similar letters this close
_FEWEST_SYLLABLES, _SYLLABLES = 6, 0.95

# The letters of the languages of encodings that are easily taken for each other.
_SIGNS = "€°²³"
_WEST = "äöüßéèêëàâçîïôûùœñóíáúãõåøæ"
_LETTERS = {
    "cp1252": _WEST,
    "mac_roman": _WEST,
    "cp1250": "ąćęłńóśźżáčďéěíňřšťúůýžőűöüäßôľĺŕăâîşđ",
    "cp1254": "\u0131şğçöüâi\u0307",
    "cp1257": "āčēģīķļņšūžąęėįųõäöü",
}


def guess_encoding(path: Path) -> str | None:
    """Return the likely encoding of a whole file, or None.

    Lines with bytes beyond ASCII decide: many others would hide them.
    """
    sample = b""
    with path.open("rb") as file:
        for line in file:
            if not line[:_SAMPLE].isascii():
                sample += line[:_SAMPLE]
            if len(sample) >= _SAMPLE:
                break
        encoding = "cp949" if _is_korean(sample) else _closest(sample)
        try:
            for _ in texts(file, encoding, b""):
                pass
        except UnicodeDecodeError:
            return None
    return encoding


def _is_korean(sample: bytes) -> bool:
    """Return whether nearly all letters are common Hangul syllables.

    Chinese text is often valid in cp949 too, but reads as a mixture of syllables and Chinese characters.
    """
    try:
        letters = [char for char in sample.decode("cp949") if char.isalpha() and not char.isascii()]
    except UnicodeDecodeError:
        return False
    # EUC-KR has two bytes for a common syllable, and eight for another.
    common = sum("\uac00" <= char <= "\ud7a3" and len(char.encode("euc_kr", "ignore")) == 2 for char in letters)
    return common >= max(_FEWEST_SYLLABLES, _SYLLABLES * len(letters))


def _closest(sample: bytes) -> str:
    matches = list(from_bytes(sample, cp_isolation=_LIKELY, enable_fallback=False))
    least = min((match.chaos for match in matches), default=0.0)
    close = {match.encoding for match in matches if match.chaos <= least + _CLOSE} or {"cp1252"}
    if close & _LETTERS.keys():
        close |= {one for one in _LETTERS if _decodes(sample, one)}
    return min((one for one in _LIKELY if one in close), key=lambda one: _strange(sample, one))


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _strange(sample: bytes, encoding: str) -> float:
    """Return the share of characters beyond ASCII that its languages lack."""
    letters = [char for char in sample.decode(encoding, "ignore").lower() if not char.isascii()]
    known = _LETTERS.get(encoding, "") and _LETTERS[encoding] + _SIGNS * encoding.startswith("cp")
    return sum(char not in known for char in letters) / max(1, len(letters)) if known else 0.0
