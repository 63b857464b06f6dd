"""Work that is asked for twice and done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


class OtherRequest(ValueError):
    """The key was used for another request."""


@dataclass
class _Entry:
    """`waiting`: who waits for the answer. `end`: ends work that nobody comes back for."""

    content: str
    work: asyncio.Task[bytes]
    born: float
    waiting: int = 0
    end: asyncio.TimerHandle | None = None


class Answers:
    """Answers by idempotency key. Work under way is shared by all who ask for it. When the last of them leaves, it goes
    on for as long as that one may take to come again, and is then given up: it would hold up work that somebody waits
    for. Work that failed or was given up is forgotten, and done anew. Answers are kept for `seconds`, and the oldest go
    beyond `most` of them or `bytes` in all."""

    def __init__(self, most: int = 1024, bytes: int = 256 << 20, seconds: float = 3600.0) -> None:
        self.most, self.bytes, self.seconds = most, bytes, seconds
        self._entries: dict[str, _Entry] = {}

    async def get(self, key: str, content: str, work: Callable[[], Awaitable[bytes]], back: float) -> bytes:
        """The answer to the request with this key. `content`: tells requests apart. `back`: seconds that the work goes
        on when this call, the last one that waits, is cancelled. Raises `OtherRequest`, and what the work raises."""
        self._forget()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(content, asyncio.ensure_future(_run(work)), time.monotonic())
            entry.work.add_done_callback(lambda task: self._failed(key, task))
        elif entry.content != content:
            raise OtherRequest
        entry.waiting += 1
        if entry.end is not None:
            entry.end.cancel()
        try:
            return await asyncio.shield(entry.work)
        finally:
            entry.waiting -= 1
            if not entry.waiting and not entry.work.done():
                entry.end = asyncio.get_running_loop().call_later(back, self._give_up, key, entry)

    def close(self) -> None:
        """Ends what is under way."""
        for entry in self._entries.values():
            entry.work.cancel()
            if entry.end is not None:
                entry.end.cancel()

    def _give_up(self, key: str, entry: _Entry) -> None:
        if not entry.work.done():
            del self._entries[key]  # who comes now has it done anew
            entry.work.cancel()

    def _failed(self, key: str, task: asyncio.Task[bytes]) -> None:
        if _lost(task) and key in self._entries and self._entries[key].work is task:
            del self._entries[key]

    def _forget(self) -> None:
        done = {k: e for k, e in self._entries.items() if e.work.done() and not _lost(e.work)}
        held, oldest = sum(len(entry.work.result()) for entry in done.values()), time.monotonic() - self.seconds
        for key, entry in done.items():  # in the order in which they came
            if len(self._entries) < self.most and held <= self.bytes and entry.born >= oldest:
                break
            held -= len(entry.work.result())
            del self._entries[key]


def _lost(task: asyncio.Task[bytes]) -> bool:
    return task.cancelled() or task.exception() is not None


async def _run(work: Callable[[], Awaitable[bytes]]) -> bytes:
    return await work()
