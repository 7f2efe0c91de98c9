"""What Prometheus watches for, and what it then says to a person: settings -> rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gleaner.metrics import BUCKETS, UNMATCHED
from gleaner.settings import Alerts, Settings

Severity = Literal["page", "ticket"]
Group = Literal["service", "budget", "training", "processes"]

# Health checks and scrapes are not what callers ask for: a balancer that asks /readyz of a service without a model
# would be an outage of its own, and one that asks /livez would water the share of failures down.
PROBES = f"/livez|/readyz|/health_status|/health|/ping|/metrics|/v2/(.*/)?(live|ready)|{UNMATCHED}"

# The rates at which the error budget of 30 days is burnt, and the windows that show it: 2 % of it in 1 hour, 5 % in
# 6 hours, 10 % in a day. The short window ends the alert soon after its cause.
# Source: Google, The Site Reliability Workbook (2018), chapter 5.
BURN_RATES: tuple[tuple[float, float, float, Severity], ...] = (
    (14.4, 3_600, 300, "page"),
    (6.0, 21_600, 1_800, "page"),
    (3.0, 86_400, 7_200, "ticket"),
)

# Counted are failures, not requests: a service that is asked five times a minute is as much down as a busy one.
_FEW = "# so few say nothing"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule that alerts.

    group: the file that it stands in. severity: a page wakes somebody, a ticket waits for the morning.
    summary and description are Go templates, for Prometheus to fill in. window: a label that tells apart rules of one
    name and severity.
    """

    name: str
    group: Group
    severity: Severity
    expr: str
    summary: str
    description: str
    for_seconds: float = 0.0
    dashboard: str = "gleaner-service"
    window: str = ""

    @property
    def labels(self) -> dict[str, str]:
        return {"severity": self.severity} | ({"window": self.window} if self.window else {})

    def annotations(self, settings: Settings) -> dict[str, str]:
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{settings.alerts.runbooks}#{self.name.lower()}",
            "dashboard_url": f"{grafana_url(settings)}/d/{self.dashboard}",
        }


def grafana_url(settings: Settings) -> str:
    """Grafana's address, for people."""
    return settings.alerts.dashboards.rstrip("/") or f"http://localhost:{settings.ports.grafana}"


def hurried(alerts: Alerts, hurry: float) -> Alerts:
    """The same with every `for:`, window and interval divided by a factor, to see in seconds what takes minutes."""
    spans = {name: value / hurry for name, value in alerts if name.endswith("_seconds")}
    return alerts.model_copy(update=spans)


def span(seconds: float) -> str:
    """Prometheus's word for a time, such as `5m`; to the millisecond, which is as finely as it counts."""
    milliseconds = max(1, round(1_000 * seconds))
    units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    unit = next(unit for unit, size in units.items() if milliseconds % size == 0)
    return f"{milliseconds // units[unit]}{unit}"


def number(value: float) -> str:
    """A number as PromQL has it: `500000000`, `0.005`; without the last bits of 1 - 0.995."""
    return f"{value:.12g}"


def percent(share: float) -> str:
    """A share as Prometheus's humanizePercentage writes it."""
    return f"{100 * share:.4g}%"


def failed_record(window_seconds: float) -> str:
    """The name under which Prometheus keeps a share of failures; a hurried window keeps the name of the whole one."""
    return f"service:http_requests_failed:ratio_rate{span(window_seconds)}"


def make_records(hurry: float = 1.0) -> dict[str, str]:
    """What Prometheus computes ahead, by name: the share of failures over every window of a burn rate."""
    windows = sorted({window for _, long, short, _ in BURN_RATES for window in (long, short)})
    return {failed_record(window): _failed_share(span(window / hurry)) for window in windows}


def make_alerts(settings: Settings, hurry: float = 1.0) -> tuple[Alert, ...]:
    """Every rule that alerts, with the settings' thresholds; windows and `for:` are divided by `hurry`."""
    at = hurried(settings.alerts, hurry)
    return (*_service(settings, at, hurry), *_training(at), *_processes(at))


