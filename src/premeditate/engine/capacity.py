"""How many calls an endpoint carries out at a time, learnt from how they go.

An endpoint that says its capacity is believed. Of other editors we know only latencies: as long as one more call in
flight takes no longer than before, there was room for it; when calls begin to take longer in proportion, the last ones
only queue. This is the rule of TCP Vegas (Brakmo and Peterson, 1995) on calls instead of packets:

    waiting = n * (1 - fastest / latency)      calls of the n in flight that were queueing
    waiting < LOW and the limit was reached    limit + 1, for each call at first, then for each limit's worth of calls
    waiting > HIGH                             limit - 1 for each limit's worth of calls
    busy (429, 503)                            limit := min(limit, n - 1), and no fast start any more

A limit one too high costs nothing but a call that waits there instead of here. Of a chat model latencies say nothing:
an answer of a thousand words takes longer than a yes, and such servers batch what they are given. There the limit
begins at `FIRST` and grows by one for each limit's worth of calls, until the endpoint turns one away or a call times
out, which halves it (the rule of TCP Reno).
"""

from __future__ import annotations

from dataclasses import dataclass

LOW, HIGH = 0.4, 0.8
FIRST = 8.0
FORGET = 1.002
"""The fastest call is forgotten slowly: an endpoint may become slower for good (a larger picture, a shared GPU)."""


@dataclass
class Capacity:
    """`fixed`: said by the user or the endpoint; else learnt, from `limit` up to `most`. `steady`: calls are alike, so
    that their latencies tell something."""

    fixed: int | None = None
    steady: bool = True
    limit: float = 1.0
    most: int = 64
    fastest: float = 0.0
    growing: bool = True

    def __post_init__(self) -> None:
        if not self.steady:
            self.limit, self.growing = max(self.limit, FIRST), False

    @property
    def now(self) -> int:
        """Calls that may be in flight."""
        return self.fixed if self.fixed is not None else max(1, int(self.limit + 1e-6))

    def took(self, seconds: float, n: int) -> None:
        """A call succeeded after `seconds`; when it was sent, `n` were in flight with it."""
        self.fastest = min(self.fastest * FORGET, seconds) if self.fastest else seconds
        if self.fixed is not None or seconds <= 0:
            return
        if not self.steady:
            self.limit = min(float(self.most), self.limit + (1 / self.limit if n >= self.now else 0))
            return
        waiting = n * (1 - self.fastest / seconds)
        if waiting > HIGH:
            self.growing = False
            self.limit = max(1.0, self.limit - 1 / self.limit)
        elif waiting < LOW and n >= self.now:
            self.limit = min(float(self.most), self.limit + (1 if self.growing else 1 / self.limit))

    def busy(self, n: int) -> None:
        """A call was turned away while `n` were in flight, itself included."""
        self.growing = False
        if self.fixed is None:
            self.limit = max(1.0, min(self.limit, n - 1.0 if self.steady else n / 2))

    def timed_out(self, n: int) -> None:
        """A call had no answer in time while `n` were in flight."""
        if self.fixed is None and not self.steady:
            self.busy(n)
