"""The pool: who gets a call, how many at a time, and what happens when it fails. In virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from premeditate.engine.breaker import Breaker
from premeditate.engine.capacity import Capacity
from premeditate.engine.pool import Policy, Pool
from premeditate.remote import EndpointError, Health, Kind
from support.virtual_time import run

Fault = Callable[[int], EndpointError | None]


def error(kind: Kind, retry_after: float | None = None) -> EndpointError:
    return EndpointError(kind, f"it is {kind}", "mend it", retry_after=retry_after)


class Worker:
    """An endpoint that carries out `lanes` calls at a time, each in `seconds`; more queue there. `fault(n)`: what its
    n-th call (from 0) meets. `says`: its capacity, told by its health."""

    def __init__(
        self, seconds: float = 1.0, lanes: int = 1, says: int | None = None, fault: Fault | None = None,
        name: str = "w", well: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self.name, self.seconds, self.says, self.well = name, seconds, says, well
        self.fault = fault or (lambda n: None)
        self.takes: Callable[[int], float] = lambda request: self.seconds
        self.calls: list[tuple[float, int]] = []
        self.done: list[int] = []
        self.cancelled: list[int] = []
        self.inside = self.most = self.asked = 0
        self._lanes = asyncio.Semaphore(lanes)

    async def send(self, request: int, timeout: float | None = None) -> int:
        n = len(self.calls)
        self.calls.append((asyncio.get_running_loop().time(), request))
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if (found := self.fault(n)) is not None:
                await asyncio.sleep(0.01)
                raise found
            async with asyncio.timeout(timeout), self._lanes:
                await asyncio.sleep(self.takes(request))
        except TimeoutError:
            raise error("timeout") from None
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        finally:
            self.inside -= 1
        self.done.append(request)
        return request * 10

    async def health(self) -> Health:
        self.asked += 1
        if not self.well():
            raise error("unreachable")
        return Health(capacity=self.says)

    async def aclose(self) -> None:
        pass


async def all_of(workers: Sequence[Worker], n: int, policy: Policy | None = None) -> tuple[list[int], float]:
    """Answers to requests 0..n-1, and the seconds that they took."""
    pool = Pool[int, int](workers, policy)
    answers = await asyncio.gather(*(pool.submit(i) for i in range(n)))
    return list(answers), asyncio.get_running_loop().time()


# -- who gets a call ----------------------------------------------------------------------------------------------


def test_every_endpoint_gets_its_share() -> None:
    async def main() -> None:
        workers = [Worker(says=1, name="w") for _ in range(4)]
        answers, seconds = await all_of(workers, 40)
        assert answers == [10 * i for i in range(40)]
        assert [len(w.done) for w in workers] == [10] * 4 and seconds == pytest.approx(10)
        assert all(w.most == 1 and w.asked == 1 for w in workers)

    run(main())


def test_a_slow_endpoint_takes_what_it_can() -> None:
    async def main() -> None:
        workers = [Worker(says=1), Worker(says=1), Worker(4.0, says=1)]
        _, seconds = await all_of(workers, 90)
        assert seconds <= 1.1 * 90 / 2.25 and len(workers[2].done) >= 8

    run(main())


def test_a_slow_endpoint_is_not_given_what_the_others_finish_sooner() -> None:
    async def main() -> None:
        workers = [Worker(says=1), Worker(says=1), Worker(20.0, says=1)]
        pool = Pool[int, int](workers)
        await asyncio.gather(*(pool.submit(i) for i in range(3)))  # now it is known who is slow
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(pool.submit(i) for i in range(12)))
        assert asyncio.get_running_loop().time() - began == pytest.approx(6)
        assert len(workers[2].done) == 1

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_request_ends(seed: int) -> None:
    """Endpoints of any speed and size that fail at random: nobody waits for ever, nothing is answered twice."""

    async def main() -> None:
        rng = random.Random(seed)
        kinds: list[Kind] = ["busy", "failed", "garbage", "unreachable", "timeout"]

        def fault(n: int) -> EndpointError | None:
            return error(rng.choice(kinds), 0.3) if rng.random() < 0.3 else None

        workers = [
            Worker(rng.choice((0.1, 1.0, 8.0)), lanes := rng.choice((1, 2, 8)), rng.choice((lanes, None)), fault)
            for _ in range(rng.randint(1, 4))
        ]
        pool = Pool[int, int](workers, Policy(attempts=6, timeouts=3))
        ends = await asyncio.gather(*(pool.submit(i) for i in range(120)), return_exceptions=True)
        answered = [i for i, end in enumerate(ends) if end == 10 * i]
        assert len(answered) + sum(isinstance(end, EndpointError) for end in ends) == 120 and len(answered) > 90
        assert sorted(request for w in workers for request in w.done) == answered
        assert all(load.in_flight == load.queued == 0 for load in pool.loads())

    run(main())


def test_what_an_endpoint_says_of_its_capacity_is_kept_to() -> None:
    async def main() -> None:
        workers = [Worker(lanes=3, says=3), Worker(lanes=1, says=1)]
        _, seconds = await all_of(workers, 40)
        assert [w.most for w in workers] == [3, 1] and seconds == pytest.approx(10)

    run(main())


@pytest.mark.parametrize("lanes", [1, 2, 5, 16])
def test_capacity_is_learnt_where_nobody_says_it(lanes: int) -> None:
    async def main() -> None:
        worker = Worker(lanes=lanes)
        _, seconds = await all_of([worker], 60 * lanes)
        assert seconds <= 60 * 1.12 + 2  # the time it takes to learn, too
        assert lanes <= worker.most <= max(2 * lanes, lanes + 2)

    run(main())


@pytest.mark.parametrize("lanes", [4, 16])
def test_a_chat_server_is_not_held_back_by_long_answers(lanes: int) -> None:
    """Answers of very unlike length: their latencies say nothing of the server's room."""
    rng = random.Random(0)
    lengths = [rng.choice((0.1, 5.0)) for _ in range(60 * lanes)]

    async def main(steady: bool) -> float:
        worker = Worker(lanes=lanes)
        worker.takes = lengths.__getitem__
        pool = Pool[int, int]([worker], steady=steady)
        await asyncio.gather(*(pool.submit(i) for i in range(len(lengths))))
        return asyncio.get_running_loop().time() / (sum(lengths) / lanes)

    assert run(main(False)) < 1.25 < run(main(True))


