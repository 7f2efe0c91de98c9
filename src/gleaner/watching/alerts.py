"""Prometheus's alerting rules, made from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from gleaner.serving.metrics import BUCKETS, UNMATCHED
from gleaner.settings.sections import Alerts, Settings
from gleaner.settings.services import ML_APP

Severity = Literal["page", "ticket"]
Group = Literal["service", "budget", "training", "processes"]

# Health checks and scrapes are left out. A load balancer that polls /readyz of a service without a model would
# otherwise look like an outage, and one that polls /livez would dilute the share of failures.
PROBES = f"/livez|/readyz|/health_status|/health|/ping|/metrics|/v2/(.*/)?(live|ready)|{UNMATCHED}"

# Burn rates of the 30-day error budget, with a long and a short window in seconds: 2 % of the budget in 1 hour, 5 % in
# 6 hours, 10 % in a day. The short window ends the alert soon after its cause.
# Source: Google, The Site Reliability Workbook (2018), chapter 5.
BURN_RATES: tuple[tuple[float, float, float, Severity], ...] = (
    (14.4, 3_600, 300, "page"),
    (6.0, 21_600, 1_800, "page"),
    (3.0, 86_400, 7_200, "ticket"),
)

# This counts failures, not requests, so that a quiet service that is down alerts too.
_FEW = "# a few do not alert"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule.

    expr: the condition, in PromQL.
    summary, description: Go templates that Prometheus fills in.
    group: the file that holds the rule.
    severity: a page wakes somebody, a ticket waits for the morning.
    for_seconds: how long the condition must hold.
    dashboard: uid of the dashboard to look at.
    window: a label that distinguishes rules of one name and severity.
    """

    name: str
    expr: str
    summary: str
    description: str
    group: Group
    severity: Severity
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
    """Return Grafana's address, as people open it."""
    return settings.alerts.dashboards.rstrip("/") or f"http://localhost:{settings.ports.grafana}"


def hurried(alerts: Alerts, hurry: float) -> Alerts:
    """Divide every `for:`, window and interval by `hurry`: minutes become seconds."""
    spans = {name: value / hurry for name, value in alerts if name.endswith("_seconds")}
    return alerts.model_copy(update=spans)


def span(seconds: float) -> str:
    """Write a time as Prometheus does, such as `5m`, to the millisecond."""
    milliseconds = max(1, round(1_000 * seconds))
    units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    unit = next(unit for unit, size in units.items() if milliseconds % size == 0)
    return f"{milliseconds // units[unit]}{unit}"


def number(value: float) -> str:
    """Write a number for PromQL: `500000000`, and `0.005` for 1 - 0.995."""
    return f"{value:.12g}"


def percent(share: float) -> str:
    """Write a share as Prometheus's humanizePercentage does."""
    return f"{100 * share:.4g}%"


def failed_record(window_seconds: float) -> str:
    """Return the recording rule's name for a window before `hurry` divides it."""
    return f"service:http_requests_failed:ratio_rate{span(window_seconds)}"


def make_records(hurry: float = 1.0) -> dict[str, str]:
    """Make the recording rules: {name: share of failures over a burn-rate window}."""
    windows = sorted({window for _, long, short, _ in BURN_RATES for window in (long, short)})
    return {failed_record(window): _failed_share(span(window / hurry)) for window in windows}


def make_alerts(settings: Settings, hurry: float = 1.0) -> tuple[Alert, ...]:
    """Make every alerting rule, with the settings' thresholds.

    hurry: the factor that divides windows and `for:`.
    """
    at = hurried(settings.alerts, hurry)
    return (*_service(settings, at, hurry), *_training(at), *_processes(at))


def _failed_share(window: str) -> str:
    """Write the expression for each service's share of 5xx responses.

    The share is NaN, which exceeds no threshold, for a service without requests.
    """
    failed, asked = (
        f'sum by (service) (rate(http_requests_total{{{status}route!~"{PROBES}"}}[{window}]))'
        for status in ('status=~"5..", ', "")
    )
    return f"{failed}\n  / {asked}"


