"""The benchmarks' arithmetic and results; no test asserts speed."""

from __future__ import annotations

import json
import os
import sys

import psutil
import pytest
from projects import ROOT

WRK = """Running 2s test @ http://127.0.0.1:5001/v1/predict
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms  504.10us  12.90ms   88.30%
    Req/Sec    15.80k     1.20k   17.90k    75.00%
  Latency Distribution
     50%    0.93ms
     75%    1.20ms
     90%    1.54ms
     99%    {p99}
  2000 requests in 2.00s, 0.41MB read
{errors}Requests/sec:   1000.00
Transfer/sec:      3.40MB
"""
# A server with a child in a session of its own.
SERVER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import rig

    return rig


def test_the_constant_server_answers(rig):
    port = rig.free_port()
    command = [sys.executable, str(ROOT / "bench" / "constant.py"), str(port)]
    with rig.serving(command, dict(os.environ), f"http://127.0.0.1:{port}/", b"{}") as (server, seconds):
        assert server.is_running()
        assert seconds > 0


def test_rounds_are_compared_one_by_one(rig):
    assert [2.0, 2.0, 2.0] == rig.ratios([200.0, 20.0, 2.0], [100.0, 10.0, 1.0])


def test_different_numbers_of_rounds_are_not_compared(rig):
    with pytest.raises(ValueError, match="zip"):
        rig.ratios([1.0, 2.0], [1.0])


def test_a_spread_is_the_median_with_minimum_and_maximum(rig):
    assert "2,000 (1 to 30,000)" == rig.spread([30_000.0, 1.0, 2_000.0])


@pytest.mark.parametrize(("p99", "milliseconds"), [("512.00us", 0.512), ("1.87ms", 1.87), ("1.20s", 1200.0)])
def test_wrks_output_is_read_in_milliseconds(rig, p99, milliseconds):
    assert (1000.0, pytest.approx(milliseconds), 2000, 0) == rig.read_wrk(WRK.format(p99=p99, errors=""))


def test_a_refused_request_does_not_count_in_the_rate(rig):
    load = rig.read_wrk(WRK.format(p99="1.87ms", errors="  Non-2xx or 3xx responses: 500\n"))

    assert (750.0, 2000, 500) == (load.rate, load.asked, load.refused)
    assert "ours refused 500 of 2,000 requests.\n" == rig.refusals("ours", [load])


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("  Non-2xx or 3xx responses: 2000\n", "no request succeeded"),
        ("  Socket errors: connect 0, read 7, write 0, timeout 0\n", "connections broke"),
    ],
)
def test_a_run_without_success_or_with_broken_connections_is_refused(rig, errors, reason):
    with pytest.raises(SystemExit, match=reason):
        rig.read_wrk(WRK.format(p99="1.87ms", errors=errors))


def test_a_server_ends_with_all_of_its_processes(rig, tmp_path):
    port = rig.free_port()
    with rig.serving([sys.executable, "-c", SERVER, str(port)], os.environ, f"http://127.0.0.1:{port}/") as (leader, _):
        processes = rig.members(leader.pid)

    assert 2 == len(processes)
    assert [] == [process for process in processes if psutil.pid_exists(process.pid) and process.is_running()]


def test_the_output_of_a_server_that_exits_early_is_shown(rig, tmp_path):
    command = [sys.executable, "-c", "print('no model here'); raise SystemExit(3)"]

    with (
        pytest.raises(SystemExit, match="no model here"),
        rig.serving(command, os.environ, "http://127.0.0.1:1/", log=tmp_path / "log"),
    ):
        pass


def test_results_are_written_with_their_date_and_versions(rig, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rig, "RESULTS", tmp_path / "results")

    rig.write_results("serving", rig.versions("numpy"), {"start_seconds": [0.5]})

    written = json.loads((tmp_path / "results" / "serving.json").read_text())
    assert {"start_seconds": [0.5]} == written["results"]
    assert ["Python", "numpy"] == list(written["versions"])
    assert len("2000-01-01") == len(written["date"])
    assert "serving.json" in capsys.readouterr().out
