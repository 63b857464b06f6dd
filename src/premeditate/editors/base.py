"""The Editor protocol: batch of requests in, batch of results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class EditRequest:
    """`images`: one or more RGB sources (the first is edited). `prompt`: what to do. `seed`: makes the result exact.
    `key`: names this edit, so that an endpoint asked for it twice (after a lost connection) makes it once; "": none."""

    images: tuple[Image.Image, ...]
    prompt: str
    seed: int = 0
    key: str = ""


@dataclass(frozen=True)
class EditResult:
    """`image` has the size of the request's first image and is None exactly where `error` says why."""

    image: Image.Image | None
    seconds: float = 0.0
    error: str | None = None


@runtime_checkable
class Editor(Protocol):
    """Anything that edits. A request that fails becomes a result with `error`; the others of its batch go on."""

    @property
    def name(self) -> str: ...
    async def edit(self, requests: Sequence[EditRequest]) -> Sequence[EditResult]: ...
