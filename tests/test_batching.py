"""The batcher: every answer finds its request, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from premeditate.engine.batching import Batcher


def test_a_batcher_keeps_every_answer_with_its_request() -> None:
    rng = random.Random(0)
    sizes: list[int] = []

    async def call(requests: Sequence[int]) -> list[int]:
        sizes.append(len(requests))
        assert len({r % 3 for r in requests}) == 1
        await asyncio.sleep(0.001)
        return [r * 10 for r in requests]

    async def client(batcher: Batcher[int, int], number: int) -> bool:
        await asyncio.sleep(rng.random() * 0.02)
        return await batcher.submit(number) == number * 10

    async def main() -> None:
        batcher = Batcher(call, 8, key=lambda r: r % 3)
        assert all(await asyncio.gather(*(client(batcher, i) for i in range(200))))
        assert max(sizes) <= 8 and sum(sizes) == 200
        await batcher.close()

    asyncio.run(main())


def test_in_a_failing_batch_only_the_guilty_fails_and_cancelled_requests_are_not_run() -> None:
    seen: list[int] = []

    async def call(requests: Sequence[int]) -> list[int]:
        await asyncio.sleep(0.01)
        if 7 in requests:
            raise ValueError("seven")
        if 8 in requests:
            return []
        seen.extend(requests)
        return list(requests)

    async def main() -> None:
        batcher = Batcher(call, 16)
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(10)), return_exceptions=True)
        assert [a for a in answers if isinstance(a, int)] == [0, 1, 2, 3, 4, 5, 6, 9]
        assert isinstance(answers[7], ValueError) and "0 answers came back for 1" in str(answers[8])
        seen.clear()
        jobs = [asyncio.create_task(batcher.submit(i)) for i in (20, 21)]
        running = asyncio.create_task(batcher.submit(22))
        await asyncio.sleep(0)
        jobs[0].cancel()
        await asyncio.gather(*jobs, running, return_exceptions=True)
        assert seen == [21, 22]
        await batcher.close()

    asyncio.run(main())


def test_a_batcher_that_is_closed_while_it_tries_one_by_one_leaves_nobody_waiting() -> None:
    ran: list[int] = []

    async def call(requests: Sequence[int]) -> list[int]:
        if len(requests) > 1:
            raise ValueError("too many")
        ran.extend(requests)
        await asyncio.sleep(0.02 if ran == [0] else 60)
        return list(requests)

    async def main() -> None:
        batcher = Batcher(call, 16)
        jobs = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0.01)
        jobs[1].cancel()
        await asyncio.sleep(0.05)
        await batcher.close()
        _, waiting = await asyncio.wait(jobs, timeout=1)
        assert not waiting and ran == [0, 2] and jobs[0].result() == 0 and jobs[3].cancelled()

    asyncio.run(main())
