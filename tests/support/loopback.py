"""A server within this process."""

from __future__ import annotations

import threading
import time
from typing import Self

import uvicorn
from fastapi import FastAPI


class Loopback:
    """An app served on a free port of 127.0.0.1 from a thread of its own, within `with`."""

    def __init__(self) -> None:
        self.app = FastAPI()
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < until and self._thread.is_alive()
            time.sleep(0.005)
        self.host = f"127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        self.origin = f"http://{self.host}"
        return self

    @property
    def url(self) -> str:
        """Where the OpenAI APIs are."""
        return f"{self.origin}/v1"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
