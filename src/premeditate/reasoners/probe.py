"""What a chat server really honours. Many accept a parameter and ignore it, so each ability is seen at work.

json         json_schema   the answer has a key and a value that only the schema names
             json_object   the answer to a request for plain words is a JSON object
             prompt        neither: the prompt asks for JSON, and an unreadable answer is sent back once
probability  top_logprobs  the answer lists several tokens with their probabilities
             systemone     /systemone of `transformers serve` gives a probability
             vote          neither: several samples are counted
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from PIL import Image

from premeditate.prompts.base import LABELS
from premeditate.prompts.general import spoken
from premeditate.reasoners.chat_api import ChatApi, Dialect, Reply, user
from premeditate.remote import EndpointError

DIALECTS = (
    Dialect(),
    Dialect(seed=False),
    Dialect("max_completion_tokens"),
    Dialect("max_completion_tokens", temperature=False, seed=False),  # models that always think
)
TOPS = (20, 5)
"""Likeliest tokens to ask for: what most servers give at most, and what the modest ones do."""
TRANSIENT, PATIENCE = ("busy", "failed", "garbage"), 4
"""Failures that may be chance, and how often the first question is asked before they count."""
ROOM = 512
"""Tokens of an answer: a model that thinks first needs some."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Abilities:
    """`tops`: the `top_logprobs` to ask for; 0: no such thing."""

    dialect: Dialect = DIALECTS[0]
    json: Literal["json_schema", "json_object", "prompt"] = "prompt"
    probability: Literal["top_logprobs", "systemone", "vote"] = "vote"
    tops: int = 0


async def probe(api: ChatApi, encode: Callable[[Image.Image], str], until: float) -> Abilities:
    """Four to seven short calls, one after the other. A server that rejects a parameter, or twice fails over it, lacks
    the ability. Raises `EndpointError` where the server is down, or does not answer a chat with a picture at all."""
    picture = encode(Image.new("RGB", (64, 64), "gray"))
    dialect = await _dialect(api, picture, until)

    async def ask(text: str, **options: Any) -> Reply | None:
        options = {"max_tokens": ROOM, **options}
        return await _attempt(lambda: api.chat([user((), text)], until, dialect, **options))

    form: Literal["json_schema", "json_object", "prompt"] = "prompt"
    key, value = f"k{secrets.token_hex(3)}", f"v{secrets.token_hex(3)}"
    schema = {"type": "object", "properties": {key: {"type": "string", "enum": [value]}}, "required": [key],
              "additionalProperties": False}  # fmt: skip
    if _object(await ask("Say hello.", response_format=json_schema(schema))) == {key: value}:
        form = "json_schema"
    # OpenAI refuses this format unless the prompt holds the word.
    elif _object(await ask("Write a short sentence about the sea, in plain words and not as JSON.",
                           response_format={"type": "json_object"})) is not None:  # fmt: skip
        form = "json_object"
    for tops in TOPS:
        reply = await ask("Is the sea wet? Answer with one word, yes or no.", max_tokens=4, logprobs=True,
                          temperature=1.0, top_logprobs=tops)  # fmt: skip
        if reply is not None and reply.said and len(reply.said[0][1]) > 1:
            return Abilities(dialect, form, "top_logprobs", tops)
        if reply is not None:
            break
    decided = await _attempt(lambda: api.decide([picture], "Is the picture gray?", LABELS, until))
    return Abilities(dialect, form, "vote" if decided is None else "systemone")


def json_schema(schema: Any) -> dict[str, Any]:
    """The `response_format` that holds an answer to `schema`."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


async def _dialect(api: ChatApi, picture: str, until: float) -> Dialect:
    first: EndpointError | None = None
    for dialect in DIALECTS:
        for again in range(PATIENCE):
            try:
                await api.chat([user([picture], "Answer with one word: ok.")], until, dialect, max_tokens=ROOM)
            except EndpointError as error:
                first = first or error
                if error.kind == "rejected":
                    break
                if error.kind not in TRANSIENT or again + 1 == PATIENCE:
                    raise
                await asyncio.sleep(error.retry_after or 0.2 * 2**again)
            else:
                return dialect
    assert first is not None
    raise first


async def _attempt(call: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """None where the server answers, and not with what was asked for. One failure may be chance, two are its answer."""
    for again in (False, True):
        try:
            return await call()
        except EndpointError as error:
            if error.kind not in ("rejected", "denied", "failed", "garbage"):
                raise
            if error.kind in ("rejected", "denied") or again:
                return None
    return None


def _object(reply: Reply | None) -> dict[str, Any] | None:
    try:
        found = json.loads(spoken(reply.text)) if reply is not None else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
