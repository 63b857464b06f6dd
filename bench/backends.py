"""Servers on loopback that stand in for models: OpenAI-shaped editors and critics with a fixed latency, a fixed number
of lanes, faults on demand, and honest counters. All of them live in one process of their own.

They are as unhelpful as real ones can be: what waits for a lane is carried out even if nobody waits for it any more
(unless `attentive`), and only an Idempotency-Key keeps an edit from being made twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

SIDE = 64


@dataclass(frozen=True)
class Backend:
    """`seconds` per call and `lanes` calls at a time. `says`: /health tells the capacity. `keys`: honours idempotency
    keys. `attentive`: notices that nobody waits any more. `faults`: kind -> probability, of "429", "500", "hang",
    "reset", "garbage", after the first `calm` calls. `dies_after`: closes for good after so many calls."""

    name: str
    seconds: float = 0.0
    lanes: int = 1
    says: bool = True
    keys: bool = True
    attentive: bool = False
    faults: dict[str, float] = field(default_factory=dict)
    calm: int = 0
    dies_after: int = 0
    seed: int = 0


class Server:
    """One backend. What it answers depends on the request alone."""

    def __init__(self, spec: Backend) -> None:
        self.spec, self.rng = spec, random.Random(spec.seed)
        self.lanes = asyncio.Semaphore(spec.lanes)
        self.calls = self.executed = self.busy_now = self.waiting = self.most_waiting = 0
        self.busy = 0.0
        self.first = self.last = 0.0
        self.kept: dict[str, asyncio.Future[bytes]] = {}
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> int:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=1 << 24)
        return int(self.server.sockets[0].getsockname()[1])

    def stats(self) -> dict[str, Any]:
        return {"name": self.spec.name, "calls": self.calls, "executed": self.executed, "busy": self.busy,
                "first": self.first, "last": self.last, "most_waiting": self.most_waiting}  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                if method == "GET":
                    self.write(writer, 200, self.tell(path))
                elif not await self.post(path, headers, body, reader, writer):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def tell(self, path: str) -> bytes:
        if path == "/stats":
            return json.dumps(self.stats()).encode()
        if path.endswith("/models"):
            return json.dumps({"object": "list", "data": [{"id": "stand-in", "object": "model"}]}).encode()
        told = {"capacity": self.spec.lanes, "idempotency": self.spec.keys, "model": "stand-in"}
        return json.dumps(told if self.spec.says else {"status": "ok"}).encode()

    @staticmethod
    def write(writer: asyncio.StreamWriter, status: int, body: bytes, extra: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        writer.write(head.encode() + body)

    async def post(self, path: str, headers: dict[str, str], body: bytes, reader: asyncio.StreamReader,
                   writer: asyncio.StreamWriter) -> bool:  # fmt: skip
        """False: the connection is over."""
        if not path.endswith(("/images/edits", "/chat/completions")):
            self.write(writer, 404, b'{"error": {"message": "no such route"}}')
            return True
        self.calls += 1
        self.first = self.first or time.time()
        if self.spec.dies_after and self.calls > self.spec.dies_after:
            self.die()
            return False
        roll, fault = self.rng.random(), ""
        for kind, share in self.spec.faults.items() if self.calls > self.spec.calm else ():
            if 0 <= roll < share:
                fault = kind
            roll -= share
        if fault == "429":
            self.write(writer, 429, b'{"error": {"message": "too many"}}', "retry-after: 0.05\r\n")
            return True
        if fault == "500":
            self.write(writer, 500, b'{"error": {"message": "a worker died"}}')
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "garbage":
            self.write(writer, 200, b"<html><body>Bad gateway</body></html>")
            return True
        if fault == "hang":
            await reader.read(1)  # until the client has had enough
            return False
        key = headers.get("idempotency-key", "")
        work = self.kept.get(key) if key and self.spec.keys else None
        if work is None:
            work = asyncio.ensure_future(self.work(path, body))
            if key and self.spec.keys:
                self.kept[key] = work
        gone = asyncio.ensure_future(reader.read(1)) if self.spec.attentive else None
        if gone is None:
            answer = await asyncio.shield(work)
        else:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                return False
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            answer = work.result()
        self.write(writer, 200, answer)
        return True

    async def work(self, path: str, body: bytes) -> bytes:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            async with self.lanes:
                began = time.perf_counter()
                if self.spec.seconds:
                    await asyncio.sleep(self.spec.seconds)
                self.busy += time.perf_counter() - began
                self.executed += 1
                self.last = time.time()
        finally:
            self.waiting -= 1
        return edited(body) if path.endswith("/images/edits") else chatted(body)

    def die(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()


def edited(body: bytes) -> bytes:
    """A picture of one colour, which follows from the prompt and the seed in the form."""
    fields = [part.partition(b"\r\n\r\n") for part in body.split(b"\r\n--")]
    asked = [value for head, _, value in fields if b'name="prompt"' in head or b'name="seed"' in head]
    colour = tuple(hashlib.sha256(b"/".join(asked)).digest()[:3])
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(out, "PNG", compress_level=1)
    return json.dumps({"created": 0, "data": [{"b64_json": base64.b64encode(out.getvalue()).decode()}]}).encode()


def chatted(body: bytes) -> bytes:
    """A plan, a checklist, an answer or a critique, as the prompt's words ask; critiques differ by request."""
    content = json.loads(body)["messages"][-1]["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    mark = hashlib.sha256(body).hexdigest()[:8]
    if "Last prompt:" in text:
        said: Any = {"problem": f"lacks {mark}", "semantic": 5, "quality": 6, "satisfied": False, "base": "original",
                     "steps": [f"paint it {mark}"]}  # fmt: skip
    elif '"items"' in text:
        said = {"items": [{"question": f"Is it {mark}?", "dimension": "follow"}]}
    elif '"steps"' in text:
        said = {"explanation": "why", "steps": [f"make it {mark}"]}
    else:
        said = "no"
    words = said if isinstance(said, str) else json.dumps(said)
    return json.dumps({
        "id": "x", "object": "chat.completion", "created": 0, "model": "stand-in",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }).encode()  # fmt: skip


def _host(specs: list[Backend], told: Any) -> None:
    async def main() -> None:
        servers = [Server(spec) for spec in specs]
        ports = [await server.start() for server in servers]
        told.send(ports)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, told.recv) == "stats":
            told.send([server.stats() for server in servers])

    asyncio.run(main())


class Backends:
    """Running backends: their addresses, and what they have done so far."""

    def __init__(self, specs: list[Backend], pipe: Any) -> None:
        self._pipe = pipe
        self.urls = [f"http://127.0.0.1:{port}" for port in pipe.recv()]

    def stats(self) -> list[dict[str, Any]]:
        self._pipe.send("stats")
        return list(self._pipe.recv())


@contextmanager
def running(*specs: Backend) -> Iterator[Backends]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_host, args=(list(specs), theirs), daemon=True)
    process.start()
    try:
        yield Backends(list(specs), mine)
    finally:
        process.kill()
        process.join()
