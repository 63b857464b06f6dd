"""Any function as an editor: `fn(image, prompt, seed) -> image`, plain or async."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from PIL import Image

from premeditate.editors.base import EditRequest, EditResult
from premeditate.local import Function

EditFunction = Callable[..., Image.Image | Awaitable[Image.Image]]


class CallableEditor:
    """Calls `fn(image, prompt)`; a third parameter (or one named `seed`) gets the seed, one named `images` all sources.

    A plain function runs in one worker thread, call after call; of an async one, up to `capacity` calls run at a time.
    An exception, or an answer that is no image, becomes that request's `error`. The answer is brought to the size of
    its source.
    """

    def __init__(self, fn: EditFunction, *, name: str | None = None, capacity: int = 64) -> None:
        self._function = Function(fn, "CallableEditor", name=name, capacity=capacity)
        self.name, self.concurrent = self._function.name, self._function.is_async
        parameters = inspect.signature(fn).parameters
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p.name for p in parameters.values() if p.kind in by_place]
        self._keywords = {"seed", "images"} & (set(parameters) - set(positional[:2]))
        self._third = len(positional) > 2 and positional[2] not in self._keywords

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _call(self, request: EditRequest) -> Any:
        values = {"seed": request.seed, "images": request.images}
        third = (request.seed,) if self._third else ()
        return await self._function(request.images[0], request.prompt, *third, **{k: values[k] for k in self._keywords})

    async def _one(self, request: EditRequest) -> EditResult:
        start = time.perf_counter()
        try:
            image = await self._call(request)
            if not isinstance(image, Image.Image):
                raise TypeError(f"{self.name} returned {type(image).__name__}, not a PIL image")
            image = image.convert("RGB")
            if image.size != request.images[0].size:
                image = image.resize(request.images[0].size, Image.Resampling.LANCZOS)
        except Exception as error:
            return EditResult(None, time.perf_counter() - start, f"{type(error).__name__}: {error}")
        return EditResult(image, time.perf_counter() - start)