def test_a_chat_server_that_turns_calls_away_is_asked_for_less() -> None:
    async def main() -> None:
        worker = Worker(lanes=5)
        worker.fault = lambda n: error("busy", 0.1) if worker.inside > 5 else None
        pool = Pool[int, int]([worker], Policy(), steady=False)
        await asyncio.gather(*(pool.submit(i) for i in range(300)))
        turned_away = len(worker.calls) - 300
        assert turned_away < 60 and asyncio.get_running_loop().time() < 1.3 * 60

    run(main())


def test_a_capacity_that_is_given_is_not_asked_about() -> None:
    async def main() -> None:
        worker = Worker(lanes=8)
        await all_of([worker], 40, Policy(capacity=4))
        assert worker.most == 4

    run(main())


def test_waiting_here_does_not_count_against_the_timeout() -> None:
    """Ten times more requests than fit into the time-out: none is sent before its turn, so none runs twice."""

    async def main() -> None:
        worker = Worker(1.0, says=1)
        answers, _ = await all_of([worker], 50, Policy(timeout=5))
        assert len(answers) == 50 == len(worker.calls) and not worker.cancelled

    run(main())


# -- what happens when a call fails -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unreachable", "failed", "garbage"])
def test_a_call_that_the_endpoint_gave_up_on_is_sent_elsewhere(kind: Kind) -> None:
    async def main() -> None:
        bad, good = Worker(says=1, fault=lambda n: error(kind)), Worker(says=4)
        answers, _ = await all_of([bad, good], 20)
        assert answers == [10 * i for i in range(20)] and len(good.done) == 20
        assert len(bad.calls) <= 6  # three in a row open the breaker; then single probes

    run(main())