def _failed_share(window: str) -> str:
    """The share of each service's requests that were answered 5xx; NaN, which is above nothing, if there were none."""
    failed, asked = (
        f'sum by (service) (rate(http_requests_total{{{status}route!~"{PROBES}"}}[{window}]))'
        for status in ('status=~"5..", ', "")
    )
    return f"{failed}\n  / {asked}"


def _failed_count(window: str, few: int) -> str:
    """Those services of which more than a few requests were answered 5xx."""
    failed = f'http_requests_total{{status=~"5..", route!~"{PROBES}"}}'
    return f"sum by (service) (increase({failed}[{window}])) > {few}  {_FEW}"


def _service(settings: Settings, at: Alerts, hurry: float) -> list[Alert]:
    errors, slow = map(span, (at.error_window_seconds, at.slow_window_seconds))
    slot, alias = next(iter(settings.serving.slots.items()))
    promised, few = settings.objectives, at.few_failures
    by_slot, durations = "sum by (service, model_version)", "model_prediction_duration_seconds"
    kept = max((bound for bound in BUCKETS if bound <= promised.latency_seconds), default=BUCKETS[0])
    return [
        Alert(
            "HighErrorRate",
            "service",
            "page",
            f"{_failed_share(errors)} > {number(at.error_ratio)}\nand {_failed_count(errors, few)}",
            "{{ $value | humanizePercentage }} of requests to {{ $labels.service }} fail.",
            f"More than {percent(at.error_ratio)} of requests were answered 5xx over the last {errors}. A 503 counts: "
            "whoever asked got no answer. Health checks and scrapes do not.",
        ),
        *(_burn(promised.availability, few, hurry, *rate) for rate in BURN_RATES),
        Alert(
            "SlowPredictions",
            "service",
            "page",
            f"histogram_quantile({number(promised.latency_quantile)}, sum by (service, model_version, le) (\n"
            f"  rate({durations}_bucket[{slow}])\n)) > {number(promised.latency_seconds)}\n"
            f"and {by_slot} (increase({durations}_count[{slow}]))\n"
            f'  - {by_slot} (increase({durations}_bucket{{le="{kept}"}}[{slow}])) > {few}  {_FEW}',
            'Predictions of slot {{ $labels.model_version }} take up to {{ $value | printf "%.3g" }} s.',
            f"{percent(promised.latency_quantile)} of predictions should take no longer than "
            f"{number(promised.latency_seconds)} s. Over the last {slow} they did.",
        ),
        Alert(
            "NoModel",
            "service",
            "page",
            f'up{{job="ml-api"}} == 1 unless on (job, instance) model_info{{slot="{slot}"}}',
            f"{{{{ $labels.service }}}} is up and has no model in slot {slot}.",
            f"No version has the alias {alias}, or the one that has it was refused: /{slot}/predict answers 503.",
            for_seconds=at.no_model_for_seconds,
            dashboard="gleaner-model",
        ),
        Alert(
            "ModelLoadFailing",
            "service",
            "ticket",
            "max by (service, alias) (registry_alias_refused) > 0\n"
            "or max by (service, alias) (model_alias_refused) > 0",
            "{{ $labels.service }} refuses the version that {{ $labels.alias }} points at.",
            "It failed its checks: /health_status and the log say which. The version that was in service before stays.",
            dashboard="gleaner-model",
        ),
        Alert(
            "RegistryNotFollowed",
            "service",
            "ticket",
            f"time() - registry_last_success_timestamp_seconds > {number(at.registry_age_seconds)}\n"
            f"or time() - process_start_time_seconds > {number(at.registry_age_seconds)}\n"
            '  and on (job, instance) registry_polls_total{result="success"} == 0  # none since the start',
            '{{ $labels.service }} has not seen the registry for {{ $value | printf "%.0f" }} s.',
            "No look at the aliases of the MLflow server has succeeded: what is promoted there is not served. The "
            "versions in service stay.",
            dashboard="gleaner-model",
        ),
    ]


