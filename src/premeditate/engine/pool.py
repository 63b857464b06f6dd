"""The pool: which endpoint carries out which call, when, and what happens when it does not.

- A call goes to the endpoint with the fewest in flight against its capacity, and waits here, not there, while none has
  room: what waits here costs nobody anything, can be cancelled, and does not run into the endpoint's own deadline.
- `Policy.timeout` bounds a call from the moment it goes out, so that waiting in this queue never makes one expire.
- What may be sent again is decided by `EndpointError.kind` (the table in `premeditate.remote`), with random back-off,
  and elsewhere first. An endpoint that says when to come back is left alone until then.
- A `Breaker` per endpoint; a half-open one is asked for its health before a call is risked on it.
- Cancelling a submitted call takes it off the queue, or closes its connection.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from premeditate.engine.breaker import Breaker
from premeditate.engine.capacity import Capacity
from premeditate.engine.seat import Load, Seat
from premeditate.remote import Endpoint, EndpointError, Health

Request = TypeVar("Request")
Answer = TypeVar("Answer")
HEALTH = 10.0
"""Seconds that an endpoint has to say how it is."""


@dataclass(frozen=True)
class Policy:
    """How a pool treats its endpoints. Times in seconds.

    `timeout`: of one call; None: the endpoint's own. `attempts`: calls for one request; being turned away as busy does
    not count. `timeouts`: of these, how many may follow a timeout, since an endpoint that does not notice that nobody
    waits any more would carry the request out twice. `backoff`: before the k-th retry, a random time up to
    `backoff` * 2^k. `patience`: how long a request waits while every endpoint is down or turns it away. `capacity`:
    calls in flight per endpoint; None: what it says, else learnt. `failures`, `cool`: see `Breaker`. `hedge`: when a
    call has taken this many times the endpoint's usual time and another endpoint is idle, it is sent there as well, and
    the first answer counts; None: never.
    """

    timeout: float | None = None
    attempts: int = 4
    timeouts: int = 1
    backoff: float = 0.25
    patience: float = 120.0
    capacity: int | None = None
    failures: int = 3
    cool: float = 2.0
    hedge: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("attempts", 1), ("timeouts", 0), ("backoff", 0), ("patience", 0), ("failures", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"policy: {name} is {getattr(self, name)}; give at least {low}")
        for name in ("timeout", "capacity", "hedge", "cool"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"policy: {name} is {value}; give more than 0, or leave it out")


@dataclass(eq=False)
class _Waiter(Generic[Request, Answer]):
    future: asyncio.Future[Seat[Request, Answer]]
    avoid: set[int]
    since: float


class _Unwell(EndpointError):
    """What an endpoint met when it was asked how it is: no request was sent."""


@dataclass
class _Try:
    """What has happened to one request so far, `since` it was handed in."""

    since: float
    avoid: set[int] = field(default_factory=set)
    failures: int = 0
    timeouts: int = 0
    denials: int = 0
    busy_since: float | None = None


class Pool(Generic[Request, Answer]):
    """`await submit(request)` from any number of coroutines of one event loop; another loop may follow. `steady`: calls
    take about equally long, which capacity and the choice of an endpoint are then learnt from."""

    def __init__(
        self, endpoints: Sequence[Endpoint[Request, Answer]], policy: Policy | None = None, *, steady: bool = True
    ) -> None:
        if not endpoints:
            raise ValueError("a pool needs at least one endpoint")
        self.policy = policy or Policy()
        self.seats: list[Seat[Request, Answer]] = []
        for endpoint in endpoints:
            fixed = getattr(endpoint, "capacity", None) or self.policy.capacity
            breaker = Breaker(failures=self.policy.failures, cool=self.policy.cool)
            self.seats.append(Seat(endpoint, Capacity(fixed, steady), breaker))
        self._waiting: deque[_Waiter[Request, Answer]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._down_since: float | None = None
        self._last: EndpointError | None = None

    # -- for callers -----------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Answer:
        """The answer to one request, from whichever endpoint. Raises `EndpointError` when it cannot be had."""
        tried = _Try(since=asyncio.get_running_loop().time())
        while True:
            await self.prepare()
            seat = await self._take(tried)
            try:
                return await self._send(seat, request)
            except EndpointError as error:
                await self._consider(tried, seat, error)

    async def prepare(self) -> None:
        """Asks every endpoint once how it is; `submit` does this by itself. Raises `EndpointError` where none is up."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Futures, timers and calls in flight belonged to a loop that is over.
            self._loop, self._asked, self._timer, self._down_since = loop, None, None, None
            self._waiting.clear()
            for seat in self.seats:
                seat.in_flight, seat.rests_until, seat.busy_since, seat.refuses = 0, 0.0, None, False
                seat.breaker.succeeded()
        if self._asked is None:
            self._asked = asyncio.create_task(self._ask_all())
        try:
            await asyncio.shield(self._asked)
        except EndpointError:
            self._asked = None
            raise

    def up(self) -> list[Endpoint[Request, Answer]]:
        """The endpoints that may be asked, as far as is known."""
        return [seat.endpoint for seat in self.seats if not seat.is_down(self._now())]

    def loads(self, role: str = "") -> list[Load]:
        """One row per endpoint; what waits here belongs to none of them and stands in the first."""
        now, waiting = self._now(), len(self._waiting)
        return [seat.load(role, now, waiting if seat is self.seats[0] else 0) for seat in self.seats]

    async def aclose(self) -> None:
        """Closes the connections, unless others still wait for answers; the pool may be used again, and asks again."""
        if self._loop is asyncio.get_running_loop() and (self._waiting or any(s.in_flight for s in self.seats)):
            return
        if self._asked is not None and self._asked.done():
            self._asked = None
        await asyncio.gather(*(seat.endpoint.aclose() for seat in self.seats), return_exceptions=True)

    # -- one call --------------------------------------------------------------------------------------------------

    async def _send(self, seat: Seat[Request, Answer], request: Request) -> Answer:
        if self.policy.hedge is None or len(self.seats) < 2 or not seat.usual:
            return await self._call(seat, request)
        first = asyncio.create_task(self._call(seat, request))
        racing = {first}
        try:
            done, _ = await asyncio.wait(racing, timeout=self.policy.hedge * seat.usual)
            idle = None if done else self._pick({id(seat)})
            if idle is not None and id(idle) != id(seat):
                idle.in_flight += 1
                racing.add(asyncio.create_task(self._call(idle, request)))
            while racing:
                done, racing = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                good = [job for job in done if job.exception() is None]
                if good or not racing:
                    return (good or [first])[0].result()
            raise AssertionError("a race has a last one")
        finally:
            for job in racing:
                job.cancel()
            await asyncio.gather(*racing, return_exceptions=True)

    async def _call(self, seat: Seat[Request, Answer], request: Request) -> Answer:
        """One call; its place was taken before. Everything that is learnt from it is noted here."""
        began, n = self._now(), seat.in_flight
        try:
            if seat.breaker.state(began) != "closed":
                seat.breaker.sent()
                await self._health(seat)
                began = self._now()
            answer = await seat.endpoint.send(request, self.policy.timeout)
        except EndpointError as error:
            self._note(seat, error, n, request)
            raise
        except BaseException:
            seat.breaker.gave_up()
            raise
        else:
            took = self._now() - began
            seat.done += 1
            seat.breaker.succeeded()
            seat.busy_since, seat.refuses, seat.suspect = None, False, None
            seat.capacity.took(took, n)
            seat.usual = took if not seat.usual else 0.8 * seat.usual + 0.2 * took
            return answer
        finally:
            seat.in_flight -= 1
            self._serve()

    def _note(self, seat: Seat[Request, Answer], error: EndpointError, n: int, request: Request) -> None:
        now = self._now()
        seat.failed += 1
        if error.kind == "rejected":
            seat.breaker.succeeded()  # it answered, and well: the request is at fault
            return
        self._last = error
        if error.kind == "denied":
            # One request may be refused for itself (a gateway's 403); two in a row mean the endpoint.
            if seat.suspect is not None and seat.suspect is not request:
                seat.denied = error
            seat.suspect = request
        elif error.kind == "busy":
            seat.breaker.succeeded()
            seat.capacity.busy(n)
            rest = self.policy.backoff * (0.5 + random.random()) if error.retry_after is None else error.retry_after
            seat.rests_until = max(seat.rests_until, now + rest)
            if seat.in_flight == 1:
                seat.busy_since = now if seat.busy_since is None else seat.busy_since
                seat.refuses = now - seat.busy_since > self.policy.patience
                if all(s.denied or s.refuses for s in self.seats):
                    self._tell(now)
        else:
            seat.breaker.failed(now)
            if error.kind == "timeout":
                seat.capacity.timed_out(n)

    async def _consider(self, tried: _Try, seat: Seat[Request, Answer], error: EndpointError) -> None:
        """Returns after the wait that is due if the request is to be sent again; raises otherwise."""
        now = self._now()
        if error.kind == "rejected":
            raise error
        if error.kind == "denied":
            tried.denials += 1
            tried.avoid.add(id(seat))
            if tried.denials > 1 or all(s.denied for s in self.seats):
                raise error
            return
        if error.kind == "busy":
            tried.busy_since = now if tried.busy_since is None else tried.busy_since
            if now - tried.busy_since > self.policy.patience:
                raise error
            return
        if isinstance(error, _Unwell):
            return  # it waits for an endpoint that is well; `_give_up` says for how long
        tried.busy_since = None
        tried.failures += 1
        tried.timeouts += error.kind == "timeout"
        if tried.failures >= self.policy.attempts or tried.timeouts > self.policy.timeouts:
            times = "" if tried.failures == 1 else f" ({tried.failures} attempts)"
            raise EndpointError(error.kind, error.problem + times, error.mend)
        tried.avoid.add(id(seat))
        await asyncio.sleep(self.policy.backoff * 2 ** (tried.failures - 1) * random.random())

    # -- who is next -----------------------------------------------------------------------------------------------

    def _pick(self, avoid: set[int]) -> Seat[Request, Answer] | None:
        """The least loaded endpoint with room; one in `avoid` only where no other is up."""
        now = self._now()
        others = [s for s in self.seats if id(s) not in avoid]
        if not any(not s.is_down(now) for s in others):
            others = self.seats
        free = [s for s in others if s.has_room(now) and self._is_worth_it(s, others, now)]
        return min(free, key=lambda s: (s.in_flight / s.capacity.now, s.usual, random.random()), default=None)

    def _is_worth_it(self, seat: Seat[Request, Answer], others: list[Seat[Request, Answer]], now: float) -> bool:
        """False for an endpoint so slow that the others will be through with what is asked before it is. The fastest
        one is always worth it, so somebody is."""
        rest = [s for s in others if s is not seat and not s.is_down(now) and now >= s.rests_until]
        if not seat.capacity.steady or not seat.usual or not rest or not all(s.usual for s in rest):
            return True
        rate = sum(s.capacity.now / s.usual for s in rest)
        return seat.usual <= (len(self._waiting) + 1) / rate + min(s.usual for s in rest)

    async def _take(self, tried: _Try) -> Seat[Request, Answer]:
        """A place at an endpoint, in the order of asking; a request that was sent before goes first."""
        assert self._loop is not None
        waiter = _Waiter[Request, Answer](self._loop.create_future(), tried.avoid, tried.since)
        (self._waiting.appendleft if tried.failures or tried.busy_since else self._waiting.append)(waiter)
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                seat = waiter.future.result()
                seat.in_flight -= 1
                seat.breaker.gave_up()
                self._serve()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _serve(self) -> None:
        """Gives free places to those who wait; fails them where nothing will become free."""
        if not self._waiting:
            return
        now = self._now()
        kept: deque[_Waiter[Request, Answer]] = deque()
        while self._waiting:
            if not any(s.has_room(now) for s in self.seats):
                break
            waiter = self._waiting.popleft()
            if waiter.future.done():
                continue
            if (seat := self._pick(waiter.avoid)) is None:
                kept.append(waiter)
                continue
            seat.in_flight += 1
            if seat.breaker.state(now) != "closed":
                seat.breaker.sent()
            waiter.future.set_result(seat)
        self._waiting.extendleft(reversed(kept))
        self._give_up(now)
        self._wake(now)

    def _give_up(self, now: float) -> None:
        """Where no endpoint has been of use for as long as a request has had patience, it is told so."""
        if not all(s.is_down(now) or s.refuses for s in self.seats):
            self._down_since = None
            return
        self._down_since = now if self._down_since is None else self._down_since
        if self._waiting:
            hopeless = all(s.denied or s.refuses for s in self.seats)
            self._tell(now if hopeless else now - self.policy.patience)

    def _tell(self, before: float) -> None:
        """Fails those who have waited since `before` or longer. Who asks from now on has a try again."""
        last = self._last or EndpointError("unreachable", "no endpoint answers", "start the server")
        late = [w for w in self._waiting if max(w.since, self._down_since or 0.0) <= before]
        for waiter in late:
            self._waiting.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(EndpointError(last.kind, last.problem, last.mend))
        if late:
            for seat in self.seats:
                seat.refuses = False

    def _wake(self, now: float) -> None:
        """Comes back when a rest or an open breaker ends, or patience does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or self._loop is None:
            return
        times = [max(s.rests_until, s.breaker.until if s.breaker.opened else 0.0) for s in self.seats if not s.denied]
        if self._down_since is not None:
            waits = min(max(waiter.since, self._down_since) for waiter in self._waiting)
            times.append(waits + self.policy.patience)
        later = [t for t in times if t > now]
        if later:
            self._timer = self._loop.call_at(min(later) + 0.001, self._serve)

    async def _ask_all(self) -> None:
        await asyncio.gather(*(self._ask(seat) for seat in self.seats))
        if self._last is not None and all(s.is_down(self._now()) for s in self.seats):
            raise EndpointError(self._last.kind, self._last.problem, self._last.mend)

    async def _ask(self, seat: Seat[Request, Answer]) -> None:
        """Learns an endpoint's capacity, or that it is not there, before the first call."""
        try:
            health = await self._health(seat)
        except EndpointError as error:
            if error.kind == "busy":  # it is there, and will have time
                seat.rests_until = self._now() + (error.retry_after or self.policy.backoff)
                return
            self._last = error
            seat.denied = error if error.kind == "denied" else None
            seat.breaker.in_a_row = self.policy.failures - 1
            seat.breaker.failed(self._now())
            return
        seat.denied = seat.suspect = None
        seat.breaker.succeeded()
        if seat.capacity.fixed is None and health.capacity is not None:
            seat.capacity.fixed = max(1, health.capacity)

    async def _health(self, seat: Seat[Request, Answer]) -> Health:
        try:
            return await asyncio.wait_for(seat.endpoint.health(), HEALTH)
        except EndpointError as error:
            # A question that is refused says nothing of the requests that wait.
            kind = "failed" if error.kind == "rejected" else error.kind
            raise _Unwell(kind, error.problem, error.mend, retry_after=error.retry_after) from error
        except TimeoutError:
            raise _Unwell("unreachable", f"{seat.host} does not say how it is", "check the server") from None

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0
