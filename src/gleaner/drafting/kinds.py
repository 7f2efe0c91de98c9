"""The type of a column, decided from its cells, with the reason."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gleaner.drafting.notations import find_signs, name_keys, notations, read_cells
from gleaner.drafting.profile import Profile
from gleaner.table.dates import DAY, read_format, read_moment
from gleaner.table.feature import Feature
from gleaner.table.learning import MOST_WORDS
from gleaner.table.messages import show
from gleaner.table.notation import Notation
from gleaner.table.numbers import LARGEST
from gleaner.table.words import NO, YES, name_words, plain_word

_LISTED_WORDS = 12  # more words than these are learned
_LEAST_ROWS = 5  # of a learned word

# Numbers that stand for a missing value in many files, if they lie far from all others.
_SENTINELS = frozenset(sign * number for number in (99, 200, 888, 999, 9_999, 99_999, 999_999) for sign in (-1, 1))

_CODE = frozenset(
    ["zip", "zipcode", "postcode", "postal", "plz", "code", "ward", "district", "region", "store", "branch"]
)
_ID = frozenset(["id", "ids", "uuid", "guid", "index", "idx", "key", "no", "nr", "num", "number", "row", "rownames"])

_CENTURY = (-25_567 * DAY, 47_482 * DAY)  # from 1900 to 2099, for dates without separators
_TIMES = ("", " %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S")
_DAYS = [
    *(sign.join(order) for sign in "./-" for order in (
        ("%d", "%m", "%Y"), ("%m", "%d", "%Y"), ("%Y", "%m", "%d"), ("%d", "%m", "%y"), ("%m", "%d", "%y"),
    )),
    "%Y%m%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d %Y",
]  # fmt: skip

Ask = Callable[[str, Sequence[str]], int | None]
"""Ask a person to choose one of some answers; None for no answer."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A column of the draft.

    feature: the feature, None for a column that is left out.
    why: what the column was taken for, or why it is left out.
    """

    header: str
    at: int
    feature: Feature | None
    why: str


def decide(profile: Profile, name: str, ask: Ask) -> Decision:
    """Decide the type of one column.

    name: the name of the feature.
    ask: called for what the cells leave open.
    """
    header, values = profile.header, profile.values
    if not values and not profile.more:
        but = f", but for {name_words(profile.gap_words)}" if profile.gap_words else ""
        return Decision(header, profile.at, None, f"it is empty{but}")
    if len(values) == 1 and profile.filled == profile.rows > 2:
        only = next(iter(values))
        kind = "cell" if len(only) > 64 else f"value is {show(only)}"
        return Decision(header, profile.at, None, f"its only {kind}")
    bare = Feature(name=name, sources=(header,))
    for find in (_bool, _compact_dates, _codes, _measured, _dates, _words):
        found = find(profile, bare, ask)
        if found is None:
            continue
        feature, why = found
        if feature is not None:
            feature, why = _with_gaps(profile, feature, why)
        return Decision(header, profile.at, feature, why)
    return Decision(header, profile.at, None, "its cells are of no kind")


def decide_target(profile: Profile, name: str, ask: Ask) -> tuple[Feature | None, str]:
    """Return (the target as a feature, the reason).

    The feature is None for a target without numbers.
    """
    bare = Feature(name=name, sources=(profile.header,))
    found = _numbers(profile, bare, ask) if profile.values else None
    if isinstance(found, _Numbers):
        return replace(found.feature, missing_values=tuple(profile.gap_words)), found.why
    return found or (None, "")


def _with_gaps(profile: Profile, feature: Feature, why: str) -> tuple[Feature, str]:
    """Allow missing values where the file has some."""
    words = profile.gap_words
    gaps = profile.empty + sum(profile.cells[word] for word in words)
    if not gaps and not feature.missing_values:
        return feature, why
    entries = (*feature.missing_values, *words)
    are = "is" if profile.empty == 1 else "are"
    notes = [f"{profile.empty:,} of {profile.rows:,} cells {are} empty"] if profile.empty else []
    if entries:
        notes.append(f"{name_words(entries)} {'stands' if len(entries) == 1 else 'stand'} for a missing value")
    return replace(feature, missing="allow", missing_values=entries), "; ".join([why, *notes])


Found = tuple[Feature | None, str]


class _Numbers(NamedTuple):
    """A column of numbers.

    numbers: the number of each cell.
    """

    feature: Feature
    why: str
    numbers: dict[str, float]


def _bool(profile: Profile, bare: Feature, _: Ask) -> Found | None:
    words = {plain_word(word, fold=True) for word in profile.values}
    if len(words) == 2 and words & set(YES[:3]) and words & set(NO[:3]):
        return replace(bare, type="bool"), f"{name_words(sorted(words))} are a yes and a no"
    return None


def _compact_dates(profile: Profile, bare: Feature, _: Ask) -> Found | None:
    values = profile.values
    if len(values) < 2 or not all(len(cell) == 8 and cell.isdigit() for cell in values):
        return None
    moments = _moments(values, ("%Y%m%d",), give_up=0)
    if len(moments) < len(values) or min(moments.values()) < _CENTURY[0] or max(moments.values()) > _CENTURY[1]:
        return None
    return _as_dates(bare, ("%Y%m%d",), moments), f"dates such as {show(next(iter(moments)))}"


def _codes(profile: Profile, bare: Feature, _: Ask) -> Found | None:
    """Take codes for words.

    A code begins with a zero, or its header says so.
    """
    values = profile.values
    if not values or not all(cell.isascii() and cell.isdigit() for cell in values):
        return None
    padded = next((cell for cell in values if len(cell) > 1 and cell.startswith("0")), None)
    if padded:
        return _as_words(profile, bare, f"codes, since {show(padded)} begins with a zero")
    if _tokens(profile.header) & _CODE and not profile.more and len(values) > 2:
        return _as_words(profile, bare, "codes, as the header says")
    return None


def _numbers(profile: Profile, bare: Feature, ask: Ask) -> _Numbers | Found | None:
    values = profile.values
    signs = find_signs(values)
    tried = [(notation, *read_cells(values, notation)) for notation in notations(values)]
    most = max(rows for _, rows, _ in tried)
    plain = tried[0]
    total = sum(values.values())
    if most * 2 <= total:
        return None
    best = [one for one in tried if one[1] == most]
    best = [one for one in best if one[0].decimal == profile.decimal] or best if signs else best
    chosen = best[0]
    if plain[1] < most or signs:
        others = [one for one in best[1:] if one[2] != chosen[2]]
        if others:
            cell = next(cell for cell in chosen[2] if chosen[2].get(cell) != others[0][2].get(cell))
            answers = [f"{one[2][cell]:,.15g}" for one in (chosen, others[0])]
            answer = ask(f"{profile.header!r}: is {show(cell)} the number {answers[0]} or {answers[1]}?", answers)
            if answer is None:
                added = " or ".join(name_keys(one[0]) for one in (chosen, others[0]))
                return None, f"{show(cell)} is {answers[0]} or {answers[1]}: decide, and add {added}"
            chosen = (chosen, others[0])[answer]
    notation, rows, numbers = chosen
    keys: dict[str, Any] = {}
    is_plain = notation == Notation()
    if not is_plain or any("." in cell for cell in numbers):  # `[table]` of the draft may have another notation
        keys = {key: getattr(notation, key) for key in ("decimal", "thousands", "strip")}
        keys |= {"brackets": True} if notation.brackets else {}
    is_whole = all(number.is_integer() for number in numbers.values())
    why = ("whole numbers" if is_whole else "numbers") + f", written as {show(next(iter(numbers)))}" * (not is_plain)
    if left := total - rows:
        word = next(cell for cell in values if cell not in numbers)
        why += f"; {left:,} {'cell is' if left == 1 else 'cells are'} no number, such as {show(word)}: see `map`"
    return _Numbers(replace(bare, type="int" if is_whole else "float", **keys), why, numbers)


def settle_notation(decision: Decision, profile: Profile, common: Notation, ask: Ask) -> Decision:
    """Compare a column's own notation with that of the other columns.

    A column keeps a notation of its own only if the common one does not read it. If each reads another number, the
    file leaves open which is right.
    """
    feature = decision.feature
    if feature is None or feature.decimal is None or not feature.is_number or feature.notation == common:
        return decision
    other = replace(common, strip=feature.strip or "", brackets=bool(feature.brackets))
    (_, own), (_, read) = read_cells(profile.values, feature.notation), read_cells(profile.values, other)
    if not own.keys() <= read.keys():
        return decision
    keys: dict[str, Any] = {"decimal": other.decimal, "thousands": other.thousands}
    if cell := next((cell for cell, number in own.items() if read[cell] != number), None):
        answers = [f"{numbers[cell]:,.15g}" for numbers in (own, read)]
        answer = ask(f"{decision.header!r}: is {show(cell)} the number {answers[0]} or {answers[1]}?", answers)
        if answer is None:
            added = " or ".join(map(name_keys, (feature.notation, other)))
            why = f"{show(cell)} is {answers[0]}, or {answers[1]} as in other columns: decide, and add {added}"
            return replace(decision, feature=None, why=why)
        if answer == 0:
            return decision
        is_whole = all(number.is_integer() for number in read.values())
        keys |= {"type": "int" if is_whole else "float"}
    return replace(decision, feature=replace(feature, **keys))


def _measured(profile: Profile, bare: Feature, ask: Ask) -> Found | None:
    """Take a column for numbers, unless they name the rows."""
    found = _numbers(profile, bare, ask)
    if not isinstance(found, _Numbers):
        return found
    feature, values = found.feature, profile.values
    sentinels = sorted(_find_sentinels({number: values[cell] for cell, number in found.numbers.items()}))
    kept = {cell: number for cell, number in found.numbers.items() if number not in sentinels}
    if not kept or any(abs(number) > LARGEST for number in kept.values()):
        return None
    if feature.type == "int" and not profile.more and (why := _why_id(profile.header, kept, values)):
        return None, why
    return replace(feature, missing_values=tuple(f"{number:.15g}" for number in sentinels)), found.why


def _dates(profile: Profile, bare: Feature, ask: Ask) -> Found | None:
    values = profile.values
    total = sum(values.values())
    iso = _moments(values, ())
    if sum(values[cell] for cell in iso) * 2 > total:
        return _as_dates(bare, (), iso), f"dates such as {show(next(iter(iso)))}"
    if not any(char.isdigit() for cell in itertools.islice(values, 50) for char in cell):
        return None
    fitting: list[tuple[str, dict[str, float]]] = []
    most = 0
    for form in (day + time for day in _DAYS for time in _TIMES):
        moments = _moments(values, (form,), give_up=total // 2)
        rows = sum(values[cell] for cell in moments)
        if rows * 2 <= total or rows < most:
            continue
        fitting = [one for one in fitting if rows == most] + [(form, moments)]
        most = rows
    if not fitting:
        return None
    different = [one for i, one in enumerate(fitting) if all(one[1] != other[1] for other in fitting[:i])]
    chosen = different[0]
    if len(different) > 1:
        forms = [form for form, _ in different]
        cell = next(iter(chosen[1]))
        answer = ask(f"{profile.header!r}: how is the date {show(cell)} written?", forms)
        if answer is None:
            keys = " or ".join(f"formats = [{form!r}]".replace("'", '"') for form in forms)
            return None, f"the file does not settle which date {show(cell)} is: decide, and add {keys}"
        chosen = different[answer]
    form, moments = chosen
    return _as_dates(bare, (form,), moments), f"dates such as {show(next(iter(moments)))}, in the format {form}"


def _as_dates(bare: Feature, formats: Sequence[str], moments: dict[str, float]) -> Feature:
    has_time = any(moment % DAY for moment in moments.values())
    days = {moment // DAY for moment in moments.values()}
    parts = ["weekday"] if len(days) > 7 else []
    parts += ["month"] if max(days) - min(days) > 60 else []
    parts += ["hour"] if has_time else []
    kind: Any = "datetime" if has_time else "date"
    chosen: Any = (*parts, "days_since")
    return replace(bare, type=kind, formats=tuple(formats), parts=chosen)


def _words(profile: Profile, bare: Feature, _: Ask) -> Found | None:
    return _as_words(profile, bare, "words")


def _as_words(profile: Profile, bare: Feature, why: str) -> Found:
    values = profile.values
    folded: Counter[str] = Counter()
    for word, count in values.items():
        folded[plain_word(word, fold=True)] += count
    fold = len(folded) < len(values)
    different = len(folded)
    if fold:
        why += "; case and blanks differ between equal words"
    feature = replace(bare, type="category", fold=fold)
    if different <= _LISTED_WORDS and not profile.more:
        spelled: dict[str, str] = {}
        for word, _ in values.most_common():
            spelled.setdefault(plain_word(word, fold=fold), word)
        return replace(feature, values=tuple(sorted(spelled.values()))), f"{why}: {different} different ones"
    often = [count for _, count in folded.most_common() if count >= _LEAST_ROWS]
    share = sum(often) / max(1, profile.filled)
    if profile.more or len(often) < 2 or share < 0.5:
        return None, f"it has {different:,}{'+' * bool(profile.more)} different words, and most are rare"
    least = _LEAST_ROWS if len(often) <= MOST_WORDS else often[MOST_WORDS] + 1
    feature = replace(feature, values="learn", unknown="other", min_count=least)
    return feature, f"{why}: {different:,} different ones, those of fewer than {least} rows as one"


def _why_id(header: str, numbers: dict[str, float], values: Counter[str]) -> str:
    """Return why whole numbers are names of rows; else ""."""
    if len(numbers) < 10 or any(values[cell] > 1 for cell in numbers):
        return ""
    low, high = min(numbers.values()), max(numbers.values())
    if high - low + 1 == len(numbers) and low in (0, 1):
        return "its numbers count the rows"
    return "each row has a number of its own, and the header says so" if _tokens(header) & _ID else ""


def _find_sentinels(rows: dict[float, int]) -> list[float]:
    """Return the numbers that stand for a missing value.

    rows: the number of rows of each number.
    A sentinel stands in several rows. It lies farther from the others than these lie from each other, or it is
    negative and they are not.
    """
    found: list[float] = []
    for number in sorted(_SENTINELS & rows.keys(), key=abs, reverse=True):
        others = [other for other in rows if other != number and other not in found]
        if rows[number] < max(2, sum(rows.values()) // 500) or len(others) < 3:
            continue
        low, high = min(others), max(others)
        is_lone = number < 0 <= min((other for other in others if other not in _SENTINELS), default=-1)
        if is_lone or max(low - number, number - high) > high - low > 0:
            found.append(number)
    return found


def _moments(values: Iterable[str], formats: Sequence[str], give_up: int | None = None) -> dict[str, float]:
    """Return the moment of each cell that is a date.

    formats: one format, or none for ISO 8601.
    give_up: the number of rows without a date after which no further cell is read.
    """
    moments: dict[str, float] = {}
    counts = values if isinstance(values, Counter) else Counter(values)
    missed = 0
    for cell, rows in counts.items():
        try:
            moments[cell] = read_format(cell, formats[0], "") if formats else read_moment(cell, (), "")
        except ValueError:
            missed += rows
            if give_up is not None and missed > give_up:
                return {}
    return moments


def _tokens(header: str) -> set[str]:
    """Return the words of a header: `routeId` and `route_id` have `id`."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", header)
    return {word.casefold() for word in re.split(r"[\W_]+", parted) if word}
