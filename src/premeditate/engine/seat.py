"""One endpoint of a pool, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from premeditate.engine.breaker import Breaker, State
from premeditate.engine.capacity import Capacity
from premeditate.remote import Endpoint, EndpointError

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Load:
    """What one endpoint, or one model in this process, is doing. `done`, `failed`: calls so far."""

    name: str
    role: str = ""
    in_flight: int = 0
    queued: int = 0
    capacity: int | None = None
    done: int = 0
    failed: int = 0
    state: State = "closed"


@dataclass
class Seat(Generic[Request, Answer]):
    """Times are of the pool's event loop, in seconds."""

    endpoint: Endpoint[Request, Answer]
    capacity: Capacity
    breaker: Breaker
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    rests_until: float = 0.0
    denied: EndpointError | None = None
    suspect: object | None = None
    """The request that was denied last, until one succeeds."""
    busy_since: float | None = None
    """When it began to turn away whatever it was sent, with nothing of ours in work there."""
    refuses: bool = False
    """It has taken nothing for longer than `Policy.patience`."""
    usual: float = 0.0
    """Seconds that a call takes here, smoothed."""

    def has_room(self, now: float) -> bool:
        ready = self.denied is None and self.breaker.allows(now) and now >= self.rests_until
        return ready and self.in_flight < self.capacity.now

    def is_down(self, now: float) -> bool:
        return self.denied is not None or self.breaker.state(now) != "closed"

    def load(self, role: str, now: float, queued: int) -> Load:
        """`queued`: calls that wait in front of it."""
        return Load(self.host, role, self.in_flight, queued, self.capacity.now, self.done, self.failed,
                    self.breaker.state(now))  # fmt: skip

    @property
    def host(self) -> str:
        return str(getattr(self.endpoint, "host", self.endpoint.name))
