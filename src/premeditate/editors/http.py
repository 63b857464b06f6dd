"""What editors behind HTTP share: pictures out and back at the size of their source, one call per edit, no retries."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from PIL import Image

from premeditate import images
from premeditate.editors.base import EditRequest, EditResult
from premeditate.editors.fit import Fit
from premeditate.errors import ImageError, ModelError, one_line
from premeditate.local import Worker, check_options
from premeditate.remote import TIMEOUT, EndpointError, Health, Http, Once, api_key

OPTIONS = ("model", "name", "key", "timeout", "size", "capacity", "steps")
PROBE = 30.0
"""Seconds that a server has to say what it is."""


class HttpEditor(ABC):
    """One endpoint, as an `Editor` and as a `premeditate.remote.Endpoint`. A kind of server is a subclass.

    `edit` and `send` do one call per request, and try once. A source is fitted into a size that the server works at,
    padded and never stretched, goes out as PNG, and the answer is brought back to the size and place of its source.
    """

    KIND = "an HTTP editor"
    OPTIONS: tuple[str, ...] = OPTIONS
    ROOT = ""
    """The API's path where the address has none."""
    TOLERANCE = 0.03
    """How much the aspect of an answer may differ from what was asked for; what differs is taken to be stretched."""

    def __init__(
        self, url: str, *, model: str | None = None, name: str | None = None, key: str | None = None,
        timeout: float = TIMEOUT, size: int | None = None, capacity: int | None = None, steps: int | None = None,
        **settings: float | str | None,
    ) -> None:  # fmt: skip
        """`url`: http(s)://host:port[/path]. `model`: as the server calls it. `name`: for records; default: the
        model's. `key`: default PREMEDITATE_EDITOR_KEY from the environment, OPENAI_API_KEY for OpenAI itself.
        `timeout`: seconds for one edit. `size`: the working area is about `size` x `size` pixels; None: 1024.
        `capacity`: calls that the server carries out at a time; None: what it says. `steps`: denoising steps. Numbers
        among `settings` are at least 0. Raises `ModelError`."""
        for option, whole in (("size", size), ("capacity", capacity), ("steps", steps)):
            if whole is not None and (type(whole) is not int or whole < 1):
                raise ModelError(f"the editor option {option} is {whole!r}", "give a whole number of at least 1")
        for option, number in {"timeout": timeout, **settings}.items():
            if option != "negative_prompt" and number is not None and not _is_amount(number):
                raise ModelError(f"the editor option {option} is {number!r}", "give a number that is not negative")
        if not timeout:
            raise ModelError("the editor option timeout is 0", "give seconds, more than 0")
        self._http = Http(url, root=self.ROOT, api_key=key or api_key(url, "PREMEDITATE_EDITOR_KEY"))
        self.host, self.model, self.capacity = self._http.host, model, capacity
        self._named = name
        self.timeout, self.size = float(timeout), size or 1024
        given = {"steps": steps, **settings}
        self.settings: dict[str, float | str] = {k: v for k, v in given.items() if v is not None}
        self._worker = Worker(f"pictures-{self.host}")
        self._ready = Once(self._probe)

    @classmethod
    def load(cls, url: str, **options: Any) -> Self:
        """The constructor, with a `ModelError` for an option that does not exist."""
        check_options(options, cls.OPTIONS, cls.KIND)
        return cls(url, **{option: value for option, value in options.items() if value is not None})

    @property
    def name(self) -> str:
        """For records: the model's, once it is known."""
        return self._named or self.model or self._unnamed()

    # -- what a subclass says --------------------------------------------------------------------------------------

    @abstractmethod
    def _unnamed(self) -> str:
        """The name of an editor whose model has none."""

    @abstractmethod
    async def _probe(self) -> None:
        """Asks the server what it is; runs before the first edit."""

    @abstractmethod
    def _fit(self, source: tuple[int, int]) -> Fit:
        """How a source of this size goes out, and comes back."""

    @abstractmethod
    async def _call(self, request: EditRequest, pictures: list[bytes], fit: Fit, until: float) -> bytes | str:
        """The edited picture, as a file's bytes or in base64. `pictures`: PNG, at `fit.work`. `until`: by `_left`."""

    @abstractmethod
    async def health(self) -> Health:
        """What the server says of itself. Raises `EndpointError`."""

    # -- for callers -----------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that shape a picture: part of what a trace is named by."""
        return {"size": self.size, **self.settings}

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        """One result per request, in order; all at once. A request that fails gets an `error`."""
        return list(await asyncio.gather(*(self._quietly(request) for request in requests)))

    async def _quietly(self, request: EditRequest) -> EditResult:
        start = time.perf_counter()
        try:
            return await self.send(request)
        except Exception as error:
            return EditResult(None, time.perf_counter() - start, one_line(error, EndpointError, most=None))

    async def send(self, request: EditRequest, timeout: float | None = None) -> EditResult:
        """One edit within `timeout` seconds. Raises `EndpointError`. When cancelled, the connection is closed."""
        start = time.perf_counter()
        until = start + (self.timeout if timeout is None else timeout)
        if not request.images:
            raise EndpointError("rejected", "the request has no image", "give at least one")
        await self.prepare()
        fit = self._fit(request.images[0].size)
        pictures = await self._worker.run(
            lambda job: [images.encode(fit.apply(image), compress_level=1) for image in request.images]
        )
        answer = await self._call(request, pictures, fit, until)
        image = await self._worker.run(lambda job: self._picture(answer, fit))
        return EditResult(image, time.perf_counter() - start)

    async def prepare(self) -> None:
        """Learns what the server is, once; callers at the same time share the work. Raises `EndpointError`; a server
        that was down is asked again next time."""
        await self._ready()

    async def aclose(self) -> None:
        self._ready.leave()
        await self._http.aclose()

    # -- the way back ----------------------------------------------------------------------------------------------

    def _picture(self, answer: bytes | str, fit: Fit) -> Image.Image:
        """The answer at the size of its source, RGB."""
        if isinstance(answer, str):
            # Some servers write a data URI where the API promises bare base64.
            text = answer.partition(",")[2] if answer.startswith("data:") else answer
            try:
                answer = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise EndpointError("garbage", f"{self.host} sent broken base64", "look into its log") from None
        try:
            image = images.load(answer)
        except ImageError as error:
            raise EndpointError(
                "garbage", f"{self.host} sent no picture: {error.problem}", "look into its log"
            ) from error
        (width, height), (w, h) = image.size, fit.work
        if abs(math.log(width / height * h / w)) > self.TOLERANCE:
            raise EndpointError(
                "garbage", f"{self.host} sent {width} x {height} pixels where {w} x {h} were asked for",
                "the edit cannot be put back in place; give a size that the server keeps to by the option size",
            )  # fmt: skip
        return fit.undo(image)

    def _left(self, until: float) -> float:
        return max(until - time.perf_counter(), 0.001)


def _is_amount(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < math.inf
