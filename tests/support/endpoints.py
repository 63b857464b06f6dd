"""Endpoints for a pool in virtual time, as fast, as large and as faulty as they are told to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from premeditate.engine.pool import Policy, Pool
from premeditate.remote import EndpointError, Health, Kind

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