def test_attempts_are_counted_and_named() -> None:
    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error("failed"))
        with pytest.raises(EndpointError, match=r"it is failed \(3 attempts\); mend it"):
            await Pool[int, int]([worker], Policy(attempts=3)).submit(1)
        assert len(worker.calls) == 3

    run(main())


@pytest.mark.parametrize(("kind", "calls"), [("rejected", 1), ("denied", 2)])
def test_what_cannot_help_is_not_tried_again(kind: Kind, calls: int) -> None:
    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error(kind))
        with pytest.raises(EndpointError) as found:
            await Pool[int, int]([worker]).submit(1)
        assert found.value.kind == kind and len(worker.calls) == calls

    run(main())


def test_an_endpoint_that_denies_is_left_out_for_good() -> None:
    async def main() -> None:
        wrong, right = Worker(says=1, fault=lambda n: error("denied")), Worker(says=1)
        answers, _ = await all_of([wrong, right], 10)
        assert answers == [10 * i for i in range(10)] and len(wrong.calls) == 2

    run(main())


def test_a_request_that_alone_is_denied_leaves_the_endpoint_in() -> None:
    """As a gateway answers 403 to one prompt that it flags."""

    async def main() -> None:
        worker = Worker(says=1)
        worker.fault = lambda n: error("denied") if worker.calls[-1][1] == 3 else None
        pool = Pool[int, int]([worker])
        ends = await asyncio.gather(*(pool.submit(i) for i in range(8)), return_exceptions=True)
        assert [i for i, end in enumerate(ends) if isinstance(end, EndpointError)] == [3]

    run(main())


def test_retry_after_is_kept_and_costs_no_attempt() -> None:
    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error("busy", retry_after=7.0) if n < 6 else None)
        answers, seconds = await all_of([worker], 1, Policy(attempts=1))
        gaps = [b - a for (a, _), (b, _) in zip(worker.calls, worker.calls[1:], strict=False)]
        assert answers == [0] and len(gaps) == 6 and min(gaps) >= 7 and seconds < 60

    run(main())


def test_an_endpoint_that_is_always_busy_is_given_up_after_patience() -> None:
    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error("busy"))
        with pytest.raises(EndpointError, match="busy"):
            await Pool[int, int]([worker], Policy(patience=30)).submit(1)
        assert 30 <= asyncio.get_running_loop().time() <= 40

    run(main())


def test_a_timeout_is_followed_by_one_more_call_only() -> None:
    async def main() -> None:
        worker = Worker(9.0, says=1)
        with pytest.raises(EndpointError, match="timeout"):
            await Pool[int, int]([worker], Policy(timeout=5, attempts=10)).submit(1)
        assert len(worker.calls) == 2 and len(worker.cancelled) == 0 and worker.inside == 0

    run(main())


def test_the_back_off_grows_and_is_random() -> None:
    async def gaps() -> list[float]:
        worker = Worker(says=1, fault=lambda n: error("failed") if n < 5 else None)
        await Pool[int, int]([worker], Policy(attempts=9, backoff=1, failures=99)).submit(1)
        return [b - a for (a, _), (b, _) in zip(worker.calls, worker.calls[1:], strict=False)]

    several = [run(gaps()) for _ in range(20)]
    for k in range(5):
        waits = [g[k] for g in several]
        assert max(waits) <= 2**k + 0.02 and max(waits) > 0.4 * 2**k and len(set(waits)) > 10


# -- endpoints that are down --------------------------------------------------------------------------------------


def test_an_endpoint_that_dies_half_way_loses_nothing_and_comes_back() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        down = lambda: 10 < loop.time() < 40  # noqa: E731
        one = Worker(says=1, fault=lambda n: error("unreachable") if down() else None, well=lambda: not down())
        two = Worker(says=1)
        answers, seconds = await all_of([one, two], 100)
        assert answers == [10 * i for i in range(100)] and sorted(one.done + two.done) == list(range(100))
        assert seconds < 75 and max(t for t, _ in one.calls) > 45  # it was asked again, and took part
        lost = [t for t, _ in one.calls if 10 < t < 40]
        assert len(lost) <= 3  # health is asked for before a call is risked

    run(main())


