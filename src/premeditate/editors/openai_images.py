"""Any editor behind the OpenAI images API (POST /images/edits): vLLM-Omni, SGLang Diffusion, OpenAI itself, gateways.

One source goes out as the form's `image`, several as `image[]`, as OpenAI's own client sends them; all three servers
read both. What else goes out:

    ours                openai             vllm-omni, sglang
    prompt, model       prompt, model      same; vLLM-Omni refuses a model that it does not serve
    working size        size, "WxH"        same
    seed                not sent           seed
    steps               not sent           num_inference_steps
    guidance_scale,     not sent           same
    true_cfg_scale
    negative_prompt     not sent           same; " " where true_cfg_scale is over 1: without one it does nothing
                                           output_format=png: SGLang's default is JPEG

OpenAI's API has no seed, so an edit cannot be repeated there; `describe` says so in the record. Fields beyond the API
are not sent to servers that were not recognised, since strict ones refuse a whole request for them. The dialect
"auto" decides by the host api.openai.com, then by `owned_by` in GET /models: see `OWNERS`.
"""

from __future__ import annotations

import math
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from premeditate.editors.base import EditRequest
from premeditate.editors.fit import Fit, Size, working_size
from premeditate.editors.http import OPTIONS, PROBE, HttpEditor
from premeditate.errors import ModelError
from premeditate.local import nearest
from premeditate.remote import EndpointError, Health, origin, read_json

Dialect = Literal["auto", "openai", "vllm-omni", "sglang"]
DIALECTS = ("auto", "openai", "vllm-omni", "sglang")
OWNERS = {"vllm": "vllm-omni", "sglang": "sglang", "premeditate": "vllm-omni"}
"""What GET /models says in `owned_by`, and how to speak to it. Anything else, or no such list: "openai"."""
FIELDS = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "negative_prompt": "negative_prompt",
}
"""Our settings, as vLLM-Omni and SGLang call them."""
OPENAI = "api.openai.com"
STANDARD: tuple[Size, ...] = ((1024, 1024), (1536, 1024), (1024, 1536))
"""The only sizes of OpenAI's older models."""
OLDER = ("gpt-image-1", "chatgpt-image")
RATIO, EDGE, LEAST, MOST = 3, 3840, 655_360, 3840 * 2160
"""OpenAI's newer models: longer side to shorter, pixels of the longer, pixels of the area."""
MULTIPLE = 32
"""Working sizes elsewhere: no editing pipeline needs more."""


