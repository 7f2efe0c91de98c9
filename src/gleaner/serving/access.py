"""Access to the service, decided from the headers of a request alone."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gleaner.errors import Forbidden, Misdirected, Unauthorized
from gleaner.serving.exchange import Environ
from gleaner.serving.keys import Keys, Refusal
from gleaner.serving.proxies import Proxies
from gleaner.settings.sections import Serving

# Probes of load balancers send no key, and learn only whether requests should come here.
OPEN = frozenset({"/livez", "/readyz", "/ping", "/health", "/v2/health/live", "/v2/health/ready"})
HOW = "send a key as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST, _ORIGIN = "host", "origin"
_KNOWN_HOSTS = 1_024

# A client may fail this often in a minute at full speed. Every further 401 or 403 waits.
_FREE_FAILURES, _WINDOW_SECONDS, _DELAY_SECONDS = 10, 60.0, 1.0
_ADDRESSES = 4_096


class Access(Collector):
    """The checks of key, host and origin, in front of everything else.

    keys: the keys to ask for; None for none.
    predict_paths: the paths that predict, besides those that end with /infer.
    """

    def __init__(
        self, serving: Serving, keys: Keys | None, predict_paths: Collection[str], registry: CollectorRegistry
    ) -> None:
        self._keys, self._predict_paths = keys, frozenset(predict_paths)
        self._names = frozenset(name.lower() for name in serving.allowed_hosts)
        self._any_host = keys is not None and not self._names
        self._good_hosts: set[str] = set()
        self.proxies = Proxies(serving.trusted_proxies)
        self._failures = Failures()
        reasons = (*([refusal.value for refusal in Refusal] if keys else []), _HOST, _ORIGIN)
        self._refused = dict.fromkeys(reasons, 0)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric of refused requests."""
        about = "Requests without access, by the fault of their key, their host or their origin."
        family = CounterMetricFamily("http_access_refused", about, labels=["reason"])
        for reason, count in self._refused.items():
            family.add_metric([reason], count)
        yield family

    def check(self, environ: Environ) -> None:
        """Check a request. Raises Unauthorized, Forbidden, Misdirected."""
        if environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            host = environ.get("HTTP_HOST", "")
            if host not in self._good_hosts:
                self._check_host(host)
            if "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ:
                self._check_origin(environ, host)
        if self._keys is not None:
            self._check_key(self._keys, environ)

    def find_client(self, environ: Environ) -> str:
        """Return the address of a request's client."""
        return self.proxies.find_client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR"))

    def _check_host(self, host: str) -> None:
        """Check the name under which a client found the service.

        The page of a stranger can let its own name point at this machine (DNS rebinding). So a name with a dot has to
        be allowed, unless every caller needs a key.
        """
        name = _name(host)
        is_local = "." not in name or _is_address(name)
        if not (is_local or self._any_host or name in self._names):
            self._refused[_HOST] += 1
            raise Misdirected(f"this server is not {name[:100]}; to allow that name, add it to serving.allowed_hosts")
        if len(self._good_hosts) < _KNOWN_HOSTS:
            self._good_hosts.add(host)

    def _check_origin(self, environ: Environ, host: str) -> None:
        """Check that a browser sends this from a page of this server."""
        site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
        origin = environ.get("HTTP_ORIGIN")
        is_own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if site not in {"same-origin", "none"} or not is_own:
            self._refused[_ORIGIN] += 1
            raise Forbidden("a page of another site cannot send this; browsers may only use pages of this server")

    def _check_key(self, keys: Keys, environ: Environ) -> None:
        path = environ["PATH_INFO"]
        if path in OPEN:
            return
        refusal = keys.check(_read_key(environ), self._scope(environ["REQUEST_METHOD"], path))
        if refusal is None:
            return
        self._refused[refusal.value] += 1
        delay = self._failures.count(self.find_client(environ), time.monotonic())
        if refusal is Refusal.SCOPE:
            raise Forbidden("this key may not do that", delay)
        raise Unauthorized(HOW, delay)

    def _scope(self, method: str, path: str) -> str | None:
        """Return the scope that a request needs; None for any."""
        if path in self._predict_paths or path.endswith("/infer"):
            return "predict"
        if path == "/actuals":
            return "actuals"
        return None if method in _SAFE_METHODS else "admin"


class Failures:
    """Recent failures of each client; those of the busiest 4,096 at most."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, client: str, now: float) -> float:
        """Count a failure; return the seconds that its response should wait."""
        began, count = self._counts.pop(client, (now, 0))
        if now - began > _WINDOW_SECONDS:
            began, count = now, 0
        self._counts[client] = began, count + 1
        if len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)
        return _DELAY_SECONDS if count >= _FREE_FAILURES else 0.0


def _read_key(environ: Mapping[str, str]) -> str | None:
    """Return the key that a request has; None for none."""
    authorization = environ.get("HTTP_AUTHORIZATION")
    if authorization is not None:
        kind, _, text = authorization.partition(" ")
        if kind.lower() == "bearer":
            return text.strip()
    return environ.get("HTTP_X_API_KEY")


def _name(host: str) -> str:
    """Return the name in a header Host, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
