"""Desks: where single requests of many tasks are handed in to one model. A `Batcher` gathers them into batches, for a
model in this process; a `Direct` passes each one on, to a model that does many calls at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

Asked = TypeVar("Asked", contravariant=True)
Given = TypeVar("Given", covariant=True)

_SETTLE = 64


class BatchError(RuntimeError):
    """The model did not return one answer per request."""


class Desk(Protocol[Asked, Given]):
    async def submit(self, request: Asked, group: Hashable = None) -> Given: ...
    async def close(self) -> None: ...


class Direct(Generic[Request, Answer]):
    """Passes every request on by itself; the model behind it decides how many run at a time."""

    def __init__(self, call: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]]) -> None:
        self._call = call

    async def submit(self, request: Request, group: Hashable = None) -> Answer:
        """The answer to one request. Raises what the model raises."""
        answers = await self._call([request])
        if len(answers) != 1:
            raise BatchError(f"{len(answers)} answers came back for 1 request")
        return answers[0]

    async def close(self) -> None:
        """Nothing waits here."""


class Batcher(Generic[Request, Answer]):
    """`await submit(request)` from any number of coroutines; `call` sees batches of at most `size` with equal `key`
    and group.

    One batch runs at a time, and while it runs the next ones grow, so batches are as large as the load allows and a
    lone request never waits for company. The largest waiting group goes next. A batch that raises is tried again one
    request at a time, so that only the guilty one fails. A request whose waiter was cancelled is not run.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]],
        size: int,
        key: Callable[[Request], Hashable] = lambda request: None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a batch holds at least 1 request, not {size}")
        self.calls = 0
        """Batches sent so far."""
        self.running = self.done = self.failed = 0
        """Requests in the batch that runs; answered; and failed."""
        self.size = size
        self._call, self._key = call, key
        self._waiting: dict[Hashable, list[tuple[Request, asyncio.Future[Answer]]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def submit(self, request: Request, group: Hashable = None) -> Answer:
        """The answer to one request; it shares a batch with its `group` only. Raises what the model raises for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((group, self._key(request)), []).append((request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Stops; requests still waiting are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for group in self._waiting.values():
            for _, future in group:
                future.cancel()
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        """Requests that no batch holds yet."""
        return sum(map(len, self._waiting.values()))

    async def _drain(self) -> None:
        while self._waiting:
            # Let every coroutine that is ready to ask do so before the batch is cut.
            before = -1
            for _ in range(_SETTLE):
                if before == (before := self.waiting):
                    break
                await asyncio.sleep(0)
            key = max(self._waiting, key=lambda k: len(self._waiting[k]))
            group = self._waiting.pop(key)
            batch, rest = group[: self.size], group[self.size :]
            if rest:
                self._waiting[key] = rest
            batch = [entry for entry in batch if not entry[1].done()]
            if batch:
                await self._run(batch)

    async def _run_singly(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        try:
            for entry in batch:
                if not entry[1].done():
                    await self._run([entry])
        finally:
            for _, future in batch:  # closed on the way: nobody else would tell the rest
                future.cancel()

    async def _run(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        self.calls += 1
        self.running = len(batch)
        try:
            answers = list(await self._call([request for request, _ in batch]))
            if len(answers) != len(batch):
                raise BatchError(f"{len(answers)} answers came back for {len(batch)} requests")
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            if len(batch) > 1:
                await self._run_singly(batch)
            else:
                self.failed += 1
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
            return
        finally:
            self.running = 0
        self.done += len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
