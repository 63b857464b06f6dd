"""Editors and reasoners behind endpoints, as the engine sees them: one model, any number of addresses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from PIL import Image

from premeditate.editors.base import EditRequest, EditResult
from premeditate.engine.pool import Policy, Pool
from premeditate.engine.seat import Load
from premeditate.errors import ModelError
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.remote import Endpoint, EndpointError

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class _Pooled(Generic[Request, Answer]):
    """What both have in common. `concurrent` tells the engine not to gather batches: every request goes on its own."""

    concurrent = True
    steady = True

    def __init__(self, endpoints: Sequence[Endpoint[Request, Answer]], policy: Policy | None = None) -> None:
        self.pool: Pool[Request, Answer] = Pool(endpoints, policy, steady=self.steady)
        self._endpoints = list(endpoints)
        self._found = ""

    @property
    def name(self) -> str:
        """The model's; endpoints may know it only after `prepare`. From then on it stays: traces are found by it."""
        return self._found or self._endpoints[0].name

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that shape an answer; the endpoints of one model have the same."""
        return dict(getattr(self._endpoints[0], "recipe", {}))

    async def prepare(self) -> None:
        """Asks every endpoint how it is, and those that are up what they honour; the others are asked when they are
        back. Raises `EndpointError` where none is up, and `ModelError` where they serve different models."""
        await self.pool.prepare()
        up = self.pool.up()
        probed: list[Any] = [e for e in up if hasattr(e, "prepare")]
        found = await asyncio.gather(*(e.prepare() for e in probed), return_exceptions=True)
        bad = [error for error in found if isinstance(error, BaseException)]
        if bad and len(bad) == len(up):
            raise bad[0]
        names = sorted({e.name for e, error in zip(probed, found, strict=True) if error is None})
        if len(names) > 1:
            raise ModelError(f"the endpoints serve different models: {', '.join(names)}",
                             "give the addresses of one model, or run them one after the other")  # fmt: skip
        self._found = names[0] if names else self._found

    def describe(self) -> dict[str, str]:
        """What is worth knowing of the endpoints in a record, by name."""
        return {
            f"{getattr(e, 'host', e.name)} {key}": value
            for e in self._endpoints
            if hasattr(e, "describe")
            for key, value in e.describe().items()
        }

    def loads(self, role: str = "") -> list[Load]:
        return self.pool.loads(role)

    async def aclose(self) -> None:
        await self.pool.aclose()


class PooledEditor(_Pooled[EditRequest, EditResult]):
    """An `Editor` over endpoints that each carry out one edit per call."""

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        return list(await asyncio.gather(*map(self._one, requests)))

    def check(self, image: Image.Image) -> None:
        """Raises ValueError, with the mend, for a picture that the endpoints were not made for."""
        for endpoint in self._endpoints:
            if callable(check := getattr(endpoint, "check", None)):
                check(image)

    async def _one(self, request: EditRequest) -> EditResult:
        start = time.perf_counter()
        try:
            return await self.pool.submit(request)
        except EndpointError as error:
            return EditResult(None, time.perf_counter() - start, str(error))


class PooledReasoner(_Pooled[ChatRequest, Completion]):
    """A `Reasoner` over endpoints that each answer one chat per call."""

    steady = False

    def __init__(self, endpoints: Sequence[Any], policy: Policy | None = None) -> None:
        super().__init__(endpoints, policy)
        self.prompts: str = endpoints[0].prompts

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        return list(await asyncio.gather(*map(self._one, requests)))

    async def _one(self, request: ChatRequest) -> Completion:
        start = time.perf_counter()
        try:
            return await self.pool.submit(request)
        except EndpointError as error:
            return Completion(seconds=time.perf_counter() - start, error=str(error))


def pooled(model: Any, policy: Policy | None = None) -> Any:
    """`model` itself, or a pool over it where it is an endpoint, or a list of endpoints."""
    endpoints = list(model) if isinstance(model, (list, tuple)) else [model]
    if not endpoints or not all(hasattr(e, "send") and hasattr(e, "health") for e in endpoints):
        return model
    return (PooledReasoner if hasattr(endpoints[0], "chat") else PooledEditor)(endpoints, policy)
