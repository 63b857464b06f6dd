"""A thread with an event loop of its own, for work that must not hold up anybody else, nor the end of the program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class Lane:
    """Runs coroutines, any number side by side, in one daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"premeditate-{name}", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Starts `work`. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def answers(self, seconds: float) -> bool:
        """Whether the thread still takes turns: false where some code in it does not come back. Asked from another."""
        pong: Future[None] = Future()
        with suppress(RuntimeError):  # the loop was closed
            self.loop.call_soon_threadsafe(_settle, pong)
        done, _ = await asyncio.wait({asyncio.wrap_future(pong)}, timeout=seconds)
        return bool(done)

    def stop(self, seconds: float = 1.0) -> None:
        """Cancels what runs and ends the thread; one that does not answer within `seconds` is left behind."""
        with suppress(RuntimeError):  # it ended already
            self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            rest = asyncio.all_tasks(self.loop)
            for task in rest:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


def _settle(future: Future[None]) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(None)