def _burn(
    availability: float, few: int, hurry: float, rate: float, long: float, short: float, severity: Severity
) -> Alert:
    budget, over, also = number(1 - availability), span(long / hurry), span(short / hurry)
    return Alert(
        "ErrorBudgetBurn",
        "budget",
        severity,
        f"{failed_record(long)} / {budget} > {number(rate)}\n"
        f"and {failed_record(short)} / {budget} > {number(rate)}  # and it still goes on\n"
        f"and {_failed_count(over, few)}",
        '{{ $labels.service }} uses up its error budget {{ $value | printf "%.1f" }} times too fast.',
        f"{percent(availability)} of requests should be answered without a 5xx. Over the last {over}, and over "
        f"the last {also}, more than {number(rate)} times as many failed as that allows.",
        window=span(long),
    )


def _training(at: Alerts) -> list[Alert]:
    return [
        Alert(
            "HighTrainingLoss",
            "training",
            "ticket",
            f"training_loss > {number(at.training_loss)}",
            'The training loss is {{ $value | printf "%.3f" }}.',
            f"It should be at most {number(at.training_loss)}: the model hardly fits the rows that it was shown.",
            for_seconds=at.training_loss_for_seconds,
            dashboard="gleaner-training",
        ),
        Alert(
            "LowValidationAccuracy",
            "training",
            "ticket",
            f"validation_accuracy < {number(at.validation_accuracy)}",
            "{{ $value | humanizePercentage }} of out-of-fold predictions are near enough.",
            f"It should be at least {percent(at.validation_accuracy)}: on rows that it has not seen, the model is too "
            "often far off.",
            for_seconds=at.validation_accuracy_for_seconds,
            dashboard="gleaner-training",
        ),
        Alert(
            "TrainingStale",
            "training",
            "ticket",
            f"(time() - training_last_success_timestamp_seconds) / 86400 > {number(at.training_age_days)}",
            'The last training that succeeded was {{ $value | printf "%.1f" }} days ago.',
            f"It should be at most {number(at.training_age_days)} days ago: what the model knows grows old, or "
            "trainings fail.",
            dashboard="gleaner-training",
        ),
    ]


def _processes(at: Alerts) -> list[Alert]:
    restarts = span(at.restart_window_seconds)
    # Callers notice at once that one of them is gone.
    of_severity: Mapping[Severity, str] = {"page": '="ml-app"', "ticket": '!="ml-app"'}
    return [
        *(
            Alert(
                "TargetDown",
                "processes",
                severity,
                f"up{{service{match}}} == 0",
                "{{ $labels.service }} does not answer Prometheus.",
                f"{{{{ $labels.instance }}}} gave no metrics for {span(at.down_for_seconds)}: the process is gone, or "
                "it is stuck.",
                for_seconds=at.down_for_seconds,
            )
            for severity, match in of_severity.items()
        ),
        *(
            Alert(
                "RestartLoop",
                "processes",
                severity,
                f"changes(process_start_time_seconds{{service{match}}}[{restarts}]) > {number(at.restarts)}",
                f"{{{{ $labels.service }}}} started anew {{{{ $value }}}} times in {restarts}.",
                "A process ends again and again; its log says why.",
            )
            for severity, match in of_severity.items()
        ),
        Alert(
            "HighMemoryUsage",
            "processes",
            "ticket",
            f"app_memory_usage_bytes > {number(at.memory_bytes)}",
            "{{ $labels.service }} uses {{ $value | humanize }}B of memory.",
            f"For {span(at.memory_for_seconds)} it used more than {number(at.memory_bytes)} bytes, together with its "
            "children.",
            for_seconds=at.memory_for_seconds,
        ),
        Alert(
            "HighCPUUsage",
            "processes",
            "ticket",
            f"app_cpu_usage_percent > {number(at.cpu_percent)}",
            '{{ $labels.service }} uses {{ $value | printf "%.1f" }}% of its CPUs.',
            f"For {span(at.cpu_for_seconds)} it used more than {number(at.cpu_percent)}% of the CPUs that it may use.",
            for_seconds=at.cpu_for_seconds,
        ),
    ]
