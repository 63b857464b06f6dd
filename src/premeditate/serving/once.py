"""Work that is asked for twice and done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


class OtherRequest(ValueError):
    """The key was used for another request."""


@dataclass(frozen=True)
class _Entry:
    content: str
    work: asyncio.Task[bytes]
    born: float


class Answers:
    """Answers by idempotency key. Work under way is shared by all who ask for it, and goes on when one of them leaves:
    the client will come again. Work that failed is forgotten, and done anew. Answers are kept for `seconds`, and the
    oldest go beyond `most` of them or `bytes` in all."""

    def __init__(self, most: int = 1024, bytes: int = 256 << 20, seconds: float = 3600.0) -> None:
        self.most, self.bytes, self.seconds = most, bytes, seconds
        self._entries: dict[str, _Entry] = {}

    async def get(self, key: str, content: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer to the request with this key. `content`: tells requests apart. Raises `OtherRequest`, and what the
        work raises."""
        self._forget()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(content, asyncio.ensure_future(_run(work)), time.monotonic())
            entry.work.add_done_callback(lambda task: self._failed(key, task))
        elif entry.content != content:
            raise OtherRequest
        return await asyncio.shield(entry.work)

    def close(self) -> None:
        """Ends what is under way."""
        for entry in self._entries.values():
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