def _failed_count(window: str, few: int) -> str:
    """Write the condition that a service sent more than `few` 5xx responses."""
    failed = f'http_requests_total{{status=~"5..", route!~"{PROBES}"}}'
    return f"sum by (service) (increase({failed}[{window}])) > {few}  {_FEW}"


def _service(settings: Settings, at: Alerts, hurry: float) -> list[Alert]:
    errors, slow = map(span, (at.error_window_seconds, at.slow_window_seconds))
    slot, alias = next(iter(settings.serving.slots.items()))
    promised, few = settings.objectives, at.few_failures
    by_slot, durations = "sum by (service, model_version)", "model_prediction_duration_seconds"
    kept = max((bound for bound in BUCKETS if bound <= promised.latency_seconds), default=BUCKETS[0])
    page = partial(Alert, group="service", severity="page")
    ticket = partial(Alert, group="service", severity="ticket", dashboard="gleaner-model")
    return [
        page(
            "HighErrorRate",
            f"{_failed_share(errors)} > {number(at.error_ratio)}\nand {_failed_count(errors, few)}",
            "{{ $value | humanizePercentage }} of requests to {{ $labels.service }} fail.",
            f"More than {percent(at.error_ratio)} of requests got a 5xx response over the last {errors}. 503 responses "
            "count; health checks and scrapes do not.",
        ),
        *(_burn(promised.availability, few, hurry, *rate) for rate in BURN_RATES),
        page(
            "SlowPredictions",
            f"histogram_quantile({number(promised.latency_quantile)}, sum by (service, model_version, le) (\n"
            f"  rate({durations}_bucket[{slow}])\n)) > {number(promised.latency_seconds)}\n"
            f"and {by_slot} (increase({durations}_count[{slow}]))\n"
            f'  - {by_slot} (increase({durations}_bucket{{le="{kept}"}}[{slow}])) > {few}  {_FEW}',
            'Predictions of slot {{ $labels.model_version }} take up to {{ $value | printf "%.3g" }} s.',
            f"{percent(promised.latency_quantile)} of predictions should take at most "
            f"{number(promised.latency_seconds)} s. Over the last {slow}, more than "
            f"{percent(1 - promised.latency_quantile)} took longer.",
        ),
        page(
            "NoModel",
            f'up{{job="ml-api"}} == 1 unless on (job, instance) model_info{{slot="{slot}"}}',
            f"{{{{ $labels.service }}}} is up but has no model in slot {slot}.",
            f"No version has the alias {alias}, or the service refused that version. /{slot}/predict returns 503.",
            for_seconds=at.no_model_for_seconds,
            dashboard="gleaner-model",
        ),
        ticket(
            "ModelLoadFailing",
            "max by (service, alias) (registry_alias_refused) > 0\n"
            "or max by (service, alias) (model_alias_refused) > 0",
            "{{ $labels.service }} refuses the version that the alias {{ $labels.alias }} points at.",
            "The version failed its checks; /health_status and the log give the reason. The previous version stays in "
            "service.",
        ),
        ticket(
            "RegistryNotFollowed",
            f"time() - registry_last_success_timestamp_seconds > {number(at.registry_age_seconds)}\n"
            f"or time() - process_start_time_seconds > {number(at.registry_age_seconds)}\n"
            '  and on (job, instance) registry_polls_total{result="success"} == 0  # no success since the start',
            '{{ $labels.service }} has not read the registry for {{ $value | printf "%.0f" }} s.',
            "Every poll of the MLflow server's aliases failed, so new promotions are not served. The versions in "
            "service stay.",
        ),
    ]


