"""The pool where endpoints are down, or take nothing: what waits, how long, and what it is told. In virtual time."""

from __future__ import annotations

import asyncio

import pytest

from premeditate.engine.pool import Policy, Pool
from premeditate.remote import EndpointError, Health
from support.endpoints import Worker, all_of, error
from support.virtual_time import run


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
