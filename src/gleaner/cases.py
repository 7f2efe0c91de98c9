"""What shows that an alert can be trusted: promtool's cases of every one, made of the settings' own thresholds.

A case is a story told in seconds, looked at where it ends. Windows are told apart by what came before: a fault after a
long time of quiet is lost in a window that is longer than it should be, and a blip is all that a shorter one sees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gleaner.alerts import BURN_RATES, Alert, Group, hurried, make_alerts, number, percent
from gleaner.metrics import BUCKETS
from gleaner.settings import Settings

APP = {"job": "ml-api", "instance": "ml-app:8010", "service": "ml-app"}
OTHER_APP = {**APP, "instance": "other:8010"}
TRAINER = {"job": "train-metrics", "instance": "train-metrics:8003", "service": "train-metrics"}
# A day of the 15 seconds between scrapes would take promtool a minute: values twice in the shortest window, and a look
# at the rules in every hour, will do.
_BUDGET_STEP_SECONDS, _BUDGET_LOOK_STEPS = 120.0, 30
_DAY = 86_400.0
_MOMENT = 0.001  # as finely as Prometheus counts time


@dataclass(frozen=True, slots=True)
class Piece:
    """So many seconds of a time series, in which it has a value, or grows from what it has come to, or is not there."""

    seconds: float
    value: float | None = None
    per_second: float | None = None


Pieces = Sequence[Piece]


def hold(value: float, *, for_: float) -> Piece:
    """A value that stays."""
    return Piece(for_, value=value)


def grow(per_second: float, *, for_: float) -> Piece:
    """A counter that goes on from what it has come to."""
    return Piece(for_, per_second=per_second)


def missing(*, for_: float) -> Piece:
    """A time without values."""
    return Piece(for_)


def write_pieces(pieces: Pieces, step: float) -> str:
    """A series as promtool reads it: a value every `step` seconds from 0 on, the one at the end among them."""
    words, total, first, ends = [], 0.0, 0, 0.0
    for i, piece in enumerate(pieces, start=1):
        ends += piece.seconds
        # The step at which the next piece begins: the first that is not before it.
        after = math.floor(ends / step + 1e-6) + 1 if i == len(pieces) else math.ceil(ends / step - 1e-6)
        steps = after - first
        if steps <= 0:
            continue
        first = after
        if piece.value is not None:
            words.append(f"{number(piece.value)}x{steps - 1}")
        elif piece.per_second is not None:
            words.append(f"{number(total)}+{number(piece.per_second * step)}x{steps - 1}")
            total += piece.per_second * step * steps
        else:
            words.append(f"_x{steps}")
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Firing:
    """One alert that is to fire: its own labels, and `$value` as the summary shows it."""

    alert: Alert
    labels: Mapping[str, str]
    value: str = ""

    def fill(self, template: str) -> str:
        """A Go template of ours, filled in as Prometheus does."""
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: self.labels[found[1]], template)
        return re.sub(r"\{\{ \$value[^}]*\}\}", self.value, text)


@dataclass(frozen=True, slots=True)
class Case:
    """Series, and which of the alerts of one name fire at their end: none, where it stays quiet."""

    alert: Alert
    title: str
    series: Mapping[str, Pieces]
    firing: Sequence[Firing] = ()

    @property
    def at_seconds(self) -> float:
        """When the rules are looked at: where the longest series ends."""
        return max((sum(piece.seconds for piece in pieces) for pieces in self.series.values()), default=0.0)


def make_cases(settings: Settings, hurry: float = 1.0) -> list[Case]:
    """The cases of every alert: it fires, it stays quiet, and it stays quiet where there is nothing to be seen."""
    alerts: dict[str, list[Alert]] = {}
    for alert in make_alerts(settings, hurry):
        alerts.setdefault(alert.name, []).append(alert)
    cases = _Cases(settings, hurry)
    makers: dict[str, Callable[[Alert], list[Case]]] = {
        "HighErrorRate": cases.high_error_rate,
        "SlowPredictions": cases.slow_predictions,
        "NoModel": cases.no_model,
        "ModelLoadFailing": cases.model_load_failing,
        "RegistryNotFollowed": cases.registry_not_followed,
        "HighTrainingLoss": lambda a: cases.gauge(a, "training_loss", cases.at.training_loss, TRAINER, "{:.3f}".format),
        "LowValidationAccuracy": lambda a: cases.gauge(
            a, "validation_accuracy", cases.at.validation_accuracy, TRAINER, percent, worse=0.9
        ),
        "TrainingStale": cases.training_stale,
        "HighMemoryUsage": lambda a: cases.gauge(a, "app_memory_usage_bytes", cases.at.memory_bytes, APP, _humanize),
        "HighCPUUsage": lambda a: cases.gauge(a, "app_cpu_usage_percent", cases.at.cpu_percent, APP, "{:.1f}".format),
    }
    made = [case for name, maker in makers.items() for case in maker(alerts[name][0])]
    made += cases.error_budget_burn(alerts["ErrorBudgetBurn"])
    made += [*cases.target_down(*alerts["TargetDown"]), *cases.restart_loop(*alerts["RestartLoop"])]
    # That a process is up is all that NoModel and TargetDown need to know.
    nothing = {name: {} if name in {"NoModel", "TargetDown"} else _up(for_=cases.look) for name in alerts}
    return [*made, *(Case(alerts[name][0], "no data", series) for name, series in nothing.items())]


def make_times(settings: Settings, group: Group, hurry: float = 1.0) -> tuple[float, float]:
    """The seconds between a series' values, and those between looks at the rules, in the cases of a rules' file."""
    if group == "budget":
        step = _milliseconds(_BUDGET_STEP_SECONDS / hurry)
        return step, step * _BUDGET_LOOK_STEPS
    step = _milliseconds(settings.alerts.scrape_seconds / hurry)
    return step, step


def _milliseconds(seconds: float) -> float:
    """A time as finely as Prometheus counts, so that so many steps of it are as long there as here."""
    return round(1_000 * seconds) / 1_000


class _Cases:
    def __init__(self, settings: Settings, hurry: float) -> None:
        self.settings, self.at, self.hurry = settings, hurried(settings.alerts, hurry), hurry
        # Between values, and between looks at the budget's rules.
        self.step, self.look = self.at.scrape_seconds, make_times(settings, "budget", hurry)[1]
        self.budget = 1 - settings.objectives.availability

    def asked(self, share: float, window: float, *, failures: float | None = None) -> float:
        """Requests a second of which a share gives so many failures in a window; where none are named, very many."""
        return (100 * (self.at.few_failures + 1) if failures is None else failures) / (share * window)

    @property
    def some(self) -> tuple[float, float]:
        """Failures that are enough to say something, and too few."""
        return 1.3 * self.at.few_failures + 2, 0.7 * self.at.few_failures

    def gauge(
        self,
        alert: Alert,
        name: str,
        threshold: float,
        labels: Mapping[str, str],
        show: Callable[[float], str],
        worse: float = 1.1,
    ) -> list[Case]:
        """A value beyond a threshold for a time. worse: a factor that takes one beyond it."""
        series, beyond, enough = _series(name, labels), worse * threshold, alert.for_seconds + self.step
        return [
            Case(alert, "fires", {series: [hold(beyond, for_=enough)]}, [Firing(alert, labels, show(beyond))]),
            Case(alert, "not yet for long enough", {series: [hold(beyond, for_=alert.for_seconds - _MOMENT)]}),
            Case(alert, "at the threshold", {series: [hold(threshold, for_=enough)]}),
            Case(alert, "gone again", {series: [hold(beyond, for_=enough), hold(threshold, for_=2 * self.step)]}),
        ]

    def high_error_rate(self, alert: Alert) -> list[Case]:
        window, most = self.at.error_window_seconds, self.at.error_ratio
        bad, good, short = min(1.0, 1.2 * most), 0.8 * most, min(1.0, 2.4 * most)
        well, whole = (0.0, 4 * window), window + 2 * self.step
        many, (enough, few) = self.asked(most, window), (self.asked(1.0, window, failures=n) for n in self.some)
        asked = _requests([(0.0, whole)], many)
        probes = _requests([(1.0, whole)], many, route="/readyz", method="GET")
        half = min(1.0, 2 * bad)
        two = {
            **_requests([(half, whole)], many),
            **_requests([(2 * bad - half, whole)], many, instance=OTHER_APP["instance"]),
        }
        fires = [Firing(alert, {"service": "ml-app"}, percent(bad))]
        outage = [Firing(alert, {"service": "ml-app"}, percent(1.0))]
        return [
            Case(alert, "fires", _requests([well, (bad, whole)], many), fires),
            Case(alert, "fires on 503, too", _requests([(bad, whole)], many, fault="503"), fires),
            Case(alert, "fires for a service of two instances", two, fires),
            Case(alert, "fires where little is asked, and all fails", _requests([(1.0, whole)], enough), outage),
            Case(alert, "a blip", _requests([well, (short, window / 4)], many)),
            Case(alert, "fewer failures", _requests([(good, whole)], many)),
            Case(alert, "a few failures, though all fails", _requests([(1.0, whole)], few)),
            Case(alert, "health checks that say no", {**asked, **probes}),
            Case(alert, "faults of the callers", {**asked, **_requests([(1.0, whole)], many, fault="422")}),
            Case(alert, "gone again", _requests([(bad, whole), (0.0, whole)], many)),
        ]

    def error_budget_burn(self, alerts: Sequence[Alert]) -> list[Case]:
        """Each rate alone: what fills its windows is lost in the longer ones, and too little for the quicker rates."""
        cases = []
        for alert, (rate, *windows, _) in zip(alerts, BURN_RATES, strict=True):
            long, short = (seconds / self.hurry for seconds in windows)
            at, burn, ended = f"{number(rate)} times", (1.2 * rate, 1.1 * long), (0.0, 1.3 * short)
            many = self.asked(rate * self.budget, long)
            enough, few = (self.asked(1.2 * rate * self.budget, long, failures=n) for n in self.some)
            fires = [Firing(alert, {"service": "ml-app"}, f"{1.2 * rate:.1f}")]
            shown = f"gone again, though the long window at {at} still shows it"
            cases += [
                Case(alert, f"fires above {at}", self.burnt([burn], many), fires),
                Case(alert, f"fires above {at} where little is asked", self.burnt([burn], enough), fires),
                Case(alert, f"not yet at {at}", self.burnt([(0.8 * rate, 1.1 * long)], many)),
                Case(alert, f"a blip of {at}", self.burnt([(1.5 * rate, 1.3 * short)], many)),
                Case(alert, shown, self.burnt([burn, ended], many)),
                Case(alert, f"a blip soon after {at}", self.burnt([burn, ended, (1.5 * rate, short / 4)], many)),
                Case(alert, f"a few failures above {at}", self.burnt([burn], few)),
            ]
        return cases

    def burnt(self, parts: Sequence[tuple[float, float]], per_second: float) -> dict[str, Pieces]:
        """Requests that fail so many times as often as promised, for so many seconds, after a good day or more.

        More, so that they end when the rules are looked at.
        """
        seconds = sum(seconds for _, seconds in parts)
        good = self.look * math.ceil((_DAY / self.hurry + seconds) / self.look) - seconds
        shares = [(0.0, good), *((min(1.0, times * self.budget), seconds) for times, seconds in parts)]
        return _requests(shares, per_second)

    def slow_predictions(self, alert: Alert) -> list[Case]:
        window, promised = self.at.slow_window_seconds, self.settings.objectives
        well, whole = (0.0, 4 * window), window + 2 * self.step
        # One bucket holds all that are too slow, and is so wide that the quantile comes to lie in its middle.
        i = next(i for i, bound in enumerate(BUCKETS) if bound >= promised.latency_seconds)
        slow, labels = 2 * (1 - promised.latency_quantile), {"service": "ml-app", "model_version": "v1"}
        middle = BUCKETS[i] + (BUCKETS[i + 1] - BUCKETS[i]) / 2
        fires = [Firing(alert, labels, f"{middle:.3g}")]
        many, (enough, few) = self.asked(slow, window), (self.asked(slow, window, failures=n) for n in self.some)
        quick = _durations(i, [(0.0, whole)], 100 * many, slot="v2")
        return [
            Case(alert, "fires", _durations(i, [well, (slow, whole)], many), fires),
            Case(alert, "fires for one slot of two", {**quick, **_durations(i, [(slow, whole)], many)}, fires),
            Case(alert, "fires where little is asked", _durations(i, [(slow, whole)], enough), fires),
            Case(alert, "a blip", _durations(i, [well, (slow, window / 4)], many)),
            Case(alert, "a smaller share", _durations(i, [(slow / 4, whole)], many)),
            Case(alert, "a few slow ones", _durations(i, [(slow, whole)], few)),
            Case(alert, "gone again", _durations(i, [(slow, whole), (0.0, whole)], many)),
        ]

    def no_model(self, alert: Alert) -> list[Case]:
        enough, slot = alert.for_seconds + self.step, next(iter(self.settings.serving.slots))
        version = {"version": "1", "run_id": "r", "candidate": "linear"}
        model, others = (_series("model_info", labels, version, slot=slot) for labels in (APP, OTHER_APP))
        other_slot = _series("model_info", APP, version, slot="v0")
        there, up = [hold(1, for_=enough)], _up(for_=enough)
        other_up, down = _series("up", OTHER_APP), {_series("up", APP): [hold(0, for_=enough)]}
        late = [missing(for_=alert.for_seconds - self.step), hold(1, for_=2 * self.step)]
        fires = [Firing(alert, APP)]
        return [
            Case(alert, "fires", up, fires),
            Case(alert, "fires although another slot has one", {**up, other_slot: there}, fires),
            Case(alert, "fires although another instance has one", {**up, other_up: there, others: there}, fires),
            Case(alert, "not yet for long enough", _up(for_=alert.for_seconds - _MOMENT)),
            Case(alert, "with a model", {**up, model: there}),
            Case(alert, "one that came late", {**up, model: late}),
            Case(alert, "a process that is down", down),
        ]

    def model_load_failing(self, alert: Alert) -> list[Case]:
        names = "model_alias_refused", "registry_alias_refused"
        stored, registered = (_series(name, APP, alias="champion") for name in names)
        another = _series("registry_alias_refused", OTHER_APP, alias="champion")
        refused, well, long = (
            hold(1, for_=2 * self.step),
            hold(0, for_=2 * self.step),
            hold(1, for_=_DAY / 8 / self.hurry),
        )
        fires = [Firing(alert, {"service": "ml-app", "alias": "champion"})]
        return [
            Case(alert, "fires on what the store points at", {stored: [refused]}, fires),
            Case(alert, "fires on what the registry points at", {stored: [well], registered: [refused]}, fires),
            Case(alert, "fires for one instance of two", {registered: [well], another: [refused]}, fires),
            Case(alert, "fires for as long as it lasts", {stored: [well], registered: [well, long]}, fires),
            Case(alert, "nothing refused", {stored: [well], registered: [well]}),
            Case(alert, "gone again", {stored: [refused, well], registered: [refused, well]}),
        ]

    def registry_not_followed(self, alert: Alert) -> list[Case]:
        age, polled = self.at.registry_age_seconds, {"result": "success"}

        def ago(seconds: float) -> list[Piece]:
            """A moment so long before the end, which is negative: promtool's clock starts at 0."""
            return [hold(self.step - seconds, for_=self.step)]

        def follows(labels: Mapping[str, str], started: float, polls: int, last: float | None) -> dict[str, Pieces]:
            seen = {_series("registry_last_success_timestamp_seconds", labels): ago(last)} if last is not None else {}
            polled_series = _series("registry_polls_total", labels, polled)
            start = _series("process_start_time_seconds", labels)
            return {**seen, start: ago(started), polled_series: [hold(polls, for_=self.step)]}

        well, fires = follows(OTHER_APP, 9 * age, 5, 0.1 * age), [Firing(alert, APP, f"{1.1 * age:.0f}")]
        return [
            Case(alert, "fires", follows(APP, 9 * age, 5, 1.1 * age), fires),
            Case(alert, "fires where none since the start did", {**well, **follows(APP, 1.1 * age, 0, None)}, fires),
            Case(alert, "not yet for long enough", {**well, **follows(APP, 9 * age, 5, 0.9 * age)}),
            Case(alert, "just begun", follows(APP, 0.9 * age, 0, None)),
            Case(alert, "no registry to follow", {_series("process_start_time_seconds", APP): ago(9 * age)}),
        ]

    def training_stale(self, alert: Alert) -> list[Case]:
        series, days = _series("training_last_success_timestamp_seconds", TRAINER), self.at.training_age_days
        # promtool's clock starts at 0, so that what was long ago is negative.
        ago, not_so_long = ([hold(self.step - factor * _DAY * days, for_=self.step)] for factor in (1.1, 0.9))
        fires = [Firing(alert, TRAINER, f"{1.1 * days:.1f}")]
        return [
            Case(alert, "fires", {series: ago}, fires),
            Case(alert, "not so long ago", {series: not_so_long}),
        ]

    def restart_loop(self, app: Alert, others: Alert) -> list[Case]:
        most, window = self.at.restarts, self.at.restart_window_seconds

        def started(times: int, *, every: float, then: float = self.step) -> dict[str, Pieces]:
            """Processes that began anew so many times, and then ran on."""
            runs = [hold(every * n, for_=every) for n in range(times)]
            pieces = [*runs, hold(every * times, for_=then)]
            return {_series("process_start_time_seconds", labels): pieces for labels in (APP, TRAINER)}

        # So far apart that one more would not fit into the window.
        apart = window / (most + 2)
        fires = [Firing(app, APP, str(most + 1)), Firing(others, TRAINER, str(most + 1))]
        return [
            Case(app, "fires", started(most + 1, every=self.step), fires),
            Case(app, "fires on starts that lie far apart", started(most + 1, every=apart), fires),
            Case(app, "as often as may be", started(most, every=self.step)),
            Case(app, "long ago", started(most + 1, every=self.step, then=window + 2 * self.step)),
        ]

    def target_down(self, app: Alert, others: Alert) -> list[Case]:
        enough, names = app.for_seconds + self.step, [_series("up", labels) for labels in (APP, TRAINER)]
        down, not_yet = hold(0, for_=enough), hold(0, for_=app.for_seconds - _MOMENT)
        firing = [Firing(app, APP), Firing(others, TRAINER)]
        return [
            Case(app, "fires", {name: [down] for name in names}, firing),
            Case(app, "not yet for long enough", {name: [not_yet] for name in names}),
            Case(app, "back in time", {name: [not_yet, hold(1, for_=4 * self.step)] for name in names}),
            Case(app, "up", _up(for_=enough)),
        ]


