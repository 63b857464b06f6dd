"""What a reward server and its client say to each other, as JSON. `docs/reward-models.md` shows it by example.

    GET  /health  -> About
    POST /score   Ask -> Told        with Idempotency-Key: sent again, it is answered again and scored once;
                                     with Premeditate-Return: SECONDS within which it is sent again if it is broken off

Pictures are PNG, JPEG, WebP and the others that `premeditate.images` reads, in base64 or as files of a form; never
addresses. Nothing is pickled.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

from premeditate.trace import Answer, Checklist, ChecklistItem, Verdict

PROTOCOL = 1
"""Raised where an old client would misread a new server, or the other way round."""
KEY = "PREMEDITATE_REWARD_KEY"
"""The environment variable with the bearer key, of server and client."""
RETURN = "Premeditate-Return"
"""The header of a request with an Idempotency-Key: seconds after which its client, once it has left, will not come
again. What nobody will come for is not scored."""
GRACE = 30.0
"""`RETURN` of a request that does not say: time for a pause, a connection and the body's way."""
Picture = Annotated[StrictInt, Field(ge=0)] | StrictStr
"""An index into the request's pictures, or the picture itself in base64."""


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AskedSample(_Sent):
    """A `premeditate.rewards.base.Sample`. `id`, `meta`: the task's."""

    source: Picture
    edit: Picture
    instruction: str
    id: str = Field("", max_length=1000)
    group: str = Field("", max_length=1000)
    meta: dict[str, Any] = {}
    checklist: Checklist | None = None


class Ask(_Sent):
    """`images`: base64, each once however many samples show it. A form has them as its files instead, in order."""

    samples: tuple[AskedSample, ...] = Field(min_length=1)
    images: tuple[StrictStr, ...] = ()


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer server may say more


_PARTS: dict[str, type[BaseModel]] = {"answers": Answer, "item": ChecklistItem}


def _known(model: type[BaseModel], told: Any) -> Any:
    """`told` without the fields that only a newer server knows. Records of traces refuse those, but they are no traces
    here."""
    if isinstance(told, list | tuple):
        return [_known(model, one) for one in told]
    if not isinstance(told, dict):
        return told
    return {
        name: _known(_PARTS[name], value) if name in _PARTS else value
        for name, value in told.items()
        if name in model.model_fields
    }


class Told(_Read):
    """One verdict per sample, in order; a dimension without a score is absent. `dimensions`: those that there are."""

    dimensions: tuple[str, ...]
    results: Annotated[tuple[Verdict, ...], BeforeValidator(partial(_known, Verdict))]


class About(_Read):
    """What a server scores. `rewards`: each one's dimensions. `items`, `bytes`: of one request, at most. `capacity`:
    requests that it works on at a time."""

    protocol: int
    name: str = Field(min_length=1)
    dimensions: tuple[str, ...] = Field(min_length=1)
    rewards: dict[str, tuple[str, ...]] = {}
    groupwise: bool = False
    items: int = Field(ge=1)
    bytes: int = Field(ge=1)
    capacity: int = Field(1, ge=1)
    in_flight: int = Field(0, ge=0)
