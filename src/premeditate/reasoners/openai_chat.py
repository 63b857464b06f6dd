"""Any vision-language model behind the OpenAI chat API: vLLM, SGLang, llama.cpp, `transformers serve`, OpenAI, ..."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from premeditate import images
from premeditate.errors import ModelError, one_line
from premeditate.local import Job, Worker, check_options
from premeditate.prompts.base import defuse
from premeditate.prompts.general import failure, read, spoken
from premeditate.prompts.labels import read_label
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.chat_api import ChatApi, Message, Reply, label_shares, left, user
from premeditate.reasoners.probe import Abilities, json_schema, probe
from premeditate.remote import TIMEOUT, EndpointError, Health, Http, Once, api_key

OPTIONS = ("model", "timeout", "max_pixels", "capacity", "prompts", "samples", "name", "key")
UNNAMED = "chat model"
SHOWN = 4_000
"""Characters of an unreadable answer that its author is shown."""
THOUGHT = 2_048
"""Tokens for a vote, once the model was seen to think before it answers."""
KEPT = 32
"""Pictures whose encoded form is remembered: the questions of a checklist are all about the same two."""
_REPAIR = """That answer could not be read as JSON. Give it again as one JSON object with the keys {keys}, and write \
nothing else: no explanation, no code fence."""


class OpenAIChatReasoner:
    """One endpoint of the OpenAI chat API, as a `Reasoner` and as a `premeditate.remote.Endpoint`.

    Pictures go out as PNG data URIs before the text, never as addresses. Control tokens in the text are made plain
    words, since servers parse them out of what users write. What the server honours is probed once (see `probe`), at
    the first call or by `prepare`:

    - A request with a `schema` is held to it where the server can. An answer without the schema's keys is shown to the
      model once, with a request for the JSON only; the first answer stays if the second is no better.
    - A request with `labels` gives probabilities: the server's own, else the shares in `samples` votes at temperature
      1. A vote that names no label does not count; where none counts there are no probabilities, only the last text.
    """

    def __init__(
        self, url: str, *, model: str | None = None, timeout: float = TIMEOUT, max_pixels: int = 1 << 20,
        capacity: int | None = None, prompts: str = "general", samples: int = 5, name: str | None = None,
        key: str | None = None,
    ) -> None:  # fmt: skip
        """`url`: http(s)://host:port[/path], /v1 where there is no path. `model`: needed where the server has several.
        `timeout`: seconds for one request. `max_pixels`: larger pictures are reduced to this many. `capacity`: calls
        that the server carries out at a time, None: unknown. `name`: for the record, by default the model's, so that a
        run whose server moved finds its traces. `key`: by default PREMEDITATE_REASONER_KEY from the environment, and
        OPENAI_API_KEY for OpenAI. Raises `ModelError`."""
        for option, value in (("max_pixels", max_pixels), ("capacity", capacity), ("samples", samples)):
            if not ((value is None and option == "capacity") or (type(value) is int and value >= 1)):
                raise ModelError(f"the chat option {option} is {value!r}", "give a whole number of at least 1")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ModelError(f"the chat option timeout is {timeout!r}", "give seconds, more than 0")
        key = key or api_key(url, "PREMEDITATE_REASONER_KEY")
        http = Http(url, root="/v1", api_key=key)
        self._api = ChatApi(http, model or "")
        self.host, self.prompts, self.capacity = http.host, prompts, capacity
        self.name = name or model or UNNAMED
        self._named = name is not None
        self.timeout, self.max_pixels, self.samples = float(timeout), max_pixels, samples
        self._abilities: Abilities | None = None
        self._ready = Once(self._probe)
        self._room = 1
        self._worker = Worker(f"encode-{self.host}")
        self._encoded: OrderedDict[int, tuple[Image.Image, str]] = OrderedDict()

    @classmethod
    def load(cls, url: str, **options: Any) -> OpenAIChatReasoner:
        """The constructor, with a `ModelError` for an option that does not exist."""
        check_options(options, OPTIONS, "a chat reasoner")
        return cls(url, **{option: value for option, value in options.items() if value is not None})

    # -- what the server is --------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Finds the model and what the server honours, once; callers at the same time share the work. Raises
        `EndpointError`; a server that was down is asked again next time."""
        await self._ready()

    async def _probe(self) -> None:
        until = self._until(None)
        if not self._api.model:
            found = await self._api.models(until)
            if len(found) != 1:
                what = f"serves several models: {', '.join(found)}" if found else "names no model"
                raise EndpointError("denied", f"{self.host} {what}", "name one by the option model")
            self._api.model = found[0]
        if not self._named:
            self.name = self._api.model
        self._abilities = await probe(self._api, self._encode, until)

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that shape an answer: part of what a trace is named by."""
        return {"max_pixels": self.max_pixels, "samples": self.samples}

    def describe(self) -> dict[str, str]:
        """How answers are obtained, for the run's record; before `prepare` only the endpoint."""
        found = self._abilities
        if found is None:
            return {"endpoint": self.host}
        about = {"endpoint": self.host, "model": self._api.model, "json": found.json, "probability": found.probability}
        if not (found.dialect.temperature and found.dialect.seed):
            about["ignores"] = "seed" if found.dialect.temperature else "temperature, seed"
        return about

    async def health(self) -> Health:
        """Asks for the list of models, which costs the server nothing. A server without one gets a plain `Health`."""
        try:
            await self._api.models(self._until(None))
        except EndpointError as error:
            if error.kind not in ("denied", "garbage"):
                raise
        return Health(capacity=self.capacity, model=self._api.model or None)

    async def aclose(self) -> None:
        self._ready.leave()
        await self._api.http.aclose()

    # -- requests ------------------------------------------------------------------------------------------------

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        """One completion per request, in order; all at once. A request that fails gets an `error`."""
        return list(await asyncio.gather(*(self._quietly(request) for request in requests)))

    async def _quietly(self, request: ChatRequest) -> Completion:
        start = time.perf_counter()
        try:
            return await self.send(request)
        except Exception as error:
            return Completion(error=one_line(error, EndpointError, most=None), seconds=time.perf_counter() - start)

    async def send(self, request: ChatRequest, timeout: float | None = None) -> Completion:
        """One request, tried once. `timeout` in seconds bounds it with its votes and its repair, call after call.
        Raises `EndpointError`."""
        start, until = time.perf_counter(), self._until(timeout)
        try:
            async with asyncio.timeout(left(until)):
                await self.prepare()
                uris = [await self._worker.run(lambda job, image=image: self._encode(image, job))  # type: ignore[misc]
                        for image in request.images]  # fmt: skip
        except TimeoutError:
            raise EndpointError("timeout", f"{self.host} was not ready in time", "give it a longer timeout") from None
        done = await (self._choose if request.labels else self._write)(request, uris, until)
        return replace(done, seconds=time.perf_counter() - start)

    def _until(self, timeout: float | None) -> float:
        return asyncio.get_running_loop().time() + (self.timeout if timeout is None else timeout)

    async def _say(self, messages: Sequence[Message], until: float, **options: Any) -> Reply:
        assert self._abilities is not None
        return await self._api.chat(messages, until, self._abilities.dialect, **options)

    async def _write(self, request: ChatRequest, uris: Sequence[str], until: float) -> Completion:
        options: dict[str, Any] = {
            "max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed
        }  # fmt: skip
        turns = [user(uris, request.text)]
        form = self._form(request)
        try:
            reply = await self._say(turns, until, **options, **form)
        except EndpointError as error:
            if error.kind != "rejected" or not form:
                raise
            # The probe's schema was accepted and this one is not: then the prompt alone must do.
            form, reply = {}, await self._say(turns, until, **options)
        if request.schema is None or reply.cut or readable(reply, request):
            return Completion(text=reply.text, tokens=reply.tokens)
        shown = defuse(spoken(reply.text)[:SHOWN]).strip() or "(nothing)"
        keys = ", ".join(f'"{key}"' for key in request.schema.get("required", ()))
        turns += [{"role": "assistant", "content": shown}, {"role": "user", "content": _REPAIR.format(keys=keys)}]
        second = await self._say(turns, until, **options, **form)
        best = second if readable(second, request) else reply
        return Completion(text=best.text, tokens=reply.tokens + second.tokens)

    def _form(self, request: ChatRequest) -> dict[str, Any]:
        kind = self._abilities.json if self._abilities and request.schema is not None else "prompt"
        if kind == "json_schema":
            return {"response_format": json_schema(request.schema)}
        return {"response_format": {"type": "json_object"}} if kind == "json_object" else {}

    async def _choose(self, request: ChatRequest, uris: Sequence[str], until: float) -> Completion:
        assert self._abilities is not None
        tokens = 0
        if self._abilities.probability == "top_logprobs":
            # At temperature 1 the server's probabilities are the model's, whatever it does before it reports them.
            reply = await self._say([user(uris, request.text)], until, max_tokens=4, temperature=1.0,
                                    seed=request.seed, logprobs=True, top_logprobs=self._abilities.tops)  # fmt: skip
            tokens += reply.tokens
            if shares := label_shares(reply, request.labels):
                return Completion(probabilities=shares, tokens=tokens)
        elif self._abilities.probability == "systemone":
            try:
                shares, tokens = await self._api.decide(uris, request.text, request.labels, until)
                return Completion(probabilities=shares, tokens=tokens)
            except EndpointError as error:
                if error.kind != "rejected":  # say, more pictures than it takes
                    raise
        voted = await self._vote(request, uris, until)
        return replace(voted, tokens=tokens + voted.tokens)

    async def _vote(self, request: ChatRequest, uris: Sequence[str], until: float) -> Completion:
        votes, tokens, text = dict.fromkeys(request.labels, 0), 0, ""
        for index in range(self.samples):
            seed = (request.seed + 7919 * index) % (1 << 31)
            while True:
                room = max(request.max_tokens, self._room)
                reply = await self._say([user(uris, request.text)], until, max_tokens=room, temperature=1.0, seed=seed)
                text, tokens = reply.text, tokens + reply.tokens
                label = read_label(text, request.labels)
                # A thought that was cut off is given room, here and from now on; somebody who rambles is not.
                if not (reply.cut and _thinking(text)) or room >= THOUGHT:
                    break
                self._room = THOUGHT
            if label is not None:
                votes[label] += 1
        total = sum(votes.values())
        return Completion(
            text=text, tokens=tokens, probabilities={label: n / total for label, n in votes.items()} if total else {}
        )

    # -- pictures ------------------------------------------------------------------------------------------------

    def _encode(self, image: Image.Image, job: Job | None = None) -> str:
        """A picture of at most `max_pixels` as a data URI. In the worker's thread, save for the probe's tiny one."""
        if job is None or id(image) not in self._encoded:
            if job is not None:
                job.check()
            width, height = image.size
            scale = (self.max_pixels / (width * height)) ** 0.5
            small = images.to_rgb(image)
            if scale < 1:
                size = (max(1, int(width * scale)), max(1, int(height * scale)))
                small = small.resize(size, Image.Resampling.LANCZOS)
            data = base64.b64encode(images.encode(small, compress_level=1)).decode("ascii")
            if job is None:
                return f"data:image/png;base64,{data}"
            # The picture itself is kept too: so long its id is nobody else's.
            self._encoded[id(image)] = (image, f"data:image/png;base64,{data}")
            while len(self._encoded) > KEPT:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(id(image))
        return self._encoded[id(image)][1]


def _thinking(text: str) -> bool:
    """Text of an answer that ended before its thought did, which servers cut out or leave in."""
    return not text.strip() or text.lstrip().startswith("<think")


def readable(reply: Reply, request: ChatRequest) -> bool:
    """The answer holds what the schema requires, or is a refusal, which asking again would not mend."""
    required = tuple(request.schema.get("required", ())) if request.schema is not None else ()
    if reply.refused or failure(reply.text) == "refused":
        return True
    found = read(reply.text, required)
    return all(key in found for key in required)
