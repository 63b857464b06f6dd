"""A reward panel behind a real server on loopback, and one that breaks as it is told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from premeditate.rewards.base import Reward, Sample
from premeditate.rewards.panel import Entry, Panel
from premeditate.rewards.remote import RemoteReward
from premeditate.serving.rewards import Limits, reward_app
from premeditate.trace import Answer, ChecklistItem, Verdict
from support.loopback import Loopback
from support.rewards import WAIT, function, noise

ITEM = ChecklistItem(question="is it red?", dimension="follow")


class Server(Loopback):
    """A panel of these rewards, behind HTTP."""

    def __init__(self, *entries: Entry | Reward, key: str | None = None, **limits: Any) -> None:
        super().__init__()
        self.panel = Panel([e if isinstance(e, Entry) else Entry(e) for e in entries])
        self.app = reward_app(self.panel, key=key, limits=Limits(**limits))
        self._server.config.app = self.app

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.panel.close()

    def client(self, options: str = "", **more: Any) -> RemoteReward:
        return RemoteReward.load(self.origin + options, **{"wait": 0, **more})

    def post(self, body: Any = None, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        with httpx.Client(trust_env=False) as client:
            return client.post(f"{self.origin}/score", json=body, headers=headers, timeout=WAIT, **more)

    def health(self, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.origin}/health", headers=headers, trust_env=False)


class Judge:
    """A reward that answers checklists and says whom it saw."""

    name = "judge"
    dimensions = ("follow", "keep")

    def __init__(self) -> None:
        self.seen: list[Sample] = []

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.seen += samples
        found = []
        for s in samples:
            match s.task.meta.get("k", 0) % 3:
                case 0:
                    answer = Answer(item=ITEM, status="scored", yes=True, p_yes=0.75, evidence="it is red")
                    verdict = Verdict(status="scored", answers=(answer,), scores={"follow": 0.75, "keep": 1.0})
                case 1:
                    verdict = Verdict(status="refused", reason="I would rather not", scores={"keep": 0.5})
                case _:
                    verdict = Verdict(status="unparsable", reason="mumbled")
            found.append(verdict.model_copy(update={"verifier": "tiny", "seconds": 0.25, "tokens": 7}))
        return found


def b64(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


RED = Image.new("RGB", (8, 6), "red")
NOISE = noise(24, 16)


def ask(*edits: Any, **more: Any) -> dict[str, Any]:
    return {
        "images": [b64(RED)],
        "samples": [{"source": 0, "edit": edit, "instruction": "make it blue", **more} for edit in edits or (0,)],
    }


def counted() -> tuple[Reward, list[int]]:
    """A reward of each sample's k, and how many samples each call had."""
    calls: list[int] = []

    def count(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        return [float(s.task.meta.get("k", 0)) for s in ss]

    return function(count, name="count", concurrent=True), calls


def counting() -> Server:
    """A server that scores k."""
    return Server(counted()[0])


def score(reward: Reward, given: Sequence[Sample]) -> list[Verdict]:
    async def both() -> list[Verdict]:
        try:
            return list(await reward.score(given))
        finally:
            await reward.aclose()  # type: ignore[attr-defined]

    return asyncio.run(both())


class Faulty(Loopback):
    """A server that breaks first, as it is told, and then answers."""

    def __init__(self, *faults: str, results: Any = None, dimensions: tuple[str, ...] = ("score",)) -> None:
        super().__init__()
        self.faults, self.keys, self.returns = list(faults), list[str](), list[float]()
        self.results, self.dimensions = results, dimensions
        self.app.get("/health")(lambda: {
            "status": "ok", "protocol": 1, "name": "faulty", "dimensions": ["score"], "items": 8, "bytes": 10**6,
        })  # fmt: skip
        self.app.post("/score")(self._score)

    async def _score(self, request: Request) -> Response:
        body = await request.json()
        self.keys.append(request.headers["idempotency-key"])
        self.returns.append(float(request.headers.get("premeditate-return", "nan")))
        match self.faults.pop(0) if self.faults else None:
            case "503":
                return JSONResponse({"detail": "later"}, 503, headers={"Retry-After": "0"})
            case "much later":
                return JSONResponse({"detail": "later"}, 503, headers={"Retry-After": "300"})
            case "hang":
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)
            case "500":
                return JSONResponse({"detail": "CUDA out of memory"}, 500)
            case "422":
                return JSONResponse({"detail": "no"}, 422)
            case "html":
                return StreamingResponse(iter(["<html>"]))
            case "reset":

                async def part() -> Any:
                    yield b"{"
                    raise ConnectionResetError

                return StreamingResponse(part(), headers={"Content-Length": "1000"})
        good = [{"status": "scored", "scores": {"score": 0.5}} for _ in body["samples"]]
        text = json.dumps({"dimensions": self.dimensions, "results": good if self.results is None else self.results})
        return StreamingResponse(iter([text]), media_type="application/json")