def test_nobody_there_is_said_at_once() -> None:
    async def main() -> None:
        workers = [Worker(well=lambda: False), Worker(well=lambda: False)]
        with pytest.raises(EndpointError, match="unreachable"):
            await Pool[int, int](workers).submit(1)
        assert asyncio.get_running_loop().time() < 1 and not workers[0].calls

    run(main())


def test_when_all_are_down_for_long_those_who_wait_are_told() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        worker = Worker(says=2, fault=lambda n: error("failed") if loop.time() > 5 else None,
                        well=lambda: loop.time() <= 5)  # fmt: skip
        pool = Pool[int, int]([worker], Policy(patience=60))
        ends = await asyncio.gather(*(pool.submit(i) for i in range(40)), return_exceptions=True)
        failed = [e for e in ends if isinstance(e, EndpointError)]
        assert len(failed) == 40 - len(worker.done) > 20 and 60 < loop.time() < 90

    run(main())


def test_an_outage_shorter_than_patience_costs_no_request() -> None:
    """Asking a dead endpoint how it is uses up nobody's attempts."""

    async def main() -> None:
        up = lambda: not 5 < asyncio.get_running_loop().time() < 65  # noqa: E731
        worker = Worker(says=2, fault=lambda n: None if up() else error("unreachable"), well=up)
        answers, _ = await all_of([worker], 40)
        assert answers == [10 * i for i in range(40)] == sorted(10 * request for request in worker.done)

    run(main())


def test_those_who_wait_for_an_endpoint_that_takes_nothing_are_told_together() -> None:
    async def main() -> None:
        worker = Worker(says=2, fault=lambda n: error("busy") if n < 900 else None)
        pool = Pool[int, int]([worker], Policy(patience=30))
        ends = await asyncio.gather(*(pool.submit(i) for i in range(50)), return_exceptions=True)
        assert all(isinstance(end, EndpointError) and end.kind == "busy" for end in ends)
        assert 30 <= asyncio.get_running_loop().time() <= 40  # not one after the other
        worker.calls *= 900
        assert await pool.submit(3) == 30

    run(main())


def test_a_full_endpoint_that_is_at_work_for_us_is_not_given_up() -> None:
    """It was said to take two and takes one, for longer than patience: what waits goes on waiting."""

    async def main() -> None:
        worker = Worker(50.0, says=2)
        worker.fault = lambda n: error("busy") if worker.inside > 1 else None
        pool = Pool[int, int]([worker], Policy(patience=60, backoff=2))
        ends = await asyncio.gather(*(pool.submit(i) for i in range(4)), return_exceptions=True)
        assert ends == [0, 10, 20, 30]

    run(main())


def test_an_endpoint_that_refuses_the_question_is_not_the_requests_fault() -> None:
    class Odd(Worker):
        async def health(self) -> Health:
            self.asked += 1
            if self.asked == 2:
                raise error("rejected")
            return Health(1)

    async def main() -> None:
        worker = Odd(fault=lambda n: error("failed") if n < 3 else None)
        assert await Pool[int, int]([worker]).submit(1) == 10 and worker.asked == 3

    run(main())


