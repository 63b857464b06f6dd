"""The JSON service that EditThinker puts before each of its editors: POST /edit, GET /status.

Which fields a service takes is read from its /openapi.json: only those are sent, and a setting that it lacks, or that
is over its limit, is an error rather than silently without effect. `enhance_prompt` is always sent as false: the
default is true, and such a request may never return.
"""

from __future__ import annotations

import base64
from typing import Any

from premeditate.editors.base import EditRequest
from premeditate.editors.fit import Fit, Size
from premeditate.editors.http import OPTIONS, PROBE, HttpEditor
from premeditate.remote import EndpointError, Health, read_json

FIELDS = {
    "steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale", "text_guidance_scale"),
    "image_guidance_scale": ("image_guidance_scale",),
    "negative_prompt": ("negative_prompt",),
}
"""Our settings, and what the services call them. Where the model has a true CFG, `guidance_scale` is it."""
RATIO = 2.3
"""Longer side to shorter: FLUX Kontext's longest size is 672 x 1568; the rest is padding."""
MULTIPLE = 16


class EditThinkerEditor(HttpEditor):
    """One of EditThinker's editing services.

    The services choose the size of their answer themselves, by stretching the picture to one near its aspect; the
    answer is stretched back. They go on with an edit whose caller has left, honour no Idempotency-Key, and say that
    they are ready while they load.
    """

    KIND = "an EditThinker service"
    OPTIONS = (*OPTIONS, *(option for option in FIELDS if option != "steps"))
    TOLERANCE = 0.1
    """Neighbours in Kontext's list of sizes are up to 17 % apart, so the nearest is within 9 %."""

    def __init__(self, url: str, **options: Any) -> None:
        """`guidance_scale`, `image_guidance_scale`: at least 0. `negative_prompt`. `model`: only for records; a service
        has one. Others: see `HttpEditor`."""
        super().__init__(url, **options)
        self._takes: dict[str, Any] | None = None

    def _unnamed(self) -> str:
        return "EditThinker service"

    def describe(self) -> dict[str, str]:
        """What is worth knowing in a run's record."""
        fields = {"fields": ", ".join(sorted(self._takes))} if self._takes else {}
        return {"endpoint": self.host, "dialect": "editthinker", **fields}

    async def _probe(self) -> None:
        try:
            response = await self._http.call("GET", "/openapi.json", timeout=min(PROBE, self.timeout))
            self._takes = _edit_fields(read_json(self.host, response))
        except EndpointError as error:
            if error.status != 404 and error.kind != "garbage":
                raise
        if self._takes is None:
            raise EndpointError("denied", f"{self.host} names no POST /edit in its /openapi.json", "check the address")
        for option, value in self.settings.items():
            field = self._field(option)
            if field is None:
                raise EndpointError("denied", f"the service {self.host} has no {option}", "leave that option out")
            low, high = _limits(self._takes[field])
            if not isinstance(value, str) and not low <= value <= high:
                raise EndpointError(
                    "denied", f"the service {self.host} takes a {option} from {low:g} to {high:g}, not {value}",
                    "give one between",
                )  # fmt: skip

    def _field(self, option: str) -> str | None:
        return next((field for field in FIELDS[option] if field in (self._takes or {})), None)

    async def health(self) -> Health:
        """Its capacity is its number of GPUs: each does one edit at a time."""
        try:
            body = read_json(self.host, await self._http.call("GET", "/status", timeout=PROBE))
        except EndpointError as error:
            if error.status not in (404, 405):
                raise
            return Health(self.capacity, model=self.model)
        if body.get("system_ready") is False:
            raise EndpointError("busy", f"{self.host} is not ready", "wait until it has loaded its model")
        gpus, flying = body.get("total_gpus"), body.get("pending_tasks")
        said = gpus if type(gpus) is int and gpus > 0 else None
        return Health(self.capacity or said, flying if type(flying) is int else None, self.model)

    def _fit(self, source: Size) -> Fit:
        width, height = source
        shape = (min(width, round(RATIO * height)), min(height, round(RATIO * width)))
        return Fit.into(source, Fit.plan(shape, self.size, MULTIPLE).work)

    async def _call(self, request: EditRequest, pictures: list[bytes], fit: Fit, until: float) -> bytes | str:
        if len(pictures) > 1:
            raise EndpointError("rejected", f"{self.host} reads one image, the request has {len(pictures)}",
                                "leave out the rest")  # fmt: skip
        body: dict[str, Any] = {
            "image": base64.b64encode(pictures[0]).decode(), "prompt": request.prompt, "enhance_prompt": False,
        }  # fmt: skip
        if "seed" in (self._takes or {}):
            body["seed"] = request.seed
        body |= {str(self._field(option)): value for option, value in self.settings.items()}
        headers = {"Idempotency-Key": request.key} if request.key else {}
        response = await self._http.call("POST", "/edit", timeout=self._left(until), json=body, headers=headers)
        answer = read_json(self.host, response)
        if answer.get("success") is False:
            raise EndpointError("failed", f"{self.host} says that the edit failed", "look into the service's log")
        picture = answer.get("edited_image")
        if not isinstance(picture, str) or not picture:
            raise EndpointError("garbage", f"{self.host} sent no picture", "look into the service's log")
        return picture


def _edit_fields(openapi: dict[str, Any]) -> dict[str, Any] | None:
    """The properties of POST /edit's JSON body in an OpenAPI document, None where there is no such thing."""
    try:
        schema = openapi["paths"]["/edit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        fields = schema["properties"]
    except (KeyError, TypeError, AttributeError):
        return None
    return fields if isinstance(fields, dict) else None


def _limits(schema: Any) -> tuple[float, float]:
    """The least and the most that a number's schema allows; an optional one has a choice of schemas."""
    choices = schema.get("anyOf") if isinstance(schema, dict) else None
    choices = choices if isinstance(choices, list) else []
    found: list[Any] = [schema, *choices] if isinstance(schema, dict) else []
    parts = [part for part in found if isinstance(part, dict)]
    low = [part["minimum"] for part in parts if isinstance(part.get("minimum"), int | float)]
    high = [part["maximum"] for part in parts if isinstance(part.get("maximum"), int | float)]
    return max(low, default=float("-inf")), min(high, default=float("inf"))
