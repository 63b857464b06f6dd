"""An OpenAI chat server on loopback that honours what it is told to honour, and fails as it is told to fail."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from support.loopback import Loopback

REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
DECLINE = "I'm sorry, but I can't help with that."


def example(schema: dict[str, Any]) -> Any:
    """A value that a decoder held to the schema could give."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {key: example(inner) for key, inner in schema["properties"].items()}
        case "array":
            return [example(schema["items"])] * schema.get("minItems", 1)
        case "string":
            return "some words"
        case "integer":
            return 7
    return False


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a request's first turn; every one must be a PNG that came along."""
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True))) for url in urls]


class ChatServer(Loopback):
    """Use it with `with`. Set at any time:

    `honours`: of json_schema, json_object, logprobs, systemone. `rejects`: parameters that are answered 400; any other
    is ignored. `reply(body)`: the text where nothing constrains it. `tops`: per position, probability by token.
    `faults`: consumed by the next chat calls, None for none. `models`, `key`, `noul`: what they say. Read: `bodies`
    (chat), `decisions` (systemone), `left` (calls whose client went away), `invalid` (what the SDK's types refuse).
    """

    def __init__(self, *honours: str) -> None:
        super().__init__()
        self.honours, self.rejects, self.faults = set(honours), set[str](), deque[str | None]()
        self.reply: Callable[[dict[str, Any]], str] = lambda body: "Some plain words."
        self.tops: list[dict[str, float]] = [{"Yes": 0.6, "No": 0.2, "The": 0.2}]
        self.models, self.noul, self.key = ["tiny"], 0.25, ""
        self.bodies, self.decisions, self.invalid = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
        self.left = 0
        self.app.get("/v1/models")(self._list)
        self.app.post("/v1/chat/completions")(self._chat)
        self.app.post("/v1/systemone")(self._decide)

    def forget(self) -> None:
        self.bodies.clear()
        self.decisions.clear()

    async def _list(self) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self._validate(body)
        fault = self.faults.popleft() if self.faults else None
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "no such key")
        if bad := self.rejects & set(body):
            return _error(400, f"Unsupported parameter: {min(bad)}")
        if fault == "hang":
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            self.left += 1
        text, logprobs = self._constrained(body), None
        if "logprobs" in self.honours and body.get("logprobs"):
            logprobs = {"content": [self._position(top, body["top_logprobs"]) for top in self.tops]}
        message: dict[str, Any] = {"role": "assistant", "content": self.reply(body) if text is None else text}
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34},
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
        }  # fmt: skip
        ChatCompletion.model_validate(answer)
        return _spoil(fault, answer, message)

    def _constrained(self, body: dict[str, Any]) -> str | None:
        form = body.get("response_format") or {"type": "text"}
        if form["type"] not in self.honours:
            return None
        return json.dumps(example(form["json_schema"]["schema"]) if form["type"] == "json_schema" else {"sea": "wet"})

    @staticmethod
    def _position(top: dict[str, float], most: int) -> dict[str, Any]:
        entries = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()]
        return {**entries[0], "top_logprobs": entries[:most]}

    def _validate(self, body: dict[str, Any]) -> None:
        try:
            found = REQUEST.validate_python(body)
            for message in found["messages"]:  # the SDK's types are read lazily
                content = message.get("content")
                list(content) if isinstance(content, Iterable) else None
        except ValidationError as error:
            self.invalid.append(str(error))

    async def _decide(self, request: Request) -> Response:
        body = await request.json()
        self.decisions.append(body)
        if "systemone" not in self.honours:
            return _error(404, "Not Found")
        if len(body["assets"]) > 4:
            return _error(422, "at most 4")
        question = body["questions"]["q"]
        answer: dict[str, Any] = {"type": "noul", "noul": self.noul}
        if question["type"] == "choice":
            answer = {
                "type": "choice",
                "probabilities": {k: 1 / len(question["criteria"]) for k in question["criteria"]},
            }
        return JSONResponse({"model": body["model"], "answers": {"q": answer},
                             "usage": {"input_tokens": 50, "output_tokens": 0}})  # fmt: skip


def _error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers=headers)


def _spoil(fault: str | None, answer: dict[str, Any], message: dict[str, Any]) -> Response:
    match fault:
        case "429":
            return JSONResponse({"error": {"message": "later"}}, 429, headers={"Retry-After": "7"})
        case "500":
            return _error(500, "out of memory")
        case "400":
            return _error(400, "too long")
        case "html":
            return HTMLResponse("<html>Welcome!</html>")
        case "truncated":
            return Response(json.dumps(answer)[:-9], media_type="application/json")
        case "error in 200":
            return JSONResponse({"error": {"message": "the model crashed"}})
        case "empty choices":
            answer["choices"] = []
        case "error in choice":
            answer["choices"][0] |= {"error": {"message": "upstream died"}, "message": {"content": ""}}
        case "no message":
            answer["choices"][0]["message"] = None
        case "content is a number":
            message["content"] = 7
        case "parts":
            message["content"] = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
        case "null":
            message["content"] = None
        case "thought":
            message |= {"content": "the answer", "reasoning_content": "hm, hm"}
        case "refusal":
            message |= {"content": None, "refusal": DECLINE}
        case "cut":
            answer["choices"][0]["finish_reason"] = "length"
        case "cut thought":
            answer["choices"][0]["finish_reason"] = "length"
            message |= {"content": None, "reasoning_content": "hm, hm"}
        case "no usage":
            del answer["usage"]
    return JSONResponse(answer)