def test_who_asks_during_a_long_outage_has_as_much_patience_as_the_first() -> None:
    """A run of many tasks must not be failed in a moment because an outage outlasted the first request's patience."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        down = lambda: 5 < loop.time() < 115  # noqa: E731
        worker = Worker(says=2, fault=lambda n: error("unreachable") if down() else None, well=lambda: not down())
        pool = Pool[int, int]([worker], Policy(patience=100))
        early = [asyncio.create_task(pool.submit(i)) for i in range(30)]
        await asyncio.sleep(108)
        late = [asyncio.create_task(pool.submit(100 + i)) for i in range(5)]
        ends = await asyncio.gather(*early, return_exceptions=True)
        assert sum(isinstance(end, EndpointError) for end in ends) > 15
        assert await asyncio.gather(*late) == [10 * (100 + i) for i in range(5)]

    run(main())


# -- giving up, and hedging ---------------------------------------------------------------------------------------


def test_cancelling_takes_a_call_off_the_queue_or_breaks_it_off() -> None:
    async def main() -> None:
        worker = Worker(10.0, says=1)
        pool = Pool[int, int]([worker])
        jobs = [asyncio.create_task(pool.submit(i)) for i in range(3)]
        await asyncio.sleep(1)
        jobs[0].cancel()
        jobs[1].cancel()
        assert await jobs[2] == 20
        assert worker.cancelled == [0] and [r for _, r in worker.calls] == [0, 2]
        assert pool.loads()[0].in_flight == 0 and pool.loads()[0].queued == 0

    run(main())


def test_hedging_is_off_and_sends_a_late_call_twice_where_it_is_on() -> None:
    async def main(hedge: float | None) -> tuple[float, int, int]:
        slow = [False]
        one, two = Worker(1.0, says=1), Worker(1.0, says=1)
        pool = Pool[int, int]([one, two], Policy(hedge=hedge))
        await asyncio.gather(*(pool.submit(i) for i in range(4)))
        slow[0], one.seconds, two.seconds = True, 50.0, 50.0
        began = asyncio.get_running_loop().time()
        job = asyncio.create_task(pool.submit(9))
        await asyncio.sleep(0.5)
        (two if one.inside else one).seconds = 1.0
        assert await job == 90
        return asyncio.get_running_loop().time() - began, len(one.cancelled) + len(two.cancelled), one.inside

    assert run(main(None))[:2] == (pytest.approx(50), 0)
    took, cancelled, inside = run(main(2.0))
    assert took == pytest.approx(3.0, abs=0.3) and cancelled == 1 and inside == 0


def test_the_same_pool_serves_one_loop_after_the_other() -> None:
    worker = Worker(says=1)
    pool = Pool[int, int]([worker])

    async def once() -> int:
        worker._lanes = asyncio.Semaphore(1)
        return await pool.submit(4)

    assert [run(once()), run(once())] == [40, 40] and worker.asked == 2


def test_closing_a_pool_that_others_use_leaves_them_alone() -> None:
    """Two runs may share one pool; the first to end closes it."""

    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error("failed") if n == 1 else None)
        pool = Pool[int, int]([worker], Policy(backoff=50))
        jobs = [asyncio.create_task(pool.submit(i)) for i in range(3)]
        await asyncio.sleep(0.5)
        await pool.aclose()  # one in flight, two waiting
        await asyncio.sleep(3)
        assert pool.loads()[0].in_flight == 0
        await pool.aclose()  # one is waiting to be sent again
        assert await asyncio.gather(*jobs, pool.submit(3)) == [0, 10, 20, 30]
        assert worker.most == 1 and pool.loads()[0].in_flight == 0

    run(main())


def test_a_pool_that_was_closed_asks_again() -> None:
    async def main() -> None:
        worker = Worker(says=1, fault=lambda n: error("denied") if n < 2 else None)
        pool = Pool[int, int]([worker])
        with pytest.raises(EndpointError):
            await pool.submit(1)
        await pool.aclose()
        assert await pool.submit(1) == 10 and worker.asked == 2  # say, the model was loaded meanwhile

    run(main())


def test_loads_show_what_is_going_on() -> None:
    async def main() -> None:
        one, two = Worker(says=1), Worker(says=1, fault=lambda n: error("failed"))
        pool = Pool[int, int]([one, two], Policy(failures=1, cool=1000))
        jobs = [asyncio.create_task(pool.submit(i)) for i in range(5)]
        await asyncio.sleep(2.5)
        first, second = pool.loads("editor")
        assert (first.role, first.in_flight, first.capacity, first.state) == ("editor", 1, 1, "closed")
        assert first.done == 2 and first.queued == 2 and (second.failed, second.state) == (1, "open")
        await asyncio.gather(*jobs)

    run(main())


# -- parts --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("options", [{"attempts": 0}, {"timeout": 0}, {"capacity": -1}, {"hedge": 0}, {"backoff": -1}])
def test_a_policy_says_what_is_allowed(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Policy(**options)  # type: ignore[arg-type]


def test_a_pool_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Pool[int, int]([])
