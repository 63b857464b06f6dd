"""The pool: who gets a call, how many at a time, and what happens when it fails. In virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from premeditate.engine.pool import Policy, Pool
from premeditate.remote import EndpointError, Kind
from support.endpoints import Worker, all_of, error
from support.virtual_time import run

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


def test_closing_a_pool_that_others_use_leaves_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may share one pool; the first to end closes it."""
    monkeypatch.setattr(random, "random", lambda: 0.5)  # what is sent again waits for 25 s, and not by chance for 2

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


# -- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"attempts": 0}, {"timeout": 0}, {"capacity": -1}, {"hedge": 0}, {"backoff": -1}])
def test_a_policy_says_what_is_allowed(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Policy(**options)  # type: ignore[arg-type]


def test_a_pool_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Pool[int, int]([])
