"""A reward panel behind HTTP: the server of `premeditate.rewards.remote`.

    app = reward_app(panel, key="...")
    serve(app, "0.0.0.0", 8100, key="...")

A sample that cannot be judged (a picture that is none or too large, an instruction that is refused) gets a verdict with
its status and reason, and the others of its request are scored. A request that cannot be read is answered 4xx.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import ValidationError

from premeditate import images
from premeditate.errors import ImageError, InstructionError, PremeditateError, check_instruction, one_line
from premeditate.rewards.base import RewardError, Sample, worst
from premeditate.rewards.panel import Panel
from premeditate.rewards.wire import GRACE, KEY, PROTOCOL, RETURN, About, Ask, AskedSample, Told
from premeditate.serving import listening
from premeditate.serving.door import Door, bounded, check_exposure
from premeditate.serving.once import Answers, OtherRequest
from premeditate.trace import Task, Verdict

SECONDS = 600.0
"""For the scoring of a request, at least."""
SCORED_LATER = 1
"""Seconds after which a client that is told to come back shall."""


@dataclass(frozen=True)
class Limits:
    """Of one request: `items` samples, `bytes` of body, `pixels` of all its pictures together, `seconds` for scoring
    (None: what the timeouts of the panel's rewards allow, with the turns of all requests that are worked on; `SECONDS`
    at least), `arrival` seconds for the body. `image`: of one picture. Of the server: `capacity` requests that it works
    on at a time; `queue` more may wait, the rest is told to come back."""

    items: int = 64
    bytes: int = 128 << 20
    pixels: int = 256_000_000
    seconds: float | None = None
    arrival: float = 60.0
    image: images.Limits = field(default_factory=lambda: images.Limits(bytes=32_000_000, pixels=36_000_000))
    capacity: int = 4
    queue: int = 16


def reward_app(panel: Panel, *, key: str | None = None, limits: Limits | None = None, name: str = "") -> FastAPI:
    """The application: POST /score and GET /health (`premeditate.rewards.wire`). The panel stays the caller's to close.

    `key`: what the Authorization header must bear; None: only programs on this machine are served. `name`: what clients
    put into records; default: the reward's, "panel" for several."""
    service = _Service(panel, Door(key), limits or Limits(), name)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.answers.close()

    # No pages of documentation: they would fetch their scripts from elsewhere.
    app = FastAPI(title="Premeditate rewards", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.get("/health")(service.health)
    app.post("/score")(service.score)
    return app


def serve(
    app: FastAPI, host: str = "127.0.0.1", port: int = 8100, *, key: str | None = None,
    sockets: Sequence[socket.socket] | None = None, ready: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serves until interrupted. `sockets`: of `premeditate.serving.listening.reserve`, where the port was taken before.
    `ready`: called once connections are taken. Raises `premeditate.serving.door.Exposed` where others could reach it
    without a key, and `premeditate.serving.listening.NotListening`."""
    check_exposure(host, key, KEY)
    listening.serve(app, host, port, listening.reserve(host, port) if sockets is None else sockets, ready)


@dataclass(frozen=True)
class _Sent:
    """A request as it came: what is asked, and its files."""

    ask: Ask
    files: tuple[bytes, ...] = ()

    @property
    def content(self) -> str:
        """Tells requests apart. What is sent again has to come as it came before: the same pictures as base64 and as
        files of a form are two requests."""
        digest = hashlib.sha256(self.ask.model_dump_json().encode())
        for data in self.files:
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()


class _Service:
    def __init__(self, panel: Panel, door: Door, limits: Limits, name: str) -> None:
        self.panel, self.door, self.limits = panel, door, limits
        alone = panel.rewards[0] if len(panel.rewards) == 1 else ""
        self.dimensions = panel.dimensions[alone] if alone else panel.names
        self.name = name or alone or "panel"
        self.seconds = limits.seconds or max(SECONDS, panel.patience(limits.items, limits.capacity))
        self.answers = Answers()
        self._inside, self._turns = 0, asyncio.Semaphore(limits.capacity)

    async def health(self, request: Request) -> Response:
        if not self.door.knows(request):
            return JSONResponse({"status": "ok"})
        about = About(
            protocol=PROTOCOL, name=self.name, dimensions=self.dimensions, rewards=self.panel.dimensions,
            groupwise=self.panel.groupwise, items=self.limits.items, bytes=self.limits.bytes,
            capacity=self.limits.capacity, in_flight=self._inside,
        )  # fmt: skip
        return JSONResponse({"status": "ok", **about.model_dump(mode="json")})

    async def score(self, request: Request) -> Response:
        self.door.check(request)
        sent = await self._read(request)
        if len(sent.ask.samples) > self.limits.items:
            raise HTTPException(413, f"{len(sent.ask.samples)} samples, the limit is {self.limits.items} in a request")
        key = request.headers.get("idempotency-key", "")
        if len(key) > 200:
            raise HTTPException(422, "the Idempotency-Key is longer than 200 characters")
        try:
            if key:
                work = self.answers.get(key, sent.content, lambda: self._answer(sent), _back(request))
            else:
                work = self._answer(sent)
            body = await _unless_gone(request, work)
        except OtherRequest:
            raise HTTPException(422, "this Idempotency-Key was used for another request; choose a new one") from None
        return Response(body, media_type="application/json")

    # -- in ------------------------------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> _Sent:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = bounded(request, self.limits.bytes, self.limits.arrival)
        if kind == "application/json":
            return _Sent(await asyncio.to_thread(_parse, await body.body()))
        if kind == "multipart/form-data":
            return await self._read_form(body)
        raise HTTPException(415, "send application/json, or multipart/form-data with a field `request` and files")

    async def _read_form(self, request: Request) -> _Sent:
        form = await request.form(max_files=2 * self.limits.items, max_fields=8, max_part_size=self.limits.bytes)
        try:
            texts = [value for name, value in form.multi_items() if name == "request" and isinstance(value, str)]
            files = [value for _, value in form.multi_items() if not isinstance(value, str)]
            if len(texts) != 1:
                raise HTTPException(422, "a form has one field `request`: {samples: [...]} as JSON")
            ask = await asyncio.to_thread(_parse, texts[0].encode())
            if ask.images:
                raise HTTPException(422, "a form has its pictures as files, not in `images`")
            return _Sent(ask, tuple([await file.read() for file in files]))
        finally:
            await form.close()

    # -- scoring -------------------------------------------------------------------------------------------------------

    async def _answer(self, sent: _Sent) -> bytes:
        """The body of the answer. Raises `HTTPException`."""
        if self._inside >= self.limits.capacity + self.limits.queue:
            raise HTTPException(503, "too many requests wait already", {"Retry-After": str(SCORED_LATER)})
        self._inside += 1
        try:
            async with self._turns:
                samples = await asyncio.to_thread(self._decode, sent)
                good = [i for i, sample in enumerate(samples) if isinstance(sample, Sample)]
                found = await self._scores([samples[i] for i in good])  # type: ignore[misc]
        finally:
            self._inside -= 1
        verdicts = dict(zip(good, found, strict=True))
        results = tuple(
            verdicts[i] if i in verdicts else Verdict(status="unavailable", verifier=self.name, reason=str(samples[i]))
            for i in range(len(samples))
        )
        return Told(dimensions=self.dimensions, results=results).model_dump_json().encode()

    async def _scores(self, samples: Sequence[Sample]) -> list[Verdict]:
        if not samples:
            return []
        try:
            async with asyncio.timeout(self.seconds):
                scores = await self.panel.submit(samples).wait()
        except TimeoutError:
            raise HTTPException(504, f"not scored within {self.seconds:g} s; send fewer at a time") from None
        except RewardError as error:
            raise HTTPException(500, str(error)) from None
        except RuntimeError as error:  # the panel was closed
            raise HTTPException(503, one_line(error), {"Retry-After": str(SCORED_LATER)}) from None
        return [self._merged(row) for row in scores.verdicts]

    def _merged(self, row: Sequence[Verdict]) -> Verdict:
        """The verdicts of all rewards on one sample as one."""
        if len(row) == 1:
            return row[0]
        named = list(zip(self.panel.rewards, row, strict=True))
        return Verdict(
            status=worst(verdict.status for verdict in row),
            answers=tuple(answer for verdict in row for answer in verdict.answers),
            scores={f"{name}.{d}": score for name, verdict in named for d, score in verdict.scores.items()},
            verifier=self.name,
            reason="; ".join(f"{name}: {verdict.reason}" for name, verdict in named if verdict.reason),
            seconds=sum(verdict.seconds for verdict in row), tokens=sum(verdict.tokens for verdict in row),
        )  # fmt: skip

    def _decode(self, sent: _Sent) -> list[Sample | str]:
        """Each sample, or why it is none. A picture that several samples show is decoded once."""
        pictures: dict[int | str, Image.Image | str] = {}
        pixels = 0

        def picture(place: int | str) -> Image.Image:
            nonlocal pixels
            if place not in pictures:
                try:
                    pictures[place] = found = images.load(_bytes(place, sent), self.limits.image)
                    pixels += found.width * found.height
                except ImageError as error:
                    pictures[place] = str(error)
                if pixels > self.limits.pixels:
                    raise HTTPException(413, f"the pictures have more than {self.limits.pixels:,} pixels in all")
            known = pictures[place]
            if isinstance(known, str):
                raise ImageError(known)
            return known

        return [_sample(asked, picture) for asked in sent.ask.samples]


def _sample(asked: AskedSample, picture: Callable[[int | str], Image.Image]) -> Sample | str:
    try:
        task = Task(id=asked.id, images=(), instruction=check_instruction(asked.instruction), meta=asked.meta)
        return Sample(task, picture(asked.source), picture(asked.edit), asked.checklist, asked.group)
    except InstructionError as error:
        return str(error)
    except ImageError as error:
        return f"a picture cannot be read: {error}"


def _bytes(place: int | str, sent: _Sent) -> bytes:
    """Raises `ImageError`, and 422 for a picture that was not sent."""
    if isinstance(place, int):
        known = sent.files or sent.ask.images
        if place >= len(known):
            raise HTTPException(422, f"a sample shows picture {place}, and {len(known)} were sent")
        found = known[place]
    else:
        found = place
    if isinstance(found, bytes):
        return found
    try:
        return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        what = "an address, and none is fetched" if "://" in found[:80] else "no base64"
        raise ImageError(f"it is {what}", "send the file's bytes in base64") from None


def _parse(body: bytes) -> Ask:
    """Raises 422 that says what is wrong, without repeating what was sent."""
    try:
        return Ask.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)[:8]
        detail = [{"loc": [str(part) for part in p["loc"]], "msg": p["msg"], "type": p["type"]} for p in problems]
        raise HTTPException(422, detail) from None


def _back(request: Request) -> float:
    """Seconds within which the client comes again where it leaves. Raises 422 for what are none."""
    try:
        seconds = float(request.headers.get(RETURN, GRACE))
        if 0 <= seconds < math.inf:
            return seconds
    except ValueError:
        pass
    raise HTTPException(422, f"the {RETURN} is no number of seconds")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `work`, which is cancelled when the client leaves."""
    task = asyncio.ensure_future(work)

    async def left() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)

    watch = asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client left")
        return await task
    finally:
        for one in (task, watch):
            one.cancel()
        with suppress(asyncio.CancelledError, HTTPException, PremeditateError):
            await asyncio.gather(task, watch, return_exceptions=True)
