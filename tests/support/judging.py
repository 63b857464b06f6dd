"""What the tests of judges share: two pictures, and a reasoner that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Reward
from premeditate.trace import Verdict

from .pictures import picture
from .rewards import sample, score

A, B = picture(seed=1), picture(seed=2)
NAMES = ("success", "overedit")


class Fake:
    """Answers with `reply(request, its number within its kind)`, and remembers calls."""

    concurrent = False

    def __init__(self, reply: Callable[[ChatRequest], Any], prompts: str = "general") -> None:
        self.reply, self.prompts, self.name = reply, prompts, "fake"
        self.calls: list[list[ChatRequest]] = []

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.calls.append(list(requests))
        return [said if isinstance(said := self.reply(r), Completion) else Completion(said, tokens=3) for r in requests]


def pair(first: float, second: float) -> str:
    return json.dumps({"reasoning": "I looked", "score": [first, second]})


def fixed(semantic: Any, quality: Any) -> Fake:
    """One answer for each of the two questions."""
    return Fake(lambda r: semantic if len(r.images) == 2 else quality)


def one(judge: Reward, instruction: str = "do it", **meta: Any) -> Verdict:
    (verdict,) = score(judge, sample(A, B, instruction=instruction, **meta))
    return verdict
