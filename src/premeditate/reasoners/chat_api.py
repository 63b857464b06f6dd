"""The OpenAI chat API as bytes on a wire: what one call sends and how its answer is read. No decisions here.

`POST /chat/completions` everywhere; `POST /systemone` where `transformers serve` is: the probability of an answer,
read off in one forward pass without generating text.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from premeditate.prompts.base import defuse
from premeditate.remote import EndpointError, Http, read_json, said

Message = dict[str, Any]
MASS = 0.05
"""Share of the probability that the labels must hold together for their ratio to mean something."""


@dataclass(frozen=True)
class Dialect:
    """The parameters that a server takes. Some refuse what others need."""

    limit: str = "max_tokens"
    temperature: bool = True
    seed: bool = True


@dataclass(frozen=True)
class Reply:
    """`text`: the content, or the refusal. `cut`: it ended for want of tokens. `said`: for the first tokens, the token
    and the probabilities of the likeliest ones at its place; () where the server sends none."""

    text: str
    tokens: int = 0
    cut: bool = False
    refused: bool = False
    said: tuple[tuple[str, dict[str, float]], ...] = ()


class ChatApi:
    """Calls of `model` on one server. `until`: the event loop's time at which a call counts as timed out. Everything
    raises `EndpointError`."""

    def __init__(self, http: Http, model: str = "") -> None:
        self.http, self.model = http, model

    async def models(self, until: float) -> list[str]:
        body = read_json(self.http.host, await self.http.call("GET", "/models", timeout=left(until)))
        found = body.get("data")
        if not isinstance(found, list):
            raise EndpointError("garbage", f"{self.http.host} sent no list of models", "name the model")
        return [m["id"] for m in found if isinstance(m, dict) and isinstance(m.get("id"), str)]

    async def chat(
        self, messages: Sequence[Message], until: float, dialect: Dialect,
        *, max_tokens: int, temperature: float = 0.0, seed: int = 0, **extra: Any,
    ) -> Reply:  # fmt: skip
        """`extra`: parameters that go out as they are."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), dialect.limit: max_tokens, **extra}
        if dialect.temperature:
            body["temperature"] = temperature
        if dialect.seed:
            body["seed"] = seed
        response = await self.http.call("POST", "/chat/completions", json=body, timeout=left(until))
        return read_reply(self.http.host, read_json(self.http.host, response))

    async def decide(
        self, images: Sequence[str], text: str, labels: Sequence[str], until: float
    ) -> tuple[dict[str, float], int]:
        """Label probabilities by /systemone, and the tokens read. `images`: data URIs; four are the server's limit."""
        # Nobody who writes a text can know these names, so that no text can claim to be a picture.
        names = [f"<picture-{secrets.token_hex(8)}>" for _ in images]
        question: dict[str, Any] = {"type": "noul", "instructions": defuse(text)}
        yes = binary(labels)
        if yes is None:
            question |= {"type": "choice", "criteria": dict.fromkeys(labels)}
        assets = {name: {"type": "image", "format": "png", "data_base64": uri.partition(",")[2]}
                  for name, uri in zip(names, images, strict=True)}  # fmt: skip
        body = {"model": self.model, "state": " ".join(names), "questions": {"q": question}, "assets": assets}
        host = self.http.host
        answer = read_json(host, await self.http.call("POST", "/systemone", json=body, timeout=left(until)))
        try:
            given = answer["answers"]["q"]
            if yes is None:
                shares = {label: float(given["probabilities"][label]) for label in labels}
            else:
                p_yes = float(given["noul"])
                shares = {label: p_yes if label == yes else 1 - p_yes for label in labels}
        except (KeyError, TypeError, ValueError):
            shares = {}
        total = sum(shares.values())
        if not shares or not all(0 <= p <= 1 for p in shares.values()) or not total > 0:
            raise EndpointError("garbage", f"{host} sent no probabilities", "check the server")
        return {label: p / total for label, p in shares.items()}, _count(answer.get("usage"))


