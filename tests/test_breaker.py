"""What a pool knows of one endpoint: its breaker and its capacity."""

from __future__ import annotations

from premeditate.engine.breaker import Breaker
from premeditate.engine.capacity import Capacity


def test_a_breaker_opens_probes_and_closes() -> None:
    b = Breaker(failures=2, cool=10, jitter=0)
    b.failed(0)
    assert b.allows(0) and b.state(0) == "closed"
    b.failed(1)
    assert not b.allows(10.9) and b.state(10.9) == "open" and b.allows(11) and b.state(11) == "half-open"
    b.sent()
    assert not b.allows(12)  # one probe at a time
    b.failed(12)
    assert not b.allows(31.9) and b.allows(32)  # twice as long
    b.sent()
    b.gave_up()
    assert b.allows(33)
    b.sent()
    b.succeeded()
    assert b.state(33) == "closed" and b.allows(33)


def test_late_failures_do_not_open_a_breaker_twice() -> None:
    b = Breaker(failures=1, cool=10, jitter=0)
    for now in (0.0, 1.0, 2.0):
        b.failed(now)
    assert b.allows(10)


def test_a_breaker_outlives_an_outage_of_days() -> None:
    b = Breaker(failures=1, cool=2, jitter=0)
    b.failed(0)
    for _ in range(2000):
        b.sent()
        b.failed(b.until)
    assert b.until > 86_400 and b.allows(b.until) and not b.allows(b.until - 59)


def test_capacity_shrinks_when_it_is_turned_away() -> None:
    c = Capacity(limit=8)
    c.busy(6)
    assert c.now == 5
    c.busy(1)
    assert c.now == 1
    assert Capacity(fixed=3).now == 3
