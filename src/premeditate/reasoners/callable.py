"""Any function as a reasoner: `fn(request) -> text`, `{label: probability}` or `Completion`, plain or async."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from premeditate.local import Function
from premeditate.reasoners.base import ChatRequest, Completion


class CallableReasoner:
    """Calls `fn(request)` for every `ChatRequest`.

    For a request with `labels`, `fn` returns a mapping from label to a weight >= 0 (normalised here), or the text of
    one label, which then has probability 1. A plain function runs in one worker thread, call after call; of an async
    one, up to `capacity` calls run at a time. An exception or an answer of another kind becomes that request's `error`.
    """

    def __init__(
        self, fn: Callable[[ChatRequest], Any], *, name: str | None = None, prompts: str = "general", capacity: int = 64
    ) -> None:
        self._function = Function(fn, "CallableReasoner", name=name, capacity=capacity)
        self.name, self.concurrent = self._function.name, self._function.is_async
        self.prompts = prompts

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: ChatRequest) -> Completion:
        start = time.perf_counter()
        try:
            completion = self._read(request, await self._function(request))
        except Exception as error:
            completion = Completion(error=f"{type(error).__name__}: {error}")
        return replace(completion, seconds=completion.seconds or time.perf_counter() - start)

    def _read(self, request: ChatRequest, answer: Any) -> Completion:
        if isinstance(answer, Completion):
            return answer
        if isinstance(answer, str) and not request.labels:
            return Completion(text=answer)
        if isinstance(answer, str):
            chosen = [label for label in request.labels if label.lower() == answer.strip().rstrip(".!").lower()]
            if not chosen:
                raise ValueError(f"{self.name} answered {answer[:80]!r}, which is none of {', '.join(request.labels)}")
            answer = {chosen[0]: 1.0}
        if isinstance(answer, dict) and request.labels:
            weights = {label: float(answer.get(label, 0.0)) for label in request.labels}
            total = sum(weights.values())
            if set(answer) - set(weights) or not math.isfinite(total) or total <= 0 or min(weights.values()) < 0:
                raise ValueError(f"{self.name} gave {answer!r} as weights of {', '.join(request.labels)}")
            return Completion(probabilities={label: weight / total for label, weight in weights.items()})
        raise TypeError(f"{self.name} returned {type(answer).__name__}; return text, label weights or a Completion")