class OpenAIImagesEditor(HttpEditor):
    """One endpoint of the OpenAI images API."""

    KIND = "an editor behind the OpenAI images API"
    OPTIONS = (*OPTIONS, "guidance_scale", "true_cfg_scale", "negative_prompt", "dialect")
    ROOT = "/v1"

    def __init__(self, url: str, *, dialect: Dialect = "auto", **options: Any) -> None:
        """`url`: /v1 is added where it has no path. `dialect`: see this module. `guidance_scale`, `true_cfg_scale`:
        at least 0. `negative_prompt`: what the picture shall not show. Others: see `HttpEditor`."""
        if dialect not in DIALECTS:
            raise ModelError(f"there is no dialect {dialect!r}", f"did you mean {nearest(str(dialect), DIALECTS)}?")
        super().__init__(url, **options)
        self.dialect: str = "openai" if dialect == "auto" and urlsplit(url).hostname == OPENAI else dialect
        if error := self._misfit():
            raise ModelError(error.problem, error.mend)

    def _unnamed(self) -> str:
        return "images API" if self.dialect == "auto" else f"{self.dialect} images API"

    def describe(self) -> dict[str, str]:
        """What is worth knowing in a run's record."""
        about = {"endpoint": self.host, "dialect": self.dialect}
        about |= {"model": self.model} if self.model else {}
        return about | ({"ignores": "seed"} if self.dialect == "openai" else {})

    # -- what the server is ----------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        if urlsplit(self._http.url).hostname == OPENAI or (self.dialect != "auto" and self.model):
            return
        cards = await self._models()
        card = next((card for card in cards if card.get("id") == self.model), cards[0] if cards else {})
        if self.dialect == "auto":
            self.dialect = OWNERS.get(str(card.get("owned_by", "")).lower(), "openai")
        if self.model is None and len(cards) == 1 and isinstance(card.get("id"), str):
            self.model = card["id"]
        if error := self._misfit():
            raise error

    def _misfit(self) -> EndpointError | None:
        """What is wrong with the settings, given the dialect."""
        if self.dialect != "openai" or not self.settings:
            return None
        extra = " and no ".join(sorted(self.settings))
        return EndpointError(
            "denied", f"{self.host} is spoken to as OpenAI's API, which has no {extra}",
            "leave that out, or name the dialect: vllm-omni or sglang",
        )  # fmt: skip

    async def _models(self) -> list[dict[str, Any]]:
        """The server's list of models, [] where it has none that can be read."""
        try:
            body = read_json(self.host, await self._http.call("GET", "/models", timeout=min(PROBE, self.timeout)))
        except EndpointError as error:
            if error.status in (404, 405, 501) or error.kind == "garbage":
                return []
            raise
        cards = body.get("data")
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    async def health(self) -> Health:
        """GET /health beside /v1. A server of ours answers {"capacity", "in_flight", "model", "idempotency"}; others
        only that they are up, or have no such route. OpenAI is asked for its models, which tells a wrong key."""
        if urlsplit(self._http.url).hostname == OPENAI:
            await self._http.call("GET", "/models", timeout=PROBE)
            return Health(self.capacity, model=self.model)
        try:
            response = await self._http.call("GET", self._beside("/health"), timeout=PROBE)
            body = read_json(self.host, response)
        except EndpointError as error:
            # vLLM-Omni answers with an empty body; a gateway may have no such route, or guard it: that it answers is
            # enough, and a wrong key shows at the first edit.
            refused = error.kind in ("denied", "rejected") or error.status == 501
            if refused or error.kind == "garbage":
                return Health(self.capacity, model=self.model)
            raise
        capacity, flying = (
            n if type(n := body.get(key)) is int and n >= 0 else None for key in ("capacity", "in_flight")
        )
        model = body.get("model")
        return Health(self.capacity or capacity or None, flying, model if isinstance(model, str) else self.model,
                      body.get("idempotency") is True)  # fmt: skip

    def _beside(self, path: str) -> str:
        """The URL of `path` at the place where /v1 is."""
        return self._http.url.removesuffix("/v1") + path

    # -- one edit --------------------------------------------------------------------------------------------------

    def _fit(self, source: Size) -> Fit:
        if self.dialect != "openai":
            return Fit.plan(source, self.size, MULTIPLE)
        return Fit.into(source, openai_size(source, self.size, self.model or ""))

    def _form(self, request: EditRequest, fit: Fit) -> dict[str, str]:
        form = {"prompt": request.prompt, "size": f"{fit.work[0]}x{fit.work[1]}"}
        if self.model:
            form["model"] = self.model
        if self.dialect != "openai":
            form |= {"seed": str(request.seed), "output_format": "png"}
            form |= {FIELDS[option]: str(value) for option, value in self.settings.items()}
            scale = self.settings.get("true_cfg_scale")
            if isinstance(scale, int | float) and scale > 1:
                form.setdefault("negative_prompt", " ")
        return form

    async def _call(self, request: EditRequest, pictures: list[bytes], fit: Fit, until: float) -> bytes | str:
        part = "image" if len(pictures) == 1 else "image[]"
        files = [(part, (f"image{i}.png", data, "image/png")) for i, data in enumerate(pictures)]
        headers = {"Idempotency-Key": request.key} if request.key else {}
        response = await self._http.call("POST", "/images/edits", timeout=self._left(until), headers=headers,
                                         data=self._form(request, fit), files=files)  # fmt: skip
        data = read_json(self.host, response).get("data")
        entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
        if isinstance(text := entry.get("b64_json"), str) and text:
            return text
        if isinstance(url := entry.get("url"), str) and url:
            return url if url.startswith("data:") else await self._fetch(url, until)
        raise EndpointError("garbage", f"{self.host} sent no picture", "check that the model edits images")

    async def _fetch(self, url: str, until: float) -> bytes:
        """A picture that the answer only names. Another host's is not fetched: an answer must not choose whom this
        machine calls, nor who gets the key."""
        try:
            there = urljoin(self._http.url + "/images/edits", url)
            same = origin(there) == origin(self._http.url)
        except ValueError:
            same = False
        if not same:
            raise EndpointError("garbage", f"{self.host} sent the address of a picture on another host",
                                "ask for b64_json: set the server so")  # fmt: skip
        try:
            return (await self._http.call("GET", there, timeout=self._left(until))).content
        except EndpointError as error:
            if error.kind not in ("denied", "rejected"):
                raise
            # The edit was taken: neither this request nor the endpoint is at fault.
            raise EndpointError("garbage", f"the picture that {self.host} named is not there ({error.problem})",
                                "ask for b64_json: set the server so") from error  # fmt: skip


def openai_size(source: Size, side: int, model: str) -> Size:
    """(width, height) that OpenAI's `model` makes, of about `side`^2 pixels and near the aspect of `source`."""
    if model.startswith(OLDER):
        return min(STANDARD, key=lambda size: abs(math.log(size[0] / size[1] * source[1] / source[0])))
    width, height = min(source[0], RATIO * source[1]), min(source[1], RATIO * source[0])
    ratio = max(width, height) / min(width, height)
    # The longer side sets the most, and what rounding down to multiples loses must not go below the least.
    side = max(min(side, math.isqrt(MOST), int(EDGE / math.sqrt(ratio))), math.isqrt(LEAST) + 24)
    width, height = working_size((width, height), side, 16, most=MOST)
    return min(width, RATIO * height, EDGE), min(height, RATIO * width, EDGE)
