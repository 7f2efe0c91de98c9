"""Access by host, origin and key."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from gleaner.errors import Forbidden, Misdirected, Unauthorized
from gleaner.serving.access import HOW, Access, Failures
from gleaner.serving.keys import Keys, add_key
from gleaner.settings.sections import Serving

ROUTES = ("/v1/predict", "/invocations")


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def keyed(tmp_path, registry):
    """Access with keys, and the keys' texts by scope."""
    path = tmp_path / "keys.json"
    texts = {scope: add_key(path, scope, [scope])[1] for scope in ("predict", "actuals", "admin")}
    return Access(Serving(), Keys(path, tmp_path / "used.json"), ROUTES, registry), texts


def request(path: str = "/v1/predict", method: str = "POST", **headers: str) -> dict[str, str]:
    found = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:5001",
        **found,
    }


def refused(registry: CollectorRegistry) -> dict[str, float]:
    samples = [s for m in registry.collect() for s in m.samples if s.name == "http_access_refused_total"]
    return {s.labels["reason"]: s.value for s in samples if s.value}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5001", "localhost", "LOCALHOST:80", "[::1]:5001", "ml-app:5000", "10.1.2.3", ""]
)
def test_addresses_and_names_without_a_dot_are_this_server(registry, host):
    access = Access(Serving(), None, ROUTES, registry)

    for _ in range(2):  # looked at, then remembered
        access.check(request(host=host))

    assert {} == refused(registry)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5001", "127.0.0.1.evil.example", "localhost.evil.example."]
)
def test_another_name_is_refused_at_a_post_until_it_is_allowed(registry, host):
    access = Access(Serving(), None, ROUTES, registry)

    for _ in range(2):
        with pytest.raises(Misdirected, match=r"add it to serving\.allowed_hosts"):
            access.check(request(host=host))
    access.check(request("/readyz", "GET", host=host))

    assert {"host": 2} == refused(registry)
    allowed = Serving(allowed_hosts=("Evil.example", "127.0.0.1.evil.example", "localhost.evil.example"))
    Access(allowed, None, ROUTES, CollectorRegistry()).check(request(host=host))


def test_with_keys_any_name_will_do_unless_some_are_listed(tmp_path, keyed):
    access, texts = keyed
    sent = request(host="routes.example.org", x_api_key=texts["predict"])

    access.check(sent)

    keys = Keys(tmp_path / "keys.json", tmp_path / "used.json")
    listed = Access(Serving(allowed_hosts=("other.example.org",)), keys, ROUTES, CollectorRegistry())
    with pytest.raises(Misdirected):
        listed.check(sent)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8888"},  # another server of this machine, such as a notebook
        {"origin": "http://127.0.0.1:5001.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:5001"},
        {"sec_fetch_site": "same-origin", "origin": "http://evil.example"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/invocations", "/v2/models/x/infer", "/actuals", "/anything"])
def test_a_page_of_another_site_is_refused(registry, path, headers):
    with pytest.raises(Forbidden, match="a page of another site"):
        Access(Serving(), None, ROUTES, registry).check(request(path, **headers))

    assert {"origin": 1} == refused(registry)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:5001"},
        {"origin": "https://Routes.Example.org", "host": "routes.example.ORG"},  # TLS ends at a proxy
        {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:5001"},
        {"sec_fetch_site": "none"},
    ],
)
def test_programs_and_pages_of_this_server_pass(headers):
    serving = Serving(allowed_hosts=("routes.example.org",))
    Access(serving, None, ROUTES, CollectorRegistry()).check(request(**headers))


NEEDED = {
    ("POST", "/v1/predict"): "predict",
    ("POST", "/invocations"): "predict",
    ("POST", "/v2/models/m/versions/1/infer"): "predict",
    ("POST", "/actuals"): "actuals",
    ("POST", "/promote"): "admin",
    ("DELETE", "/anything"): "admin",
}


@pytest.mark.parametrize(("method", "path"), NEEDED)
def test_each_route_takes_its_own_scope_alone(keyed, method, path):
    access, texts = keyed

    for scope, text in texts.items():
        for sent in ({"x_api_key": text}, {"authorization": f"Bearer {text}"}, {"authorization": f"bearer  {text}"}):
            if scope == NEEDED[method, path]:
                access.check(request(path, method, **sent))
            else:
                with pytest.raises(Forbidden, match="this key may not do that"):
                    access.check(request(path, method, **sent))


def test_reading_takes_any_key_and_probes_none(keyed):
    access, texts = keyed

    for text in texts.values():
        access.check(request("/metrics", "GET", x_api_key=text))
    for path in ("/livez", "/readyz", "/ping", "/health", "/v2/health/live", "/v2/health/ready"):
        access.check(request(path, "GET"))
    for path in ("/", "/metrics", "/docs/", "/openapi.json", "/health_status", "/nothing", "/livez/", "//livez"):
        with pytest.raises(Unauthorized):
            access.check(request(path, "GET"))


def test_a_401_says_how_to_send_a_key_and_nothing_else(keyed, registry):
    access, texts = keyed
    wrong = texts["predict"][:-1] + ("a" if texts["predict"][-1] != "a" else "b")

    for sent in ({}, {"x_api_key": wrong}, {"authorization": f"Basic {texts['predict']}"}, {"x_api_key": ""}):
        with pytest.raises(Unauthorized) as caught:
            access.check(request(**sent))
        assert HOW == str(caught.value)

    assert {"missing": 2, "unknown": 2} == refused(registry)


def test_failures_beyond_ten_a_minute_wait_for_each_address_alone():
    failures = Failures()

    assert [0.0] * 10 + [1.0] * 5 == [failures.count("203.0.113.7", 100.0 + i) for i in range(15)]
    assert 0.0 == failures.count("203.0.113.8", 120.0)
    assert 0.0 == failures.count("203.0.113.7", 161.0)


def test_the_table_of_failures_stays_small():
    failures = Failures()

    for i in range(20_000):
        failures.count(str(i), 0.0)

    assert 4_096 == len(failures._counts)


def test_behind_a_trusted_proxy_failures_count_for_the_client(tmp_path):
    path = tmp_path / "keys.json"
    add_key(path, "drive", ["predict"])
    serving = Serving(trusted_proxies=("127.0.0.1",))
    access = Access(serving, Keys(path, tmp_path / "used.json"), ROUTES, CollectorRegistry())

    def delays(client: str) -> list[float]:
        found = []
        for _ in range(11):
            with pytest.raises(Unauthorized) as caught:
                access.check(request(x_forwarded_for=client))
            found.append(caught.value.delay)
        return found

    assert [0.0] * 10 + [1.0] == delays("203.0.113.7")
    assert [0.0] * 10 + [1.0] == delays("203.0.113.8")
