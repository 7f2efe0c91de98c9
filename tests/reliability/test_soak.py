"""The memory of a service after a long time of requests."""

from __future__ import annotations

import pytest
from clients import FULL
from soaking import MB, REQUESTS, slope


def test_a_slope_is_the_growth_of_the_late_minutes():
    flat = [(float(second), 100 * MB) for second in range(0, 600, 5)]
    leaking = [(second, size + (2 * MB * int(second)) // 60) for second, size in flat]

    assert abs(slope(flat, 180)) < 0.01
    assert abs(slope(leaking, 180) - 2) < 0.01


@pytest.mark.timeout(3000)
def test_a_soak_with_reloads_keeps_its_memory(soak, figure):
    soak.wait()

    points, statuses, count = soak.points, soak.statuses, soak.statuses.total()
    rate = slope(points, 180 if FULL else 0)
    figure("M1", f"{points[-1][0] / 60:.0f} min, {soak.reloads} reloads, {count:,} requests: {rate:+.2f} MB/min")
    assert [] == soak.clients.failures
    assert [] == soak.wrong
    assert {200, 422} == set(statuses)
    assert abs(statuses[422] / count - 1 / len(REQUESTS)) < 0.01 + 4 / count
    assert [] == soak.scraper.faults
    assert not FULL or rate <= 1
    assert points[-1][1] - points[len(points) // 5][1] <= 20 * MB