def left(until: float) -> float:
    """Seconds until that time; a hair where it has passed, so that the call fails as any late one does."""
    return max(until - asyncio.get_running_loop().time(), 1e-3)


def user(images: Sequence[str], text: str) -> Message:
    """One user turn, pictures (data URIs) first: servers then reuse them for every text about the same pictures."""
    content: list[Message] = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": defuse(text)}]}


def read_reply(host: str, body: dict[str, Any]) -> Reply:
    """The first choice of a chat completion. Raises `EndpointError` ("garbage") for what is none."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise EndpointError("garbage", f"{host} sent no answer: its choices are missing", "check the server")
    if choice.get("error"):  # gateways report an upstream that failed half-way like this
        raise EndpointError("failed", f"{host} answered with an error: {said(choice)}", "look into the server's log")
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise EndpointError("garbage", f"{host} sent an answer that is not text", "check the server")
    refused = not content and isinstance(refusal, str) and bool(refusal)
    return Reply(
        text=str(refusal) if refused else content or "", tokens=_count(body.get("usage")), refused=refused,
        cut=choice.get("finish_reason") == "length", said=_positions(choice.get("logprobs")),
    )  # fmt: skip


def _count(usage: Any) -> int:
    """Tokens read and written; 0 where the server does not say."""
    if not isinstance(usage, dict):
        return 0
    values = [usage.get("total_tokens")]
    if not isinstance(values[0], int):
        values = [v for k, v in usage.items() if k in ("prompt_tokens", "completion_tokens", "input_tokens",
                                                       "output_tokens")]  # fmt: skip
    return sum(v for v in values if isinstance(v, int) and v > 0)


def _positions(logprobs: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    found = logprobs.get("content") if isinstance(logprobs, dict) else None
    out = []
    for entry in found if isinstance(found, list) else ():
        tops = entry.get("top_logprobs") if isinstance(entry, dict) else None
        shares: dict[str, float] = {}
        # The token that was said may stand beside the likeliest ones or among them; it counts once.
        for top in [*(tops if isinstance(tops, list) else ()), entry]:
            token, value = (top.get("token"), top.get("logprob")) if isinstance(top, dict) else (None, None)
            if isinstance(token, str) and isinstance(value, int | float) and not math.isnan(value):
                shares[token] = math.exp(min(value, 0.0))
        if not shares or not isinstance(entry.get("token"), str):
            break
        out.append((entry["token"], shares))
    return tuple(out)


def binary(labels: Sequence[str]) -> str | None:
    """The label that says yes, where the labels are yes and no."""
    by_word = {label.lower(): label for label in labels}
    return by_word["yes"] if len(labels) == 2 and set(by_word) == {"yes", "no"} else None


def label_shares(reply: Reply, labels: Sequence[str]) -> dict[str, float] | None:
    """The labels' probabilities at the place where the answer begins; None where they hold less than `MASS`, or cannot
    be told apart by their first token. All spellings of a label count: "Yes", " yes", "YES.", and its first part."""
    words = [label.casefold() for label in labels]
    if any(a.startswith(b) for i, a in enumerate(words) for j, b in enumerate(words) if i != j):
        return None
    for token, shares in reply.said:
        sums = dict.fromkeys(labels, 0.0)
        for spelling, share in shares.items():
            word = _bare(spelling)
            meant = [label for label, whole in zip(labels, words, strict=True) if word and whole.startswith(word)]
            if len(meant) == 1:
                sums[meant[0]] += share
        total = sum(sums.values())
        if total >= MASS:
            return {label: value / total for label, value in sums.items()}
        if _bare(token):  # a word, and none of ours
            return None
    return None


def _bare(token: str) -> str:
    """A token without the blanks, line ends, marks and quotes around its letters; "<think>" and its like stay whole."""
    if "<" in token:
        return token
    return re.sub(r"^[\W_ĠĊ▁]+|[\W_]+$", "", token).casefold()
