"""Image editing servers on loopback: one of the OpenAI images API, which holds every request to the types of OpenAI's
own client, and EditThinker's JSON service. Both do what they are told, and fail as they are told to fail."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from openai.types import ImagesResponse
from openai.types.image_edit_params import ImageEditParamsNonStreaming
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from support.loopback import Loopback

HINTS = get_type_hints(ImageEditParamsNonStreaming)
DIFFUSION = {
    "seed": int, "num_inference_steps": int, "guidance_scale": float, "true_cfg_scale": float, "negative_prompt": str,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {"openai": {}, "vllm-omni": DIFFUSION, "sglang": DIFFUSION}
OWNER = {"openai": "openai", "vllm-omni": "vllm", "sglang": "sglang"}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def broken_off() -> AsyncIterator[bytes]:
    yield b'{"data": [{"b64_json": "'
    raise ConnectionResetError


class ImagesServer(Loopback):
    """`dialect` decides which fields are known; an unknown field is answered 400. Set at any time:

    `paint(image)`: the edit of the first image. `faults`: consumed by the next edits, None for none. `models`, `key`,
    `about` (GET /health: a dict, None for an empty answer, "missing" for 404), `owner`. Read: `forms` (fields and
    names of the files' parts), `pictures` (of each edit), `keys` (Idempotency-Key), `made` (edits carried out), `left`
    (calls whose client went away), `fetched`.
    """

    def __init__(self, dialect: str = "vllm-omni") -> None:
        super().__init__()
        self.reset(dialect)
        self.app.get("/v1/models")(self._list)
        self.app.get("/health")(self._health)
        self.app.get("/v1/images/1/content")(self._content)
        self.app.post("/v1/images/edits")(self._edit)

    def reset(self, dialect: str = "vllm-omni") -> None:
        """As new: a started server serves one test after the other."""
        self.dialect, self.owner = dialect, OWNER[dialect]
        self.paint: Callable[[Image.Image], Image.Image] = lambda image: image
        self.faults, self.models, self.key = deque[str | None](), ["tiny-edit"], ""
        self.about: dict[str, Any] | str | None = None
        self.forms, self.pictures = list[dict[str, Any]](), list[list[Image.Image]]()
        self.keys, self.made, self.left, self.fetched = list[str](), 0, 0, 0
        self._answers: dict[str, bytes] = {}

    async def _list(self) -> Response:
        if not self.models:
            return _error(404, "Not Found")
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": self.owner} for name in self.models]
        return JSONResponse({"object": "list", "data": cards})

    async def _health(self) -> Response:
        if self.about == "missing":
            return _error(404, "Not Found")
        return Response() if self.about is None else JSONResponse(self.about)

    async def _content(self) -> Response:
        self.fetched += 1
        if self._stored == b"":
            return _error(404, "no such picture")
        return Response(self._stored, media_type="image/png")

    async def _edit(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "no such key")
        form = await request.form()
        files = [(part, await file.read()) for part, file in form.multi_items() if isinstance(file, UploadFile)]
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        self.forms.append({**fields, "files": [part for part, _ in files]})
        if problem := self._check(fields, [part for part, _ in files]):
            return _error(400, problem)
        key = request.headers.get("idempotency-key", "")
        self.keys.append(key)
        fault = self.faults.popleft() if self.faults else None
        if fault == "hang":
            while not await request.is_disconnected():
                await asyncio.sleep(0.005)
            self.left += 1
        if key not in self._answers or not key:
            self.pictures.append([Image.open(io.BytesIO(data)) for _, data in files])
            self._answers[key] = png(self.paint(self.pictures[-1][0]))
            self.made += 1
        return self._answer(fault, self._answers[key])

    def _check(self, fields: dict[str, str], parts: list[str]) -> str:
        """What is wrong with a request, by the types of OpenAI's client and the fields of the dialect."""
        if parts != ["image"] and (len(parts) < 2 or set(parts) != {"image[]"}):
            return f"files are image, or several image[]; not {parts}"
        for name, value in fields.items():
            hint = HINTS.get(name, EXTRA[self.dialect].get(name))
            if hint is None or name == "image":
                return f"Unknown field: {name}"
            try:
                TypeAdapter(hint).validate_python(value)
            except ValidationError as error:
                return str(error)
        if not fields.get("prompt"):
            return "no prompt"
        if self.dialect == "vllm-omni" and fields.get("model") not in (None, *self.models):
            return f"Model mismatch: request specifies '{fields['model']}' but server is running '{self.models[0]}'."
        width, height = map(int, fields["size"].split("x"))
        if self.dialect == "openai" and not (
            width % 16 == height % 16 == 0 and max(width, height) <= min(3840, 3 * min(width, height))
            and 655_360 <= width * height <= 3840 * 2160
        ):  # fmt: skip
            return f"Invalid size {fields['size']}"
        return ""

    def _answer(self, fault: str | None, picture: bytes) -> Response:
        image = Image.open(io.BytesIO(picture))
        match fault:
            case "429":
                return JSONResponse({"error": {"message": "later"}}, 429, headers={"Retry-After": "7"})
            case "500":
                return JSONResponse({"detail": "CUDA out of memory"}, 500)
            case "400":
                return _error(400, "Your request was rejected by the safety system.")
            case "html":
                return HTMLResponse("<html>Welcome!</html>")
            case "error in 200":
                return _error(200, "the model crashed")
            case "reset":
                return StreamingResponse(broken_off(), headers={"Content-Length": "1000"})
            case "no data":
                return JSONResponse({"created": 1, "data": []})
            case "no base64":
                picture = b""
            case "no image":
                picture = b"these are words"
            case "half a picture":
                picture = picture[: len(picture) // 2]
            case "half size":
                picture = png(image.resize((image.width // 2, image.height // 2)))
            case "square":
                picture = png(image.resize((64, 64)))
            case "url" | "relative url" | "foreign url" | "lost url":
                self._stored = b"" if fault == "lost url" else picture
                start = {"url": self.origin, "foreign url": "http://example.com"}.get(fault, "")
                return JSONResponse({"created": 1, "data": [{"url": f"{start}/v1/images/1/content"}]})
        body = {"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode(), "revised_prompt": "ignored"}]}
        ImagesResponse.model_validate(body)
        text = json.dumps(body)
        return Response(text[:-9] if fault == "truncated" else text, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


# -- EditThinker's service ----------------------------------------------------------------------------------------


class Common(BaseModel):
    image: str | None = None
    prompt: str
    seed: int | None = None
    num_inference_steps: int | None = Field(28, ge=1, le=100)


class Flux(Common):
    guidance_scale: float | None = Field(2.5, ge=0, le=7.5)
    enhance_prompt: bool | None = True


class Qwen(Flux):
    negative_prompt: str | None = " "


class OmniGen2(Common):
    text_guidance_scale: float = Field(5.0, ge=0, le=10)
    image_guidance_scale: float = Field(2.0, ge=0, le=10)
    negative_prompt: str = "blurry"
    enhance_prompt: bool = False


class EditThinkerServer(Loopback):
    """`flavour`: the request's model. Set: `paint`, `size` (of answers, stretched; None: as it came), `status`,
    `faults`. Read: `bodies`, as they came."""

    def __init__(self, flavour: type[Common]) -> None:
        super().__init__()
        self.paint: Callable[[Image.Image], Image.Image] = lambda image: image
        self.size: tuple[int, int] | None = None
        self.status = {"active_workers": 2, "pending_tasks": 1, "total_gpus": 2, "system_ready": True}
        self.faults, self.bodies = deque[str | None](), list[dict[str, Any]]()

        async def edit(body: Any, request: Request) -> Response:
            return await self._edit(body, await request.json())

        edit.__annotations__ |= {"body": flavour, "request": Request}
        self.app.post("/edit")(edit)
        self.app.get("/status")(lambda: self.status)

    async def _edit(self, body: Any, sent: dict[str, Any]) -> Response:
        self.bodies.append(sent)
        if getattr(body, "enhance_prompt", False):
            return JSONResponse({"detail": "a real one never returns from this"}, 500)
        image = Image.open(io.BytesIO(base64.b64decode(body.image, validate=True)))
        image = self.paint(image.resize(self.size) if self.size else image)
        answer = {
            "success": True, "task_id": "1", "original_image": body.image, "seed": body.seed, "gpu_id": 0,
            "edited_image": base64.b64encode(png(image)).decode(), "processing_time": 0.1, "error": None,
        }  # fmt: skip
        match self.faults.popleft() if self.faults else None:
            case "error":
                answer |= {"success": False, "edited_image": None, "error": "CUDA out of memory"}
            case "no success":
                answer |= {"success": False, "edited_image": None}
            case "no picture":
                answer |= {"edited_image": ""}
            case "503":
                return JSONResponse({"detail": "not ready"}, 503)
        return JSONResponse(answer)