def _up(*, for_: float) -> dict[str, Pieces]:
    return {_series("up", labels): [hold(1, for_=for_)] for labels in (APP, TRAINER)}


def _series(name: str, *labels: Mapping[str, str], **more: str) -> str:
    pairs = sorted({key: value for part in (*labels, more) for key, value in part.items()}.items())
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


def _requests(
    parts: Sequence[tuple[float, float]],
    per_second: float,
    *,
    fault: str = "500",
    route: str = "/v1/predict",
    method: str = "POST",
    instance: str = APP["instance"],
) -> dict[str, Pieces]:
    """Series of http_requests_total. parts: (share of faults, seconds)."""
    about = {**APP, "method": method, "route": route, "instance": instance}
    return {
        _series("http_requests_total", about, status=fault): [grow(s * per_second, for_=t) for s, t in parts],
        _series("http_requests_total", about, status="200"): [grow((1 - s) * per_second, for_=t) for s, t in parts],
    }


def _durations(
    i: int, parts: Sequence[tuple[float, float]], per_second: float, *, slot: str = "v1"
) -> dict[str, Pieces]:
    """Series of a histogram in which a share of the predictions falls in the bucket after the i-th, the rest below.

    parts: (share, seconds).
    """
    name, about = "model_prediction_duration_seconds", {**APP, "model_version": slot}
    all_, quick = (
        [grow(per_second * share, for_=t) for share, t in shares]
        for shares in ([(1.0, t) for _, t in parts], [(1 - s, t) for s, t in parts])
    )
    bounds = [*map(str, BUCKETS), "+Inf"]
    buckets = {_series(f"{name}_bucket", about, le=b): quick if k <= i else all_ for k, b in enumerate(bounds)}
    return {**buckets, _series(f"{name}_count", about): all_}


def _humanize(value: float) -> str:
    """A number as Prometheus's humanize writes it, such as `550M`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1_000 or prefix == "T":
            break
        value /= 1_000
    return f"{value:.4g}{prefix}"