def _burn(
    availability: float, few: int, hurry: float, rate: float, long: float, short: float, severity: Severity
) -> Alert:
    budget, over, also = number(1 - availability), span(long / hurry), span(short / hurry)
    return Alert(
        "ErrorBudgetBurn",
        f"{failed_record(long)} / {budget} > {number(rate)}\n"
        f"and {failed_record(short)} / {budget} > {number(rate)}  # and still failing\n"
        f"and {_failed_count(over, few)}",
        '{{ $labels.service }} uses up its error budget {{ $value | printf "%.1f" }} times too fast.',
        f"{percent(availability)} of requests should not get a 5xx response. Over the last {over} and the last {also}, "
        f"failures were more than {number(rate)} times as frequent as that allows.",
        group="budget",
        severity=severity,
        window=span(long),
    )


def _training(at: Alerts) -> list[Alert]:
    ticket = partial(Alert, group="training", severity="ticket", dashboard="gleaner-training")
    return [
        ticket(
            "HighTrainingLoss",
            f"training_loss > {number(at.training_loss)}",
            'The training loss is {{ $value | printf "%.3f" }}.',
            f"The loss should be at most {number(at.training_loss)}. The model hardly fits even its training rows.",
            for_seconds=at.training_loss_for_seconds,
        ),
        ticket(
            "LowValidationAccuracy",
            f"validation_accuracy < {number(at.validation_accuracy)}",
            "{{ $value | humanizePercentage }} of out-of-fold predictions are close enough.",
            f"The share should be at least {percent(at.validation_accuracy)}. The model is too often far off on rows "
            "that it was not trained on.",
            for_seconds=at.validation_accuracy_for_seconds,
        ),
        ticket(
            "TrainingStale",
            f"(time() - training_last_success_timestamp_seconds) / 86400 > {number(at.training_age_days)}",
            'The last successful training was {{ $value | printf "%.1f" }} days ago.',
            f"A training should succeed every {number(at.training_age_days)} days. Either trainings fail, or nothing "
            "starts them.",
        ),
    ]


def _processes(at: Alerts) -> list[Alert]:
    restarts, alert = span(at.restart_window_seconds), partial(Alert, group="processes")
    # Without ml-app there are no predictions; callers do not notice when another service is down.
    of_severity: Mapping[Severity, str] = {"page": f'="{ML_APP.name}"', "ticket": f'!="{ML_APP.name}"'}
    return [
        *(
            alert(
                "TargetDown",
                f"up{{service{match}}} == 0",
                "{{ $labels.service }} does not respond to Prometheus.",
                f"{{{{ $labels.instance }}}} returned no metrics for {span(at.down_for_seconds)}: the process has "
                "exited or hangs.",
                severity=severity,
                for_seconds=at.down_for_seconds,
            )
            for severity, match in of_severity.items()
        ),
        *(
            alert(
                "RestartLoop",
                f"changes(process_start_time_seconds{{service{match}}}[{restarts}]) > {number(at.restarts)}",
                f"{{{{ $labels.service }}}} restarted {{{{ $value }}}} times in {restarts}.",
                "The process keeps exiting; its log gives the reason.",
                severity=severity,
            )
            for severity, match in of_severity.items()
        ),
        alert(
            "HighMemoryUsage",
            f"app_memory_usage_bytes > {number(at.memory_bytes)}",
            "{{ $labels.service }} uses {{ $value | humanize }}B of memory.",
            f"The process and its children used more than {number(at.memory_bytes)} bytes for "
            f"{span(at.memory_for_seconds)}.",
            severity="ticket",
            for_seconds=at.memory_for_seconds,
        ),
        alert(
            "HighCPUUsage",
            f"app_cpu_usage_percent > {number(at.cpu_percent)}",
            '{{ $labels.service }} uses {{ $value | printf "%.1f" }}% of its CPUs.',
            f"The process used more than {number(at.cpu_percent)}% of its CPUs for {span(at.cpu_for_seconds)}.",
            severity="ticket",
            for_seconds=at.cpu_for_seconds,
        ),
    ]
