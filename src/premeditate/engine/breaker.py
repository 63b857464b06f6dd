"""The circuit breaker of one endpoint: an endpoint that keeps failing is left alone, then asked again with one call.

closed     calls go through; `failures` in a row open it
open       no call for `cool` seconds, twice as long after each failed probe, up to `longest`
half-open  one call goes through: success closes it, failure opens it again
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass
class Breaker:
    """Times are seconds of one clock, given by the caller. `jitter`: a random share more, so that many clients that
    lost the same endpoint do not come back in the same instant."""

    failures: int = 3
    cool: float = 2.0
    longest: float = 60.0
    jitter: float = 0.2
    in_a_row: int = 0
    opened: int = 0
    """How often it opened since it was last closed."""
    until: float = 0.0
    probing: bool = False
    rng: random.Random = field(default_factory=random.Random, repr=False)

    def state(self, now: float) -> State:
        if not self.opened:
            return "closed"
        return "half-open" if self.probing or now >= self.until else "open"

    def allows(self, now: float) -> bool:
        """Whether a call may go out now."""
        return not self.opened or (not self.probing and now >= self.until)

    def sent(self) -> None:
        """A call goes out; in the half-open state it is the probe."""
        if self.opened:
            self.probing = True

    def succeeded(self) -> None:
        self.in_a_row = self.opened = 0
        self.probing = False

    def failed(self, now: float) -> None:
        """Calls that went out before it opened may fail after it did: they do not open it a second time."""
        self.in_a_row += 1
        if self.opened and not self.probing:
            return
        if self.probing or self.in_a_row >= self.failures:
            rest = min(self.longest, self.cool * 2 ** min(self.opened, 30)) * (1 + self.jitter * self.rng.random())
            self.opened, self.probing, self.until = self.opened + 1, False, now + rest

    def gave_up(self) -> None:
        """A call that was cancelled tells nothing; the next one is the probe."""
        self.probing = False
